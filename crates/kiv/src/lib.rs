//! kiv
