//! The index searched on a simulated device, whose copy follows it: random histories, memory
//! that runs out, and calls that fail.

mod searches;

use kiv_cuda::Memory;
use kiv_cuda::search::{DeviceFinder, FinderConfig};
use kiv_cuda::sim::{Call, SimConfig, SimDevice};
use kiv_index::{Effort, Finder};
use proptest::prelude::*;
use searches::{Kind, Layer, Step, compare, params};
use std::cell::Cell;

fn finder(max_bytes: usize) -> DeviceFinder<SimDevice> {
    let device = SimDevice::new(SimConfig::default());
    let config = FinderConfig {
        max_bytes,
        warn: |_| WARNINGS.set(WARNINGS.get() + 1),
    };
    DeviceFinder::new(device, config).unwrap()
}

thread_local! {
    static WARNINGS: Cell<usize> = const { Cell::new(0) };
}

const SMALL: Effort = Effort {
    probed: 48,
    kept: 20,
};

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1usize..90).prop_map(Step::Append),
        2 => (100usize..400).prop_map(Step::Append),
        2 => (0usize..1000).prop_map(Step::Cut),
        1 => Just(Step::Reopen),
        1 => any::<bool>().prop_map(Step::Work),
        1 => Just(Step::Copy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever happens to indices, a device finds in its copies what the CPU finds in them.
    #[test]
    fn copies_follow_and_find_the_same(
        steps in prop::collection::vec(step(), 1..14),
        kind in prop_oneof![
            3 => Just(Kind::Usual),
            1 => Just(Kind::Plain),
            1 => Just(Kind::Alike),
            1 => Just(Kind::Coarse),
        ],
        dim in prop_oneof![3 => Just(16usize), 1 => Just(48), 1 => Just(144)],
        n_heads in 1usize..4,
        group in 1usize..4,
        efforts in prop::collection::vec((prop_oneof![1usize..200, 200usize..2000], 1usize..120), 1..3),
        seed in any::<u64>(),
    ) {
        let mut finder = finder(usize::MAX);
        let mut layer = Layer::new(&params(dim), n_heads, kind, seed);
        layer.has_zeros = true;
        for step in steps {
            layer.step(step);
            for (probed, kept) in &efforts {
                let effort = Effort { probed: *probed, kept: *kept };
                compare(&mut finder, 0, &mut layer, group, effort);
            }
        }
        let device = finder.into_device().unwrap();
        prop_assert!(device.races().is_empty());
        prop_assert_eq!(device.used(Memory::Device), 0);
    }
}

/// What is served at all, so that comparisons compare something.
#[test]
fn nothing_but_degenerate_lists_is_left_to_the_cpu() {
    for (kind, least) in [(Kind::Usual, 1.0), (Kind::Coarse, 1.0), (Kind::Alike, 0.1)] {
        let mut finder = finder(usize::MAX);
        let mut layer = Layer::new(&params(16), 2, kind, 5);
        let (mut served, mut all) = (0, 0);
        for _ in 0..40 {
            layer.step(Step::Append(32));
            served += compare(&mut finder, 0, &mut layer, 2, SMALL);
            all += 2;
        }
        assert!(layer.heads[0].n_eras() > 3);
        assert_eq!(finder.searches(), served as u64);
        let share = served as f64 / f64::from(all);
        assert!(share >= least, "{kind:?}: {share}");
    }
}

/// Where a sample has promised too much, here because it is all that there is, more is looked for
/// once more, in what a device has found as in what the CPU finds.
#[test]
fn a_sample_may_promise_too_much() {
    let effort = Effort {
        probed: 48,
        kept: 54,
    };
    let mut finder = finder(usize::MAX);
    // None of these are outliers, which are in no sample.
    let mut layer = Layer::new(&params(16), 2, Kind::Coarse, 7);
    // Whole segments alone, and tails.
    for n in [224, 10, 22, 10, 30] {
        layer.step(Step::Append(n));
        for _ in 0..5 {
            assert_eq!(compare(&mut finder, 0, &mut layer, 3, effort), 2);
        }
    }
    assert_eq!(layer.heads[0].n_eras(), 0);
}

