//! Duet daemon library.

pub mod network;
pub mod storage;
