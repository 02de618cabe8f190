//! One module per command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod context;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod models;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod verify;
