//! What a GGUF file says about itself, read without loading its weights.
//!
//! [`ModelFile::open`] checks the file (all of its splits) and derives what
//! kind of cache every layer gets in llama.cpp; [`MemoryPlan`] turns that,
//! a pool and a context length into bytes; [`available_memory`] is what there
//! is to put them in.
//!
//! Bytes from outside are never trusted: lengths are checked against the
//! file's own before anything is allocated, and a bad file is a [`GgufError`].

mod error;
mod fingerprint;
mod hparams;
mod layers;
mod memory;
mod model;
mod plan;
mod scan;
mod sniff;
mod tensor_type;

pub use error::{GgufError, Untierable};
pub use layers::{LayerInfo, LayerKind};
pub use memory::{available_memory, available_memory_in};
pub use model::ModelFile;
pub use plan::{MemoryPlan, PlanOptions};
