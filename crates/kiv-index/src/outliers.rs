//! Keys that a codebook of the usual ones has no word for.
//!
//! The rare tokens that a question is about have keys far from all others, and
//! k-means, which spends its centroids where keys are, gets their logits wrong
//! by many nats. So keys whose quantisation error is several times the usual
//! one get codes of their own: 8 bits for every dimension, on a grid that no
//! training has a part in, as two 4-bit codes that the same kernels scan. Those
//! beyond the grid are kept as they are. Outliers belong to no cluster; all of
//! them are scored for every query.

use crate::head::Params;
use crate::marks::Marks;
use crate::packed::PackedCodes;
use crate::saved::{Saved, expect};
use crate::view::OutliersView;
use kiv_fastscan::{CENTROIDS, Isa, Lut, LutError, MAX_M, scan_many};
use kiv_numeric::dot;
use kiv_wire::{Put, Take, WireError};

/// Mean squared error, over the usual one, that makes a key an outlier.
pub(crate) const ERROR_RATIO: f32 = 9.0;

/// Reach of the grid, over the largest value seen in training.
const MARGIN: f32 = 2.0;

/// Values that 8-bit codes stand for: the same in every dimension.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Width of the 256 cells.
    step: f32,
}

impl Grid {
    /// A grid for vectors like `vectors`, around 0.
    pub fn new(vectors: &[f32]) -> Self {
        let reach = vectors.iter().fold(0f32, |m, v| m.max(v.abs())) * MARGIN;
        Self {
            step: (reach / 128.0).max(f32::MIN_POSITIVE),
        }
    }

    fn covers(&self, vector: &[f32]) -> bool {
        vector.iter().all(|v| v.abs() <= 128.0 * self.step)
    }

    /// Codes of one vector, `[2 dim]`: high halves, then low halves.
    fn encode(&self, vector: &[f32]) -> Vec<u8> {
        let cell = |v: &f32| (v / self.step + 128.0).clamp(0.0, 255.0) as u8;
        let high = vector.iter().map(|v| cell(v) >> 4);
        high.chain(vector.iter().map(|v| cell(v) & 15)).collect()
    }

    /// The vector that codes, `[2 dim]`, stand for.
    fn decode(&self, codes: &[u8]) -> Vec<f32> {
        let (high, low) = codes.split_at(codes.len() / 2);
        let cells = high.iter().zip(low).map(|(high, low)| high << 4 | low);
        // The middles of cells.
        cells
            .map(|cell| (f32::from(cell) - 127.5) * self.step)
            .collect()
    }

    /// Products of a query with what codes stand for, `[2 dim, 16]`.
    fn table(&self, query: &[f32], table: &mut Vec<f32>) {
        let levels: [f32; CENTROIDS] = std::array::from_fn(|i| i as f32);
        let first = table.len();
        table.resize(first + 2 * query.len() * CENTROIDS, 0.0);
        let (rows, _) = table[first..].as_chunks_mut::<CENTROIDS>();
        let (high, low) = rows.split_at_mut(query.len());
        for ((q, high), low) in query.iter().zip(high).zip(low) {
            // A code stands for the middle of its cell.
            let zero = q * self.step * (0.5 - 128.0);
            *high = levels.map(|level| zero + q * self.step * 16.0 * level);
            *low = levels.map(|level| q * self.step * level);
        }
    }
}

/// Outliers of some stretch of tokens: those on the grid, then those beyond,
/// each oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Outliers {
    dim: usize,
    /// Tokens on the grid, counted from the beginning of the stretch.
    tokens: Vec<u32>,
    /// Tokens beyond it, and their vectors, `[n, dim]`.
    beyond: Vec<u32>,
    vectors: Vec<f32>,
    /// Codes by runs of at most [`MAX_M`] of the `2 dim` subquantizers: sums of
    /// more would overflow.
    parts: Vec<PackedCodes>,
}

impl Outliers {
    pub fn new(dim: usize) -> Self {
        let parts = (0..2 * dim).step_by(MAX_M);
        Self {
            dim,
            tokens: Vec::new(),
            beyond: Vec::new(),
            vectors: Vec::new(),
            parts: parts
                .map(|at| PackedCodes::new(MAX_M.min(2 * dim - at)))
                .collect(),
        }
    }

    pub fn tokens(&self) -> impl Iterator<Item = u32> + Clone {
        self.tokens.iter().chain(&self.beyond).copied()
    }

