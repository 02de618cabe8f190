//! Kernels' bodies, under the host's C++ compiler, against the CPU references bit
//! by bit, with sanitizers. That blocks of threads cover everything, and barriers, are
//! tested under an emulated driver (`tests/driver.rs`) and on a GPU (`tests/gpu.rs`).

use half::f16;
use kiv_cuda::reference;
use kiv_cuda::work::Turn;
use kiv_fastscan::{GROUP, Isa, Lut, group_bytes, pack, scan_many, top_k};
use kiv_numeric::TILE;
use kiv_numeric::rope::{Pairs, Rotation};
use kiv_policy::RowFormat;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The program, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROGRAM.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().expect("a folder for the program");
        let path = folder.path().join("bodies");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let mut words = compiler.split_whitespace();
        let status = Command::new(words.next().expect("CXX names a compiler"))
            .args(words)
            .args(["-std=c++17", "-O1", "-ffp-contract=off"])
            .args(["-Wall", "-Wextra", "-Werror"])
            // Any access out of bounds, and anything undefined, ends the program.
            .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
            .arg("-I")
            .arg(here.join("../../kernels"))
            .arg(here.join("tests/bodies.cpp"))
            .arg("-o")
            .arg(&path)
            .status()
            .expect("the C++ compiler runs");
        assert!(status.success(), "kernels' bodies do not compile");
        (folder, path)
    });
    path
}

/// What a kernel is given.
#[derive(Default)]
struct Input(Vec<u8>);

impl Input {
    fn numbers(mut self, numbers: &[usize]) -> Self {
        for number in numbers {
            self.0.extend((*number as u32).to_le_bytes());
        }
        self
    }

    fn array<T: bytemuck::NoUninit>(self, values: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut with = self.numbers(&[bytes.len()]);
        with.0.extend_from_slice(bytes);
        with
    }

    fn run(self, kernel: &str) -> Vec<u8> {
        let mut child = Command::new(program())
            .arg(kernel)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("it reads");
        let feed = std::thread::spawn(move || stdin.write_all(&self.0));
        let output = child.wait_with_output().expect("it ends");
        feed.join().expect("fed").expect("it reads everything");
        assert!(output.status.success(), "{kernel}: {}", output.status);
        output.stdout
    }
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn floats(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-4.0f32..4.0)).collect()
}