/// Only what is new is copied: the bytes of a segment, not of all.
#[test]
fn layers_that_find_no_room_are_left_alone_and_come_back() {
    let warned = WARNINGS.get();
    let (mut large, mut small) = (finder(usize::MAX), finder(120_000));
    let new = |seed| Layer::new(&params(16), 2, Kind::Usual, seed);
    let mut layers = [new(1), new(2), new(3)];
    let mut served = Vec::new();
    for _ in 0..30 {
        let mut of_step = 0;
        for (number, layer) in layers.iter_mut().enumerate() {
            layer.step(Step::Append(64));
            assert_eq!(compare(&mut large, number, layer, 1, SMALL), 2);
            of_step += compare(&mut small, number, layer, 1, SMALL);
        }
        served.push(of_step);
        let device = small.device_mut();
        let used = device.used(Memory::Device);
        assert!(used <= 120_000);
        assert_eq!(small.bytes(), used);
    }
    assert!(large.bytes() > 2 * small.bytes(), "{}", large.bytes());
    assert_eq!(served[0], 6);
    assert!(served.contains(&4) || served.contains(&2), "{served:?}");
    assert!(served.is_sorted_by(|a, b| a >= b), "{served:?}");
    assert!(served[29] < 6);
    assert_eq!(WARNINGS.get(), warned + 1);
    // Cut short, all of them fit again.
    let mut again = 0;
    for (number, layer) in layers.iter_mut().enumerate() {
        layer.step(Step::Cut(0));
        layer.step(Step::Append(64));
        again += compare(&mut small, number, layer, 1, SMALL);
    }
    assert_eq!(again, 6);
}

/// The device's own memory ends, at any place.
#[test]
fn no_memory_is_no_failure() {
    for after in 0..12 {
        let mut finder = finder(usize::MAX);
        finder.device_mut().breaks(Call::Alloc, after);
        let mut layers = [1, 2].map(|seed| Layer::new(&params(16), 2, Kind::Usual, seed));
        let mut served = 0;
        for _ in 0..12 {
            for (number, layer) in layers.iter_mut().enumerate() {
                layer.step(Step::Append(40));
                served += compare(&mut finder, number, layer, 1, SMALL);
            }
        }
        assert!(served < 48, "{after}");
        finder.device_mut().repair();
        for (number, layer) in layers.iter_mut().enumerate() {
            layer.step(Step::Cut(0));
            layer.step(Step::Append(32));
            assert_eq!(compare(&mut finder, number, layer, 1, SMALL), 2, "{after}");
        }
        let used = finder.device_mut().used(Memory::Device);
        assert_eq!(finder.bytes(), used);
        let device = finder.into_device().unwrap();
        assert_eq!(device.used(Memory::Device), 0, "{after}");
    }
}

/// A device that fails is not asked again.
#[test]
fn the_cpu_goes_on_after_a_failure() {
    for (call, after) in [
        (Call::Transfer, 0),
        (Call::Transfer, 20),
        (Call::Transfer, 57),
        (Call::Submit, 0),
        (Call::Submit, 5),
    ] {
        let warned = WARNINGS.get();
        let mut finder = finder(usize::MAX);
        finder.device_mut().breaks(call, after);
        let mut layer = Layer::new(&params(16), 2, Kind::Usual, 1);
        let mut served = Vec::new();
        for _ in 0..12 {
            layer.step(Step::Append(64));
            served.push(compare(&mut finder, 0, &mut layer, 1, SMALL));
        }
        assert_eq!(served.last(), Some(&0), "{call:?} {after}: {served:?}");
        assert!(served.is_sorted_by(|a, b| a >= b), "{served:?}");
        assert_eq!(WARNINGS.get(), warned + 1);
    }
}
