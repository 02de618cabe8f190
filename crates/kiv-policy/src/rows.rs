//! Rows of the KV cache as raw bytes in the cache's own type.
//!
//! Rows are stored and swapped as bytes, so that a block that comes back is
//! bit-identical to the one that left; policies decode them when they need
//! numbers. The block layouts are ggml's (`ggml-common.h`).

use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Element type of the K or the V cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// 32-bit float.
    F32,
    /// IEEE half precision, llama.cpp's default.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 values as i8 with one f16 scale: 34 bytes.
    Q8_0,
    /// 32 values as 4-bit integers with one f16 scale: 18 bytes.
    Q4_0,
}

impl RowFormat {
    /// Every format, in the order of [`RowFormat::name`]'s documentation.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// llama.cpp's name for it (`f32`, `f16`, `bf16`, `q8_0`, `q4_0`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The format of this name, if it is one of ours.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Values that share a scale; a row's length must be a multiple of it.
    #[must_use]
    pub const fn group_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
        }
    }

    /// Bytes of one group of [`RowFormat::group_len`] values.
    #[must_use]
    pub const fn group_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of a row of `len` values.
    ///
    /// # Panics
    /// If `len` is not a multiple of [`RowFormat::group_len`].
    #[must_use]
    pub const fn row_bytes(self, len: usize) -> usize {
        assert!(
            len.is_multiple_of(self.group_len()),
            "row length is not a multiple of the format's group"
        );
        len / self.group_len() * self.group_bytes()
    }

    /// Decodes whole groups from `bytes` into `out`.
    ///
    /// # Panics
    /// If `out.len()` values do not take exactly `bytes.len()` bytes.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            bytes.len(),
            self.row_bytes(out.len()),
            "bytes and values differ"
        );
        match self {
            Self::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            // `half` converts slices with F16C where the CPU has it. Rows are
            // aligned unless somebody cut a buffer oddly.
            Self::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
                _ => {
                    for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                        *o = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    }
                }
            },
            Self::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::Q8_0 => {
                let groups = out.as_chunks_mut().0.iter_mut();
                let groups = groups.zip(bytes.as_chunks().0);
                groups.for_each(|(o, b)| decode_q8_0(b, o));
            }
            Self::Q4_0 => {
                let groups = out.as_chunks_mut().0.iter_mut();
                let groups = groups.zip(bytes.as_chunks().0);
                groups.for_each(|(o, b)| decode_q4_0(b, o));
            }
        }
    }

    /// Encodes `values` in this format, as ggml's reference code does (the
    /// cache itself is written by llama.cpp).
    ///
    /// # Panics
    /// If `values.len()` is not a multiple of [`RowFormat::group_len`].
    #[must_use]
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(values, &mut out);
        out
    }

    /// Appends `values` in this format to `out`, as [`RowFormat::encode`].
    ///
    /// # Panics
    /// As [`RowFormat::encode`].
    pub fn encode_into(self, values: &[f32], out: &mut Vec<u8>) {
        let first = out.len();
        out.resize(first + self.row_bytes(values.len()), 0);
        let out = &mut out[first..];
        match self {
            Self::F32 => {
                for (o, v) in out.chunks_exact_mut(4).zip(values) {
                    o.copy_from_slice(&v.to_le_bytes());
                }
            }
            // As in `decode`: this is what makes a swap of converted rows fast.
            Self::F16 => match bytemuck::try_cast_slice_mut::<u8, f16>(out) {
                Ok(halves) if cfg!(target_endian = "little") => {
                    halves.convert_from_f32_slice(values);
                }
                _ => {
                    for (o, v) in out.chunks_exact_mut(2).zip(values) {
                        o.copy_from_slice(&f16::from_f32(*v).to_le_bytes());
                    }
                }
            },
            Self::Bf16 => {
                for (o, v) in out.chunks_exact_mut(2).zip(values) {
                    o.copy_from_slice(&bf16::from_f32(*v).to_le_bytes());
                }
            }
            Self::Q8_0 => {
                for (o, group) in out.chunks_exact_mut(34).zip(values.chunks_exact(32)) {
                    let max = group.iter().fold(0f32, |m, v| m.max(v.abs()));
                    let scale = max / 127.0;
                    let inv = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    o[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                    for (o, v) in o[2..].iter_mut().zip(group) {
                        *o = ((v * inv).round() as i8).cast_unsigned();
                    }
                }
            }
            Self::Q4_0 => {
                for (o, group) in out.chunks_exact_mut(18).zip(values.chunks_exact(32)) {
                    let extreme = group
                        .iter()
                        .fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
                    let scale = extreme / -8.0;
                    let inv = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                    let q = |v: f32| (v * inv + 8.5).clamp(0.0, 15.0) as u8;
                    o[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                    let (low, high) = group.split_at(16);
                    for ((o, l), h) in o[2..].iter_mut().zip(low).zip(high) {
                        *o = q(*l) | (q(*h) << 4);
                    }
                }
            }
        }
    }
}

/// A group of 8-bit values.
///
/// Not inlined: the compiler would work on values of several groups at once, which are
/// nowhere near each other, instead of on those of one.
#[inline(never)]
fn decode_q8_0(bytes: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for (o, q) in out.iter_mut().zip(&bytes[2..]) {
        *o = f32::from(q.cast_signed()) * scale;
    }
}

/// A group of 4-bit values, as above.
#[inline(never)]
fn decode_q4_0(bytes: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let (low, high) = out.split_at_mut(16);
    for ((l, h), q) in low.iter_mut().zip(high).zip(&bytes[2..]) {
        *l = (f32::from(q & 0xf) - 8.0) * scale;
        *h = (f32::from(q >> 4) - 8.0) * scale;
    }
}

impl std::fmt::Display for RowFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Consecutive rows of one (layer, KV head), oldest token first.
///
/// Shape `[n_rows, row_len]`, row-major, in [`Rows::format`].
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Type of the elements.
    pub format: RowFormat,
    /// Values in a row: the head dimension of K or V.
    pub row_len: usize,
    /// `n_rows * format.row_bytes(row_len)` bytes.
    pub bytes: &'a [u8],
}

