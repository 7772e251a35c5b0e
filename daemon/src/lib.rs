//! Duet daemon library.

pub mod config;
pub mod network;
pub mod storage;
