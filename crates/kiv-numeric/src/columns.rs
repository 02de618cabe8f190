//! Vectors turned into columns, so that products with many of them are vector code.

use crate::{TILE, tile_logits};

/// Vectors of one length, by tiles: value `d` of the 32 vectors of a tile side by side.
#[derive(Clone, Debug)]
pub struct Columns {
    dim: usize,
    n: usize,
    /// `[n_tiles, dim]`, zeros where there is no vector.
    tiles: Vec<[f32; TILE]>,
}

impl Columns {
    /// Of vectors `[n, dim]`.
    ///
    /// # Panics
    /// If `dim` is 0.
    #[must_use]
    pub fn new(vectors: &[f32], dim: usize) -> Self {
        let (n, tiles) = (0, Vec::new());
        let mut columns = Self { dim, n, tiles };
        columns.extend(vectors);
        columns
    }

    /// Number of vectors.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Values of each.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Appends vectors `[n, dim]`.
    pub fn extend(&mut self, vectors: &[f32]) {
        let n = self.n + vectors.len() / self.dim;
        let n_columns = n.div_ceil(TILE) * self.dim;
        self.tiles.resize(n_columns, [0.0; TILE]);
        for (i, vector) in (self.n..).zip(vectors.chunks_exact(self.dim)) {
            for (column, value) in self.tile_of(i).iter_mut().zip(vector) {
                column[i % TILE] = *value;
            }
        }
        self.n = n;
    }

    /// Keeps the first `n`.
    pub fn truncate(&mut self, n: usize) {
        if n >= self.n {
            return;
        }
        self.n = n;
        self.tiles.truncate(n.div_ceil(TILE) * self.dim);
        if !n.is_multiple_of(TILE) {
            let last = self.tile_of(n).iter_mut();
            last.for_each(|column| column[n % TILE..].fill(0.0));
        }
    }

    /// Makes a vector the same as another one.
    ///
    /// # Panics
    /// If one of them is not there.
    pub fn copy_within(&mut self, from: usize, to: usize) {
        assert!(from < self.n && to < self.n, "no such vectors");
        for d in 0..self.dim {
            let value = self.tiles[from / TILE * self.dim + d][from % TILE];
            self.tiles[to / TILE * self.dim + d][to % TILE] = value;
        }
    }

    fn tile_of(&mut self, i: usize) -> &mut [[f32; TILE]] {
        &mut self.tiles[i / TILE * self.dim..(i / TILE + 1) * self.dim]
    }

    /// The vectors, `[n, dim]`.
    pub fn vectors(&self) -> impl Iterator<Item = f32> {
        (0..self.n).flat_map(|i| {
            let tile = &self.tiles[i / TILE * self.dim..(i / TILE + 1) * self.dim];
            tile.iter().map(move |column| column[i % TILE])
        })
    }

    /// Value `d` of 32 vectors side by side, `[n_tiles, dim, 32]`, zeros where there is none.
    #[must_use]
    pub fn tiles(&self) -> &[[f32; TILE]] {
        &self.tiles
    }

