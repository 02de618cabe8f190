//! Work that does not fit its memory is refused: what a kernel would touch is there.

use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::work::{
    At, Cache, Coarse, Move, Rerotate, Scan, Scatter, Scores, Side, Top, Turn, Work, WorkError,
};
use kiv_cuda::{Buffer, Device, Memory};
use kiv_numeric::rope::Pairs;
use kiv_policy::RowFormat;
use proptest::prelude::*;

/// A device's buffer and a page-locked one.
const BYTES: [usize; 2] = [4096, 2048];

fn device() -> (SimDevice, [Buffer; 2]) {
    let mut d = SimDevice::new(SimConfig::default());
    let kinds = [Memory::Device, Memory::Pinned];
    let buffers = [0, 1].map(|i| d.alloc(kinds[i], BYTES[i]).expect("there is memory"));
    (d, buffers)
}

fn buffers() -> [Buffer; 2] {
    device().1
}

fn look_up(buffer: Buffer) -> Option<(Memory, usize)> {
    let [device, pinned] = buffers();
    match buffer {
        b if b == device => Some((Memory::Device, BYTES[0])),
        b if b == pinned => Some((Memory::Pinned, BYTES[1])),
        _ => None,
    }
}

/// Whether work passes. Then it is done: bytes that are not there end the test, and
/// page-locked ones stay as they are.
fn passes(work: &Work<'_>) -> bool {
    let (mut d, [_, pinned]) = device();
    let stream = d.stream(false).expect("a stream");
    let passed = d.submit(stream, work).is_ok();
    let end = d.record(stream).expect("an event");
    d.sync(&end).expect("it ends");
    let kept = d.pinned(pinned.at(0), BYTES[1]).expect("it is there");
    assert!(kept.iter().all(|b| *b == 0xcd));
    passed
}

fn place() -> impl Strategy<Value = At> {
    let [device, pinned] = buffers();
    let offset = prop_oneof![
        Just(0usize),
        (0usize..260).prop_map(|i| 16 * i),
        0usize..4200
    ];
    (prop_oneof![Just(device), Just(pinned)], offset).prop_map(|(buffer, at)| buffer.at(at))
}

fn format() -> impl Strategy<Value = RowFormat> {
    prop_oneof![
        Just(RowFormat::F16),
        Just(RowFormat::Q8_0),
        Just(RowFormat::Q4_0)
    ]
}

