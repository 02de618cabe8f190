//! Loaded models.

use crate::error::Error;
use crate::llama::{self, RawModel};
use crate::markup::Marks;
use crate::options::SessionBuilder;
use crate::session::Token;
use kiv_gguf::{ModelFile, Untierable};
use llama_cpp_2::token::LlamaToken;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// How weights are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Layers on the GPU; `None` is llama.cpp's default (all that fit a GPU
    /// build, none otherwise).
    pub gpu_layers: Option<u32>,
    /// Map the file instead of reading it.
    pub mmap: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            gpu_layers: None,
            mmap: true,
        }
    }
}

/// A model: weights and vocabulary. Cheap to clone; sessions share it.
#[derive(Clone, Debug)]
pub struct Model {
    raw: Arc<RawModel>,
    path: PathBuf,
    /// Why the cache cannot be tiered, as far as the file tells.
    untierable: Option<Untierable>,
    /// Looked for when the first answer begins.
    marks: Arc<OnceLock<Option<Arc<Marks>>>>,
}

impl Model {
    /// Loads a GGUF file of any type that llama.cpp reads. Further files of a
    /// split model are found beside the first.
    ///
    /// # Errors
    /// [`Error::Load`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_with(path, LoadOptions::default())
    }

    /// Loads a GGUF file as [`Model::load`].
    ///
    /// # Errors
    /// [`Error::Load`].
    pub fn load_with(path: impl AsRef<Path>, options: LoadOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |reason| Error::Load {
            path: path.to_owned(),
            reason,
        };
        // llama.cpp's answer to a file that cannot be opened says less.
        std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
        // What llama.cpp does not survive. (It judges all else better itself.)
        let untierable = ModelFile::open(path).ok().and_then(|f| f.untierable);
        if untierable == Some(Untierable::Aborts) {
            return Err(failed(Untierable::Aborts.to_string()));
        }
        let raw = RawModel::load(path, options.gpu_layers, options.mmap).map_err(failed)?;
        Ok(Self {
            raw: Arc::new(raw),
            path: path.to_owned(),
            untierable,
            marks: Arc::default(),
        })
    }

    /// Why no text can be generated, if so.
    pub(crate) fn not_generative(&self) -> Option<Untierable> {
        self.untierable.filter(|why| !why.runs_untiered())
    }

    /// Sets up a session.
    pub fn session(&self) -> SessionBuilder {
        SessionBuilder::new(self)
    }

    pub(crate) fn raw(&self) -> &Arc<RawModel> {
        &self.raw
    }

    /// The file it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of context that the model was trained for, in tokens.
    #[must_use]
    pub fn n_ctx_train(&self) -> usize {
        self.raw.get().n_ctx_train() as usize
    }

    /// Size of the vocabulary.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        usize::try_from(self.raw.get().n_vocab()).unwrap_or(0)
    }

    /// Whether the vocabulary has a token. llama.cpp throws at others, which ends the process.
    pub(crate) fn has(&self, token: Token) -> bool {
        usize::try_from(token).is_ok_and(|token| token < self.n_vocab())
    }

    /// Bytes of one token; special tokens have none unless `special`, and numbers that are
    /// no token's have none.
    #[must_use]
    pub fn piece(&self, token: Token, special: bool) -> Vec<u8> {
        if !self.has(token) {
            return Vec::new();
        }
        self.raw
            .get()
            .vocab()
            .token_to_piece(LlamaToken(token), special, None)
    }

    /// Text of tokens; invalid UTF-8 is replaced.
    #[must_use]
    pub fn detokenize(&self, tokens: &[Token]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| self.piece(*t, false)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a token ends the text.
    #[must_use]
    pub fn is_end(&self, token: Token) -> bool {
        self.has(token) && self.raw.get().vocab().is_eog(LlamaToken(token))
    }

    /// A special token and its text, by its name in the file, such as `bos` or `eos`.
    #[must_use]
    pub fn special(&self, name: &str) -> Option<(Token, String)> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = self.metadata(&key)?.parse().ok()?;
        let text = String::from_utf8_lossy(&self.piece(id, true)).into_owned();
        Some((id, text))
    }

    /// Special tokens that mark parts of its answers, if it has any.
    pub(crate) fn marks(&self) -> Option<Arc<Marks>> {
        let found = self.marks.get_or_init(|| Marks::of(self).map(Arc::new));
        found.clone()
    }

    /// Metadata of the file, by key.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.raw.get().meta_val_str(key).ok()
    }
}

/// llama.cpp's line on which CPU features the build uses.
#[must_use]
pub fn system_info() -> String {
    llama::system_info()
}

/// Whether this build can use a GPU that is there.
#[must_use]
pub fn supports_gpu() -> bool {
    llama::supports_gpu()
}

/// Whether llama.cpp's own log goes to standard error (off at first).
pub fn set_verbose(verbose: bool) {
    llama::set_verbose(verbose);
}
