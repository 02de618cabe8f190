//! Small GGUF models with random weights and true metadata: one for every kind
//! of cache that llama.cpp makes.
//!
//! A few hundred KB each (gemma3n, whose sizes llama.cpp fixes: 12 MB), with a
//! vocabulary of bytes, so that any text can be read. Weights are the same in
//! every run. Names, shapes and keys follow the pinned llama.cpp
//! (`llama-arch.cpp`, `models/*.cpp`), which refuses to load what is missing.
//!
//! ```
//! let folder = std::env::temp_dir().join("kiv-testmodels-example");
//! std::fs::create_dir_all(&folder).unwrap();
//! let path = kiv_testmodels::by_name("qwen3").unwrap().write(&folder).unwrap();
//! assert!(std::fs::read(path).unwrap().starts_with(b"GGUF"));
//! ```

mod attention;
mod builder;
mod other;
mod vocab;

use builder::Builder;
use kiv_synthetic::gguf::{self, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One model.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Unique among [`all`].
    pub name: &'static str,
    /// What is peculiar about its cache or attention, in a few words.
    pub about: &'static str,
    build: fn() -> Builder,
}

/// Every model, plain attention first.
#[must_use]
pub fn all() -> Vec<Spec> {
    attention::SPECS
        .iter()
        .chain(other::SPECS)
        .copied()
        .collect()
}

/// The model of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Spec> {
    all().into_iter().find(|spec| spec.name == name)
}

impl Spec {
    /// Writes the model as `NAME.gguf` into `folder`; returns its path.
    ///
    /// # Errors
    /// What the file system fails with.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        let path = folder.join(format!("{}.gguf", self.name));
        let model = (self.build)();
        let mut file = io::BufWriter::new(std::fs::File::create(&path)?);
        let seed = self.name.bytes().fold(0, |hash: u64, byte| {
            hash.wrapping_mul(31).wrapping_add(byte.into())
        });
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        file.write_all(&gguf::head(&model.metadata, &model.tensors))?;
        for tensor in &model.tensors {
            let values = values(tensor, &mut rng).into_iter();
            let mut bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            bytes.resize(tensor.padded_bytes() as usize, 0);
            file.write_all(&bytes)?;
        }
        file.flush()?;
        Ok(path)
    }
}

/// Random values in the range that the tensor's part in the model wants: large
/// enough that attention has favourites, small enough that nothing overflows.
fn values(tensor: &Tensor, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let name = &tensor.name;
    let range = if name.contains("norm") && !name.ends_with(".bias") {
        0.8..1.2
    } else if name.contains("rope_f") {
        // Divisors of frequencies.
        1.0..4.0
    } else if name.ends_with("ssm_a") {
        // Decay: states must not grow.
        -1.0..-0.1
    } else {
        -0.2f32..0.2
    };
    (0..tensor.n_values())
        .map(|_| rng.random_range(range.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_weights_the_same_every_time() {
        let mut names: Vec<_> = all().iter().map(|s| s.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
        let spec = by_name("llama-gqa").unwrap();
        let folder = std::env::temp_dir().join(format!("kiv-testmodels-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let once = std::fs::read(spec.write(&folder).unwrap()).unwrap();
        let again = std::fs::read(spec.write(&folder).unwrap()).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(once, again);
        assert!(by_name("gpt-9").is_none());
    }
}