fn cache() -> impl Strategy<Value = Cache> {
    (place(), 0u32..12, 0u32..3, 0u32..70, format()).prop_map(
        |(at, n_cells, n_heads, row_len, format)| Cache {
            at,
            n_cells,
            n_heads,
            row_len: if row_len > 32 {
                row_len
            } else {
                row_len.next_multiple_of(32)
            },
            format,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn rows_are_there_if_work_passes(
        caches in [cache(), cache()],
        stored in proptest::option::of([format(), format()]),
        moves in prop::collection::vec(([place(), place()], 0u32..6, 0u32..3), 0..3),
        cells in prop::collection::vec(0u32..12, 0..10),
        n_rows in 0u32..5,
        turned in (1u32..5, any::<bool>()),
    ) {
        let sides = [0, 1].map(|i| Side {
            cache: caches[i],
            stored: stored.map_or(caches[i].format, |s| s[i]),
        });
        let moves: Vec<Move> = moves
            .into_iter()
            .map(|(sources, cells, head)| Move { sources, cells, head })
            .collect();
        let scatter = Work::Scatter(Scatter { sides, moves: &moves, cells: &cells, n_rows });
        let turns: Vec<Turn> = moves
            .iter()
            .map(|m| Turn { cells: m.cells, head: m.head, angle: m.head })
            .collect();
        let rerotate = Work::Rerotate(Rerotate {
            cache: caches[0],
            turns: &turns,
            cells: &cells,
            table: &[[1.0, 0.0]; 16],
            n_rows,
            n_rot: 2 * turned.0,
            pairing: if turned.1 { Pairs::Neighbours } else { Pairs::Halves },
        });
        for work in [scatter, rerotate] {
            if passes(&work) {
                let rows = work.rows().expect("it passed");
                let writes = rows.iter().filter(|a| a.writes).count();
                let each = if matches!(work, Work::Scatter(_)) { 2 } else { 1 };
                prop_assert_eq!(writes, each * moves.len() * n_rows as usize);
            }
        }
    }

    #[test]
    fn scores_are_there_if_work_passes(
        at in [place(), place(), place(), place()],
        named in any::<bool>(),
        sums in any::<bool>(),
        n_queries in 0u32..4,
        n in 0u32..200,
        more in 0u32..3,
        tile in 0u32..70,
        k in 0u32..20,
    ) {
        let work = Work::Top(Top {
            scores: if sums { Scores::Sums } else { Scores::Products },
            from: at[0],
            names: named.then_some(at[1]),
            n_queries,
            n,
            row_stride: (n + more).saturating_sub(1),
            tile,
            k,
            to: at[2],
            to_names: at[3],
        });
        passes(&work);
    }
}

#[test]
fn what_does_not_fit_is_refused_for_its_reason() {
    let [device, pinned] = buffers();
    let good = Cache {
        at: device.at(0),
        n_cells: 8,
        n_heads: 2,
        row_len: 32,
        format: RowFormat::F16,
    };
    let check = |cache: Cache, stored, source: At, cells: &[u32], head| {
        let side = Side { cache, stored };
        let moves = [Move {
            sources: [source; 2],
            cells: 0,
            head,
        }];
        let work = Scatter {
            sides: [side; 2],
            moves: &moves,
            cells,
            n_rows: 2,
        };
        Work::Scatter(work).check(look_up)
    };
    let f16 = RowFormat::F16;
    let all = check(good, f16, pinned.at(1920), &[7, 0], 1).expect("it fits");
    // Of a cache as a whole, and of two sources.
    assert_eq!(all.len(), 4);
    let cells = [0, 1];
    let wrong = WorkError::WrongMemory(pinned);
    let lent = Cache {
        at: pinned.at(0),
        ..good
    };
    assert_eq!(check(lent, f16, device.at(0), &cells, 0), Err(wrong));
    let outside = check(good, f16, pinned.at(1936), &cells, 0);
    assert!(matches!(
        outside,
        Err(WorkError::Outside {
            from: 1936,
            to: 2064,
            len: 2048,
            ..
        })
    ));
    let large = Cache {
        n_cells: 33,
        ..good
    };
    assert!(matches!(
        check(large, f16, device.at(0), &cells, 0),
        Err(WorkError::Outside { .. })
    ));
    let odd = Cache {
        row_len: 33,
        ..good
    };
    let huge = Cache {
        row_len: u32::MAX - 31,
        n_heads: u32::MAX,
        ..good
    };
    for (cache, stored, source, cells, head) in [
        (good, f16, device.at(0), &[0, 8][..], 0),
        (good, f16, device.at(0), &[0], 0),
        (good, f16, device.at(0), &cells, 2),
        (good, f16, device.at(1), &cells, 0),
        (odd, RowFormat::Q8_0, device.at(0), &cells, 0),
        (
            Cache {
                format: RowFormat::Q8_0,
                ..good
            },
            f16,
            device.at(0),
            &cells,
            0,
        ),
        (huge, f16, device.at(0), &cells, 0),
    ] {
        let refused = check(cache, stored, source, cells, head);
        assert!(
            matches!(refused, Err(WorkError::Unsupported(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn numbers_too_large_for_any_memory_are_refused() {
    let [device, _] = buffers();
    let at = device.at(0);
    let top = Top {
        scores: Scores::Products,
        from: at,
        names: Some(at),
        n_queries: u32::MAX,
        n: u32::MAX,
        row_stride: u32::MAX,
        tile: 1,
        k: 1,
        to: at,
        to_names: at,
    };
    let coarse = Coarse {
        queries: &[],
        centroids: at,
        n_lists: u32::MAX,
        dim: u32::MAX - 15,
        scores: at,
    };
    let scan = Scan {
        packed: at,
        n_packed: u32::MAX,
        listed: None,
        tables: &[0; 4096],
        m: 256,
        sums: at,
    };
    for work in [Work::Top(top), Work::Coarse(coarse), Work::Scan(scan)] {
        assert!(
            matches!(work.check(look_up), Err(WorkError::Outside { .. })),
            "{work:?}"
        );
    }
    let listed = Scan {
        n_packed: 1,
        listed: Some(&[1]),
        tables: &[0; 64],
        m: 4,
        ..scan
    };
    let refused = Work::Scan(listed).check(look_up);
    assert!(matches!(refused, Err(WorkError::Unsupported(_))));
}
