//! One file for each target.

pub mod agent;
pub mod archive;
pub mod config;
pub mod devices;
pub mod files;
pub mod filter;
pub mod metadata;
pub mod monitor;
pub mod squashfs;
pub mod tar;
