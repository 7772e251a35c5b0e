//! `duet doctor`: what this host has and lacks. The checks themselves are in [`crate::doctor`].

use std::io::Write;

use clap::Args;

use super::context::Context;
use crate::doctor;

/// Check whether this host has what Duet needs
///
/// Each check is really tried and leaves nothing behind. The exit status is 1 if something is missing that instances
/// cannot run without.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print the checks as JSON
    #[arg(long)]
    json: bool,
    /// Mend what can be mended, and check again
    ///
    /// This lets instances past the host's firewall where Docker, ufw or firewalld leave room for such rules, so that
    /// they stay. Each command that is run is shown.
    #[arg(long)]
    fix: bool,
}

impl Doctor {
    /// Runs the command; the exit status says whether anything is missing.
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<u8> {
        let options = doctor::Options::of(context.directory.clone());
        let mut checks = doctor::run(&options);
        if self.fix && checks.iter().any(|check| !check.fix.is_empty()) {
            doctor::fix(&checks, |outcome| {
                let line = outcome.unwrap_or_else(|error| format!("Error: {error}"));
                let _ = writeln!(std::io::stderr(), "{line}");
            });
            checks = doctor::run(&options);
        }
        doctor::print(&checks, if self.json { doctor::Format::Json } else { doctor::Format::Text })?;
        Ok(u8::from(doctor::worst(&checks) == doctor::Status::Fail))
    }
}
