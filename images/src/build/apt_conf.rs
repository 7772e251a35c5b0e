//! The machine's way to its mirrors, as an apt configuration for the builder.
//!
//! The builder's apt works on the new root and does not read the machine's configuration. So what concerns fetching
//! (proxies, certificates, timeouts, whether stale lists are accepted) is copied, and the machine's passwords are
//! pointed at. The file is for the build only; none of it stays in the image.

use std::process::Command;

use crate::{ImageError, Result};

/// Settings under `Acquire::` that are about lists, not about fetching.
const LEFT_OUT: &[&str] = &[
    "acquire::indextargets",
    "acquire::gzipindexes",
    "acquire::languages",
    "acquire::changelogs",
    "acquire::compressiontypes",
    "acquire::cdrom",
];

/// Reads the machine's settings and writes the configuration's text.
pub(super) fn text() -> Result<String> {
    let output = Command::new("apt-config")
        .args(["dump", "--format", "%F \"%v\";%n"])
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|e| ImageError::file("run", "apt-config", e))?;
    let dump = String::from_utf8_lossy(&output.stdout);
    let etc = |name: &str, usual: &str| value(&dump, name).filter(|v| !v.is_empty()).unwrap_or(usual).to_owned();
    let under = |base: &str, name: String| if name.starts_with('/') { name } else { format!("{base}/{name}") };
    let base = format!("/{}", etc("Dir::Etc", "etc/apt").trim_matches('/'));
    let netrc = under(&base, etc("Dir::Etc::netrc", "auth.conf"));
    let netrc_parts = under(&base, etc("Dir::Etc::netrcparts", "auth.conf.d"));
    let mut text = fetching(&dump);
    text.push_str(&format!("Dir::Etc::netrc \"{netrc}\";\nDir::Etc::netrcparts \"{netrc_parts}\";\n"));
    // The folder of the build is closed to everybody but root.
    text.push_str("APT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\n");
    Ok(text)
}

fn value<'a>(dump: &'a str, name: &str) -> Option<&'a str> {
    dump.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" \"")?.strip_suffix("\";"))
}

/// The lines of a dump that concern fetching.
fn fetching(dump: &str) -> String {
    let mut out = String::new();
    for line in dump.lines() {
        let lower = line.to_ascii_lowercase();
        let kept = lower.starts_with("acquire::") && !LEFT_OUT.iter().any(|name| lower.starts_with(name));
        // A section's own line has no value and would set an empty one.
        if kept && !line.ends_with(" \"\";") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_fetching() {
        let dump = "APT \"\";\nAPT::Architecture \"amd64\";\nAcquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://proxy:3128\";\n\
            Acquire::Languages \"none\";\nAcquire::IndexTargets::deb \"\";\nAcquire::Check-Valid-Until \"false\";\nDir::Etc \"etc/apt\";\n";
        assert_eq!(
            fetching(dump),
            "Acquire::http::Proxy \"http://proxy:3128\";\nAcquire::Check-Valid-Until \"false\";\n"
        );
        assert_eq!(value(dump, "Dir::Etc"), Some("etc/apt"));
    }

    #[test]
    fn the_machines_own() {
        let text = text().unwrap();
        assert!(text.contains("Dir::Etc::netrc \"/etc/apt/auth.conf\";"), "{text}");
    }
}
