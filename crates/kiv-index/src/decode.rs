//! Keys as their codes have them: who has many queries for few keys multiplies them with
//! these, instead of making tables for each query.

use crate::codebook::Codebook;
use crate::era::Era;
use crate::head::HeadIndex;
use crate::newest::Newest;
use crate::packed::PackedCodes;
use crate::search::TOKEN;
use std::ops::Deref;

/// Of whatever is marked as an outlier.
const MARKED: &str = "outliers are marked";

/// Where keys are that are decoded together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// In an era.
    Era(usize),
    /// Among the newest keys, of the next era or of the one after it.
    Newest(usize),
    /// After them.
    Tail,
}

impl HeadIndex {
    /// Keys that have been told ([`crate::Hits::keys`]), as their codes have them, appended to
    /// `out` as `[n, dim]`. Products with them are what a search would score them, but for the
    /// rounding of its tables. In ascending order they are decoded fastest.
    ///
    /// # Panics
    /// If there is no such key.
    pub fn decode(&self, keys: &[u32], out: &mut Vec<f32>) {
        let mut mapped = Vec::new();
        for keys in keys.chunk_by(|a, b| self.part_of(*a) == self.part_of(*b)) {
            mapped.clear();
            match self.part_of(keys[0]) {
                Part::Era(number) => {
                    let (era, first) = (&self.eras[number], number * self.params.era_len());
                    let places = keys.iter().map(|key| *key as usize - first);
                    era.decode(places, &mut mapped);
                    era.space.unmap(&mapped, out);
                }
                Part::Newest(number) => {
                    let newest = self.newest_part(number);
                    let tokens = keys
                        .iter()
                        .map(|key| (key & !TOKEN) as usize - newest.first);
                    newest.decode(tokens, &mut mapped);
                    newest.space.unmap(&mapped, out);
                }
                Part::Tail => self.decode_tail(keys, &mut mapped, out),
            }
        }
    }

    fn part_of(&self, key: u32) -> Part {
        let token = (key & !TOKEN) as usize;
        if key & TOKEN == 0 {
            Part::Era(token / self.params.era_len())
        } else if token >= self.tail_first() {
            Part::Tail
        } else {
            // Each begins after the one before.
            let begun = self.newest_parts().take_while(|part| part.first <= token);
            Part::Newest(begun.count() - 1)
        }
    }

    fn newest_part(&self, number: usize) -> &Newest {
        let part = self.newest_parts().nth(number);
        part.expect("keys are in parts that are there")
    }

    fn decode_tail(&self, keys: &[u32], mapped: &mut Vec<f32>, out: &mut Vec<f32>) {
        let (dim, first) = (self.params.dim, self.tail_first());
        let numbers = keys.iter().map(|key| (key & !TOKEN) as usize - first);
        let Some(newest) = &self.newest else {
            let of = |number: usize| &self.tail.keys[number * dim..(number + 1) * dim];
            numbers.for_each(|number| out.extend_from_slice(of(number)));
            return;
        };
        decode_all(&newest.fine, &self.tail.codes, numbers.clone(), mapped);
        let centre = newest.centre(newest.n_segments());
        for (number, vector) in numbers.zip(mapped.chunks_exact_mut(dim)) {
            if let Some(outlier) = self.tail.outliers.vector(&newest.grid, number) {
                vector.copy_from_slice(&outlier);
            }
            add(vector, centre);
        }
        newest.space.unmap(mapped, out);
    }
}

impl Era {
    /// Keys at these places, in the era's space.
    fn decode(&self, places: impl Iterator<Item = usize> + Clone, out: &mut Vec<f32>) {
        let dim = self.centre.len();
        decode_all(&self.fine, self.keys(), places.clone(), out);
        let mut lists: Vec<usize> = places.clone().map(|place| self.list_of(place)).collect();
        let of_keys = lists.clone();
        // Neighbours are in the same.
        lists.dedup();
        let mut means = Vec::new();
        self.decode_means(lists.iter().copied(), &mut means);
        let mut means = lists.iter().zip(means.chunks_exact(dim)).peekable();
        for ((place, list), vector) in places.zip(of_keys).zip(out.chunks_exact_mut(dim)) {
            while means.peek().is_some_and(|(number, _)| **number != list) {
                means.next();
            }
            if self.is_outlier.has(place) {
                let outlier = self.outliers.vector(&self.grid, place).expect(MARKED);
                vector.copy_from_slice(&outlier);
            } else if let Some((_, mean)) = means.peek() {
                add(vector, mean);
            }
            add(vector, &self.centre);
        }
    }
}

impl Newest {
    /// The keys of tokens, counted from the first one, in the space of these.
    fn decode(&self, tokens: impl Iterator<Item = usize> + Clone, out: &mut Vec<f32>) {
        let dim = self.centre(0).len();
        decode_all(&self.fine, self.keys(), tokens.clone(), out);
        for (token, vector) in tokens.zip(out.chunks_exact_mut(dim)) {
            if self.is_outlier.has(token) {
                let outlier = self.outliers.vector(&self.grid, token).expect(MARKED);
                vector.copy_from_slice(&outlier);
            }
            add(vector, self.centre(token / self.segment_len()));
        }
    }
}

/// What some of these codes stand for, appended to `out`.
fn decode_all<B: Deref<Target = [u8]>>(
    book: &Codebook,
    codes: &PackedCodes<B>,
    vectors: impl Iterator<Item = usize>,
    out: &mut Vec<f32>,
) {
    let mut unpacked = Vec::new();
    vectors.for_each(|vector| codes.unpack_into(vector, &mut unpacked));
    book.decode(&unpacked, out);
}

fn add(vector: &mut [f32], other: &[f32]) {
    let pairs = vector.iter_mut().zip(other);
    pairs.for_each(|(v, o)| *v += o);
}
