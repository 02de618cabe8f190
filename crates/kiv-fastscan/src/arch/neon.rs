//! NEON: portable code for now, which the compiler may vectorize.
pub(super) use super::generic::{at_least, count_at_least, fold_max, scan};
