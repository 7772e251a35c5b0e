//! The guest side of virtual machines.
//!
//! Every virtual machine boots its distribution's kernel with an initramfs of ours, which [`initramfs`] makes for that kernel.
//! It holds one program, `duet-agent`, and the few modules that the kernel needs to find its root. That program
//!
//! 1. as process 1 of the initramfs ([`init`]) loads the modules, mounts the root, leaves a copy of itself running and
//!    becomes the image's own init;
//! 2. as that copy ([`agent`]) runs programs and tells how the system is, asked over one byte stream ([`protocol`]) by
//!    the process on the host that watches over the machine ([`client`]).
//!
//! So these work in any image, without anything installed in it. Both ends of the stream run the same engine ([`mux`]).
//!
//! *Building.* The program runs before there is any library, so it is linked statically. With glibc that is
//! `cargo rustc --release -p duet-agent --bin duet-agent -- -C target-feature=+crt-static` (`build_agent` in
//! daemon/packaging/lib.sh). Nothing in it may use glibc's
//! name service (accounts, host names), which would load libraries of another system.

pub mod agent;
pub mod client;
pub mod init;
pub mod initramfs;
pub mod kernel;
pub mod mux;
pub mod protocol;
pub mod setup;
pub mod tree;
mod uevent;
