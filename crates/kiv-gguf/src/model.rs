//! A model file and what its header says.

use std::path::{Path, PathBuf};

use kiv_policy::RowFormat;
use serde_json::Value;

use crate::error::{GgufError, Untierable};
use crate::hparams::Hparams;
use crate::layers::{self, LayerInfo};
use crate::scan::{self, Header, Metadata};
use crate::tensor_type;

/// A checked GGUF model, its weights still on disk.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// The file that was named: the first split of a split model.
    pub path: PathBuf,
    /// All files of the model, in order.
    pub files: Vec<PathBuf>,
    /// `general.architecture`. Not checked against what llama.cpp can load: it
    /// says so itself.
    pub arch: String,
    /// `general.name`.
    pub name: Option<String>,
    /// The quantization mix in llama.cpp's words (`Q4_K_M`), or the tensor
    /// type that most of the bytes have where the file does not say.
    pub file_type: String,
    /// Layers, those for multi-token prediction left out: `layers.len()`.
    pub n_layer: usize,
    /// Values of the residual stream per token.
    pub n_embd: usize,
    /// Widest feed-forward layer; 0 where the file does not say.
    pub n_ff: usize,
    /// Feed-forward values that one token takes: `n_ff`, or the experts used
    /// times their width where that is more.
    pub n_ff_used: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Tokens of the context that the model was trained for.
    pub n_ctx_train: usize,
    /// Bytes of all tensors in all files.
    pub weights_bytes: u64,
    /// Values in all tensors in all files.
    pub n_params: u64,
    /// `tokenizer.chat_template`, a Jinja template.
    pub chat_template: Option<String>,
    /// Every layer, by index.
    pub layers: Vec<LayerInfo>,
    /// No tensors at all: a vocabulary for tests.
    pub is_vocab_only: bool,
    /// Why the cache cannot be tiered, if it cannot.
    pub untierable: Option<Untierable>,
}

impl ModelFile {
    /// Reads the header of the GGUF at `path`, and of its further splits.
    ///
    /// # Errors
    /// [`GgufError`], by what is wrong. An architecture that is not known is
    /// no error.
    ///
    /// # Allocates
    /// The metadata without vocabularies: less than 256 MiB, whatever the file
    /// says; some KB usually.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let mut header = scan::scan(path)?;
        let metadata = std::mem::take(&mut header.metadata);
        let files = splits(path, &metadata)?;
        for (i, file) in files.iter().enumerate().skip(1) {
            add_split(&mut header, file, path, i, files.len())?;
        }
        if let Some(all) = metadata.get("split.tensors.count").and_then(Value::as_u64)
            && all != header.n_tensors
        {
            let (found, key) = (header.n_tensors, "split.tensors.count".into());
            return Err(GgufError::BadKey {
                path: path.into(),
                key,
                detail: format!("says {all}, but {found} tensors are in its files"),
            });
        }

        let text = |key| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
        let arch = text("general.architecture").ok_or_else(|| GgufError::MissingKey {
            path: path.into(),
            key: "general.architecture".into(),
        })?;
        refuse_other_kinds(path, &arch, text("general.type").as_deref())?;

        let hp = Hparams {
            path,
            arch: &arch,
            metadata: &metadata,
        };
        let is_vocab_only = header.n_tensors == 0;
        let sizes = match Sizes::new(&hp) {
            // llama.cpp wants nothing but the vocabulary of these.
            Err(_) if is_vocab_only => Sizes::default(),
            sizes => sizes?,
        };
        let n_vocab = match header.n_tokens.and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => n,
            _ => match hp.tokens("vocab_size")? {
                Some(n) => n,
                None => header
                    .embedding_rows
                    .and_then(|n| usize::try_from(n).ok())
                    .unwrap_or(0),
            },
        };
        let file_type = match metadata.get("general.file_type").and_then(Value::as_u64) {
            Some(kind) => {
                tensor_type::file_type(kind).map_or_else(|| format!("type {kind}"), str::to_owned)
            }
            None => header.main_type.unwrap_or("none").to_owned(),
        };
        let untierable = if is_vocab_only {
            Some(Untierable::VocabOnly)
        } else {
            layers::untierable(&hp, &sizes.layers)
        };
        Ok(Self {
            path: path.into(),
            files,
            name: text("general.name"),
            file_type,
            n_layer: sizes.layers.len(),
            n_embd: sizes.n_embd,
            n_ff: sizes.n_ff,
            n_ff_used: sizes.n_ff_used,
            n_vocab,
            n_ctx_train: sizes.n_ctx_train,
            weights_bytes: header.weights_bytes,
            n_params: header.n_params,
            chat_template: text("tokenizer.chat_template"),
            layers: sizes.layers,
            is_vocab_only,
            untierable,
            arch,
        })
    }

    /// Whether kiv can tier this model's cache.
    ///
    /// # Errors
    /// [`GgufError::NotTierable`] with the reason.
    pub fn tierable(&self) -> Result<(), GgufError> {
        match self.untierable {
            None => Ok(()),
            Some(reason) => Err(GgufError::NotTierable {
                path: self.path.clone(),
                arch: self.arch.clone(),
                reason,
            }),
        }
    }

    /// Whether caches of these types fit every head of the model.
    ///
    /// # Errors
    /// [`GgufError::CacheType`] for the first layer that one does not fit.
    pub fn check_cache_types(&self, k: RowFormat, v: RowFormat) -> Result<(), GgufError> {
        for layer in self
            .layers
            .iter()
            .filter(|l| l.kind.grows() || l.is_sliding())
        {
            for (flag, format, dim) in [("-ctk", k, layer.key_dim), ("-ctv", v, layer.value_dim)] {
                if !dim.is_multiple_of(format.group_len()) {
                    return Err(GgufError::CacheType {
                        path: self.path.clone(),
                        flag,
                        format,
                        group: format.group_len(),
                        il: layer.il,
                        dim,
                    });
                }
            }
        }
        Ok(())
    }

    /// Layers that are tiered ([`crate::LayerKind::is_tiered`]).
    pub fn tiered_layers(&self) -> impl Iterator<Item = &LayerInfo> {
        self.layers.iter().filter(|l| l.kind.is_tiered())
    }
}

