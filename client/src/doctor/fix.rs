//! `duet doctor --fix`: doing what a check says would mend it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Check, programs, said};

/// One thing to do on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Run this program with these arguments.
    Run(Vec<String>),
    /// Write this file, and its directory where there is none.
    Write {
        /// Where.
        path: PathBuf,
        /// What.
        text: String,
    },
}

impl Step {
    pub(super) fn run(words: &[&str]) -> Self {
        Self::Run(words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// As somebody would type it; nothing for a file.
    #[must_use]
    pub fn command(&self) -> Option<String> {
        match self {
            Self::Run(words) if words.first().is_some_and(|word| word != "systemctl") => Some(words.join(" ")),
            Self::Run(_) | Self::Write { .. } => None,
        }
    }

    /// Does it and says so in one line.
    ///
    /// # Errors
    /// In one sentence.
    fn take(&self) -> Result<String, String> {
        match self {
            Self::Run(words) => {
                let (name, arguments) = words.split_first().ok_or("there is no command")?;
                let line = words.join(" ");
                let program = programs::find(name).ok_or_else(|| format!("{name} is not installed"))?;
                let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
                let output = output.map_err(|error| format!("\"{line}\" does not run: {}", said(error)))?;
                if output.status.success() {
                    return Ok(format!("ran {line}"));
                }
                let complaint = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
                Err(format!("\"{line}\" failed: {complaint}"))
            }
            Self::Write { path, text } => {
                let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
                made.and_then(|()| std::fs::write(path, text))
                    .map_err(|error| format!("{} cannot be written: {}", path.display(), said(error)))?;
                Ok(format!("wrote {}", path.display()))
            }
        }
    }
}

/// Does what mends these checks, each step once, and tells `say` of each: what was done, or why it could not be. What
/// has no step is left to the admin. After a step that fails, the rest of its check is left out.
pub fn fix(checks: &[Check], mut say: impl FnMut(Result<String, String>)) {
    let mut taken: Vec<&Step> = Vec::new();
    for check in checks {
        for step in &check.fix {
            if taken.contains(&step) {
                continue;
            }
            taken.push(step);
            let outcome = step.take();
            let failed = outcome.is_err();
            say(outcome);
            if failed {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_taken_once_and_a_failure_ends_its_check_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| Step::Write { path: dir.path().join("new").join(name), text: name.to_owned() };
        let check = |fix: Vec<Step>| Check { fix, ..Check::warn("x", "y", "z") };
        let checks = [
            check(vec![Step::run(&["false"]), file("never")]),
            check(vec![file("once"), file("once"), Step::run(&["no-such-program"])]),
            check(vec![]),
        ];
        let mut said = Vec::new();
        fix(&checks, |outcome| said.push(outcome));
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(said[0], Err("\"false\" failed: ".to_owned()));
        assert!(said[1].as_ref().is_ok_and(|line| line.starts_with("wrote ")), "{said:?}");
        assert_eq!(said[2], Err("no-such-program is not installed".to_owned()));
        assert!(dir.path().join("new/once").exists() && !dir.path().join("new/never").exists());
    }
}
