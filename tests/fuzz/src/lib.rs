//! What strangers feed Duet, as functions from bytes: archives, configurations, filters, packets.
//!
//! Each target's `run` takes any bytes and panics where something that has to hold does not. libFuzzer drives them
//! (`make fuzz`, through the programs in `bin/`), beginning with each target's `seeds`. What once made a target panic lies
//! in `regressions/<target>/`; the test `replay` runs it and the seeds, whole and cut off, with every `cargo test`.

mod targets;

pub use targets::{agent, archive, config, devices, files, filter, metadata, monitor, squashfs, tar};

/// A function to fuzz.
pub struct Target {
    /// Its name, which is its program's as well.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All there are.
pub const TARGETS: &[Target] = &[
    Target { name: "agent", run: agent::run, seeds: agent::seeds },
    Target { name: "archive", run: archive::run, seeds: archive::seeds },
    Target { name: "squashfs", run: squashfs::run, seeds: squashfs::seeds },
    Target { name: "tar", run: tar::run, seeds: tar::seeds },
    Target { name: "metadata", run: metadata::run, seeds: metadata::seeds },
    Target { name: "config", run: config::run, seeds: config::seeds },
    Target { name: "devices", run: devices::run, seeds: devices::seeds },
    Target { name: "filter", run: filter::run, seeds: filter::seeds },
    Target { name: "monitor", run: monitor::run, seeds: monitor::seeds },
    Target { name: "files", run: files::run, seeds: files::seeds },
];

/// A refusal is one sentence: no lines, no essay.
fn assert_sentence(said: &str) {
    assert!(!said.contains('\n') && said.len() < 8192, "no sentence: {said:?}");
}
