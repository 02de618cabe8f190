//! GGUF models with random weights in the shapes and tensor types of real ones: what a
//! model of that size costs in time and memory can be measured without having it.
//!
//! What they answer means nothing. Weights are written as random blocks of the types
//! that llama.cpp's Q4_K_M gives each tensor, scaled so that activations stay as large
//! as they are in real models. The same model has the same bytes on every machine.
//!
//! ```
//! use kiv_synthetic::{Shape, Synthetic};
//! let model = Synthetic::new(Shape::by_name("llama-3.2-3b")?);
//! assert!((3.2e9..3.3e9).contains(&(model.n_params() as f64)));
//! # let small = model.vocab(512)?.layers(1)?;
//! # assert_eq!(small.label(), "synthetic llama-3.2-3b Q4_K_M, 1 of 28 layers, vocabulary 512");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod gguf;
mod layout;
mod shapes;
mod vocab;
mod weights;

use layout::Layout;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
pub use shapes::{SHAPES, Shape};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More layers than the real model has, or too few.
    #[error("{name} can have {fewest} to {most} layers, not {layers}")]
    Layers {
        /// The shape's name.
        name: &'static str,
        /// What was asked for.
        layers: u32,
        /// Fewest that llama.cpp loads.
        fewest: u32,
        /// Layers of the real model.
        most: u32,
    },
    /// More tokens than the real model has, or too few for a tokenizer.
    #[error(
        "{name} can have a vocabulary of {} to {most} tokens, not {vocab}",
        vocab::FEWEST
    )]
    Vocab {
        /// The shape's name.
        name: &'static str,
        /// What was asked for.
        vocab: u64,
        /// Tokens of the real model.
        most: u64,
    },
    /// The file will not fit.
    #[error(
        "{}: {needed} bytes are needed but {free} are free. Make room, name another folder, \
         or take fewer layers", path.display()
    )]
    Full {
        /// The file that was to be written.
        path: PathBuf,
        /// Its bytes.
        needed: u64,
        /// Bytes that can be written there.
        free: u64,
    },
    /// The file system failed.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it failed with.
        source: io::Error,
    },
}

/// A model to be made.
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    shape: &'static Shape,
    layers: u32,
    vocab: u64,
    seed: u64,
}

impl Synthetic {
    /// The whole model of this shape.
    #[must_use]
    pub fn new(shape: &'static Shape) -> Self {
        Self {
            shape,
            layers: shape.layers,
            vocab: shape.vocab,
            seed: 1,
        }
    }

    /// With so many layers, its first, which take their tensor types as if there were
    /// no others.
    ///
    /// # Errors
    /// [`Error::Layers`] unless it has them.
    pub fn layers(self, layers: u32) -> Result<Self, Error> {
        let Shape {
            name, layers: most, ..
        } = *self.shape;
        let fewest = self.shape.fewest_layers();
        if (fewest..=most).contains(&layers) {
            return Ok(Self { layers, ..self });
        }
        Err(Error::Layers {
            name,
            layers,
            fewest,
            most,
        })
    }

    /// With a vocabulary of so many tokens.
    ///
    /// # Errors
    /// [`Error::Vocab`] if they are more than it has, or fewer than 259.
    pub fn vocab(self, vocab: u64) -> Result<Self, Error> {
        let Shape {
            name, vocab: most, ..
        } = *self.shape;
        if (vocab::FEWEST..=most).contains(&vocab) {
            return Ok(Self { vocab, ..self });
        }
        Err(Error::Vocab { name, vocab, most })
    }

    /// With other random numbers (1 unless this is called).
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// What it is, in one line: says wherein it differs from the real shape.
    #[must_use]
    pub fn label(&self) -> String {
        let mut label = format!("synthetic {} Q4_K_M", self.shape.name);
        if self.layers != self.shape.layers {
            let (some, all) = (self.layers, self.shape.layers);
            label += &format!(", {some} of {all} layers");
        }
        if self.vocab != self.shape.vocab {
            label += &format!(", vocabulary {}", self.vocab);
        }
        label
    }

