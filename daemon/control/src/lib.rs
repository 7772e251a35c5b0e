//! What the daemon and the monitors of running instances say to each other.
//!
//! Each running instance has a monitor, which outlives the daemon. Those of containers and of virtual machines are different
//! programs, but answer the same [`protocol`] on the same kind of socket, so that the daemon has one [`client`] for both,
//! and both monitors are made of the same parts ([`monitor`]). How each is started is its own crate's matter.

pub mod attach;
pub mod client;
pub mod monitor;
pub mod protocol;
pub mod step;

pub use client::{ClientError, MonitorClient};
