//! The end-to-end tests: one file per subject, one binary, so that the harness is linked once.
//!
//! Names that begin with `heavy_` are whole Debian systems or hundreds of instances; `.config/nextest.toml` runs them
//! one at a time.

mod harness;
