//! The only code that talks to llama.cpp's C interface, and the only unsafe
//! code of kiv. What leaves this module is safe to use.
//!
//! Models, vocabularies and samplers come from `llama-cpp-2`. Contexts are
//! made here, because that crate has no way to set the evaluation callback
//! that the hook needs (see `patches/`).
#![allow(unsafe_code)]

mod backend;
mod context;
mod graph;
mod log;
mod model;
mod quantize;
mod tensor;
mod threads;

pub use backend::{DeviceMemory, device_memory};
pub(crate) use backend::{backend, cuda_missing, supports_gpu, system_info};
pub(crate) use context::{Caches, Context, ContextParams, Device, GraphHook, Parts};
pub(crate) use graph::{Node, Op};
pub(crate) use log::set_verbose;
pub(crate) use model::RawModel;
pub use quantize::{QuantizeType, quantize};
#[cfg(test)]
pub(crate) use tensor::TestCache;
pub(crate) use tensor::{CacheTensor, CellPart};

use kiv_policy::RowFormat;
use llama_cpp_sys_2 as sys;

/// ggml's number for a row format.
fn ggml_type(format: RowFormat) -> sys::ggml_type {
    match format {
        RowFormat::F32 => sys::GGML_TYPE_F32,
        RowFormat::F16 => sys::GGML_TYPE_F16,
        RowFormat::Bf16 => sys::GGML_TYPE_BF16,
        RowFormat::Q8_0 => sys::GGML_TYPE_Q8_0,
        RowFormat::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}
