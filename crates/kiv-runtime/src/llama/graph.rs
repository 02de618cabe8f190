//! Nodes of the graph that llama.cpp is computing, as the hook sees them.

use super::CacheTensor;
use kiv_numeric::rope::{Pairs, Rotation};
use llama_cpp_sys_2 as sys;
use std::ffi::CStr;
use std::marker::PhantomData;

/// Operations that the hook tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Stores rows at given cells of a cache tensor.
    SetRows,
    /// Reorders dimensions; the nodes right before attention.
    Permute,
    /// Fused attention.
    FlashAttention,
    /// Unfused attention's softmax.
    SoftMax,
    /// Rotary position embedding.
    Rope,
    /// Anything else.
    Other,
}

/// A tensor of the running graph. It lives as long as the callback that
/// handed it out.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    tensor: *mut sys::ggml_tensor,
    graph: PhantomData<&'a ()>,
}

impl<'a> Node<'a> {
    /// # Safety
    /// `tensor` must be valid, with its sources, for `'a`.
    pub(super) unsafe fn new(tensor: *mut sys::ggml_tensor) -> Self {
        Self {
            tensor,
            graph: PhantomData,
        }
    }

    fn raw(&self) -> &'a sys::ggml_tensor {
        // SAFETY: valid for 'a by the contract of `new`.
        unsafe { &*self.tensor }
    }

    /// What the node computes.
    pub(crate) fn op(&self) -> Op {
        match self.raw().op {
            sys::GGML_OP_SET_ROWS => Op::SetRows,
            sys::GGML_OP_PERMUTE => Op::Permute,
            sys::GGML_OP_FLASH_ATTN_EXT => Op::FlashAttention,
            sys::GGML_OP_SOFT_MAX => Op::SoftMax,
            sys::GGML_OP_ROPE => Op::Rope,
            _ => Op::Other,
        }
    }

    /// The tensor that owns the memory behind views.
    pub(crate) fn root(&self) -> Node<'a> {
        let mut tensor = self.tensor;
        loop {
            // SAFETY: view sources of valid tensors are valid.
            let source = unsafe { (*tensor).view_src };
            if source.is_null() {
                return Node {
                    tensor,
                    graph: PhantomData,
                };
            }
            tensor = source;
        }
    }

    /// An operand.
    pub(crate) fn source(&self, index: usize) -> Option<Node<'a>> {
        let tensor = self.raw().src[index];
        (!tensor.is_null()).then_some(Node {
            tensor,
            graph: PhantomData,
        })
    }

    /// The name, empty if it is not text.
    pub(crate) fn name(&self) -> &'a str {
        // SAFETY: ggml keeps names null-terminated inside the tensor.
        let name = unsafe { CStr::from_ptr(self.raw().name.as_ptr()) };
        name.to_str().unwrap_or_default()
    }

    /// The device that ggml has copied it to, and the name of what is copied, if it has: where
    /// layers are on several devices, each gets a copy of what it takes from elsewhere.
    fn copy_of(&self) -> Option<(&'a str, &'a str)> {
        let (device, rest) = self.name().split_once('#')?;
        Some((device, rest.rsplit_once('#')?.0))
    }

    /// The device that it was copied to, empty if it is no copy.
    pub(crate) fn copied_to(&self) -> &'a str {
        self.copy_of().map_or("", |(device, _)| device)
    }

    /// The name, of a copy that of what is copied.
    pub(crate) fn original_name(&self) -> &'a str {
        self.copy_of().map_or_else(|| self.name(), |(_, name)| name)
    }

    /// Layer index, if this is a K (`kind` 'k') or V ('v') cache tensor.
    pub(crate) fn cache_layer(&self, kind: char) -> Option<u32> {
        let rest = self.name().strip_prefix("cache_")?;
        rest.strip_prefix(kind)?.strip_prefix("_l")?.parse().ok()
    }

    /// Elements per dimension, fastest first.
    pub(crate) fn shape(&self) -> [usize; 4] {
        self.raw().ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// Operation parameter `index` as a float.
    pub(crate) fn float_param(&self, index: usize) -> f32 {
        f32::from_bits(self.raw().op_params[index].cast_unsigned())
    }

    /// Tells tensors apart.
    pub(crate) fn id(&self) -> usize {
        self.tensor.addr()
    }

    /// Whether the data can be read without asking the device.
    pub(crate) fn is_host(&self) -> bool {
        let buffer = self.root().raw().buffer;
        // SAFETY: a non-null buffer of a valid tensor is valid.
        !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
    }

    /// Reads all of a contiguous i64 tensor, or says why not.
    pub(crate) fn read_i64(&self) -> Result<Vec<i64>, String> {
        let raw = self.raw();
        if raw.type_ != sys::GGML_TYPE_I64 || raw.nb[0] != 8 {
            return Err(format!("{} is not a list of cell numbers", self.name()));
        }
        let mut out = vec![0i64; self.shape().iter().product()];
        // SAFETY: `out` has room for the bytes; ggml checks the tensor's side.
        unsafe {
            sys::ggml_backend_tensor_get(self.tensor, out.as_mut_ptr().cast(), 0, out.len() * 8);
        }
        Ok(out)
    }

    /// The rotation that a [`Op::Rope`] node computes, if kiv can compute it too.
    /// Waits for the device if there are factors.
    pub(crate) fn rotation(&self) -> Option<Rotation> {
        let raw = self.raw();
        let int = |i: usize| raw.op_params[i];
        let pairs = match int(2) {
            sys::LLAMA_ROPE_TYPE_NORM => Pairs::Neighbours,
            sys::LLAMA_ROPE_TYPE_NEOX
            | sys::LLAMA_ROPE_TYPE_MROPE
            | sys::LLAMA_ROPE_TYPE_IMROPE => Pairs::Halves,
            _ => return None,
        };
        let factors = self.source(2).map(|factors| factors.read_f32().ok());
        Some(Rotation {
            pairs,
            first: usize::try_from(int(15)).ok()?,
            n_dims: usize::try_from(int(1)).ok()?,
            n_ctx_orig: int(4),
            freq_base: self.float_param(5),
            freq_scale: self.float_param(6),
            ext_factor: self.float_param(7),
            beta_fast: self.float_param(9),
            beta_slow: self.float_param(10),
            factors: match factors {
                None => Vec::new(),
                Some(factors) => factors?,
            },
        })
    }

    /// Reads all of a contiguous f32 tensor, or says why not.
    pub(crate) fn read_f32(&self) -> Result<Vec<f32>, String> {
        let raw = self.raw();
        let n: usize = self.shape().iter().product();
        if raw.type_ != sys::GGML_TYPE_F32 || raw.nb[0] != 4 || raw.nb[3] * self.shape()[3] != n * 4
        {
            return Err(format!("{} is not contiguous f32", self.name()));
        }
        let mut out = vec![0f32; n];
        // SAFETY: the vector and the tensor both hold `n` floats.
        unsafe { sys::ggml_backend_tensor_get(self.tensor, out.as_mut_ptr().cast(), 0, n * 4) };
        Ok(out)
    }

    /// Reads queries of shape `[dim, n_tokens, n_head]` (a permuted view) into
    /// `[n_tokens, n_head, dim]`.
    pub(crate) fn read_queries(&self, out: &mut Vec<f32>) -> Result<(), String> {
        let raw = self.raw();
        if raw.type_ != sys::GGML_TYPE_F32 || raw.nb[0] != 4 {
            return Err(format!("queries {} are not rows of f32", self.name()));
        }
        let [dim, n_tokens, n_head, _] = self.shape();
        // The view's bytes, gaps included.
        let span = (n_tokens - 1) * raw.nb[1] + (n_head - 1) * raw.nb[2] + dim * 4;
        let read = |to: &mut Vec<f32>| {
            to.resize(span.div_ceil(4), 0.0);
            // SAFETY: there is room for `span` bytes; ggml checks the tensor's side.
            unsafe { sys::ggml_backend_tensor_get(self.tensor, to.as_mut_ptr().cast(), 0, span) };
        };
        if raw.nb[2] == dim * 4 && raw.nb[1] == n_head * dim * 4 {
            read(out);
            return Ok(());
        }
        let mut bytes = Vec::new();
        read(&mut bytes);
        out.clear();
        for token in 0..n_tokens {
            for head in 0..n_head {
                let at = (token * raw.nb[1] + head * raw.nb[2]) / 4;
                out.extend_from_slice(&bytes[at..at + dim]);
            }
        }
        Ok(())
    }

    /// Overwrites a contiguous f32 result (the rounding check adds noise).
    pub(crate) fn edit_f32(&self, edit: impl FnOnce(&mut [f32])) -> Result<(), String> {
        let mut values = self.read_f32()?;
        edit(&mut values);
        let n = values.len() * 4;
        // SAFETY: the vector holds as many floats as the tensor; the graph waits for the
        // callback.
        unsafe { sys::ggml_backend_tensor_set(self.tensor, values.as_ptr().cast(), 0, n) };
        Ok(())
    }

    /// This cache tensor, kept beyond the graph.
    ///
    /// # Safety
    /// The tensor must belong to the KV cache of a context, and the result
    /// must not outlive that context.
    pub(crate) unsafe fn keep_cache(&self) -> Result<CacheTensor, String> {
        // SAFETY: forwarded to the caller.
        unsafe { CacheTensor::new(self.tensor) }
    }
}