fn u16s(bytes: &[u8]) -> Vec<u16> {
    let pairs = bytes.as_chunks::<2>().0;
    pairs.iter().map(|b| u16::from_le_bytes(*b)).collect()
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.as_chunks::<4>().0;
    words.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

#[test]
fn halves_are_ieee_halves() {
    let mut values: Vec<f32> = (0..=u16::MAX).map(|h| f16::from_bits(h).to_f32()).collect();
    values.retain(|v| !v.is_nan());
    // Ties between neighbours, what is next to them, and anything at all.
    let exact = values.clone();
    for pair in exact
        .windows(2)
        .filter(|p| p[0].is_finite() && p[1].is_finite())
    {
        let middle = f32::midpoint(pair[0], pair[1]);
        values.extend([middle, middle.next_up(), middle.next_down()]);
    }
    let mut rng = rng(1);
    values.extend(
        (0..100_000)
            .map(|_| f32::from_bits(rng.random()))
            .filter(|v| !v.is_nan()),
    );
    let out = Input::default().array(&values).run("halves");
    let (singles, halves) = out.split_at(4 << 16);
    for (half, single) in (0..=u16::MAX).zip(u32s(singles)) {
        let want = f16::from_bits(half).to_f32();
        let same = want.to_bits() == single || want.is_nan() && f32::from_bits(single).is_nan();
        assert!(same, "{half:#x}: {single:#x}");
    }
    for (value, half) in values.iter().zip(u16s(halves)) {
        assert_eq!(half, f16::from_f32(*value).to_bits(), "{value:e}");
    }
}

/// K and V of some type each into caches of f16 or of the same type.
fn check_scatter(stored: [RowFormat; 2], cached: [RowFormat; 2], dims: [usize; 2], seed: u64) {
    const HEADS: usize = 3;
    const ROWS: usize = 8;
    const CELLS: usize = 50;
    let rng = &mut rng(seed);
    let converts = stored != cached;
    // Blocks at some distance from each other, and cells in no order.
    let n_moves = 6;
    let mut free: Vec<u32> = (0..CELLS as u32).collect();
    free.shuffle(rng);
    let cells = &free[..2 * ROWS];
    let mut moves = Vec::new();
    for i in 0..n_moves {
        let sources = [0, 1]
            .map(|s| (i * (stored[s].row_bytes(dims[s]) * ROWS).next_multiple_of(16) + 16) as u64);
        moves.push((sources, (i % 2 * ROWS) as u32, (i / 2) as u32));
    }
    let packed: Vec<u8> = (moves.iter())
        .flat_map(|(sources, cells, head)| {
            let numbers = sources.map(u64::to_le_bytes).concat();
            [numbers, [*cells, *head].map(u32::to_le_bytes).concat()].concat()
        })
        .collect();
    let (mut rows, mut caches, mut want) = (Vec::new(), Vec::new(), Vec::new());
    for s in 0..2 {
        let row_bytes = stored[s].row_bytes(dims[s]);
        let mut bytes = vec![0xaa; 16];
        for _ in 0..n_moves {
            let block = stored[s].encode(&floats(rng, ROWS * dims[s]));
            bytes.extend(block);
            bytes.resize(bytes.len().next_multiple_of(16), 0xaa);
        }
        let head_bytes = cached[s].row_bytes(dims[s]);
        let mut cache = vec![0u8; CELLS * HEADS * head_bytes];
        rng.fill(&mut cache[..]);
        let before = cache.clone();
        for (sources, first, head) in &moves {
            let from = sources[s] as usize;
            reference::scatter(
                &bytes[from..from + row_bytes * ROWS],
                stored[s],
                cached[s],
                (&mut cache, HEADS * head_bytes, *head as usize * head_bytes),
                &cells[*first as usize..][..ROWS],
            );
        }
        rows.push(bytes);
        caches.push(before);
        want.extend(cache);
    }
    let row_bytes = [0, 1].map(|s| stored[s].row_bytes(dims[s]));
    let heads = [0, 1].map(|s| cached[s].row_bytes(dims[s]));
    for unit in [0, 2, 4, 8, 16] {
        let mut lengths = row_bytes.iter().chain(&heads);
        if converts != (unit == 0) || !lengths.all(|n| unit == 0 || n.is_multiple_of(unit)) {
            continue;
        }
        let mut input = Input::default().numbers(&[unit, ROWS]);
        for s in 0..2 {
            let format = if stored[s] == cached[s] {
                0
            } else if stored[s] == RowFormat::Q8_0 {
                1
            } else {
                2
            };
            input = input.numbers(&[row_bytes[s], format, HEADS * heads[s], heads[s]]);
        }
        input = input.array(&packed).array(cells);
        for s in 0..2 {
            input = input.array(&rows[s]).array(&caches[s]);
        }
        assert!(
            input.run("scatter") == want,
            "{stored:?} {dims:?} in units of {unit}"
        );
    }
}

#[test]
fn rows_of_one_type_arrive_as_they_are() {
    use RowFormat::{Bf16, F16, F32, Q4_0, Q8_0};
    for (i, format) in [F16, F32, Bf16, Q8_0, Q4_0].into_iter().enumerate() {
        check_scatter([format; 2], [format; 2], [128, 64], i as u64);
    }
    check_scatter([Q8_0, F16], [Q8_0, F16], [96, 80], 9);
}

#[test]
fn rows_in_fewer_bits_arrive_as_halves() {
    use RowFormat::{F16, Q4_0, Q8_0};
    for (i, stored) in [
        [Q8_0, Q8_0],
        [Q4_0, Q4_0],
        [Q8_0, Q4_0],
        [F16, Q4_0],
        [Q8_0, F16],
    ]
    .into_iter()
    .enumerate()
    {
        check_scatter(stored, [F16; 2], [128, 64], 20 + i as u64);
        check_scatter(stored, [F16; 2], [96, 256], 30 + i as u64);
    }
}

/// The reference for conversion is what the store does when llama.cpp's path swaps.
#[test]
fn converted_rows_are_those_of_the_store() {
    let values = floats(&mut rng(40), 256);
    for stored in [RowFormat::Q8_0, RowFormat::Q4_0] {
        let rows = stored.encode(&values);
        let (mut want, mut cache) = (Vec::new(), vec![0; 512]);
        kiv_store::convert(stored, &rows, RowFormat::F16, &mut Vec::new(), &mut want);
        let cells = [0, 1, 2, 3];
        reference::scatter(&rows, stored, RowFormat::F16, (&mut cache, 128, 0), &cells);
        assert_eq!(cache, want);
    }
}

#[test]
fn keys_turn_as_the_reference_says() {
    const HEADS: usize = 2;
    const ROWS: usize = 8;
    let rng = &mut rng(50);
    for (dim, n_rot) in [(128, 128), (128, 64), (96, 24), (64, 2)] {
        for pairing in [Pairs::Neighbours, Pairs::Halves] {
            let factors: Vec<f32> = (0..n_rot / 2).map(|_| rng.random_range(0.5..8.0)).collect();
            let rotation = Rotation {
                freq_scale: 0.5,
                factors,
                ..Rotation::plain(pairing, n_rot, 1e4)
            };
            let moved = rotation.turn([(1_000_000, 0), (0, 31), (5, 5)].into_iter());
            let table = moved.table();
            let mut cells: Vec<u32> = (0..40).collect();
            cells.shuffle(rng);
            let turns = [(0, 0, 0), (ROWS, 1, 1), (2 * ROWS, 0, 2), (0, 1, 0)];
            let turns = turns.map(|(cells, head, angle)| Turn {
                cells: cells as u32,
                head,
                angle,
            });
            let bytes = RowFormat::F16.encode(&floats(rng, 40 * HEADS * dim));
            let mut want = bytes.clone();
            for turn in turns {
                let angles = &table[turn.angle as usize * n_rot / 2..][..n_rot / 2];
                for cell in &cells[turn.cells as usize..][..ROWS] {
                    let at = (*cell as usize * HEADS + turn.head as usize) * 2 * dim;
                    reference::rerotate(&mut want[at..at + 2 * dim], angles, pairing);
                }
            }
            let neox = usize::from(pairing == Pairs::Halves);
            let got = Input::default()
                .numbers(&[HEADS * 2 * dim, 2 * dim, ROWS, n_rot, neox])
                .array(&turns)
                .array(&cells)
                .array(table)
                .array(&bytes)
                .run("rerotate");
            assert!(got == want, "{dim} {n_rot} {pairing:?}");
        }
    }
}

/// Codes `[n, m]`, packed, and tables of some queries.
fn codes(rng: &mut ChaCha8Rng, n: usize, m: usize, n_luts: usize) -> (Vec<u8>, Vec<Lut>) {
    let codes: Vec<u8> = (0..n * m).map(|_| rng.random_range(0..16)).collect();
    let mut packed = Vec::new();
    pack(&codes, m, &mut packed);
    let luts = (0..n_luts).map(|_| {
        let mut lut = Lut::new(m);
        lut.quantize(&floats(rng, m * 16)).expect("finite");
        lut
    });
    (packed, luts.collect())
}

fn bytes_of(luts: &[Lut]) -> Vec<u8> {
    let each = luts.iter().flat_map(|lut| {
        let entries = (0..lut.m()).flat_map(|s| (0..16).map(move |c| (s, c)));
        entries.map(|(s, c)| lut.entry(s, c))
    });
    each.collect()
}

#[test]
fn sums_are_those_of_fastscan() {
    let rng = &mut rng(60);
    for (n, m, n_queries) in [
        (32, 2, 1),
        (1000, 32, 3),
        (500, 64, 4),
        (100, 256, 6),
        (64, 256, 9),
    ] {
        let (packed, luts) = codes(rng, n, m, n_queries);
        let n_groups = n.div_ceil(GROUP);
        let mut want = vec![0u16; luts.len() * n_groups * GROUP];
        scan_many(Isa::detect(), &luts, &packed, &mut want);
        let groups: Vec<u32> = (0..n_groups as u32).collect();
        let tables = bytes_of(&luts);
        let got = Input::default()
            .numbers(&[m, luts.len()])
            .array(&packed)
            .array(&groups)
            .array(&tables)
            .run("pq_scan");
        assert_eq!(u16s(&got), want, "{n} keys of {m}");
        let size = group_bytes(m);
        for (group, sums) in packed.chunks_exact(size).zip(want.chunks_exact(GROUP)) {
            assert_eq!(reference::scan(group, &tables[..size]), sums);
        }
    }
}

#[test]
fn the_highest_sums_are_those_of_fastscan() {
    let rng = &mut rng(70);
    for (n, k, range) in [(1, 1, 9), (300, 7, 3), (5000, 64, 65535), (9000, 700, 40)] {
        for tile in [256, 4096] {
            let sums: Vec<u16> = (0..n).map(|_| rng.random_range(0..=range)).collect();
            let once = |scores: &[u16], names: &[u32], tile: usize| {
                let out = Input::default()
                    .numbers(&[tile, k])
                    .array(scores)
                    .array(names)
                    .run("top_sums");
                let (scores, names) = out.split_at(out.len() / 3);
                (u16s(scores), u32s(names))
            };
            let (scores, names) = once(&sums, &[], tile);
            assert_eq!(names, reference::top_of_tiles(&sums, tile, k));
            let (scores, names) = once(&scores, &names, scores.len());
            let mut want = Vec::new();
            top_k(Isa::detect(), &sums, k, &mut want);
            assert_eq!(names, want, "{k} of {n}");
            let of_names: Vec<u16> = names.iter().map(|i| sums[*i as usize]).collect();
            assert_eq!(scores, of_names);
        }
    }
}

/// Thresholds whose bytes are the first and last of their sixteen, chunks that are not full, and
/// ties that begin in one chunk and end in another.
#[test]
fn the_highest_numbers_are_those_of_the_reference() {
    let rng = &mut rng(71);
    let ends = [0, 15, 16, 31, 240, 255].map(|byte: u32| byte * 0x0101_0101);
    let of_ends = |rng: &mut ChaCha8Rng| ends[rng.random_range(0..6)];
    let cases: [&dyn Fn(&mut ChaCha8Rng) -> u32; 6] = [
        &|rng| rng.random(),
        &of_ends,
        &|rng| rng.random::<u32>() & ends[4] | of_ends(rng) & ends[1],
        &|rng| 0x3f80_0000 + rng.random_range(0..3),
        &|rng| u32::from(rng.random_bool(0.01)),
        &|_| 7,
    ];
    for of in cases {
        for n in [1, 255, 257, 8192, 8193, 20_000] {
            let scores: Vec<u32> = (0..n).map(|_| of(rng)).collect();
            for k in [1, n / 3, n - 1, n] {
                let k = k.max(1);
                for tile in [n, 8192, 8500] {
                    let out = Input::default()
                        .numbers(&[tile, k])
                        .array(&scores)
                        .array::<u32>(&[])
                        .run("top_lists");
                    let out = u32s(&out);
                    let (best, names) = out.split_at(out.len() / 2);
                    let want = reference::top_of_tiles(&scores, tile, k);
                    assert_eq!(names, want, "{k} of {n}, tiles of {tile}");
                    let of_names: Vec<u32> = want.iter().map(|i| scores[*i as usize]).collect();
                    assert_eq!(best, of_names);
                }
            }
        }
    }
}

#[test]
fn products_with_centroids_are_those_of_the_reference() {
    let rng = &mut rng(80);
    for (dim, n_lists, k) in [(64, 100, 5), (128, 777, 50), (16, 1, 1)] {
        let (queries, mut centroids) = (floats(rng, 3 * dim), floats(rng, n_lists * dim));
        // No number, infinite, and infinite both ways.
        for (list, values) in [
            [f32::NAN, 1.0],
            [f32::INFINITY, 1.0],
            [f32::MAX * 2.0, -f32::MAX * 2.0],
        ]
        .into_iter()
        .enumerate()
        .take(n_lists / 2)
        {
            centroids[list * dim..][..2].copy_from_slice(&values);
        }
        let out = Input::default()
            .numbers(&[dim])
            .array(&queries)
            .array(&centroids)
            .run("coarse");
        let scores = u32s(&out);
        let mut want = Vec::new();
        for query in queries.chunks_exact(dim) {
            for centroid in centroids.chunks_exact(dim) {
                let product = reference::dot(query, centroid);
                if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    let dot = kiv_numeric::dot(query, centroid);
                    let same = product.to_bits() == dot.to_bits();
                    assert!(same || product.is_nan() && dot.is_nan());
                }
                want.push(reference::entered(product));
            }
        }
        assert_eq!(scores, want, "{n_lists} centroids of {dim}");
        for scores in scores.chunks_exact(n_lists) {
            let out = Input::default()
                .numbers(&[4096, k])
                .array(scores)
                .array::<u32>(&[])
                .run("top_lists");
            assert_eq!(u32s(&out)[k..], reference::top(scores, k));
        }
    }
}

