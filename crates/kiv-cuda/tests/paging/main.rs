//! Slots hold what was wanted, whatever was predicted, whatever memory there was and
//! whatever failed; and what was predicted well costs no time.

mod world;

use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::work::{Cache, Side};
use kiv_cuda::{Counters, Device, DeviceError, Memory, PredictConfig, Slots, SwapConfig, Swapper};
use kiv_numeric::rope::{Pairs, Rotation};
use kiv_policy::{RowFormat, Selection};
use kiv_pool::Swap;
use proptest::prelude::*;
use std::time::Duration;
use world::*;

fn run(setup: Setup) -> Outcome {
    World::new(setup).run()
}

fn setups() -> impl Strategy<Value = Setup> {
    let runners = prop_oneof![
        Just(Runners::Silent),
        Just(Runners::Right),
        Just(Runners::Wrong)
    ];
    let predict = (0usize..6, 0usize..4, 0usize..3);
    let sizes = (
        0u32..12,
        0usize..8000,
        prop_oneof![Just(usize::MAX), 0usize..60_000],
    );
    let more = (
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0.0), Just(0.3)],
        any::<bool>(),
    );
    let cut = proptest::option::of(0usize..8);
    // The caches and staging fit; landing places and page-locked memory may not.
    let memory = (
        prop_oneof![Just(1 << 30), 90_000usize..200_000],
        prop_oneof![Just(1 << 30), 0usize..100_000],
    );
    (any::<u32>(), runners, predict, sizes, more, cut, memory).prop_map(
        |(seed, runners, (per_head, left, earlier), sizes, more, cut, memory)| Setup {
            seed: seed.into(),
            n_steps: 8,
            runners,
            predict: PredictConfig {
                per_head,
                left,
                earlier,
            },
            swap: SwapConfig {
                landing: sizes.0,
                staging: sizes.1,
            },
            max_pinned: sizes.2,
            sim: SimConfig {
                device_bytes: memory.0,
                pinned_bytes: memory.1,
                ..SimConfig::default()
            },
            converts: more.0,
            turned: more.3,
            host_waits: more.1,
            failures: more.2,
            cut,
            ..Setup::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 64 } else { 500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn attention_sees_what_was_wanted(setup in setups()) {
        let outcome = run(setup);
        prop_assert_eq!(outcome.n_races, 0);
        prop_assert!(outcome.seen == outcome.expected);
    }

    #[test]
    fn nothing_that_is_predicted_changes_what_is_seen(setup in setups()) {
        let same = Setup { failures: 0.0, host_waits: true, ..setup.clone() };
        let none = Setup {
            runners: Runners::Silent,
            predict: PredictConfig { per_head: 0, left: 0, earlier: 0 },
            max_pinned: usize::MAX,
            sim: SimConfig::default(),
            ..same.clone()
        };
        prop_assert!(run(same).seen == run(none).seen);
    }
}

fn slow_bus() -> Setup {
    Setup {
        n_steps: 40,
        predict: PredictConfig {
            per_head: SLOTS,
            left: 0,
            earlier: 0,
        },
        swap: SwapConfig {
            landing: 3 * SLOTS as u32,
            staging: 1 << 16,
        },
        // Longer than what it costs to ask for anything.
        sim: SimConfig {
            bus: 3e7,
            kernel: Duration::from_micros(1),
            ..SimConfig::default()
        },
        times: [Duration::from_micros(150), Duration::from_micros(150)],
        ..Setup::default()
    }
}

#[test]
fn what_is_predicted_well_is_hidden() {
    let right = run(Setup {
        runners: Runners::Right,
        ..slow_bus()
    });
    let silent = run(slow_bus());
    let wrong = run(Setup {
        runners: Runners::Wrong,
        ..slow_bus()
    });
    for outcome in [&right, &silent, &wrong] {
        assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
        let moved: Duration = outcome.spans.iter().map(|s| s.end - s.begin).sum();
        assert_eq!(moved, outcome.overlap.moved);
    }
    assert!(right.seen == silent.seen && right.seen == wrong.seen);
    // All but the first token's.
    let c = right.counters;
    assert!(c.foreseen() > 0.9 && c.useful() > 0.9, "{c:?}");
    assert!(right.overlap.share() > 0.5, "{:?}", right.overlap);
    assert!(right.overlap.waited * 2 < silent.overlap.waited);
    assert_eq!(silent.overlap.hidden(), Duration::ZERO);
    assert_eq!((silent.counters.fetched, silent.counters.landed), (0, 0));
    // What is in no slot stays where it landed, and may be wanted some tokens later.
    assert!(wrong.counters.landed * 3 < c.landed, "{:?}", wrong.counters);
    assert!(wrong.counters.wasted > 0);
    assert_eq!(right.counters.blocks, silent.counters.blocks);
}

#[test]
fn a_swap_is_one_launch_if_rows_are_page_locked() {
    let silent = run(slow_bus());
    let c = silent.counters;
    // A layer may have wanted nothing new.
    assert!(c.launches <= 3 * 40 && c.launches > 2 * 40, "{c:?}");
    assert_eq!(c.staged, 0);
    let pageable = run(Setup {
        max_pinned: 0,
        ..slow_bus()
    });
    assert_eq!(pageable.taken.pinned, 0);
    assert_eq!(
        pageable.counters.launches, c.launches,
        "staging is large enough"
    );
    assert_eq!(
        (pageable.counters.staged, pageable.counters.bytes),
        (c.bytes, c.bytes)
    );
    assert!(pageable.seen == silent.seen);
    // Staging that is too small for a layer costs launches.
    let mut small = Setup {
        max_pinned: 0,
        ..slow_bus()
    };
    small.swap.staging = 0;
    let small = run(small);
    assert!(small.counters.launches > c.launches && small.seen == silent.seen);
}

#[test]
fn without_page_locked_memory_everything_goes_through_the_device() {
    let mut setup = slow_bus();
    setup.sim.pinned_bytes = 0;
    let outcome = run(Setup {
        runners: Runners::Right,
        ..setup
    });
    assert_eq!(outcome.taken.pinned, 0);
    assert!(outcome.counters.staged > 0 && outcome.counters.landed > 0);
    assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
}

#[test]
fn memory_that_runs_out_half_way_changes_nothing() {
    let cut = Setup {
        cut: Some(20),
        runners: Runners::Right,
        ..slow_bus()
    };
    let outcome = run(cut);
    assert!(outcome.taken.pinned > 0 && outcome.taken.pageable > 0);
    assert!(outcome.counters.staged > 0);
    assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
}

/// Without room for landing places nothing is fetched; without room for anything there is no
/// swapper, and nothing is left of it.
#[test]
fn a_small_device_goes_without_fetching_or_without_a_swapper() {
    let setup = Setup {
        runners: Runners::Right,
        ..slow_bus()
    };
    let roomy = World::new(setup.clone()).d.used(Memory::Device);
    let mut tight = setup.clone();
    tight.sim.device_bytes = roomy - 1;
    let outcome = run(tight);
    assert_eq!((outcome.counters.fetched, outcome.counters.landed), (0, 0));
    assert!(outcome.seen == outcome.expected);
    let mut d = SimDevice::new(SimConfig {
        device_bytes: 100_000,
        pinned_bytes: 50_000,
        ..SimConfig::default()
    });
    let compute = d.stream(false).unwrap();
    let at = d.alloc(Memory::Device, 40_000).unwrap().at(0);
    let cache = Cache {
        at,
        n_cells: 100,
        n_heads: 1,
        row_len: 100,
        format: RowFormat::F16,
    };
    let sides = vec![
        [Side {
            cache,
            stored: RowFormat::F16,
        }; 2],
    ];
    // One half fits page-locked memory, and one more the device.
    let config = SwapConfig {
        landing: 1,
        staging: 40_000,
    };
    let none = Swapper::new(&mut d, compute, sides, ROWS, config).err();
    let wanted = DeviceError::OutOfMemory {
        memory: Memory::Device,
        bytes: 40_000,
    };
    assert_eq!(none, Some(wanted));
    assert_eq!(
        (d.used(Memory::Device), d.used(Memory::Pinned)),
        (40_000, 0)
    );
}

#[test]
fn failures_leave_slots_as_they_were() {
    let outcome = run(Setup {
        failures: 0.5,
        max_pinned: 20_000,
        ..slow_bus()
    });
    assert!(outcome.n_failed > 10);
    assert!(outcome.seen == outcome.expected);
    assert_eq!(outcome.n_torn, 0);
    // Between a block and the turning of its keys, too.
    let outcome = run(Setup {
        failures: 0.5,
        turned: true,
        ..slow_bus()
    });
    assert!(outcome.n_torn > 0);
    assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
}

/// Keys of 8 bits do not turn; that is said before anything moves.
#[test]
fn keys_that_cannot_turn_are_refused_at_once() {
    let mut world = World::new(Setup {
        turned: true,
        ..Setup::default()
    });
    world.sides[0][0].cache.format = RowFormat::Q8_0;
    world.sides[0][0].stored = RowFormat::Q8_0;
    let config = SwapConfig::default();
    let sides = world.sides.clone();
    let mut other = Swapper::new(&mut world.d, world.compute, sides, ROWS, config).unwrap();
    let swap = Swap {
        slot: 1,
        block: 20,
        leaving: 1,
    };
    let rotation = Rotation::plain(Pairs::Neighbours, 2, 1e4);
    let turn = rotation.turn((0..ROWS as i32).map(|i| (i, 9 + i)));
    let slots = Slots {
        cells: &world.cells,
        turn: Some(&turn),
    };
    let pool = world.pager.pool();
    let refused = other
        .swap(&mut world.d, pool, 0, &[vec![swap], vec![]], slots)
        .unwrap_err();
    assert_eq!((refused.undone, refused.torn), (vec![(0, swap)], vec![]));
    assert_eq!(other.counters(), Counters::default());
}

/// The tests see mistakes: without word of its attention, a layer's slots change under it.
#[test]
fn an_attention_that_is_kept_secret_is_a_race() {
    let setup = Setup {
        host_waits: false,
        ..Setup::default()
    };
    let mut world = World::new(setup);
    let mut wanted = Selection::default();
    wanted.reset(2);
    for (step, block) in [(0, 20), (1, 30)] {
        for head in 0..2 {
            *wanted.head_mut(head) = (block..block + SLOTS as u32).collect();
        }
        world.ensure(0, step, &wanted);
        let (reads, _) = world.attention(0);
        world
            .d
            .compute(world.compute, &reads, Duration::from_millis(1))
            .unwrap();
    }
    assert!(!world.d.races().is_empty());
}
