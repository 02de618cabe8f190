//! A loaded model.

use super::backend::{backend, has_amx};
use super::log;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;
use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

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
        backend();
        let name = path.to_str().and_then(|path| CString::new(path).ok());
        let name = name.ok_or_else(|| format!("{path:?} is no name that llama.cpp can open"))?;
        log::clear();
        // SAFETY: the parameters are llama.cpp's defaults with plain values changed, and the
        // name ends with a null. (`LlamaModelParams` does not let the last one be changed.)
        let model = unsafe {
            let mut p = sys::llama_model_default_params();
            p.load_mode = if use_mmap {
                sys::LLAMA_LOAD_MODE_MMAP
            } else {
                sys::LLAMA_LOAD_MODE_NONE
            };
            if let Some(n) = gpu_layers {
                p.n_gpu_layers = i32::try_from(n).unwrap_or(i32::MAX);
            }
            p.use_extra_bufts = !has_amx();
            sys::llama_model_load_from_file(name.as_ptr(), p)
        };
        let model = NonNull::new(model).ok_or_else(|| {
            let why = log::last_error();
            why.unwrap_or_else(|| "llama.cpp could not load it".to_owned())
        })?;
        // SAFETY: the inverse of `as_ptr`; nobody else has the pointer.
        let model = unsafe { std::mem::transmute::<NonNull<sys::llama_model>, LlamaModel>(model) };
        Ok(Self { model })
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