    /// Name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        let (name, layers, vocab, seed) = (self.shape.name, self.layers, self.vocab, self.seed);
        let mut file = format!("synthetic-{name}");
        if layers != self.shape.layers {
            file += &format!("-{layers}-layers");
        }
        if vocab != self.shape.vocab {
            file += &format!("-vocabulary-{vocab}");
        }
        if seed != 1 {
            file += &format!("-seed-{seed}");
        }
        file + "-Q4_K_M.gguf"
    }

    /// Values of all its tensors.
    #[must_use]
    pub fn n_params(&self) -> u64 {
        let layout = Layout::new(self);
        layout.tensors.iter().map(|(t, _)| t.n_values()).sum()
    }

    /// Tokens at random, all equally likely: text that touches the whole vocabulary.
    #[must_use]
    pub fn tokens(&self, n: usize, seed: u64) -> Vec<i32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Those that begin and end a text are the last two.
        let plain = self.vocab as i32 - 2;
        (0..n).map(|_| rng.random_range(0..plain)).collect()
    }

    /// Its file in `folder`, which is made if it is not there whole: that it has the
    /// right length and the right head is looked at. `making` is called with its path
    /// and bytes before it is written. Of several processes one makes it, the others
    /// wait.
    ///
    /// # Errors
    /// [`Error::Full`] before anything is written if it does not fit, and
    /// [`Error::Io`]. At most an empty file whose name ends in `.part` is left behind.
    pub fn file_in(
        &self,
        folder: &Path,
        making: impl FnOnce(&Path, u64),
    ) -> Result<PathBuf, Error> {
        let path = folder.join(self.file_name());
        let layout = Layout::new(self);
        let tensors: Vec<_> = layout.tensors.iter().map(|(t, _)| t.clone()).collect();
        let head = gguf::head(&layout.metadata, &tensors);
        let values: u64 = tensors.iter().map(gguf::Tensor::padded_bytes).sum();
        let bytes = head.len() as u64 + values;
        if is_whole(&path, &head, bytes) {
            return Ok(path);
        }
        let failed = |source| Error::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        // Written beside and renamed, so that nobody sees half of it. The name is always
        // the same: what a killed process has left is written over.
        let part = folder.join(self.file_name() + ".part");
        let mut file = lock(&part).map_err(failed)?;
        if is_whole(&path, &head, bytes) {
            return Ok(path);
        }
        file.set_len(0).map_err(failed)?;
        check_space(&path, bytes, kiv_models::free_space(folder))?;
        making(&path, bytes);
        if let Err(error) = self.write(&mut file, &head, &layout) {
            // Others may wait for this very file: it is emptied, not removed.
            let _ = file.set_len(0);
            return Err(failed(error));
        }
        std::fs::rename(&part, &path).map_err(failed)?;
        Ok(path)
    }

    fn write(&self, file: &mut File, head: &[u8], layout: &Layout) -> io::Result<()> {
        let mut out = io::BufWriter::new(file);
        out.write_all(head)?;
        for (i, (tensor, content)) in layout.tensors.iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(i as u64);
            weights::write(&mut out, tensor, content, &mut rng)?;
        }
        out.flush()
    }
}

/// A file that no other process has locked, made if need be.
fn lock(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match file.lock() {
        Err(error) if !kiv_models::has_no_locks(&error) => Err(error),
        _ => Ok(file),
    }
}

/// Whether a file has this head and length.
fn is_whole(path: &Path, head: &[u8], bytes: u64) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut there = Vec::new();
    file.metadata().is_ok_and(|found| found.len() == bytes)
        && file
            .take(head.len() as u64)
            .read_to_end(&mut there)
            .is_ok_and(|_| there == head)
}