    /// Products of some vectors with all of these, tile by tile.
    pub fn products<'a, const R: usize>(
        &'a self,
        others: [&'a [f32]; R],
    ) -> impl Iterator<Item = [[f32; TILE]; R]> + 'a {
        let tiles = self.tiles.chunks_exact(self.dim);
        tiles.map(move |tile| tile_logits(others, tile))
    }

    /// The columns as vectors: value `d` of the `i`-th becomes value `i` of the `d`-th.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let (dim, n) = (self.n, self.dim);
        let mut tiles = vec![[0.0; TILE]; n.div_ceil(TILE) * dim];
        for i in 0..self.n {
            for d in 0..self.dim {
                tiles[d / TILE * dim + i][d % TILE] = self.tiles[i / TILE * n + d][i % TILE];
            }
        }
        Self { dim, n, tiles }
    }

    /// Products of vectors with all of these: `out[other][i]`.
    ///
    /// # Panics
    /// If `out` has another length, or one of the others is too short.
    pub fn products_into(&self, others: &[&[f32]], out: &mut [f32]) {
        self.first_products_into(self.n, others, out);
    }

    /// [`Columns::products_into`] with the first `n`.
    ///
    /// # Panics
    /// If there are fewer, if `out` has another length, or one of the others is too short.
    pub fn first_products_into(&self, n: usize, others: &[&[f32]], out: &mut [f32]) {
        assert!(n <= self.n, "no such vectors");
        assert_eq!(out.len(), others.len() * n, "one product of each two");
        if out.is_empty() {
            return;
        }
        let mut rows = out.chunks_exact_mut(n);
        let (fours, others) = others.as_chunks();
        let (twos, others) = others.as_chunks();
        fours
            .iter()
            .for_each(|some| self.fill::<4>(*some, &mut rows));
        twos.iter()
            .for_each(|some| self.fill::<2>(*some, &mut rows));
        others.iter().for_each(|one| self.fill([one], &mut rows));
    }

    fn fill<'o, const R: usize>(
        &self,
        others: [&[f32]; R],
        out: &mut impl Iterator<Item = &'o mut [f32]>,
    ) {
        let mut rows: [_; R] =
            std::array::from_fn(|_| out.next().unwrap_or_default().chunks_mut(TILE));
        let n_tiles = rows[0].len();
        for products in self.products(others).take(n_tiles) {
            for (row, products) in rows.iter_mut().zip(&products) {
                if let Some(row) = row.next() {
                    row.copy_from_slice(&products[..row.len()]);
                }
            }
        }
    }

    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&self.tiles[..])
    }

    /// Bytes that `n` vectors of `dim` values take.
    #[must_use]
    pub fn planned_bytes(n: usize, dim: usize) -> usize {
        n.next_multiple_of(TILE) * dim * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot;

    const DIM: usize = 6;

    fn vectors(n: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 7 + seed * 13) % 23) as f32 - 11.0;
        (0..n * DIM).map(value).collect()
    }

    #[test]
    fn products_of_all_pairs() {
        for (n, n_others) in [(0, 3), (1, 1), (31, 2), (32, 3), (33, 4), (100, 7), (5, 0)] {
            let (these, others) = (vectors(n, 1), vectors(n_others, 2));
            let columns = Columns::new(&these, DIM);
            let mut got = vec![f32::NAN; n * n_others];
            let other: Vec<&[f32]> = others.chunks(DIM).collect();
            columns.products_into(&other, &mut got);
            let all = others.chunks(DIM).flat_map(|other| {
                let products = these.chunks(DIM).map(move |this| dot(this, other));
                products.collect::<Vec<_>>()
            });
            // Small whole numbers: exact in any order.
            assert_eq!(got, all.collect::<Vec<_>>(), "{n}, {n_others}");
        }
    }

    #[test]
    fn products_with_the_first() {
        let (these, others) = (vectors(70, 1), vectors(7, 2));
        let columns = Columns::new(&these, DIM);
        let other: Vec<&[f32]> = others.chunks(DIM).collect();
        for n in [1, 31, 32, 33, 64, 69, 70] {
            let mut got = vec![f32::NAN; n * other.len()];
            columns.first_products_into(n, &other, &mut got);
            let mut want = vec![f32::NAN; n * other.len()];
            Columns::new(&these[..n * DIM], DIM).products_into(&other, &mut want);
            assert_eq!(got, want, "{n}");
        }
    }

    #[test]
    fn transposed_twice_is_the_same() {
        for n in [1, 6, 31, 32, 33, 70] {
            let columns = Columns::new(&vectors(n, 4), DIM);
            let transposed = columns.transposed();
            assert_eq!((transposed.n(), transposed.dim()), (DIM, n));
            let turned: Vec<f32> = transposed.vectors().collect();
            let list: Vec<f32> = columns.vectors().collect();
            assert!((0..n * DIM).all(|i| turned[i % DIM * n + i / DIM] == list[i]));
            assert_eq!(transposed.transposed().tiles(), columns.tiles());
        }
    }

    #[test]
    fn changed_as_a_list_of_vectors_is() {
        let all = vectors(90, 3);
        let mut list = all[..70 * DIM].to_vec();
        let mut columns = Columns::new(&list, DIM);
        let agree = |columns: &Columns, list: &[f32]| {
            assert_eq!(columns.vectors().collect::<Vec<_>>(), list);
            // No trace of what was there is left.
            assert_eq!(columns.tiles(), Columns::new(list, DIM).tiles());
        };
        for (from, to) in [(69, 0), (3, 40), (5, 5)] {
            columns.copy_within(from, to);
            list.copy_within(from * DIM..(from + 1) * DIM, to * DIM);
            agree(&columns, &list);
        }
        for n in [80, 65, 64, 33, 0] {
            columns.truncate(n);
            list.truncate(n * DIM);
            agree(&columns, &list);
        }
        for more in all.chunks(7 * DIM) {
            columns.extend(more);
            list.extend_from_slice(more);
            agree(&columns, &list);
        }
    }
}
