//! Every raw system call of Duet, wrapped once.
//!
//! What nix and rustix wrap safely is used from there; this crate holds the rest, so that nearly all `unsafe` of the
//! workspace is in one place. Functions return [`std::io::Result`] and know nothing of containers.

pub mod bpf;
pub mod btrfs;
pub mod ext4;
pub mod ioctl;
pub mod link;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod notify;
pub mod process;
pub mod project_quota;
pub mod pty;
pub mod seccomp;
pub mod socket;
pub mod tap;
pub mod tree;
