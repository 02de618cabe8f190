//! A loaded model.

use super::{backend, log};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_sys_2 as sys;
use std::path::Path;

/// Weights and vocabulary.
#[derive(Debug)]
pub(crate) struct RawModel {
    model: LlamaModel,
}

impl RawModel {
    /// Loads a GGUF file; later split files are found by name.
    ///
    /// # Errors
    /// llama.cpp's reason in words.
    pub(crate) fn load(
        path: &Path,
        gpu_layers: Option<u32>,
        use_mmap: bool,
    ) -> Result<Self, String> {
        let backend = backend();
        log::clear();
        let mut params = LlamaModelParams::default().with_use_mmap(use_mmap);
        if let Some(n) = gpu_layers {
            params = params.with_n_gpu_layers(n);
        }
        LlamaModel::load_from_file(backend, path, &params)
            .map(|model| Self { model })
            .map_err(|e| log::last_error().unwrap_or_else(|| e.to_string()))
    }

    /// The safe wrapper.
    pub(crate) fn get(&self) -> &LlamaModel {
        &self.model
    }

    /// The C object.
    pub(super) fn as_ptr(&self) -> *mut sys::llama_model {
        const { assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>()) };
        // SAFETY: in the pinned llama-cpp-2, `LlamaModel` is
        // `repr(transparent)` over a `repr(transparent)` wrapper of
        // `NonNull<llama_model>`, so its bytes are that pointer.
        unsafe { std::mem::transmute_copy(&self.model) }
    }

    /// Tokens of the sliding window, 0 without one.
    pub(crate) fn n_swa(&self) -> usize {
        // SAFETY: the pointer is a live model.
        unsafe { sys::llama_model_n_swa(self.as_ptr()) }.max(0) as usize
    }

    /// Whether text is read by a separate encoder (T5).
    pub(crate) fn has_encoder(&self) -> bool {
        // SAFETY: as above.
        unsafe { sys::llama_model_has_encoder(self.as_ptr()) }
    }

    /// Whether text can be generated at all.
    pub(crate) fn has_decoder(&self) -> bool {
        // SAFETY: as above.
        unsafe { sys::llama_model_has_decoder(self.as_ptr()) }
    }
}
