//! A llama.cpp context whose graph runs under a hook.

use super::threads::Threads;
use super::{CacheTensor, Node, Op, RawModel, ggml_type, log};
use crate::options::{Rope, RopeScaling};
use kiv_policy::{Alone, Helpers, RowFormat};
use llama_cpp_sys_2 as sys;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Watches a graph being computed.
///
/// For every node `ask` is called once, in order; where it answers `true`, all
/// nodes up to and including this one are finished before `ready` is called,
/// and those after it have not begun.
pub(crate) trait GraphHook: Send {
    /// Whether to stop after this node.
    fn ask(&mut self, node: Node<'_>) -> bool;
    /// The node is finished. `query` is the last tensor before it that was
    /// reordered for attention without coming from the cache: the queries,
    /// `[dim, n_tokens, n_head]`, when `node` is the reordered V.
    fn ready(&mut self, node: Node<'_>, query: Option<Node<'_>>, device: &mut Device);
    /// The context is about to go, and its cache: whoever was lent it
    /// ([`CacheTensor::lend`]) goes now.
    fn release(&mut self);
}

/// What a hook works on: the cache tensors and the compute threads.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub(crate) caches: Caches,
    threads: Option<Threads>,
}

impl Device {
    /// The tensors, and threads that may help until the graph goes on.
    pub(crate) fn parts(&mut self) -> Parts<'_> {
        let threads = self.threads.as_ref();
        Parts {
            caches: &mut self.caches,
            helpers: threads.map_or(&Alone, |threads| threads.helpers()),
        }
    }

    /// Leaves the cores to the caller until the graph goes on.
    pub(crate) fn rest_threads(&self) {
        if let Some(threads) = &self.threads {
            threads.rest();
        }
    }
}

/// The parts of a [`Device`] that a selection is made with.
pub(crate) struct Parts<'a> {
    pub(crate) caches: &'a mut Caches,
    pub(crate) helpers: &'a dyn Helpers,
}

/// K and V of every layer that has stored rows so far, by layer index.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    layers: BTreeMap<u32, [Option<CacheTensor>; 2]>,
}

impl Caches {
    /// K and V of a layer, if both are known.
    pub(crate) fn layer(&mut self, il: u32) -> Option<(&mut CacheTensor, &mut CacheTensor)> {
        match self.layers.get_mut(&il)? {
            [Some(k), Some(v)] => Some((k, v)),
            _ => None,
        }
    }

    /// Bytes of all cells of all layers.
    pub(crate) fn bytes(&self) -> usize {
        self.layers
            .values()
            .flatten()
            .flatten()
            .map(CacheTensor::bytes)
            .sum()
    }

    /// Bytes of all layers if a cache of `n` cells had `cells(n)`.
    pub(crate) fn bytes_with(&self, cells: impl Fn(usize) -> usize) -> usize {
        let tensors = self.layers.values().flatten().flatten();
        tensors.map(|t| t.cell_bytes() * cells(t.n_cells())).sum()
    }

    /// Takes up the cache tensor that `node` stores rows in.
    fn learn(&mut self, node: Node<'_>) -> Result<(), String> {
        let root = node.root();
        for (which, kind) in ['k', 'v'].into_iter().enumerate() {
            if let Some(il) = root.cache_layer(kind) {
                let slot = &mut self.layers.entry(il).or_default()[which];
                if slot.is_none() {
                    // SAFETY: rows are stored in a cache tensor of the running
                    // context, and `Hooked`, which owns `self`, is dropped
                    // together with that context.
                    *slot = Some(unsafe { root.keep_cache() }?);
                }
            }
        }
        Ok(())
    }
}

/// What a context is made with.
#[derive(Clone, Debug)]
pub(crate) struct ContextParams {
    /// Cells of the KV cache.
    pub n_cells: usize,
    /// Most tokens in a micro-batch.
    pub ubatch: usize,
    /// Most tokens of a micro-batch whose logits are wanted.
    pub max_outputs: usize,
    /// Threads in decode.
    pub threads: usize,
    /// Threads in prefill.
    pub threads_batch: usize,
    /// K cache type.
    pub type_k: RowFormat,
    /// V cache type.
    pub type_v: RowFormat,
    /// Keep the KV cache on the device that computes the layer.
    pub offload_kv: bool,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the hook is called at all; without, this is stock llama.cpp.
    pub hooked: bool,
}

/// A hook, what it works on, and what went wrong in it.
struct Hooked<H> {
    hook: H,
    device: Device,
    /// Last reordered tensor that is not of the cache, in the running batch.
    query: *mut sys::ggml_tensor,
    panic: Option<Box<dyn Any + Send>>,
}

