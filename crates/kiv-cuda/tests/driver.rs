//! What is asked of CUDA's driver: under a driver without a GPU (`emulated/libcuda.cpp`),
//! which runs the kernels' own sources, blocks, threads and barriers as they are launched.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[macro_use]
mod emulated;
mod searches;
mod tasks;

use kiv_cuda::search::{DeviceFinder, FinderConfig};
use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::work::WorkError;
use kiv_cuda::{Absent, CudaDevice, Device, DeviceError, Memory, open_or_say};
use kiv_index::{Effort, Params};
use searches::{Kind, Layer, Step, compare, params};
use std::process::Command;
use std::time::Duration;
use tasks::{Bench, run_all};

emulated! {
    kernels_do_what_the_references_say, inner_parity, [];
    they_do_without_page_locked_memory, inner_parity, [("EMULATED_PINNED", "0")];
    they_do_with_little_of_it, inner_parity, [("EMULATED_PINNED", "400000")];
    indices_are_searched_as_on_the_cpu, inner_search, [];
    an_index_of_its_real_size_is_searched_as_on_the_cpu, inner_large_search, [];
    indices_are_without_page_locked_memory, inner_search, [("EMULATED_PINNED", "0")];
    memory_is_kept_until_it_is_read, inner_memory, [];
    memory_ends, inner_memory_ends, [("EMULATED_PINNED", "300000")];
    streams_wait_for_events, inner_events, [];
    foreign_memory_is_lent, inner_foreign, [];
    a_device_moves_between_threads, inner_threads, [];
    no_gpu_is_told, inner_no_gpu, [("EMULATED_FAULT", "no-device")];
    an_old_driver_is_told, inner_old, [("EMULATED_FAULT", "old")];
}

/// Whatever library is where the driver should be: this machine's, if it has one.
#[test]
fn a_machine_without_a_driver_is_told() {
    let known = Command::new("ldconfig")
        .arg("-p")
        .output()
        .map(|o| o.stdout);
    let known = String::from_utf8_lossy(&known.unwrap_or_default()).into_owned();
    if known.contains("libcuda.so") {
        assert_ne!(open_or_say(0).err(), Some(Absent::NoDriver));
        return;
    }
    let absent = open_or_say(0).unwrap_err();
    assert_eq!(absent, Absent::NoDriver);
    let line = "CUDA: built in, but no driver (libcuda.so.1) was found; kiv goes on on the CPU";
    assert_eq!(absent.to_string(), line);
}

