//! kiv-cli