/// A table in bytes, as the kernels' bodies tell it: whether it is none, scale and bias, and
/// its entries. With how many bytes that takes.
fn told_lut(out: &[u8], m: usize) -> (Option<(u32, u32, Vec<u8>)>, usize) {
    let words = u32s(&out[..12]);
    let bytes = out[12..12 + 16 * m].to_vec();
    let lut = (words[0] == 0).then_some((words[1], words[2], bytes));
    (lut, 12 + 16 * m)
}

fn lut_of(table: &[f32]) -> Option<(u32, u32, Vec<u8>)> {
    let mut lut = Lut::new(table.len() / 16);
    lut.quantize(table).ok()?;
    let bytes = bytes_of(std::slice::from_ref(&lut));
    Some((lut.scale().to_bits(), lut.bias().to_bits(), bytes))
}

#[test]
fn tables_are_rounded_as_those_of_fastscan() {
    let rng = &mut rng(90);
    let mut tables: Vec<Vec<f32>> = [2, 34, 56, 256].map(|m| floats(rng, 16 * m)).to_vec();
    tables.push(vec![0.0; 64]);
    tables.push([-0.0, 0.0].repeat(32));
    tables.push(vec![3.5; 64]);
    tables.push(floats(rng, 64).iter().map(|v| v * 1e-39).collect());
    tables.push(floats(rng, 64).iter().map(|v| v * 1e30).collect());
    // Such as are refused.
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
        let mut table = floats(rng, 64);
        table[37] = bad;
        tables.push(table);
    }
    tables.push([f32::MAX, -f32::MAX].repeat(32));
    let mut n_refused = 0;
    for table in tables {
        let m = table.len() / 16;
        let out = Input::default().numbers(&[m]).array(&table).run("lut");
        let want = lut_of(&table);
        n_refused += usize::from(want.is_none());
        assert_eq!(told_lut(&out, m).0, want, "{m}");
    }
    assert_eq!(n_refused, 4);
}