/// A llama.cpp context and its hook.
///
/// The hook is reached by the context through a raw pointer while a batch is
/// computed, and by the owner through [`Context::hook`] otherwise.
pub(crate) struct Context<H: GraphHook> {
    context: *mut sys::llama_context,
    hooked: *mut Hooked<H>,
    /// Keeps the weights alive.
    _model: Arc<RawModel>,
    n_vocab: usize,
}

// SAFETY: llama.cpp contexts may move between threads; the hook is `Send`.
unsafe impl<H: GraphHook> Send for Context<H> {}

/// Making a context writes to its model, so only one is made at a time.
static MAKING: Mutex<()> = Mutex::new(());

impl<H: GraphHook> Context<H> {
    /// Makes a context with flash attention and one sequence.
    ///
    /// # Errors
    /// llama.cpp's reason in words.
    pub(crate) fn new(
        model: Arc<RawModel>,
        params: &ContextParams,
        hook: H,
    ) -> Result<Self, String> {
        let to_u32 = |n: usize| u32::try_from(n).map_err(|_| format!("{n} is too large"));
        let threads = |n: usize| i32::try_from(n).map_err(|_| format!("{n} threads are too many"));
        let n_threads = threads(params.threads.max(params.threads_batch))?;
        let hooked = Box::into_raw(Box::new(Hooked {
            hook,
            device: Device::default(),
            query: std::ptr::null_mut(),
            panic: None,
        }));
        let make = || {
            let _making = MAKING.lock();
            log::clear();
            // SAFETY: the parameters are llama.cpp's defaults with plain values
            // changed, and a callback whose user data lives as long as the
            // context (freed in `drop`, after it).
            let context = unsafe {
                let mut p = sys::llama_context_default_params();
                p.n_ctx = to_u32(params.n_cells)?;
                p.n_batch = to_u32(params.ubatch)?;
                p.n_ubatch = to_u32(params.ubatch)?;
                p.n_outputs_max = to_u32(params.max_outputs)?;
                p.n_seq_max = 1;
                p.n_threads = threads(params.threads)?;
                p.n_threads_batch = threads(params.threads_batch)?;
                p.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_ENABLED;
                p.rope_freq_base = params.rope.freq_base;
                p.rope_freq_scale = params.rope.freq_scale;
                if let Some(scaling) = params.rope.scaling {
                    p.rope_scaling_type = match scaling {
                        RopeScaling::None => sys::LLAMA_ROPE_SCALING_TYPE_NONE,
                        RopeScaling::Linear => sys::LLAMA_ROPE_SCALING_TYPE_LINEAR,
                        RopeScaling::Yarn => sys::LLAMA_ROPE_SCALING_TYPE_YARN,
                    };
                }
                p.type_k = ggml_type(params.type_k);
                p.type_v = ggml_type(params.type_v);
                p.offload_kqv = params.offload_kv;
                // Sliding-window layers keep their own small cache.
                p.swa_full = false;
                p.no_perf = true;
                if params.hooked {
                    p.cb_eval = Some(trampoline::<H>);
                    p.cb_eval_user_data = hooked.cast();
                }
                sys::llama_init_from_model(model.as_ptr(), p)
            };
            if context.is_null() {
                let why = log::last_error();
                return Err(why.unwrap_or_else(|| "llama.cpp could not make a context".to_owned()));
            }
            Ok(context)
        };
        match make() {
            Ok(context) => {
                let pool = Threads::start(n_threads);
                if let Some(pool) = &pool {
                    // SAFETY: `drop` frees the context before `hooked`, which
                    // owns the threads.
                    unsafe { pool.attach(context) };
                }
                // SAFETY: the context does not compute yet.
                unsafe { (*hooked).device.threads = pool };
                Ok(Self {
                    context,
                    hooked,
                    n_vocab: usize::try_from(model.get().n_vocab()).unwrap_or(0),
                    _model: model,
                })
            }
            Err(why) => {
                // SAFETY: made by `Box::into_raw` above; no context knows it.
                drop(unsafe { Box::from_raw(hooked) });
                Err(why)
            }
        }
    }

    /// The hook and the cache tensors, between batches.
    pub(crate) fn parts(&mut self) -> (&mut H, &mut Caches) {
        // SAFETY: the callback uses the pointer only inside `decode`, which
        // borrows `self` mutably, as this does.
        let hooked = unsafe { &mut *self.hooked };
        (&mut hooked.hook, &mut hooked.device.caches)
    }

    /// The hook, between batches.
    pub(crate) fn hook(&mut self) -> &mut H {
        self.parts().0
    }

