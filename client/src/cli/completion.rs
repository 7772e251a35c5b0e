//! `duet completion` and the generator of manual pages.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command, ValueEnum};

use super::output::print;

/// A shell that completion is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// GNU bash
    Bash,
    /// The Z shell
    Zsh,
    /// The friendly interactive shell
    Fish,
}

/// Print a script that teaches a shell to complete this command
///
/// For this session: source <(duet completion bash). For all: write it to
/// /etc/bash_completion.d/duet, or for zsh to a file named _duet in $fpath, or for fish to
/// ~/.config/fish/completions/duet.fish.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    /// Runs the command.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        use clap_complete::env::Shells;

        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        };
        let shells = Shells::builtins();
        let shell = shells.completer(name).with_context(|| format!("no completion is known for {name}"))?;
        let mut script = Vec::new();
        shell.write_registration("COMPLETE", "duet", "duet", "duet", &mut script)?;
        print(&String::from_utf8(script)?)
    }
}

/// Write the manual pages
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The directory to write them to
    directory: PathBuf,
}

impl Man {
    /// Runs the command.
    pub(crate) fn run(self, command: Command) -> anyhow::Result<()> {
        let failed = || format!("cannot write manual pages to {}", self.directory.display());
        std::fs::create_dir_all(&self.directory).with_context(failed)?;
        clap_mangen::generate_to(command, &self.directory).with_context(failed)
    }
}
