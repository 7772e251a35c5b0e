//! Duet daemon library.

pub mod storage;
