//! Vectors turned into columns, so that products with many of them are vector code.

use kiv_numeric::{TILE, tile_logits};

/// Vectors of one length, by tiles: value `d` of the 32 vectors of a tile side by side.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    dim: usize,
    n: usize,
    /// `[n_tiles, dim]`, zeros where there is no vector.
    tiles: Vec<[f32; TILE]>,
}

impl Columns {
    /// Of vectors `[n, dim]`.
    pub fn new(vectors: &[f32], dim: usize) -> Self {
        let n = vectors.len() / dim;
        let mut tiles = vec![[0f32; TILE]; n.div_ceil(TILE) * dim];
        for (i, vector) in vectors.chunks_exact(dim).enumerate() {
            let tile = &mut tiles[i / TILE * dim..(i / TILE + 1) * dim];
            for (column, value) in tile.iter_mut().zip(vector) {
                column[i % TILE] = *value;
            }
        }
        Self { dim, n, tiles }
    }

    /// The vectors, `[n, dim]`.
    pub fn vectors(&self) -> impl Iterator<Item = f32> {
        (0..self.n).flat_map(|i| {
            let tile = &self.tiles[i / TILE * self.dim..(i / TILE + 1) * self.dim];
            tile.iter().map(move |column| column[i % TILE])
        })
    }

    /// Value `d` of 32 vectors side by side, `[n_tiles, dim, 32]`, zeros where there is none.
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

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.tiles[..])
    }

    /// Bytes that `n` vectors of `dim` values take.
    pub fn planned_bytes(n: usize, dim: usize) -> usize {
        n.next_multiple_of(TILE) * dim * size_of::<f32>()
    }
}