/// Refuses a file that is larger than what is free, where that is known.
fn check_space(path: &Path, needed: u64, free: Option<u64>) -> Result<(), Error> {
    match free {
        Some(free) if free < needed => Err(Error::Full {
            path: path.into(),
            needed,
            free,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gguf::Kind;

    fn small(name: &str) -> Synthetic {
        let model = Synthetic::new(Shape::by_name(name).unwrap());
        model.layers(2).unwrap().vocab(vocab::FEWEST).unwrap()
    }

    #[test]
    fn parameters_are_as_many_as_published() {
        for shape in &SHAPES {
            let model = Synthetic::new(shape);
            let mut n = model.n_params();
            if shape.name == "gemma-4-e2b" {
                // What sees and hears has about 0.15 B and 0.3 B (model card).
                let all = n as f64 / 1e9 + 0.45;
                assert!((all / 5.1 - 1.0).abs() < 0.02, "{all}");
                n -= 35 * 256 * shape.vocab;
            }
            let ratio = n as f64 / 1e9 / shape.billions;
            assert!((ratio - 1.0).abs() < 0.02, "{}: {n}", shape.name);
        }
    }

    #[test]
    fn types_follow_the_recipe_and_rows_are_whole_blocks() {
        for shape in &SHAPES {
            let layout = Layout::new(&Synthetic::new(shape));
            let mut wide = 0;
            for (tensor, _) in &layout.tensors {
                let row = tensor.dims[0];
                assert_eq!(row % tensor.kind.block().0 as u64, 0, "{}", tensor.name);
                wide += u32::from(tensor.name.contains("ffn_down") && tensor.kind == Kind::Q6K);
            }
            // Half of them, as nearly as eighths and thirds make it.
            assert!((shape.layers * 2 / 5..=shape.layers * 3 / 5).contains(&wide));
        }
        // Bytes of published Q4_K_M files, whose vocabularies are a little larger.
        for (name, gigabytes) in [
            ("llama-3.2-3b", 2.02),
            ("qwen2.5-3b", 1.93),
            ("llama-3.1-8b", 4.92),
        ] {
            let layout = Layout::new(&Synthetic::new(Shape::by_name(name).unwrap()));
            let bytes: u64 = layout.tensors.iter().map(|(t, _)| t.bytes()).sum();
            let ratio = bytes as f64 / 1e9 / gigabytes;
            assert!((ratio - 1.0).abs() < 0.01, "{name}: {bytes}");
        }
        // As the published Q4_K_M file of Llama 3.1 8B has them.
        let llama = Layout::new(&Synthetic::new(Shape::by_name("llama-3.1-8b").unwrap()));
        let of = |name: &str| {
            let found = llama.tensors.iter().find(|(t, _)| t.name == name);
            found.map(|(t, _)| t.kind).unwrap()
        };
        for (il, kind) in [
            (3, Kind::Q6K),
            (4, Kind::Q4K),
            (5, Kind::Q4K),
            (6, Kind::Q6K),
            (27, Kind::Q6K),
            (28, Kind::Q6K),
        ] {
            assert_eq!(of(&format!("blk.{il}.attn_v.weight")), kind, "{il}");
            assert_eq!(of(&format!("blk.{il}.ffn_down.weight")), kind, "{il}");
        }
        assert_eq!(of("output.weight"), Kind::Q6K);
        assert_eq!(of("token_embd.weight"), Kind::Q4K);
    }

    #[test]
    fn the_same_model_has_the_same_bytes_and_another_seed_others() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let model = small("gemma-4-e2b");
        let read = |model: &Synthetic, folder: &Path| {
            std::fs::read(model.file_in(folder, |_, _| {}).unwrap()).unwrap()
        };
        let bytes = read(&model, folder.path());
        assert!(bytes == read(&model, other.path()));
        let others = read(&model.seed(2), folder.path());
        assert_eq!(bytes.len(), others.len());
        assert!(bytes != others);
    }

    #[test]
    fn a_whole_file_is_used_again_and_a_cut_or_foreign_one_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let model = small("qwen2.5-3b");
        let mut made = 0;
        let mut make = || {
            let path = model.file_in(folder.path(), |_, _| made += 1).unwrap();
            std::fs::read(path).unwrap()
        };
        let path = folder.path().join(model.file_name());
        let whole = make();
        let modified = || path.metadata().unwrap().modified().unwrap();
        let before = modified();
        make();
        assert_eq!(modified(), before);
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(make() == whole);
        let mut foreign = whole.clone();
        foreign[100] ^= 1;
        std::fs::write(&path, foreign).unwrap();
        assert!(make() == whole);
        assert_eq!(made, 3);
        // And nothing is left beside it.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_of_several_makes_the_file_over_what_a_killed_one_has_left() {
        let folder = tempfile::tempdir().unwrap();
        let model = small("qwen2.5-3b");
        let part = folder.path().join(model.file_name() + ".part");
        std::fs::write(&part, "left").unwrap();
        let made = std::sync::atomic::AtomicUsize::new(0);
        let making = |_: &Path, _| {
            made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        };
        std::thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| model.file_in(folder.path(), making).unwrap());
            }
        });
        assert_eq!(made.into_inner(), 1);
        assert!(!part.exists());
        let other = tempfile::tempdir().unwrap();
        let path = model.file_in(other.path(), |_, _| {}).unwrap();
        let again = folder.path().join(model.file_name());
        assert!(std::fs::read(path).unwrap() == std::fs::read(again).unwrap());
    }

    #[test]
    fn the_file_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for shape in &SHAPES {
            let model = small(shape.name);
            let path = model.file_in(folder.path(), |_, _| {}).unwrap();
            let file = kiv_gguf::ModelFile::open(path).unwrap();
            assert_eq!(file.name, Some(model.label()));
            assert_eq!(file.file_type, "Q4_K_M");
            assert_eq!(file.n_params, model.n_params());
            assert_eq!((file.n_layer, file.n_vocab as u64), (2, vocab::FEWEST));
            assert_eq!(file.n_ctx_train as u32, shape.n_ctx);
            assert!(file.untierable.is_none());
        }
    }

    #[test]
    fn weights_are_as_large_as_they_should_be() {
        use half::f16;
        let f16_at = |b: &[u8], at: usize| f32::from(f16::from_le_bytes([b[at], b[at + 1]]));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for kind in [Kind::Q4K, Kind::Q6K] {
            let tensor = gguf::Tensor {
                name: "w".into(),
                dims: vec![4096, 16],
                kind,
            };
            let mut bytes = Vec::new();
            let content = weights::Content::Random(0.02);
            weights::write(&mut bytes, &tensor, &content, &mut rng).unwrap();
            assert_eq!(bytes.len() as u64, tensor.padded_bytes());
            // As ggml reads a block, its groups' order aside.
            let values: Vec<f32> = bytes[..tensor.bytes() as usize]
                .chunks(kind.block().1)
                .flat_map(|b| match kind {
                    Kind::Q4K => {
                        let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
                        let nibbles = b[16..].iter().flat_map(|q| [q & 15, q >> 4]);
                        let value = |q: u8| d * 16.0 * f32::from(q) - dmin * 16.0;
                        nibbles.map(value).collect::<Vec<f32>>()
                    }
                    _ => {
                        let d = f16_at(b, 208);
                        let q = |i: usize| {
                            let low = (b[i / 2] >> (i % 2 * 4)) & 15;
                            let high = (b[128 + i / 4] >> (i % 4 * 2)) & 3;
                            f32::from(low | high << 4) - 32.0
                        };
                        let scale = |i: usize| f32::from(b[192 + i / 16].cast_signed());
                        (0..256).map(|i| d * scale(i) * q(i)).collect()
                    }
                })
                .collect();
            let n = values.len() as f32;
            let mean = values.iter().sum::<f32>() / n;
            let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
            assert!(
                (deviation / 0.02 - 1.0).abs() < 0.02,
                "{kind:?}: {deviation}"
            );
            assert!(mean.abs() < 0.0004, "{kind:?}: {mean}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        assert_eq!(
            Shape::by_name("gpt-9").unwrap_err(),
            "there are llama-3.2-3b, qwen2.5-3b, gemma-4-e2b, llama-3.1-8b"
        );
        let model = small("qwen2.5-3b");
        let text = |result: Result<Synthetic, Error>| result.unwrap_err().to_string();
        assert_eq!(
            text(model.layers(37)),
            "qwen2.5-3b can have 1 to 36 layers, not 37"
        );
        assert_eq!(
            text(small("gemma-4-e2b").layers(1)),
            "gemma-4-e2b can have 2 to 35 layers, not 1"
        );
        assert_eq!(
            text(model.vocab(7)),
            "qwen2.5-3b can have a vocabulary of 259 to 151936 tokens, not 7"
        );
        let full = check_space(Path::new("/a/b.gguf"), 100, Some(99)).unwrap_err();
        assert_eq!(
            full.to_string(),
            "/a/b.gguf: 100 bytes are needed but 99 are free. Make room, name another folder, or \
             take fewer layers"
        );
        assert!(check_space(Path::new("/a/b.gguf"), 100, Some(100)).is_ok());
    }
}
