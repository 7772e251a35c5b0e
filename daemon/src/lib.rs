//! The daemon, as a library: `main.rs` only reads the command line.
//!
//! Dependencies point one way: `api -> {instances, images, pools, networks} -> inventory`, and below those the drivers
//! `storage` and `network` and the crate `duet_container`, which know nothing of HTTP, SQL or each other.

pub mod api;
pub mod app;
pub mod apparmor;
pub mod config;
pub mod error;
pub mod events;
pub mod grace;
pub mod host;
pub mod images;
pub mod instances;
pub mod inventory;
pub mod machines;
pub mod neighbours;
pub mod network;
pub mod networks;
pub mod operations;
pub mod pools;
pub mod program;
pub mod readiness;
pub mod resources;
pub mod serve;
pub mod service;
pub mod storage;
pub mod systemd;
pub mod warnings;

/// Where the state is kept unless `DUET_DIR` or `--dir` says otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/duet";
/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of Incus whose API this is; clients look at it to decide what they may use.
pub const API_COMPATIBLE_VERSION: &str = "6.0.4";
/// The architecture of this host, by its kernel name.
pub const ARCHITECTURE: &str = std::env::consts::ARCH;