impl<'a> Rows<'a> {
    /// Number of rows (tokens).
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.bytes.len() / self.format.row_bytes(self.row_len)
    }

    /// Rows `first .. first + n`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[must_use]
    pub fn slice(&self, first: usize, n: usize) -> Rows<'a> {
        let row = self.format.row_bytes(self.row_len);
        Rows {
            bytes: &self.bytes[first * row..(first + n) * row],
            ..*self
        }
    }

    /// Decodes all rows: `out` becomes `[n_rows, row_len]`.
    pub fn decode_into(&self, out: &mut Vec<f32>) {
        out.resize(self.n_rows() * self.row_len, 0.0);
        self.format.decode(self.bytes, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_round_trip_within_half_a_step() {
        let values: Vec<f32> = (0..128)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0)
            .collect();
        for (format, step) in [
            (RowFormat::F32, 0.0),
            (RowFormat::F16, 4.0 / 1024.0),
            (RowFormat::Bf16, 4.0 / 128.0),
            (RowFormat::Q8_0, 4.0 / 127.0),
            (RowFormat::Q4_0, 4.0 / 7.0),
        ] {
            let bytes = format.encode(&values);
            assert_eq!(bytes.len(), format.row_bytes(values.len()));
            let mut out = vec![0.0; values.len()];
            format.decode(&bytes, &mut out);
            for (a, b) in values.iter().zip(&out) {
                assert!((a - b).abs() <= step, "{format}: {a} became {b}");
            }
            assert_eq!(RowFormat::from_name(format.name()), Some(format));
        }
    }

    #[test]
    fn rows_at_odd_addresses_decode_alike() {
        let values: Vec<f32> = (0..40).map(|v| v as f32 / 8.0).collect();
        let mut bytes = vec![0];
        bytes.extend(RowFormat::F16.encode(&values));
        for start in [1, 3] {
            let mut out = vec![0.0; 38];
            RowFormat::F16.decode(&bytes[start..start + 76], &mut out);
            assert_eq!(out, values[start / 2..start / 2 + 38]);
            let mut back = bytes[..start].to_vec();
            RowFormat::F16.encode_into(&out, &mut back);
            assert_eq!(back, bytes[..start + 76]);
        }
    }

    #[test]
    fn slices_are_rows() {
        let values: Vec<f32> = (0..96).map(|v| v as f32).collect();
        let bytes = RowFormat::F16.encode(&values);
        let rows = Rows {
            format: RowFormat::F16,
            row_len: 32,
            bytes: &bytes,
        };
        assert_eq!(rows.n_rows(), 3);
        let mut out = Vec::new();
        rows.slice(1, 2).decode_into(&mut out);
        assert_eq!(out, values[32..]);
    }
}