fn open() -> CudaDevice {
    open_or_say(0).expect("the emulated GPU")
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_parity() {
    let mut device = open();
    assert_eq!(device.name(), "emulated GPU");
    let mut sim = SimDevice::new(SimConfig {
        pinned_bytes: usize::MAX,
        ..SimConfig::default()
    });
    let (wanted, got) = (run_all(&mut sim).unwrap(), run_all(&mut device).unwrap());
    assert_eq!(wanted.len(), got.len());
    for (wanted, got) in wanted.iter().zip(&got) {
        assert!(
            wanted.name == got.name && wanted.bytes == got.bytes,
            "{}",
            got.name
        );
    }
}

/// Eras, newest keys alone with and without a sample, and both; several heads and queries.
#[test]
#[ignore = "under the emulated driver"]
fn inner_search() {
    let config = FinderConfig {
        max_bytes: usize::MAX,
        warn: |what| panic!("{what}"),
    };
    // With efforts that leave lists out, open some later, and tell less than a sample bounds.
    let many = [(48, 20), (16, 60), (100, 60), (20, 12)];
    // And groups that fill a pack of 4 queries, or a second one in part.
    for (dim, n_heads, group, efforts) in [
        (16, 1, 2, &many[..]),
        (16, 2, 5, &[(48, 20)]),
        (64, 2, 1, &[(128, 64)]),
        (144, 1, 3, &[(60, 400)]),
    ] {
        let mut finder = DeviceFinder::new(open(), config).unwrap();
        assert!(finder.device_mut().free_memory().unwrap() > 0);
        for kind in [Kind::Usual, Kind::Alike, Kind::Coarse] {
            let mut layer = Layer::new(&params(dim), n_heads, kind, 3);
            for step in [
                Step::Append(100),
                Step::Append(190),
                Step::Work(true),
                Step::Append(300),
                Step::Reopen,
                Step::Copy,
                Step::Cut(700),
                Step::Append(150),
            ] {
                layer.step(step);
                for (i, (probed, kept)) in efforts.iter().copied().enumerate() {
                    let effort = Effort { probed, kept };
                    let served = compare(&mut finder, 0, &mut layer, group, effort);
                    assert!(kind != Kind::Usual || i > 0 || served == n_heads);
                }
            }
        }
    }
}

/// More scores than one block chooses among: an era of 65,536 keys, and 20,000 after it.
/// (With other seeds a search may be cut in a tie, and is left to the CPU.)
#[test]
#[ignore = "under the emulated driver"]
fn inner_large_search() {
    let config = FinderConfig {
        max_bytes: usize::MAX,
        warn: |what| panic!("{what}"),
    };
    let mut finder = DeviceFinder::new(open(), config).unwrap();
    let mut layer = Layer::new(&Params::new(64, 0.125), 1, Kind::Plain, 10);
    for (n, effort) in [
        (9000, (10_240, 1024)),
        (77_000, (10_240, 1024)),
        (0, (512, 8192)),
    ] {
        layer.step(Step::Append(n));
        let effort = Effort {
            probed: effort.0,
            kept: effort.1,
        };
        let served = compare(&mut finder, 0, &mut layer, 2, effort);
        assert_eq!(served, 1, "{} keys, {effort:?}", layer.heads[0].len());
    }
    assert_eq!(layer.heads[0].n_eras(), 1);
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_memory() {
    let mut d = open();
    let stream = d.stream(true).unwrap();
    // Larger than what is uploaded at a time, and never done before it must be.
    let long: Vec<u8> = (0..5_000_000).map(|i| (i * 7 % 251) as u8).collect();
    let to = d.alloc(Memory::Device, long.len() + 3).unwrap();
    d.upload(stream, to.at(3), &long).unwrap();
    // More small ones than there are passages.
    let small = d.alloc(Memory::Device, 200).unwrap();
    for i in 0..200u8 {
        d.upload(stream, small.at(i.into()), &[i]).unwrap();
    }
    let mut out = vec![0; long.len()];
    d.read(stream, to.at(3), &mut out).unwrap();
    assert!(out == long);
    let mut out = [0; 200];
    d.read(stream, small.at(0), &mut out).unwrap();
    assert!(out.iter().zip(0u8..).all(|(got, i)| *got == i));
    // The host overwrites what a copy has read, and not before.
    let (other, pinned) = (
        d.stream(false).unwrap(),
        d.alloc(Memory::Pinned, 64).unwrap(),
    );
    for (round, stream) in [(1, stream), (2, other), (3, stream)] {
        d.write(pinned.at(8), &[round; 8]).unwrap();
        assert_eq!(d.pinned(pinned.at(8), 8).unwrap(), [round; 8]);
        d.copy(stream, pinned.at(8), small.at(usize::from(round) * 8), 8)
            .unwrap();
    }
    d.write(pinned.at(0), &[9; 64]).unwrap();
    for stream in [stream, other] {
        let mut out = [0; 24];
        d.read(stream, small.at(8), &mut out).unwrap();
        assert_eq!(out, [[1; 8], [2; 8], [3; 8]].concat()[..]);
    }
    d.copy(stream, small.at(8), to.at(0), 24).unwrap();
    d.free(small).unwrap();
    let mut out = [0; 24];
    d.read(stream, to.at(0), &mut out).unwrap();
    assert_eq!(out[8..16], [2; 8]);
    let mut out = [0; 4];
    d.read(stream, pinned.at(60), &mut out).unwrap();
    assert_eq!(out, [9; 4]);
    // Nothing outside.
    assert_eq!(d.free(small), Err(WorkError::NoBuffer(small).into()));
    for at in [small.at(0), to.at(long.len())] {
        assert!(matches!(
            d.upload(stream, at, &[0; 4]),
            Err(DeviceError::Work(_))
        ));
        assert!(matches!(
            d.read(stream, at, &mut [0; 4]),
            Err(DeviceError::Work(_))
        ));
        assert!(matches!(
            d.copy(stream, at, to.at(0), 4),
            Err(DeviceError::Work(_))
        ));
    }
    let wrong = WorkError::WrongMemory(pinned);
    assert_eq!(
        d.upload(stream, pinned.at(0), &[0]),
        Err(wrong.clone().into())
    );
    assert_eq!(d.copy(stream, to.at(0), pinned.at(0), 1), Err(wrong.into()));
    assert_eq!(
        d.write(to.at(0), &[0]),
        Err(WorkError::WrongMemory(to).into())
    );
    assert_eq!(
        d.pinned(to.at(0), 1),
        Err(WorkError::WrongMemory(to).into())
    );
    // What is left is given back with the device, whatever is under way.
    d.upload(stream, to.at(0), &long).unwrap();
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_memory_ends() {
    let mut d = open();
    let stream = d.stream(true).unwrap();
    let first = d.alloc(Memory::Pinned, 250_000).unwrap();
    let refused = DeviceError::OutOfMemory {
        memory: Memory::Pinned,
        bytes: 100_000,
    };
    assert_eq!(d.alloc(Memory::Pinned, 100_000), Err(refused));
    // Uploads do without.
    let to = d.alloc(Memory::Device, 300_000).unwrap();
    d.upload(stream, to.at(0), &[7; 300_000]).unwrap();
    let mut out = vec![0; 300_000];
    d.read(stream, to.at(0), &mut out).unwrap();
    assert!(out.iter().all(|b| *b == 7));
    d.free(first).unwrap();
    d.alloc(Memory::Pinned, 100_000).unwrap();
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_events() {
    let mut d = open();
    let (a, b) = (d.stream(true).unwrap(), d.stream(false).unwrap());
    let buffer = d.alloc(Memory::Device, 4).unwrap();
    d.upload(a, buffer.at(0), &[1; 4]).unwrap();
    let there = d.record(a).unwrap();
    assert!(
        !d.is_done(&there).unwrap(),
        "streams run as late as they can"
    );
    d.wait(b, &there).unwrap();
    let mut out = [0; 4];
    d.read(b, buffer.at(0), &mut out).unwrap();
    assert_eq!(out, [1; 4]);
    assert!(d.is_done(&there).unwrap());
    let later = d.record(a).unwrap();
    assert!(
        d.between(&there, &later).is_err(),
        "it has not been reached"
    );
    d.sync(&later).unwrap();
    assert!(d.between(&there, &later).unwrap() > Duration::ZERO);
    assert_eq!(d.between(&later, &there).unwrap(), Duration::ZERO);
    // An event may go before it is reached, and a device before its events.
    drop(d.record(a).unwrap());
    let last = d.record(b).unwrap();
    drop(d);
    drop(last);
}

/// Memory and a stream that are somebody else's, as those of ggml are.
#[test]
#[ignore = "under the emulated driver"]
#[allow(unsafe_code)]
fn inner_foreign() {
    use cudarc::driver::result::{self, stream::StreamKind};
    // It keeps the context, as ggml would.
    let owner = open();
    let mut d = open();
    // SAFETY: the context is current; this is given back before it goes.
    let address = unsafe { result::malloc_sync(4096) }.unwrap();
    let raw = result::stream::create_with_priority(StreamKind::NonBlocking, 0).unwrap();
    // SAFETY: both are there until the device has been dropped.
    let (odd, first, again, stream) = unsafe {
        let stream = d.adopt_stream(raw.cast());
        let [odd, first, again] = [8, 16, 32].map(|at| d.adopt(address + at, 4000));
        (odd, first.unwrap(), again.unwrap(), stream)
    };
    assert!(matches!(
        odd,
        Err(DeviceError::Work(WorkError::Unsupported(_)))
    ));
    let bytes: Vec<u8> = (0..4000).map(|i| (i % 251) as u8).collect();
    d.upload(stream, first.at(0), &bytes).unwrap();
    assert!(d.upload(stream, first.at(3999), &[5; 2]).is_err());
    d.free(first).unwrap();
    // The memory is still there.
    let mut out = [0; 100];
    d.read(stream, again.at(0), &mut out).unwrap();
    assert_eq!(out, bytes[16..116]);
    drop(d);
    // SAFETY: they were made above, and nothing uses them any more.
    unsafe {
        result::stream::destroy(raw).unwrap();
        result::free_sync(address).unwrap();
    }
    drop(owner);
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_threads() {
    let mut d = open();
    let moved = std::thread::spawn(move || {
        let bench = &mut Bench::new(&mut d, 1).unwrap();
        let buffer = bench.place(&[3; 100]).unwrap();
        assert_eq!(bench.fetch(buffer.at(1), 99).unwrap(), [3; 99]);
        d
    });
    drop(moved.join().unwrap());
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_no_gpu() {
    let absent = open_or_say(0).unwrap_err();
    assert_eq!(absent, Absent::NoDevice { ordinal: 0 });
    let line = "CUDA: the driver finds no GPU number 0; kiv goes on on the CPU";
    assert_eq!(absent.to_string(), line);
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_old() {
    let absent = open_or_say(0).unwrap_err();
    assert_eq!(absent, Absent::OldDriver { driver: 10020 });
    let line = "CUDA: the driver (CUDA 10.2) is older than the kernels, which are of CUDA 11.0: \
                install a newer one; blocks are copied without it";
    assert_eq!(absent.to_string(), line);
    assert_eq!(open_or_say(7).unwrap_err(), Absent::NoDevice { ordinal: 7 });
}
