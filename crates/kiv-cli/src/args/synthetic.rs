//! Models that are made instead of downloaded.

use clap::Args;
use kiv_synthetic::{Shape, Synthetic};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct SyntheticArgs {
    /// Instead of a model: random weights, made once, in the shape of llama-3.2-3b,
    /// qwen2.5-3b, gemma-4-e2b or llama-3.1-8b and the types of Q4_K_M; reads random tokens
    #[arg(long, conflicts_with_all = ["model", "hf_repo"], value_parser = Shape::by_name, value_name = "SHAPE")]
    pub synthetic: Option<&'static Shape>,
    /// Layers of the synthetic model [default: all]
    #[arg(long, requires = "synthetic", conflicts_with_all = ["model", "hf_repo"], value_name = "N")]
    pub layers: Option<u32>,
    /// Tokens in the synthetic model's vocabulary [default: all]
    #[arg(long, requires = "synthetic", conflicts_with_all = ["model", "hf_repo"], value_name = "N")]
    pub vocab: Option<u64>,
    /// Folder of synthetic models [default: kiv's in the user's cache folder]
    #[arg(long, requires = "synthetic", conflicts_with_all = ["model", "hf_repo"], value_name = "FOLDER")]
    pub synthetic_dir: Option<PathBuf>,
}

impl SyntheticArgs {
    /// The model asked for, if one is.
    pub fn model(&self) -> Result<Option<Synthetic>, kiv_synthetic::Error> {
        let Some(shape) = self.synthetic else {
            return Ok(None);
        };
        let mut model = Synthetic::new(shape);
        if let Some(layers) = self.layers {
            model = model.layers(layers)?;
        }
        if let Some(vocab) = self.vocab {
            model = model.vocab(vocab)?;
        }
        Ok(Some(model))
    }
}
