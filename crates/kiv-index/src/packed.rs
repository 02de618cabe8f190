//! A list of packed codes.

use crate::head::Params;
use crate::pages::Pages;
use crate::saved::{Saved, expect};
use kiv_fastscan::{GROUP, MAX_M, group_bytes, pack, unpack_key, unpack_one};
use kiv_wire::{Put, Take, WireError};
use std::ops::{Deref, Range};

/// Codes of `n` vectors with `m` subquantizers each, in groups of 32, the last
/// one filled up.
#[derive(Clone, Debug)]
pub(crate) struct PackedCodes<B = Vec<u8>> {
    m: usize,
    n: usize,
    bytes: B,
}

/// Those that do not change any more.
pub(crate) type FixedCodes = PackedCodes<Pages>;

impl PackedCodes {
    pub fn new(m: usize) -> Self {
        Self {
            m,
            n: 0,
            bytes: Vec::new(),
        }
    }

    /// With room for `n` vectors; memory that is not written yet costs nothing.
    pub fn with_capacity(m: usize, n: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(n.div_ceil(GROUP) * group_bytes(m)),
            ..Self::new(m)
        }
    }

    /// Appends codes `[n, m]`.
    pub fn push(&mut self, codes: &[u8]) {
        let whole = self.n / GROUP;
        if self.n.is_multiple_of(GROUP) {
            pack(codes, self.m, &mut self.bytes);
        } else {
            // The last group has room: it is packed again.
            let mut last = self.unpack(whole * GROUP..self.n);
            last.extend_from_slice(codes);
            self.bytes.truncate(whole * group_bytes(self.m));
            pack(&last, self.m, &mut self.bytes);
        }
        self.n += codes.len() / self.m;
    }

    /// Keeps the first `n`.
    pub fn truncate(&mut self, n: usize) {
        if n < self.n {
            self.n = n;
            self.bytes.truncate(n.div_ceil(GROUP) * group_bytes(self.m));
        }
    }

    /// Both of them as they stay, side by side.
    pub fn fixed(self, other: Self) -> [FixedCodes; 2] {
        let [own, others] = Pages::of([&self.bytes, &other.bytes]);
        [self.with(own), other.with(others)]
    }

    fn with<B>(&self, bytes: B) -> PackedCodes<B> {
        PackedCodes {
            m: self.m,
            n: self.n,
            bytes,
        }
    }
}

impl<B: Deref<Target = [u8]>> PackedCodes<B> {
    /// Subquantizers.
    pub fn m(&self) -> usize {
        self.m
    }

    pub fn len(&self) -> usize {
        self.n
    }

    /// Codes of some vectors, `[n, m]`.
    pub fn unpack(&self, vectors: Range<usize>) -> Vec<u8> {
        let mut codes = Vec::with_capacity(vectors.len() * self.m);
        vectors.for_each(|vector| self.unpack_into(vector, &mut codes));
        codes
    }

    /// Codes of one vector, appended to `codes`.
    pub fn unpack_into(&self, vector: usize, codes: &mut Vec<u8>) {
        let first = codes.len();
        codes.resize(first + self.m, 0);
        unpack_key(&self.bytes, self.m, vector, &mut codes[first..]);
    }

    /// One subquantizer's code of one vector.
    pub fn code(&self, vector: usize, subquantizer: usize) -> u8 {
        unpack_one(&self.bytes, self.m, vector, subquantizer)
    }

    /// Groups as kernels want them. What fills up the last one scores as
    /// something: callers look at the first [`PackedCodes::len`] sums only.
    pub fn groups(&self) -> &[u8] {
        &self.bytes
    }

    /// Some of the groups.
    pub fn some(&self, groups: Range<usize>) -> &[u8] {
        let size = group_bytes(self.m);
        &self.bytes[groups.start * size..groups.end * size]
    }

    /// Sums that a scan of all groups gives.
    pub fn n_sums(&self) -> usize {
        self.n.next_multiple_of(GROUP)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether its codes are of `m` subquantizers.
    pub fn is_of(&self, m: usize) -> bool {
        self.m == m
    }
}

impl<B: Deref<Target = [u8]>> PackedCodes<B> {
    /// As [`Saved::put`].
    pub fn put_codes(&self, out: &mut Vec<u8>) {
        let Self { m, n, bytes } = self;
        out.put_u32(*m as u32);
        out.put_u64(*n as u64);
        out.put_u8s(bytes);
    }
}

impl Saved for PackedCodes {
    fn put(&self, out: &mut Vec<u8>) {
        self.put_codes(out);
    }

    fn take(_: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let (m, n) = (take.u32()? as usize, take.u64()?);
        let bytes = take.byte_list()?;
        let groups = n.div_ceil(GROUP as u64);
        let whole = (2..=MAX_M).contains(&m)
            && m.is_multiple_of(2)
            && groups.checked_mul(group_bytes(m) as u64) == Some(bytes.len() as u64);
        expect(whole, "codes of an impossible length")?;
        Ok(Self {
            m,
            n: n as usize,
            bytes: bytes.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks() {
        let code = |i: usize| [i % 16, i / 16 % 16, 3, i % 7].map(|c| c as u8);
        let mut list = PackedCodes::new(4);
        let mut want = Vec::new();
        for (pushed, kept) in [
            (5, 5),
            (30, 33),
            (64, 90),
            (0, 64),
            (3, 67),
            (40, 0),
            (33, 33),
        ] {
            let codes: Vec<u8> = (want.len() / 4..want.len() / 4 + pushed)
                .flat_map(code)
                .collect();
            list.push(&codes);
            want.extend(codes);
            list.truncate(kept);
            want.truncate(kept * 4);
            assert_eq!(list.len() * 4, want.len());
            assert_eq!(list.unpack(0..list.len()), want);
            assert_eq!(list.groups().len(), list.n_sums() * 2);
        }
    }
}
