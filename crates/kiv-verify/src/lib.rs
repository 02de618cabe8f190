//! kiv-verify
