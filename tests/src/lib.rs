//! The end-to-end tests' harness: a machine of its own for every test, in which the shipped binaries run.
//!
//! A [`Host`] is a private mount namespace, network namespace and cgroup subtree with a `duetd` in it, a network
//! outside of it that plays the internet, and a watcher that takes it all down even when the test is killed. What a
//! test does goes through the programs that users have: [`Host::ok`] and its kin run `duet`, [`Host::get`] and
//! [`api::Connection`] speak HTTP to the daemon's socket without any of Duet's own client code, so that a mistake
//! made on both sides shows.
//!
//! ```text
//! test process ── duet-test-holder watch ── duet-test-holder hold      (the machine: namespaces, cgroup, "internet")
//!      │               │ stdin: while it is open, the machine stands
//!      │               └ then: kill what is in the cgroup, remove cgroups, loop devices, files
//!      └── duetd, duet, sh: children of the test, put into the machine between fork and exec
//! ```
//!
//! When a test ends well, [`Host`]'s drop deletes all instances, images and networks through the API and then asserts
//! that nothing is left of them: see [`leaks`]. When it ends badly, the daemon's and the instances' logs are kept in
//! `target/e2e-logs/<test>`.

pub mod api;
pub mod bench;
pub mod cgroups;
pub mod command;
pub mod conformance;
pub mod host;
pub mod images;
pub mod leaks;
pub mod machine;
pub mod net;
pub mod openapi;
pub mod processes;
pub mod proxy;
pub mod sweep;
pub mod traces;
pub mod wait;
pub mod websocket;

pub use command::Output;
pub use host::{Host, clients};
pub use wait::eventually;