/// Sizes that a model with weights must state.
#[derive(Default)]
struct Sizes {
    n_embd: usize,
    n_ff: usize,
    n_ff_used: usize,
    n_ctx_train: usize,
    layers: Vec<LayerInfo>,
}

impl Sizes {
    fn new(hp: &Hparams) -> Result<Self, GgufError> {
        const CTX: &str = "context_length";
        const EMBD: &str = "embedding_length";
        let n_ctx_train = hp.tokens(CTX)?.ok_or_else(|| hp.missing(CTX))?;
        let n_embd = hp.size(EMBD)?.ok_or_else(|| hp.missing(EMBD))?;
        let n_ff = hp.largest("feed_forward_length")?;
        let experts = hp.largest("expert_used_count")?
            * hp.largest("expert_feed_forward_length")?
            + hp.largest("expert_shared_feed_forward_length")?;
        let layers = layers::layers(hp, n_embd)?;
        Ok(Self {
            n_embd,
            n_ff,
            n_ff_used: n_ff.max(experts),
            n_ctx_train,
            layers,
        })
    }
}

fn refuse_other_kinds(path: &Path, arch: &str, kind: Option<&str>) -> Result<(), GgufError> {
    let what = match (arch, kind) {
        ("clip", _) | (_, Some("mmproj")) => "a projector for images or sound (mmproj)",
        (_, Some("adapter")) => "a LoRA adapter",
        (_, Some("imatrix")) => "an importance matrix",
        _ => return Ok(()),
    };
    Err(GgufError::NotAModel {
        path: path.into(),
        what,
    })
}

/// All files of the model whose first file has this metadata.
fn splits(path: &Path, metadata: &Metadata) -> Result<Vec<PathBuf>, GgufError> {
    let get = |key| metadata.get(key).and_then(Value::as_u64).unwrap_or(0);
    let count = get("split.count");
    if count < 2 {
        return Ok(vec![path.into()]);
    }
    // The format stores it in 16 bits.
    let count = usize::from(u16::try_from(count).map_err(|_| GgufError::BadKey {
        path: path.into(),
        key: "split.count".into(),
        detail: format!("is {count}, which cannot be"),
    })?);
    let number = get("split.no").saturating_add(1);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let suffix = |number: u64| format!("-{number:05}-of-{count:05}.gguf");
    let Some(prefix) = name.strip_suffix(&suffix(number)) else {
        return Err(GgufError::SplitName {
            path: path.into(),
            number,
            count,
        });
    };
    let file = |number: u64| path.with_file_name(format!("{prefix}{}", suffix(number)));
    if number != 1 {
        return Err(GgufError::NotFirstSplit {
            path: path.into(),
            first: file(1),
            number: usize::try_from(number).unwrap_or(usize::MAX),
        });
    }
    // The name as it was given, which need not be valid UTF-8 in its folder.
    Ok(std::iter::once(path.into())
        .chain((2..=count as u64).map(file))
        .collect())
}

/// Adds the tensors of split `index` (from 0) to the first split's.
fn add_split(
    header: &mut Header,
    file: &Path,
    first: &Path,
    index: usize,
    count: usize,
) -> Result<(), GgufError> {
    let split = scan::scan(file).map_err(|error| match error {
        GgufError::NotFound { path } => GgufError::MissingSplit {
            path,
            first: first.into(),
            number: index + 1,
            count,
        },
        error => error,
    })?;
    let bad = |key: &str, detail: String| GgufError::BadKey {
        path: file.into(),
        key: key.into(),
        detail,
    };
    let number = split.metadata.get("split.no").and_then(Value::as_u64);
    if number != Some(index as u64) {
        return Err(GgufError::OtherSplit {
            path: file.into(),
            number: index + 1,
            count,
            holds: number.map(|number| number.saturating_add(1)),
        });
    }
    let overflow = || {
        bad(
            "split.no",
            "is of a split with more bytes than there can be".into(),
        )
    };
    header.n_tensors += split.n_tensors;
    header.n_params = header
        .n_params
        .checked_add(split.n_params)
        .ok_or_else(overflow)?;
    header.weights_bytes = header
        .weights_bytes
        .checked_add(split.weights_bytes)
        .ok_or_else(overflow)?;
    header.embedding_rows = header.embedding_rows.or(split.embedding_rows);
    header.main_type = header.main_type.or(split.main_type);
    Ok(())
}
