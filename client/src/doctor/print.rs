//! How the report looks.

use std::io::{self, IsTerminal, Write};

use super::{Check, Status};

/// In which form to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// A JSON list of checks.
    Json,
}

/// Prints the report to standard output, in colour when that is a terminal and `NO_COLOR` is unset.
///
/// # Errors
/// When standard output cannot be written to.
pub fn print(checks: &[Check], format: Format) -> io::Result<()> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut out = stdout.lock();
    match format {
        Format::Text => write_text(&mut out, checks, colour)?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, checks)?;
            writeln!(out)?;
        }
    }
    out.flush()
}

fn write_text(out: &mut impl Write, checks: &[Check], colour: bool) -> io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let (word, code) = match check.status {
            Status::Ok => ("ok  ", "32"),
            Status::Warn => ("warn", "33"),
            Status::Fail => ("fail", "31"),
        };
        match colour {
            true => write!(out, "\x1b[{code}m{word}\x1b[0m")?,
            false => write!(out, "{word}")?,
        }
        writeln!(out, "  {:width$}  {}", check.name, check.message)?;
        for line in check.mend.iter().flat_map(|mend| mend.lines()) {
            writeln!(out, "      {:width$}  > {line}", "")?;
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    writeln!(out)?;
    match (count(Status::Warn), count(Status::Fail)) {
        (0, 0) => writeln!(out, "This host has all that Duet needs."),
        (warn, 0) => writeln!(out, "Duet runs on this host; {warn} {} could be better.", things(warn)),
        (_, fail) => writeln!(out, "{fail} {} must be mended before Duet runs well here.", things(fail)),
    }
}

fn things(count: usize) -> &'static str {
    if count == 1 { "thing" } else { "things" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(checks: &[Check], colour: bool) -> String {
        let mut out = Vec::new();
        write_text(&mut out, checks, colour).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_align_and_mends_follow() {
        let checks =
            [Check::ok("kernel", "Linux 6.12"), Check::warn("disk space", "little is left", "free some\nor add some")];
        assert_eq!(
            text(&checks, false),
            "ok    kernel      Linux 6.12\n\
             warn  disk space  little is left\n                  > free some\n                  > or add some\n\n\
             Duet runs on this host; 1 thing could be better.\n"
        );
        assert!(text(&checks, true).starts_with("\x1b[32mok  \x1b[0m  kernel"));
        assert!(text(&checks[..1], false).ends_with("This host has all that Duet needs.\n"));
    }

    #[test]
    fn json_is_a_list_of_checks() {
        let checks = [Check::fail("nft", "is not installed", "apt install nftables")];
        assert_eq!(
            serde_json::to_string(&checks).unwrap(),
            r#"[{"name":"nft","status":"fail","message":"is not installed","mend":"apt install nftables"}]"#
        );
    }
}
