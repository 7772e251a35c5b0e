//! `duet-vmm`: runs one machine and exits with how it ended.
//!
//!     duet-vmm FILE     a machine described in a JSON file, or on the standard input if FILE is "-"
//!     duet-vmm probe    whether this host's KVM is of use
//!
//! The status is that of [`duet_vmm::power::Ending::status`], 1 if there is no machine and 2 if nothing was asked.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, bail};
use duet_vmm::machine::Machine;
use duet_vmm::probe::probe;
use duet_vmm::spec::Spec;

/// The most bytes of a description.
const MAX_SPEC: u64 = 1 << 20;

fn main() -> ExitCode {
    // Each thread would keep what it once allocated.
    duet_sys::memory::one_arena();
    let mut arguments = std::env::args_os().skip(1);
    let (Some(what), None) = (arguments.next(), arguments.next()) else {
        eprintln!("Usage: duet-vmm FILE|-|probe");
        return ExitCode::from(2);
    };
    let result = if what == "probe" { run_probe() } else { run_machine(&what) };
    result.unwrap_or_else(|error| {
        eprintln!("duet-vmm: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_probe() -> anyhow::Result<ExitCode> {
    let taken = probe()?;
    println!("KVM works: the program took {:.1} ms.", taken.as_secs_f64() * 1000.0);
    Ok(ExitCode::SUCCESS)
}

fn run_machine(file: &std::ffi::OsStr) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    // Its descriptor is closed before those that it names are taken, so that they cannot be confused.
    if file == "-" {
        std::io::stdin().take(MAX_SPEC).read_to_string(&mut text).context("the standard input cannot be read")?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("{} cannot be opened", file.display()))?;
        opened
            .take(MAX_SPEC)
            .read_to_string(&mut text)
            .with_context(|| format!("{} cannot be read", file.display()))?;
    }
    if text.len() as u64 == MAX_SPEC {
        bail!("the description is too long: it has {MAX_SPEC} bytes or more");
    }
    let spec: Spec = serde_json::from_str(&text).context("the description is no machine")?;
    let ending = Machine::new(&spec)?.run()?;
    Ok(ExitCode::from(ending.status()))
}
