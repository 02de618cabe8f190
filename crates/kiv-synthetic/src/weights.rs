//! Random values, written as blocks of their types without being quantized.

use crate::gguf::{Kind, Tensor};
use half::{bf16, f16};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use std::io::{self, Write};

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Evenly distributed around 0 with this standard deviation.
    Random(f32),
    /// One value everywhere.
    Constant(f32),
    /// These.
    Values(Vec<f32>),
}

/// Bytes made at once.
const CHUNK: usize = 1 << 20;

/// Writes a tensor's values, filled up to the next one's place.
pub(crate) fn write(
    out: &mut impl Write,
    tensor: &Tensor,
    content: &Content,
    rng: &mut ChaCha8Rng,
) -> io::Result<()> {
    let (values, size) = tensor.kind.block();
    let n_blocks = tensor.n_values() as usize / values;
    let mut bytes = Vec::new();
    let per_chunk = CHUNK / size;
    let mut done = 0;
    while done < n_blocks {
        let n = per_chunk.min(n_blocks - done);
        bytes.resize(n * size, 0);
        match content {
            Content::Random(deviation) => random(&mut bytes, tensor.kind, *deviation, rng),
            Content::Constant(value) => put(&mut bytes, tensor.kind, |_| *value),
            Content::Values(all) => put(&mut bytes, tensor.kind, |i| all[done + i]),
        }
        out.write_all(&bytes)?;
        done += n;
    }
    let padding = tensor.padded_bytes() - tensor.bytes();
    out.write_all(&vec![0; padding as usize])
}

/// Plain floats by index.
fn put(bytes: &mut [u8], kind: Kind, mut value: impl FnMut(usize) -> f32) {
    match kind {
        Kind::F32 => {
            for (i, to) in bytes.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&value(i).to_le_bytes());
            }
        }
        Kind::Bf16 => {
            for (i, to) in bytes.chunks_exact_mut(2).enumerate() {
                to.copy_from_slice(&bf16::from_f32(value(i)).to_le_bytes());
            }
        }
        Kind::Q4K | Kind::Q6K => unreachable!("vectors are never quantized"),
    }
}

/// Standard deviation of the numbers 0 to `n - 1`, all equally likely.
fn deviation_of(n: f32) -> f32 {
    ((n * n - 1.0) / 12.0).sqrt()
}

/// Whole blocks of random values.
fn random(bytes: &mut [u8], kind: Kind, deviation: f32, rng: &mut ChaCha8Rng) {
    match kind {
        Kind::F32 | Kind::Bf16 => {
            let most = deviation * 3f32.sqrt();
            put(bytes, kind, |_| rng.random_range(-most..most));
        }
        // d, dmin: f16; 12 bytes with a scale and a minimum of 6 bits for each of 8 groups;
        // 4-bit numbers q. A value is d * scale * q - dmin * minimum. All scales and
        // minima are 16, so that the middle of 0..=15 becomes 0 with dmin = 7.5 d.
        Kind::Q4K => {
            rng.fill_bytes(bytes);
            let d = deviation / (16.0 * deviation_of(16.0));
            // 4 scales and 4 minima of 6 bits whose upper 2 are the upper bits of the
            // other 4 (16 is 01_0000), then the lower 4 bits of these.
            const SCALES: [u8; 12] = [0x50, 0x50, 0x50, 0x50, 0x50, 0x50, 0x50, 0x50, 0, 0, 0, 0];
            for block in bytes.chunks_exact_mut(kind.block().1) {
                block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                block[2..4].copy_from_slice(&f16::from_f32(7.5 * d).to_le_bytes());
                block[4..16].copy_from_slice(&SCALES);
            }
        }
        // 4 lower and 2 upper bits of 256 numbers q, 16 scales of 8 bits, d: f16. A value
        // is d * scale * (q - 32), whose mean is not quite 0: scales of either sign
        // make up for it.
        Kind::Q6K => {
            rng.fill_bytes(bytes);
            let d = f16::from_f32(deviation / (16.0 * deviation_of(64.0)));
            for block in bytes.chunks_exact_mut(kind.block().1) {
                for scale in &mut block[192..208] {
                    *scale = if *scale < 128 {
                        16
                    } else {
                        16u8.wrapping_neg()
                    };
                }
                block[208..].copy_from_slice(&d.to_le_bytes());
            }
        }
    }
}
