//! The resident pool: a constant number of cells on the compute device.
//!
//! ```text
//! cells   | sinks | slot 0 | slot 1 | … | slot n-1 | recent window + micro-batch room |
//! tokens    first   any sealed block,                the newest tokens, in the cells
//!           S       per layer and KV head            that llama.cpp picked
//! ```
//!
//! This crate knows geometry only: [`PoolConfig`] is what a user asks for,
//! [`PoolLayout`] what that comes to in cells, [`SlotTable`] which block sits
//! in which slot of one layer and KV head.

mod layout;
mod slots;

pub use layout::{PoolConfig, PoolError, PoolLayout};
pub use slots::{NONE, SlotTable, Swap};
