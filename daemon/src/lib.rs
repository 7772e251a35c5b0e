//! Duet daemon library.
