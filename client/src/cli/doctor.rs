//! `duet doctor`: what this host has and lacks. The checks themselves are in [`crate::doctor`].

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
}

impl Doctor {
    /// Runs the command; the exit status says whether anything is missing.
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<u8> {
        let options = doctor::Options { dir: context.directory.clone(), ..doctor::Options::default() };
        let checks = doctor::run(&options);
        doctor::print(&checks, if self.json { doctor::Format::Json } else { doctor::Format::Text })?;
        Ok(u8::from(doctor::worst(&checks) == doctor::Status::Fail))
    }
}
