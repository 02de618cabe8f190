//! An index as bytes, so that it outlives its process.
//!
//! Every type writes its own fields ([`Saved::put`]), in order and without
//! padding, by `kiv-wire`. Reading ([`Saved::take`]) gives back the same index
//! bit by bit; bytes that no index would have written are refused, so that
//! searching never meets them. Fields that change need another [`VERSION`].

use crate::era::Era;
use crate::head::{Dividing, HeadIndex, Params, Tail};
use crate::newest::Newest;
use crate::space::QueryMoments;
use crate::work::Making;
use kiv_wire::{Put, Take, WireError};

/// Version of what is written.
pub const VERSION: u32 = 2;

/// Bits of what there is beside eras.
const NEWEST: u32 = 1;
const DIVIDING: u32 = 2;
const TRAINING: u32 = 4;

/// Something that can be written and read back under the same sizes.
pub(crate) trait Saved: Sized {
    /// Appends all fields.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads what [`Saved::put`] wrote.
    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError>;
}

/// An error unless `right`.
pub(crate) fn expect(right: bool, what: &'static str) -> Result<(), WireError> {
    if right {
        Ok(())
    } else {
        Err(WireError::invalid(what))
    }
}

impl Params {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            dim,
            scale,
            fine,
            coarse,
            segment,
            list,
            era,
            // What is in the making is told of: it need not be the same.
            late: _,
        } = self;
        out.put_u32(VERSION);
        for n in [dim, fine, coarse, segment, list, era] {
            out.put_u64(*n as u64);
        }
        out.put_f32(*scale);
    }
}

impl HeadIndex {
    /// Stretches of tokens that [`HeadIndex::put_era`] writes. They never change, unless
    /// they are cut off.
    #[must_use]
    pub fn n_eras(&self) -> usize {
        self.eras.len()
    }

    /// Appends stretch number `era`.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn put_era(&self, era: usize, out: &mut Vec<u8>) {
        self.eras[era].put(out);
    }

    /// Appends everything else.
    pub fn put_rest(&self, out: &mut Vec<u8>) {
        self.params.put(out);
        out.put_u64(self.n_tokens as u64);
        out.put_u64(self.eras.len() as u64);
        self.moments.put(out);
        let parts = [
            (self.newest.is_some(), NEWEST),
            (self.dividing.is_some(), DIVIDING),
            (self.training.is_some(), TRAINING),
        ];
        out.put_u32(parts.into_iter().map(|(is, bit)| u32::from(is) * bit).sum());
        if let Some(newest) = &self.newest {
            newest.put(out);
        }
        // Not the work itself: that is done anew.
        if let Some(dividing) = &self.dividing {
            dividing.newest.put(out);
            dividing.era.moments.put(out);
        }
        if let Some(training) = &self.training {
            training.moments.put(out);
        }
        self.tail.put(out);
    }

    /// Reads an index back: `rest` is what [`HeadIndex::put_rest`] wrote, and
    /// `eras` hold next what [`HeadIndex::put_era`] wrote for each stretch in
    /// turn.
    ///
    /// # Errors
    /// [`WireError`] if they are of another version, for other sizes, or damaged.
    pub fn take(
        params: Params,
        rest: &mut Take<'_>,
        eras: &mut [Take<'_>],
    ) -> Result<Self, WireError> {
        let mut want = Vec::new();
        params.put(&mut want);
        let same = rest.bytes(want.len())? == want;
        expect(same, "an index of another version or for other sizes")?;
        let (n_tokens, n_eras) = (rest.u64()?, rest.u64()?);
        expect(n_eras == eras.len() as u64, "another number of eras")?;
        let moments = QueryMoments::take(&params, rest)?;
        let parts = rest.u32()?;
        expect(
            parts & !(NEWEST | DIVIDING | TRAINING) == 0,
            "unknown parts",
        )?;
        let (mut newest, mut dividing, mut training) = (None, None, None);
        if parts & NEWEST != 0 {
            newest = Some(Newest::take(&params, rest)?);
        }
        if parts & DIVIDING != 0 {
            let newest = Newest::take(&params, rest)?;
            let era = Making::new(QueryMoments::take(&params, rest)?);
            dividing = Some(Dividing { newest, era });
        }
        if parts & TRAINING != 0 {
            training = Some(Making::new(QueryMoments::take(&params, rest)?));
        }
        let tail = Tail::take(&params, rest)?;
        let eras = eras.iter_mut().map(|take| Era::take(&params, take));
        let index = Self {
            moments,
            eras: eras.collect::<Result<_, _>>()?,
            dividing,
            newest,
            training,
            tail,
            n_tokens: usize::try_from(n_tokens).map_err(|_| WireError::Short)?,
            params,
        };
        index.check_lengths()?;
        Ok(index)
    }

    fn check_lengths(&self) -> Result<(), WireError> {
        let Params { dim, segment, .. } = self.params;
        for (i, era) in self.eras.iter().enumerate() {
            let adjoins = era.first == i * self.params.era_len();
            expect(adjoins, "eras that do not adjoin")?;
        }
        if let Some(Dividing { newest, .. }) = &self.dividing {
            let adjoins = newest.first == self.eras.len() * self.params.era_len()
                && newest.n_segments() == self.params.era;
            expect(adjoins, "an era in the making that does not adjoin")?;
        }
        if self.training.is_some() {
            let single = self.newest.as_ref().is_some_and(|n| n.n_segments() == 1);
            expect(single, "a codebook in the making for nothing")?;
        }
        let kept = if let Some(newest) = &self.newest {
            let adjoins =
                newest.first == self.newest_first() && newest.n_segments() < self.params.era;
            expect(adjoins, "newest keys that do not adjoin")?;
            expect(self.tail.keys.is_empty(), "keys beside codes")?;
            self.tail.codes.len()
        } else {
            let codes = self.tail.codes.len() + self.tail.outliers.tokens().count();
            expect(codes == 0, "codes without a codebook")?;
            self.tail.keys.len() / dim
        };
        let adds_up = kept < segment && self.tail_first() + kept == self.n_tokens;
        expect(adds_up, "lengths that do not add up")
    }
}

impl Saved for Tail {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            keys,
            codes,
            outliers,
        } = self;
        out.put_f32s(keys);
        codes.put(out);
        outliers.put(out);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let tail = Self {
            keys: take.f32s()?,
            codes: Saved::take(params, take)?,
            outliers: Saved::take(params, take)?,
        };
        let whole = tail.keys.len().is_multiple_of(params.dim)
            && tail.keys.iter().all(|v| v.is_finite())
            && tail.codes.is_of(params.fine)
            && tail.outliers.are_below(tail.codes.len());
        expect(whole, "an impossible tail")?;
        Ok(tail)
    }
}
