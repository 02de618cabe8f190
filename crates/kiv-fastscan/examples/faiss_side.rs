//! The kiv side of `benches/faiss`: reads codes, codebooks and queries that the
//! Python side exported, and answers its requests on standard input.
//!
//! `faiss_side DIR m n d n_queries k`, where `DIR` holds `codes.u8` `[n, m]`,
//! `codebooks.f32` `[m, 16, d / m]` and `queries.f32` `[n_queries, d]`. Requests
//! are lines:
//!
//! - `single HIGHEST`: searches query by query, replies with the nanoseconds for
//!   all. `HIGHEST` is the highest byte of tables.
//! - `batch HIGHEST`: the same, several queries per scan.
//! - `parts HIGHEST`: the nanoseconds of tables, scans and selections.
//! - `found PATH`: writes what the last search found, `[n_queries, k]` of
//!   `u32`, in ascending order of index, and replies `ok`.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use kiv_fastscan::{CENTROIDS, GROUP, Isa, Lut, pack, scan, scan_many, top_k};

/// Queries per scan in `batch`.
const BATCH: usize = 6;

fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("the file is readable");
    let (floats, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty(), "{} is no array of f32", path.display());
    floats
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

struct Search {
    isa: Isa,
    m: usize,
    n: usize,
    d: usize,
    k: usize,
    packed: Vec<u8>,
    /// `[m, d / m, 16]`
    codebooks: Vec<f32>,
    queries: Vec<f32>,
    table: Vec<f32>,
    sums: Vec<u16>,
    found: Vec<u32>,
}

impl Search {
    fn load(dir: &Path, [m, n, d, n_queries, k]: [usize; 5]) -> Self {
        let codes = std::fs::read(dir.join("codes.u8")).expect("the file is readable");
        assert_eq!(codes.len(), n * m, "codes are [n, m]");
        let mut packed = Vec::new();
        pack(&codes, m, &mut packed);
        let given = read_f32(&dir.join("codebooks.f32"));
        let piece = d / m;
        let mut codebooks = vec![0.0; given.len()];
        for s in 0..m {
            for c in 0..CENTROIDS {
                for i in 0..piece {
                    codebooks[(s * piece + i) * CENTROIDS + c] =
                        given[(s * CENTROIDS + c) * piece + i];
                }
            }
        }
        let queries = read_f32(&dir.join("queries.f32"));
        assert_eq!(queries.len(), n_queries * d, "queries are [n_queries, d]");
        Self {
            isa: Isa::detect(),
            m,
            n,
            d,
            k,
            packed,
            codebooks,
            queries,
            table: vec![0.0; m * CENTROIDS],
            sums: vec![0; BATCH * n.next_multiple_of(GROUP)],
            found: Vec::new(),
        }
    }

    /// The table of a query: inner products with all centroids.
    fn quantize(&mut self, query: usize, lut: &mut Lut) {
        let query = &self.queries[query * self.d..][..self.d];
        let piece = self.d / self.m;
        let books = self.codebooks.chunks_exact(piece * CENTROIDS);
        let rows = self.table.as_chunks_mut::<CENTROIDS>().0;
        for ((row, book), query) in rows.iter_mut().zip(books).zip(query.chunks_exact(piece)) {
            *row = [0.0; CENTROIDS];
            for (x, column) in query.iter().zip(book.as_chunks::<CENTROIDS>().0) {
                for (sum, y) in row.iter_mut().zip(column) {
                    *sum += x * y;
                }
            }
        }
        lut.quantize(&self.table).expect("the table is finite");
    }

    fn single(&mut self, highest: u8) -> [Duration; 3] {
        let mut times = [Duration::ZERO; 3];
        let mut lut = Lut::with_highest(self.m, highest);
        let keys = self.n.next_multiple_of(GROUP);
        self.found.clear();
        for query in 0..self.queries.len() / self.d {
            let start = Instant::now();
            self.quantize(query, &mut lut);
            let tabled = Instant::now();
            scan(self.isa, &lut, &self.packed, &mut self.sums[..keys]);
            let scanned = Instant::now();
            top_k(self.isa, &self.sums[..self.n], self.k, &mut self.found);
            times[0] += tabled - start;
            times[1] += scanned - tabled;
            times[2] += scanned.elapsed();
        }
        times
    }

    fn batch(&mut self, highest: u8) {
        let keys = self.n.next_multiple_of(GROUP);
        let mut luts = vec![Lut::with_highest(self.m, highest); BATCH];
        self.found.clear();
        let n_queries = self.queries.len() / self.d;
        for first in (0..n_queries).step_by(BATCH) {
            let luts = &mut luts[..BATCH.min(n_queries - first)];
            for (i, lut) in luts.iter_mut().enumerate() {
                self.quantize(first + i, lut);
            }
            let sums = &mut self.sums[..luts.len() * keys];
            scan_many(self.isa, luts, &self.packed, sums);
            for sums in sums.chunks_exact(keys) {
                top_k(self.isa, &sums[..self.n], self.k, &mut self.found);
            }
        }
    }

    fn answer(&mut self, request: &str) -> String {
        let (kind, argument) = request.split_once(' ').expect("a request has an argument");
        let highest = || argument.parse().expect("a byte");
        let start = Instant::now();
        match kind {
            "single" => {
                self.single(highest());
                start.elapsed().as_nanos().to_string()
            }
            "batch" => {
                self.batch(highest());
                start.elapsed().as_nanos().to_string()
            }
            "parts" => {
                let parts = self.single(highest());
                parts.map(|time| time.as_nanos().to_string()).join(" ")
            }
            "found" => {
                let bytes: Vec<u8> = self.found.iter().flat_map(|i| i.to_le_bytes()).collect();
                std::fs::write(argument, bytes).expect("the file is writable");
                "ok".to_owned()
            }
            _ => panic!("unknown request {kind}"),
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, sizes @ ..] = &arguments[..] else {
        panic!("usage: faiss_side DIR m n d n_queries k");
    };
    let sizes: Vec<usize> = sizes.iter().map(|x| x.parse().expect("a number")).collect();
    let sizes = sizes
        .try_into()
        .expect("usage: faiss_side DIR m n d n_queries k");
    let mut search = Search::load(Path::new(dir), sizes);
    println!("{}", search.isa);
    for request in std::io::stdin().lock().lines() {
        println!(
            "{}",
            search.answer(&request.expect("standard input is text"))
        );
        std::io::stdout().flush().expect("somebody reads");
    }
}