    /// All of them, under their grid.
    pub fn view(&self, grid: &Grid) -> OutliersView<'_> {
        OutliersView {
            step: grid.step,
            on: &self.tokens,
            codes: self.parts.iter().map(PackedCodes::groups).collect(),
            beyond: &self.beyond,
            vectors: &self.vectors,
        }
    }

    /// Whether a token is one of them.
    pub fn contains(&self, token: usize) -> bool {
        let has = |list: &[u32]| list.binary_search(&(token as u32)).is_ok();
        has(&self.tokens) || has(&self.beyond)
    }

    /// The vector of a token, if it is one of them.
    pub fn vector(&self, grid: &Grid, token: usize) -> Option<Vec<f32>> {
        let token = token as u32;
        if let Ok(at) = self.tokens.binary_search(&token) {
            let (parts, mut codes) = (self.parts.iter(), Vec::with_capacity(2 * self.dim));
            parts.for_each(|part| part.unpack_into(at, &mut codes));
            return Some(grid.decode(&codes));
        }
        let at = self.beyond.binary_search(&token).ok()?;
        Some(self.vectors[at * self.dim..(at + 1) * self.dim].to_vec())
    }

    /// Which of the first `n` tokens are outliers.
    pub fn marks(&self, n: usize) -> Marks {
        let mut marks = Marks::default();
        marks.clear(n);
        self.tokens().for_each(|token| marks.mark(token as usize));
        marks
    }

    /// Adds the vector of a token after the last.
    pub fn push(&mut self, grid: &Grid, token: usize, vector: &[f32]) {
        if grid.covers(vector) {
            self.tokens.push(token as u32);
            for (part, codes) in self.parts.iter_mut().zip(grid.encode(vector).chunks(MAX_M)) {
                part.push(codes);
            }
        } else {
            self.beyond.push(token as u32);
            self.vectors.extend_from_slice(vector);
        }
    }

    /// Adds all of `others`, whose stretch begins at this one's token `first`.
    pub fn append(&mut self, others: &Self, first: usize) {
        let moved = |t: &u32| t + first as u32;
        self.tokens.extend(others.tokens.iter().map(moved));
        self.beyond.extend(others.beyond.iter().map(moved));
        self.vectors.extend_from_slice(&others.vectors);
        for (part, other) in self.parts.iter_mut().zip(&others.parts) {
            part.push(&other.unpack(0..other.len()));
        }
    }

    /// Forgets those from token `end` on.
    pub fn truncate(&mut self, end: usize) {
        let before = |list: &[u32]| list.partition_point(|t| (*t as usize) < end);
        let (on, beyond) = (before(&self.tokens), before(&self.beyond));
        self.tokens.truncate(on);
        self.parts.iter_mut().for_each(|part| part.truncate(on));
        self.beyond.truncate(beyond);
        self.vectors.truncate(beyond * self.dim);
    }

    /// How many there are.
    pub fn n(&self) -> usize {
        self.tokens.len() + self.beyond.len()
    }

    /// Products of some queries with each of them, in the order of [`Outliers::tokens`]:
    /// `products` becomes `[n_queries, n]`.
    pub fn score(
        &self,
        isa: Isa,
        tables: &OutlierTables,
        sums: &mut Vec<u16>,
        products: &mut Vec<f32>,
    ) {
        products.clear();
        let n = self.n();
        if n == 0 {
            return;
        }
        let queries = tables.queries.chunks_exact(self.dim);
        products.resize(queries.len() * n, 0.0);
        for (part, luts) in self.parts.iter().zip(&tables.luts) {
            let n_sums = part.n_sums();
            sums.resize(luts.len() * n_sums, 0);
            scan_many(isa, luts, part.groups(), sums);
            for (i, (lut, products)) in luts.iter().zip(products.chunks_exact_mut(n)).enumerate() {
                let sums = &sums[i * n_sums..][..self.tokens.len()];
                for (product, sum) in products.iter_mut().zip(sums) {
                    *product += lut.score(*sum);
                }
            }
        }
        for (query, products) in queries.zip(products.chunks_exact_mut(n)) {
            let beyond = &mut products[self.tokens.len()..];
            for (product, vector) in beyond.iter_mut().zip(self.vectors.chunks_exact(self.dim)) {
                *product = dot(query, vector);
            }
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let codes: usize = self.parts.iter().map(PackedCodes::bytes).sum();
        let words = self.tokens.len() + self.beyond.len() + self.vectors.len();
        codes + words * size_of::<u32>()
    }
}

/// Some queries, and their tables for outliers.
#[derive(Clone, Debug, Default)]
pub(crate) struct OutlierTables {
    /// `[n_queries, dim]`.
    queries: Vec<f32>,
    /// By part, of every query one.
    luts: Vec<Vec<Lut>>,
}