#[test]
fn tables_of_queries_are_those_of_the_index() {
    let rng = &mut rng(91);
    for dim in [16usize, 64, 144, 512] {
        let m = (dim / 2).min(200);
        let query = floats(rng, dim);
        let mut axes: Vec<u16> = (0..dim as u16).collect();
        axes.shuffle(rng);
        let ends: Vec<u16> = (1..=m).map(|s| (s * dim / m) as u16).collect();
        let book = floats(rng, 16 * dim);
        let (above, step) = (floats(rng, 16), 0.03f32);
        let map = floats(rng, dim.next_multiple_of(TILE) * dim);
        let out = Input::default()
            .numbers(&[dim, m])
            .array(&query)
            .array(&axes)
            .array(&ends)
            .array(&book)
            .array(&above)
            .array(&[step])
            .array(&map)
            .run("index_tables");
        let (mut want, mut from) = (Vec::new(), 0);
        for end in &ends {
            let mut row = [0f32; 16];
            for i in from..usize::from(*end) {
                let column = &book[16 * i..16 * i + 16];
                let q = query[usize::from(axes[i])];
                row.iter_mut().zip(column).for_each(|(r, c)| *r += q * c);
            }
            want.extend(row);
            from = usize::from(*end);
        }
        let mut tables = vec![want.clone()];
        want.extend(&above);
        want.extend([0.0; 16]);
        tables.push(want);
        let high = query.iter().flat_map(|q| {
            let zero = q * step * (0.5 - 128.0);
            (0..16u8).map(move |level| zero + q * step * 16.0 * f32::from(level))
        });
        let low = (query.iter()).flat_map(|q| (0..16u8).map(move |l| q * step * f32::from(l)));
        let grid: Vec<f32> = high.chain(low).collect();
        tables.extend(grid.chunks(256 * 16).map(<[f32]>::to_vec));
        let mut rest = &out[..];
        for (i, table) in tables.iter().enumerate() {
            let (lut, len) = told_lut(rest, table.len() / 16);
            assert_eq!(lut, lut_of(table), "table {i} of {dim}");
            rest = &rest[len..];
        }
        let square = query.iter().map(|v| v * v).sum::<f32>();
        let last = u32s(rest);
        assert_eq!(last[0], (square / dim as f32).sqrt().to_bits());
        let which = if kiv_numeric::FUSES { 1 } else { 2 };
        assert_eq!(last[which], kiv_numeric::dot(&query, &query).to_bits());
        let tiles = map.as_chunks::<TILE>().0.chunks_exact(dim);
        let mapped = tiles.flat_map(|tile| kiv_numeric::tile_logits([&query[..]], tile)[0]);
        let mapped: Vec<u32> = mapped.take(dim).map(f32::to_bits).collect();
        let at = 3 + (which - 1) * dim;
        assert_eq!(last[at..at + dim], mapped);
    }
}