    /// Bytes of the KV cache that the context has allocated and used.
    pub(crate) fn cache_bytes(&self) -> usize {
        // SAFETY: as in `parts`.
        unsafe { (*self.hooked).device.caches.bytes() }
    }

    /// The hook, to look at between batches.
    pub(crate) fn hook_ref(&self) -> &H {
        // SAFETY: as in `parts`.
        unsafe { &(*self.hooked).hook }
    }

    /// Cells of the cache, after llama.cpp's rounding.
    pub(crate) fn n_cells(&self) -> usize {
        // SAFETY: the context is live.
        unsafe { sys::llama_n_ctx(self.context) as usize }
    }

    /// Computes one micro-batch at consecutive positions. Logits are kept for
    /// tokens with `outputs[i]`.
    ///
    /// # Errors
    /// llama.cpp's code and reason, or the message of a panic in the hook.
    pub(crate) fn decode(
        &mut self,
        tokens: &[i32],
        first: i32,
        outputs: &[bool],
    ) -> Result<(), String> {
        assert_eq!(tokens.len(), outputs.len(), "one output flag per token");
        let n = tokens.len();
        let mut token = tokens.to_vec();
        let mut pos: Vec<i32> = (first..).take(n).collect();
        let mut n_seq_id = vec![1i32; n];
        let mut sequence = [0i32];
        let mut seq_id = vec![sequence.as_mut_ptr(); n];
        let mut logits: Vec<i8> = outputs.iter().map(|o| i8::from(*o)).collect();
        let batch = sys::llama_batch {
            n_tokens: i32::try_from(n).map_err(|e| e.to_string())?,
            token: token.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: pos.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        log::clear();
        // SAFETY: no callback runs yet; tensors of earlier batches are gone.
        unsafe { (*self.hooked).query = std::ptr::null_mut() };
        // SAFETY: all arrays hold n elements and outlive the call.
        let code = unsafe { sys::llama_decode(self.context, batch) };
        // SAFETY: the context is live; the wait makes cache and logits final.
        unsafe { sys::llama_synchronize(self.context) };
        // SAFETY: no callback runs any more.
        if let Some(panic) = unsafe { (*self.hooked).panic.take() } {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            return Err(format!("panic in the cache: {}", text.unwrap_or_default()));
        }
        match code {
            0 => Ok(()),
            1 => Err("no free cell in the resident pool".to_owned()),
            _ => Err(log::last_error().unwrap_or_else(|| format!("llama.cpp error {code}"))),
        }
    }

    /// Logits of batch token `index`, if they were kept: `[n_vocab]`.
    pub(crate) fn logits(&self, index: usize) -> Option<&[f32]> {
        let index = i32::try_from(index).ok()?;
        // SAFETY: the context is live; llama.cpp checks the index.
        let logits = unsafe { sys::llama_get_logits_ith(self.context, index) };
        if logits.is_null() {
            return None;
        }
        // SAFETY: llama.cpp keeps a row of n_vocab floats until the next batch.
        Some(unsafe { std::slice::from_raw_parts(logits, self.n_vocab) })
    }

    /// Logits of the last token of the last batch whose logits were kept.
    pub(crate) fn last_logits(&self) -> Option<&[f32]> {
        // SAFETY: as in `logits`; -1 is the last output.
        let logits = unsafe { sys::llama_get_logits_ith(self.context, -1) };
        if logits.is_null() {
            return None;
        }
        // SAFETY: as in `logits`.
        Some(unsafe { std::slice::from_raw_parts(logits, self.n_vocab) })
    }

    /// Frees the cells of positions `from..to` (`to` `None`: all that follow).
    pub(crate) fn free(&mut self, from: usize, to: Option<usize>) -> bool {
        let position = |p: usize| i32::try_from(p).unwrap_or(i32::MAX);
        // SAFETY: the context is live and has a memory.
        unsafe {
            let memory = sys::llama_get_memory(self.context);
            sys::llama_memory_seq_rm(memory, 0, position(from), to.map_or(-1, position))
        }
    }

    /// First position that is still in the cache for sliding-window layers, or, of a
    /// model without, in the only one.
    pub(crate) fn first_position(&mut self) -> i32 {
        // SAFETY: the context is live and has a memory.
        unsafe { sys::llama_memory_seq_pos_min(sys::llama_get_memory(self.context), 0) }
    }

    /// The sequence's cells, positions and rows, as llama.cpp writes them.
    pub(crate) fn dump(&mut self) -> Vec<u8> {
        // SAFETY: the context is live, and does not compute.
        let size = unsafe { sys::llama_state_seq_get_size(self.context, 0) };
        let mut bytes = vec![0; size];
        // SAFETY: `bytes` has room for `size` bytes.
        let n = unsafe {
            sys::llama_state_seq_get_data(self.context, bytes.as_mut_ptr(), bytes.len(), 0)
        };
        bytes.truncate(n);
        bytes
    }

    /// Puts cells into the cache, in place of all that are there: those of the
    /// dump in order, from the first cell on.
    ///
    /// # Errors
    /// llama.cpp's reason; the cache is empty then.
    pub(crate) fn undump(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.clear();
        log::clear();
        // SAFETY: the context is live; llama.cpp reads at most `bytes.len()`
        // bytes and checks what they say.
        let n =
            unsafe { sys::llama_state_seq_set_data(self.context, bytes.as_ptr(), bytes.len(), 0) };
        if n == bytes.len() {
            return Ok(());
        }
        self.clear();
        let why = log::last_error();
        Err(why.unwrap_or_else(|| "llama.cpp refused the cells".to_owned()))
    }

    /// What layers keep that do not keep every token: windows that slide, recurrent
    /// states. The same as a dump without the cells of the others.
    pub(crate) fn partial(&mut self) -> Vec<u8> {
        let flags = PARTIAL_ONLY;
        // SAFETY: the context is live, and does not compute.
        let size = unsafe { sys::llama_state_seq_get_size_ext(self.context, 0, flags) };
        let mut bytes = vec![0; size];
        // SAFETY: `bytes` has room for `size` bytes.
        let n = unsafe {
            let to = bytes.as_mut_ptr();
            sys::llama_state_seq_get_data_ext(self.context, to, bytes.len(), 0, flags)
        };
        bytes.truncate(n);
        bytes
    }

    /// Puts back what [`Context::partial`] gave, in place of what is there.
    ///
    /// # Errors
    /// llama.cpp's reason; these layers are in no state to go on then.
    pub(crate) fn set_partial(&mut self, bytes: &[u8]) -> Result<(), String> {
        let flags = PARTIAL_ONLY;
        log::clear();
        // SAFETY: the context is live; llama.cpp reads at most `bytes.len()` bytes and
        // checks what they say.
        let n = unsafe {
            let from = bytes.as_ptr();
            sys::llama_state_seq_set_data_ext(self.context, from, bytes.len(), 0, flags)
        };
        if n == bytes.len() {
            return Ok(());
        }
        let why = log::last_error();
        Err(why.unwrap_or_else(|| "llama.cpp refused the state".to_owned()))
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        // SAFETY: the context is live and has a memory.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context), true) };
    }
}

/// llama.h's `LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY`.
const PARTIAL_ONLY: sys::llama_state_seq_flags = 1;

impl<H: GraphHook> Drop for Context<H> {
    fn drop(&mut self) {
        // SAFETY: both were made in `new` and are used by nobody else now. The
        // hook may hold pointers into the context's cache but does not follow
        // them when dropped; the context may not call the hook when freed.
        unsafe {
            (*self.hooked).hook.release();
            sys::llama_free(self.context);
            drop(Box::from_raw(self.hooked));
        }
    }
}

/// What llama.cpp calls for every node.
///
/// SAFETY: only llama.cpp calls it, with a live node and the user data that
/// [`Context::new`] gave it for this `H`.
unsafe extern "C" fn trampoline<H: GraphHook>(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: `user_data` is the `Hooked<H>` given in `Context::new`, and only
    // this thread touches it while a batch is computed.
    let hooked = unsafe { &mut *user_data.cast::<Hooked<H>>() };
    if hooked.panic.is_some() {
        // Nothing of this batch will be used; let it run out undisturbed.
        return !ask;
    }
    // SAFETY: llama.cpp hands out a live node of the graph it computes.
    let node = unsafe { Node::new(tensor) };
    let answer = catch_unwind(AssertUnwindSafe(|| {
        if ask {
            match node.op() {
                Op::SetRows => hooked
                    .device
                    .caches
                    .learn(node)
                    .unwrap_or_else(|why| panic!("{why}")),
                Op::Permute if !node.root().name().starts_with("cache_") => hooked.query = tensor,
                _ => {}
            }
            hooked.hook.ask(node)
        } else {
            // SAFETY: seen in this batch's graph, so it is live.
            let query = (!hooked.query.is_null()).then(|| unsafe { Node::new(hooked.query) });
            hooked.hook.ready(node, query, &mut hooked.device);
            true
        }
    }));
    answer.unwrap_or_else(|panic| {
        hooked.panic = Some(panic);
        !ask
    })
}
