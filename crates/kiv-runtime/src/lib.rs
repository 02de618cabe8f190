//! Runs GGUF models through llama.cpp with a tiered, retrieving KV cache.
//!
//! [`Model`] loads weights, [`Session`] reads and continues one sequence.
//! Between the two stands a [`kiv_policy::Policy`], which decides what of the
//! past is resident while a layer attends.
//!
//! How it works without changing llama.cpp: its scheduler calls back for every
//! node of the graph. Right before a layer's attention the queries are ready
//! and the new rows are stored; at that point blocks are copied from the cold
//! store into *slots*, cells that hold the first tokens of the sequence and so
//! are always visible to the causal mask. Keys are cached after RoPE, so a
//! cell may hold other tokens for every layer and KV head.

mod bring;
mod cells;
mod chat;
mod cold;
mod cut;
mod disk;
mod dump;
mod error;
mod generate;
mod gpu;
mod grammar;
mod hook;
mod hot;
mod jinja;
mod llama;
mod local;
mod mark;
mod markup;
mod model;
mod options;
mod persist;
mod probe;
mod remap;
mod rest;
mod sampling;
mod session;
mod slot;
mod stats;
mod synthetic;
mod tap;
mod tiers;
mod timeline;
mod tokenize;

pub use chat::{ChatTemplate, Message};
pub use error::Error;
pub use generate::{Chosen, Finish, GenerateOptions, Generation, Piece, TokenStream};
pub use grammar::{Checked, Grammar};
pub use kiv_cuda::{Counters as GpuCounters, Overlap as GpuOverlap, Span as GpuSpan};
pub use kiv_policy::DeviceUse;
pub use llama::{DeviceMemory, QuantizeType, device_memory, quantize};
pub use markup::{THINK, TOOL_CALL};
pub use model::{LoadOptions, Model, set_verbose, supports_gpu, system_info};
pub use options::{MAX_THREADS, Positions, RopeScaling, SessionBuilder, pool_layout};
pub use persist::stored_tokens;
pub use sampling::Sampling;
pub use session::{Memory, Outputs, Progress, Session, Token};
pub use stats::Stats;
pub use tap::{Attended, AttentionTap};
pub use timeline::{LayerTimes, Timeline};