impl OutlierTables {
    /// Tables of `queries`, `[n, dim]`; `table` is scratch.
    pub fn fill(
        &mut self,
        grid: &Grid,
        queries: &[f32],
        dim: usize,
        table: &mut Vec<f32>,
    ) -> Result<(), LutError> {
        self.queries.clear();
        self.queries.extend_from_slice(queries);
        self.luts.resize_with((2 * dim).div_ceil(MAX_M), Vec::new);
        let n = queries.len() / dim;
        for (first, luts) in (0..2 * dim).step_by(MAX_M).zip(&mut self.luts) {
            let m = MAX_M.min(2 * dim - first);
            if luts.first().is_some_and(|lut| lut.m() != m) {
                luts.clear();
            }
            luts.resize_with(n, || Lut::new(m));
        }
        for (i, query) in queries.chunks_exact(dim).enumerate() {
            table.clear();
            grid.table(query, table);
            let parts = table.chunks(MAX_M * CENTROIDS);
            for (part, luts) in parts.zip(&mut self.luts) {
                luts[i].quantize_sorted(part)?;
            }
        }
        Ok(())
    }
}

impl Outliers {
    /// Whether they are all of the first `n` tokens.
    pub fn are_below(&self, n: usize) -> bool {
        self.tokens().all(|t| (t as usize) < n)
    }
}

impl Saved for Outliers {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            dim: _,
            tokens,
            beyond,
            vectors,
            parts,
        } = self;
        out.put_u32s(tokens);
        out.put_u32s(beyond);
        out.put_f32s(vectors);
        parts.iter().for_each(|part| part.put(out));
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let dim = params.dim;
        let (tokens, beyond, vectors) = (take.u32s()?, take.u32s()?, take.f32s()?);
        let mut parts = Self::new(dim).parts;
        let mut whole = vectors.len() == beyond.len() * dim;
        for part in &mut parts {
            let m = part.m();
            *part = PackedCodes::take(params, take)?;
            whole &= part.is_of(m) && part.len() == tokens.len();
        }
        for list in [&tokens, &beyond] {
            whole &= list.windows(2).all(|pair| pair[0] < pair[1]);
        }
        expect(whole, "impossible outliers")?;
        Ok(Self {
            dim,
            tokens,
            beyond,
            vectors,
            parts,
        })
    }
}

impl Saved for Grid {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { step } = self;
        out.put_f32(*step);
    }

    fn take(_: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let step = take.f32()?;
        expect(step > 0.0 && step.is_finite(), "an impossible grid")?;
        Ok(Self { step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn scores_are_near_the_products() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        for dim in [32, 64, 192, 512] {
            let mut random =
                |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
            let (vectors, both) = (random(50 * dim), random(2 * dim));
            let query = &both[..dim];
            let grid = Grid::new(&vectors);
            let mut outliers = Outliers::new(dim);
            for (i, vector) in vectors.chunks(dim).enumerate() {
                outliers.push(&grid, 3 * i, vector);
            }
            let mut tables = OutlierTables::default();
            tables.fill(&grid, &both, dim, &mut Vec::new()).unwrap();
            let (mut products, mut sums) = (Vec::new(), Vec::new());
            outliers.score(Isa::Scalar, &tables, &mut sums, &mut products);
            assert_eq!(products.len(), 2 * 50);
            for (query, products) in both.chunks(dim).zip(products.chunks(50)) {
                for (got, vector) in products.iter().zip(vectors.chunks(dim)) {
                    // Cells of 2/128 and tables of 255 steps, errors adding like noise.
                    let noise = (dim as f32).sqrt() * 0.02;
                    assert!((got - dot(query, vector)).abs() < noise * 4.0);
                }
            }
            // One beyond the grid is as good as exact.
            let far: Vec<f32> = vectors[..dim].iter().map(|v| v * 1000.0).collect();
            outliers.push(&grid, 150, &far);
            let mut again = Vec::new();
            outliers.score(Isa::Scalar, &tables, &mut sums, &mut again);
            assert_eq!(again[..50], products[..50]);
            assert_eq!(again[51..101], products[50..]);
            assert!((again[50] - dot(query, &far)).abs() < 1e-2);
            let marks = outliers.marks(151);
            assert!((0..151).all(|t| marks.has(t) == outliers.contains(t)));
            assert!(outliers.contains(150));
            outliers.truncate(60);
            assert!(outliers.contains(57) && !outliers.contains(60) && !outliers.contains(58));
        }
    }
}
