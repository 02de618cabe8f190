//! Every kernel on a GPU against its reference, bit by bit, and swaps of a few tokens.
//!
//! ```sh
//! cargo test --release -p kiv-cuda --features cuda --test gpu -- --ignored --nocapture
//! ```
#![cfg(feature = "cuda")]

mod searches;
mod tasks;

use kiv_cuda::search::{DeviceFinder, FinderConfig};
use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::{Device, open_or_say};
use kiv_index::{Effort, Params};
use searches::{Kind, Layer, Step, compare, params};
use tasks::run_all;

#[test]
#[ignore = "needs a GPU: scripts/gpu-check"]
fn kernels_do_what_the_references_say() {
    let mut gpu = open_or_say(0).unwrap_or_else(|absent| panic!("{absent}"));
    println!("{}", gpu.name());
    let wanted = run_all(&mut SimDevice::new(SimConfig::default())).expect("references run");
    let got = run_all(&mut gpu).expect("kernels run");
    assert_eq!(wanted.len(), got.len());
    let mut n_wrong = 0;
    for (wanted, got) in wanted.iter().zip(&got) {
        assert_eq!(wanted.name, got.name);
        let pairs = wanted.bytes.iter().zip(&got.bytes);
        let first = pairs.clone().position(|(a, b)| a != b);
        let result = match first {
            None if wanted.bytes.len() == got.bytes.len() => "same".to_owned(),
            None => format!("{} bytes for {}", got.bytes.len(), wanted.bytes.len()),
            Some(at) => {
                let n = pairs.filter(|(a, b)| a != b).count();
                format!("DIFFERS in {n} of {} bytes, first at {at}", got.bytes.len())
            }
        };
        n_wrong += usize::from(result != "same");
        println!("{:<70} {result}", wanted.name);
    }
    assert_eq!(n_wrong, 0, "results that are not the references'");
}

/// Small eras with a history, and one of real size with newest keys after it.
#[test]
#[ignore = "needs a GPU: scripts/gpu-check"]
fn the_index_finds_what_the_cpu_finds() {
    let gpu = open_or_say(0).unwrap_or_else(|absent| panic!("{absent}"));
    let config = FinderConfig {
        max_bytes: usize::MAX,
        warn: |what| panic!("{what}"),
    };
    let mut finder = DeviceFinder::new(gpu, config).expect("a stream");
    let small = Effort {
        probed: 48,
        kept: 20,
    };
    for (dim, kind) in [
        (16, Kind::Usual),
        (64, Kind::Alike),
        (128, Kind::Usual),
        (144, Kind::Coarse),
    ] {
        let mut layer = Layer::new(&params(dim), 3, kind, 1);
        layer.has_zeros = true;
        for step in [
            Step::Append(300),
            Step::Append(200),
            Step::Work(true),
            Step::Reopen,
            Step::Cut(600),
            Step::Append(500),
            Step::Copy,
            Step::Cut(900),
        ] {
            layer.step(step);
            let served = compare(&mut finder, 0, &mut layer, 3, small);
            println!("{kind:?}, keys of {dim}, {step:?}: {served} of 3 heads, the same");
        }
    }
    let mut layer = Layer::new(&Params::new(64, 0.125), 1, Kind::Plain, 9);
    layer.step(Step::Append(86_000));
    let decode = Effort {
        probed: 10_240,
        kept: 1024,
    };
    assert_eq!(compare(&mut finder, 1, &mut layer, 4, decode), 1);
    println!("86000 keys of 64: the same");
}
