//! Every kernel on a GPU against its reference, bit by bit, and swaps of a few tokens.
//!
//! ```sh
//! cargo test --release -p kiv-cuda --features cuda --test gpu -- --ignored --nocapture
//! ```
#![cfg(feature = "cuda")]

mod tasks;

use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::{Device, open_or_say};
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