#[test]
fn scores_of_keys_are_those_of_the_index() {
    let rng = &mut rng(92);
    for (dim, m) in [(16, 14), (144, 126)] {
        let n_keys = 320;
        let (packed, luts) = codes(rng, n_keys, m, 1);
        // The last lists say that they have more.
        let ends = [5u32, 5, 70, 319, 320, 1000, 900];
        let marks: Vec<u32> = (0..10)
            .map(|_| rng.random::<u32>() & rng.random::<u32>())
            .collect();
        let runs = [2 * dim.min(128), 2 * dim - 2 * dim.min(128)];
        let runs: Vec<_> = (runs.iter().filter(|m| **m > 0))
            .map(|m| codes(rng, 64, *m, 1))
            .collect();
        let tables: Vec<&Lut> = luts
            .iter()
            .chain(runs.iter().map(|(_, luts)| &luts[0]))
            .collect();
        let scales: Vec<f32> = tables
            .iter()
            .flat_map(|lut| [lut.bias(), lut.scale()])
            .collect();
        // Of lists first, which are not asked for.
        let scales = [&[0.0, 0.0], &scales[..]].concat();
        let on_codes: Vec<u8> = runs.iter().flat_map(|(codes, _)| codes.clone()).collect();
        let on_tables: Vec<u8> = runs.iter().flat_map(|(_, luts)| bytes_of(luts)).collect();
        let out = Input::default()
            .numbers(&[dim, m, n_keys, 2])
            .array(&packed)
            .array(&ends)
            .array(&marks)
            .array(&on_codes)
            .array(&bytes_of(&luts))
            .array(&on_tables)
            .array(&scales)
            .run("index_scores");
        let sums = |(packed, luts): (&[u8], &[Lut]), n: usize| {
            let mut sums = vec![0; n];
            scan_many(Isa::detect(), luts, packed, &mut sums);
            sums
        };
        let of_keys = sums((&packed, &luts), n_keys);
        let mut want = Vec::new();
        let mut from = 0;
        for (list, end) in ends.iter().enumerate() {
            let end = (*end as usize).min(n_keys);
            for key in from..end {
                let score = luts[0].score(of_keys[key]) + list as f32;
                let is_marked = marks[key / 32] >> (key % 32) & 1 == 1;
                want.push(if is_marked {
                    0
                } else {
                    reference::ordered(score)
                });
            }
            from = end.max(from);
        }
        assert_eq!(want.len(), n_keys);
        let mut products = [0f32; 64];
        for (packed, luts) in &runs {
            let sums = sums((packed, luts), 64);
            let scores = sums.iter().map(|sum| luts[0].score(*sum));
            products
                .iter_mut()
                .zip(scores)
                .for_each(|(p, score)| *p += score);
        }
        want.extend(products.map(f32::to_bits));
        assert_eq!(u32s(&out), want, "{dim}");
    }
}
