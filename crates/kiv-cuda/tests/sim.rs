//! The simulated device: the order that it keeps, the time that it takes, and that it does
//! what kernels do.

mod tasks;

use kiv_cuda::sim::{Call, SimConfig, SimDevice};
use kiv_cuda::work::WorkError;
use kiv_cuda::{Device, DeviceError, Memory};
use kiv_fastscan::{GROUP, Isa, Lut, pack, scan_many, top_k};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use tasks::{Bench, floats, run_all};

fn sim() -> SimDevice {
    SimDevice::new(SimConfig::default())
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn what_waits_sees_what_came_before() {
    let mut d = sim();
    let (swap, compute) = (d.stream(true).unwrap(), d.stream(false).unwrap());
    let buffer = d.alloc(Memory::Device, 64).unwrap();
    for round in 0..3u8 {
        d.upload(swap, buffer.at(0), &[round; 64]).unwrap();
        let there = d.record(swap).unwrap();
        d.wait(compute, &there).unwrap();
        let seen = d.compute(compute, &[(buffer.at(16), 8)], MS).unwrap();
        let read = d.record(compute).unwrap();
        d.wait(swap, &read).unwrap();
        assert_eq!(d.seen(seen), &[] as &[u8], "nothing runs before it has to");
        d.sync(&read).unwrap();
        assert_eq!(d.seen(seen), &[round; 8]);
    }
    assert_eq!(d.races(), []);
}

#[test]
fn what_does_not_wait_sees_old_bytes_and_is_told_of() {
    let mut d = sim();
    let (swap, compute) = (d.stream(true).unwrap(), d.stream(false).unwrap());
    let buffer = d.alloc(Memory::Device, 64).unwrap();
    d.upload(swap, buffer.at(0), &[1; 64]).unwrap();
    let first = d.record(swap).unwrap();
    d.sync(&first).unwrap();
    d.upload(swap, buffer.at(0), &[2; 32]).unwrap();
    // These bytes are in no race.
    d.compute(compute, &[(buffer.at(32), 32)], MS).unwrap();
    assert_eq!(d.races(), []);
    let seen = d.compute(compute, &[(buffer.at(24), 16)], MS).unwrap();
    let end = d.record(compute).unwrap();
    d.sync(&end).unwrap();
    assert_eq!(
        d.seen(seen),
        &[1; 16],
        "the second upload has not been waited for"
    );
    assert_eq!(d.races().len(), 1);
    assert_eq!(d.races()[0].writes, [true, false]);
    // Overwriting what another stream still reads is one, too.
    d.compute(compute, &[(buffer.at(0), 4)], MS).unwrap();
    d.upload(swap, buffer.at(0), &[3; 4]).unwrap();
    assert_eq!(d.races().last().unwrap().writes, [false, true]);
}

#[test]
fn transfers_overlap_with_computing_and_not_with_each_other() {
    let config = SimConfig {
        bus: 1e9,
        memory: 1e18,
        call: Duration::ZERO,
        kernel: Duration::ZERO,
        ..SimConfig::default()
    };
    let mut d = SimDevice::new(config);
    let streams = [0, 1, 2].map(|_| d.stream(true).unwrap());
    let from = d.alloc(Memory::Pinned, 2_000_000).unwrap();
    let to = d.alloc(Memory::Device, 2_000_000).unwrap();
    let begin = d.record(streams[0]).unwrap();
    d.compute(streams[2], &[], 3 * MS).unwrap();
    for (i, stream) in streams[..2].iter().enumerate() {
        let at = i * 1_000_000;
        d.copy(*stream, from.at(at), to.at(at), 1_000_000).unwrap();
    }
    let ends = streams.map(|s| d.record(s).unwrap());
    let times: Vec<Duration> = ends.iter().map(|e| d.between(&begin, e).unwrap()).collect();
    assert_eq!(times, [MS, 2 * MS, 3 * MS]);
    assert!(!d.is_done(&ends[0]).unwrap());
    d.pass(MS);
    assert!(d.is_done(&ends[0]).unwrap() && !d.is_done(&ends[1]).unwrap());
    d.sync(&ends[2]).unwrap();
    assert_eq!(d.now(), 3 * MS);
    assert_eq!(d.between(&ends[2], &begin).unwrap(), Duration::ZERO);
}

#[test]
fn a_write_waits_for_who_still_reads() {
    let mut d = sim();
    let stream = d.stream(true).unwrap();
    let from = d.alloc(Memory::Pinned, 8).unwrap();
    let to = d.alloc(Memory::Device, 8).unwrap();
    d.write(from.at(0), &[1; 8]).unwrap();
    d.compute(stream, &[], 5 * MS).unwrap();
    d.copy(stream, from.at(0), to.at(0), 8).unwrap();
    d.write(from.at(0), &[2; 8]).unwrap();
    assert!(d.now() >= 5 * MS);
    let mut out = [0; 8];
    d.read(stream, to.at(0), &mut out).unwrap();
    assert_eq!((out, d.races().len()), ([1; 8], 0));
}

#[test]
fn memory_ends_and_calls_fail_when_asked_to() {
    let config = SimConfig {
        device_bytes: 100,
        pinned_bytes: 50,
        ..SimConfig::default()
    };
    let mut d = SimDevice::new(config);
    let first = d.alloc(Memory::Device, 80).unwrap();
    let no = DeviceError::OutOfMemory {
        memory: Memory::Device,
        bytes: 21,
    };
    assert_eq!(d.alloc(Memory::Device, 21), Err(no));
    d.free(first).unwrap();
    let again = d.alloc(Memory::Device, 100).unwrap();
    assert_eq!(d.free(first), Err(WorkError::NoBuffer(first).into()));
    assert_eq!((d.used(Memory::Device), d.used(Memory::Pinned)), (100, 0));
    d.breaks(Call::Pinned, 1);
    d.alloc(Memory::Pinned, 10).unwrap();
    assert!(d.alloc(Memory::Pinned, 10).is_err() && d.alloc(Memory::Pinned, 10).is_err());
    d.repair();
    d.alloc(Memory::Pinned, 10).unwrap();
    let stream = d.stream(false).unwrap();
    d.breaks(Call::Transfer, 0);
    assert!(matches!(
        d.upload(stream, again.at(0), &[0]),
        Err(DeviceError::Failed(_))
    ));
    d.upload(stream, again.at(0), &[0]).unwrap();
    assert!(matches!(
        d.upload(stream, again.at(100), &[0]),
        Err(DeviceError::Work(_))
    ));
}

/// Scans against kiv-fastscan, which knows nothing of this crate; scatter and products are
/// the references' own, and the same twice.
#[test]
fn tasks_are_done_as_the_references_say() {
    let mut d = sim();
    let outcomes = run_all(&mut d).unwrap();
    assert_eq!(d.races(), []);
    let again = run_all(&mut sim()).unwrap();
    assert!(outcomes.len() > 30);
    for (a, b) in outcomes.iter().zip(&again) {
        assert!(a.name == b.name && a.bytes == b.bytes, "{}", a.name);
    }

    let (m, n_groups, n_queries, k) = (32, 40, 3, 20);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let codes: Vec<u8> = (0..m * n_groups * GROUP)
        .map(|_| rng.random_range(0..16))
        .collect();
    let mut packed = Vec::new();
    pack(&codes, m, &mut packed);
    let luts: Vec<Lut> = (0..n_queries)
        .map(|_| {
            let mut lut = Lut::new(m);
            lut.quantize(&floats(&mut rng, 16 * m)).expect("finite");
            lut
        })
        .collect();
    let entries =
        |lut: &Lut| -> Vec<u8> { (0..16 * m).map(|i| lut.entry(i / 16, i % 16)).collect() };
    let tables: Vec<u8> = luts.iter().flat_map(entries).collect();
    let mut bench = Bench::new(&mut d, 3).unwrap();
    let [sums, best, names] = bench.scan((&packed, m), None, &tables, (256, k)).unwrap();
    let mut want = vec![0; n_queries * n_groups * GROUP];
    scan_many(Isa::detect(), &luts, &packed, &mut want);
    let bytes = |v: &[u16]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(sums, bytes(&want));
    for (q, of_query) in want.chunks(n_groups * GROUP).enumerate() {
        let mut places = Vec::new();
        top_k(Isa::detect(), of_query, k, &mut places);
        let scores: Vec<u16> = places.iter().map(|p| of_query[*p as usize]).collect();
        assert_eq!(best[2 * k * q..][..2 * k], bytes(&scores));
        let named: Vec<u8> = places.iter().flat_map(|p| p.to_le_bytes()).collect();
        assert_eq!(names[4 * k * q..][..4 * k], named);
    }
}
