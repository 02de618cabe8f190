//! Attention recall.
