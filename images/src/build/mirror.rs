//! From the machine's package sources to those that a release is built from.
//!
//! A machine that gets its packages through a mirror, a proxy or with a password should build its images the same way.
//! So the mirror is that of the machine's own sources of the same vendor, with the suite replaced; the keys are those
//! that the sources name, besides the vendor's own; and apt does the fetching, with the machine's proxy settings and
//! passwords. None of that goes into the image, whose sources are the public archive.

use std::path::{Path, PathBuf};

use super::recipe::{AptRecipe, Vendor};
use super::sources::{Pocket, SignedBy, Source, classify};
use crate::command::Job;
use crate::observe::Observer;
use crate::{ImageError, Result};

/// Where to fetch from, as the builder is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// One line for each suite, the release's own first.
    pub suites: Vec<MirrorSuite>,
}

/// One suite of a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MirrorSuite {
    pub uri: String,
    pub suite: String,
    pub pocket: Pocket,
    signed_by: SignedBy,
    trusted: bool,
}

/// The public archive, for machines that have no sources of the vendor.
fn public(vendor: Vendor, pocket: Pocket, architecture: &str) -> &'static str {
    match (vendor, pocket) {
        (Vendor::Debian, Pocket::Security) => "http://deb.debian.org/debian-security",
        (Vendor::Debian, _) => "http://deb.debian.org/debian",
        (Vendor::Ubuntu, _) if !["amd64", "i386"].contains(&architecture) => "http://ports.ubuntu.com/ubuntu-ports",
        (Vendor::Ubuntu, Pocket::Security) => "http://security.ubuntu.com/ubuntu",
        (Vendor::Ubuntu, _) => "http://archive.ubuntu.com/ubuntu",
    }
}

impl Mirror {
    /// Chooses the mirror for a recipe: the given one, else the machine's, else the public archive.
    pub(super) fn choose(recipe: &AptRecipe, given: Option<&str>, machine: &[Source], architecture: &str) -> Mirror {
        let own = |wanted: Pocket| {
            machine.iter().find(|s| is_fetchable(&s.uri) && classify(&s.suite) == Some((recipe.vendor, wanted)))
        };
        let suites = [Pocket::Main, Pocket::Updates, Pocket::Security].map(|pocket| {
            let name = match pocket {
                Pocket::Main => recipe.suite.clone(),
                Pocket::Updates => format!("{}-updates", recipe.suite),
                Pocket::Security => format!("{}-security", recipe.suite),
            };
            let source = match pocket {
                Pocket::Main | Pocket::Updates => own(Pocket::Main),
                // Ubuntu's mirrors carry it beside the rest; Debian's is an archive of its own.
                Pocket::Security => {
                    own(Pocket::Security).or_else(|| own(Pocket::Main).filter(|_| recipe.vendor == Vendor::Ubuntu))
                }
            };
            let (uri, signed_by, trusted) = match (given, source) {
                (Some(given), _) if pocket != Pocket::Security || recipe.vendor == Vendor::Ubuntu => {
                    (given.trim_end_matches('/').to_owned(), SignedBy::Unsaid, false)
                }
                (None, Some(source)) => (source.uri.clone(), source.signed_by.clone(), source.trusted),
                (Some(given), _) => (security_beside(given), SignedBy::Unsaid, false),
                (None, None) => (public(recipe.vendor, pocket, architecture).to_owned(), SignedBy::Unsaid, false),
            };
            MirrorSuite { uri, suite: name, pocket, signed_by, trusted }
        });
        Mirror { suites: suites.into() }
    }

    /// Asks the mirror for each suite's list; the release's own must be there, the others are left out when missing.
    /// Returns what was left out, as sentences.
    pub(super) fn probe(
        &mut self,
        recipe: &str,
        apt_conf: &Path,
        scratch: &Path,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let mut kept = Vec::new();
        for suite in std::mem::take(&mut self.suites) {
            match fetch_list(&suite, apt_conf, scratch, observer)? {
                Ok(()) => kept.push(suite),
                Err(problem) if suite.pocket == Pocket::Main => {
                    return Err(ImageError::Mirror {
                        recipe: recipe.to_owned(),
                        mirror: without_password(&suite.uri),
                        problem,
                    });
                }
                Err(problem) => {
                    notes.push(format!("left out {}: {} {problem}", suite.suite, without_password(&suite.uri)))
                }
            }
        }
        self.suites = kept;
        Ok(notes)
    }

    /// Writes the sources as lines, and the keys that stand in sources as files in `scratch`.
    pub(super) fn lines(&self, recipe: &AptRecipe, scratch: &Path) -> Result<Vec<String>> {
        self.suites.iter().enumerate().map(|(number, suite)| suite.line(number, recipe, scratch)).collect()
    }
}

impl MirrorSuite {
    fn line(&self, number: usize, recipe: &AptRecipe, scratch: &Path) -> Result<String> {
        let mut keys = Vec::new();
        match &self.signed_by {
            SignedBy::Unsaid => {}
            SignedBy::Files(files) => keys.extend(files.iter().filter(|f| f.is_absolute() && f.is_file()).cloned()),
            SignedBy::Key(text) => {
                let path = scratch.join(format!("key-{number}.asc"));
                std::fs::write(&path, text).map_err(|e| ImageError::file("write", &path, e))?;
                keys.push(path);
            }
        }
        let vendors = PathBuf::from(&recipe.keyring);
        if vendors.is_file() {
            if !keys.contains(&vendors) {
                keys.push(vendors);
            }
        } else if let Some(text) = recipe.own_key() {
            let path = scratch.join("vendor-key.asc");
            std::fs::write(&path, text).map_err(|e| ImageError::file("write", &path, e))?;
            keys.push(path);
        }
        let mut options = Vec::new();
        if !keys.is_empty() {
            let keys: Vec<String> = keys.iter().map(|k| k.display().to_string()).collect();
            options.push(format!("signed-by={}", keys.join(",")));
        }
        if self.trusted {
            options.push("trusted=yes".into());
        }
        let options = if options.is_empty() { String::new() } else { format!("[{}] ", options.join(" ")) };
        Ok(format!("deb {options}{} {} {}", self.uri, self.suite, recipe.components.join(" ")))
    }

    /// Whether its lists can be checked against some key.
    pub(super) fn has_keys(&self, recipe: &AptRecipe) -> bool {
        self.trusted
            || self.signed_by != SignedBy::Unsaid
            || recipe.own_key().is_some()
            || Path::new(&recipe.keyring).is_file()
    }
}

/// Debian's security archive stands beside the main one on nearly every mirror.
fn security_beside(main: &str) -> String {
    let main = main.trim_end_matches('/');
    match main.strip_suffix("/debian") {
        Some(host) => format!("{host}/debian-security"),
        None => public(Vendor::Debian, Pocket::Security, "").to_owned(),
    }
}

/// Whether a source is one that a build can fetch from by itself (no CD, no local folder).
fn is_fetchable(uri: &str) -> bool {
    ["http://", "https://", "mirror+http", "mirror://", "tor+http"].iter().any(|scheme| uri.starts_with(scheme))
}

/// An address without what stands before its "@".
fn without_password(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => match rest.split_once('/') {
            Some((host, path)) => format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or(host)),
            None => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or(rest)),
        },
        None => uri.to_owned(),
    }
}

/// Fetches a suite's list with apt's own downloader; says in words what is wrong when it is not there.
fn fetch_list(
    suite: &MirrorSuite,
    apt_conf: &Path,
    scratch: &Path,
    observer: &mut Observer<'_>,
) -> Result<std::result::Result<(), String>> {
    if suite.uri.starts_with("mirror") {
        return Ok(Ok(())); // a list of mirrors; only apt's update can follow it
    }
    let mut job = Job::new("/usr/lib/apt/apt-helper");
    job.env("APT_CONFIG", apt_conf);
    job.arg("download-file")
        .arg(format!("{}/dists/{}/InRelease", suite.uri, suite.suite))
        .arg(scratch.join("InRelease"));
    let failure = match job.run(observer, &mut |_, _| Ok(()))? {
        Ok(()) => return Ok(Ok(())),
        Err(failure) => failure,
    };
    let summary = failure.summary();
    if summary.contains("404") {
        return Ok(Err(format!("does not carry {}", suite.suite)));
    }
    // "Failed to fetch http://… Reason; Download Failed"
    let reason =
        summary.split("InRelease").nth(1).and_then(|rest| rest.split("; ").next()).map(str::trim).unwrap_or(&summary);
    Ok(Err(format!("cannot be reached ({})", reason.trim_end_matches('.'))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::recipe::find_recipe;
    use crate::build::sources::{parse_deb822, parse_list};

    fn places(recipe: &str, given: Option<&str>, machine: &[Source], architecture: &str) -> Vec<String> {
        let recipe = find_recipe(recipe).unwrap();
        let mirror = Mirror::choose(recipe.apt.as_ref().unwrap(), given, machine, architecture);
        mirror.suites.iter().map(|s| format!("{} {}", s.uri, s.suite)).collect()
    }

    #[test]
    fn the_machines_own_with_the_suite_replaced() {
        let machine = parse_list(
            "deb cdrom:[Debian]/ bookworm main\ndeb http://extra.example stable-thing main\n\
             deb https://user:secret@m.example/debian bookworm main\ndeb http://s.example/security bookworm-security main\n",
        );
        assert_eq!(
            places("debian/13", None, &machine, "amd64"),
            [
                "https://user:secret@m.example/debian trixie",
                "https://user:secret@m.example/debian trixie-updates",
                "http://s.example/security trixie-security"
            ]
        );
        // Another vendor's come from the public archive.
        assert_eq!(
            places("ubuntu/24.04", None, &machine, "amd64")[..2],
            ["http://archive.ubuntu.com/ubuntu noble", "http://archive.ubuntu.com/ubuntu noble-updates"]
        );
        assert_eq!(
            places("ubuntu/24.04", None, &machine, "arm64")[2],
            "http://ports.ubuntu.com/ubuntu-ports noble-security"
        );
    }

    #[test]
    fn a_given_one_has_precedence() {
        let machine = parse_list("deb http://m.example/debian bookworm main\n");
        assert_eq!(
            places("debian/12", Some("http://g.example/debian/"), &machine, "amd64"),
            [
                "http://g.example/debian bookworm",
                "http://g.example/debian bookworm-updates",
                "http://g.example/debian-security bookworm-security"
            ]
        );
        assert_eq!(places("ubuntu/22.04", Some("http://g/u"), &machine, "amd64")[2], "http://g/u jammy-security");
    }

    #[test]
    fn keys_and_trust_go_along() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = find_recipe("debian/13").unwrap();
        let mut apt = recipe.apt.unwrap();
        apt.keyring = "/nonexistent.gpg".into();
        let machine = parse_deb822(
            "Types: deb\nURIs: http://m\nSuites: trixie\nTrusted: yes\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n x\n",
        );
        let lines = Mirror::choose(&apt, None, &machine, "amd64").lines(&apt, dir.path()).unwrap();
        let key = dir.path().join("key-0.asc");
        assert_eq!(lines[0], format!("deb [signed-by={} trusted=yes] http://m trixie main", key.display()));
        assert!(std::fs::read_to_string(key).unwrap().contains("BEGIN PGP"));
        assert_eq!(lines[2], "deb http://deb.debian.org/debian-security trixie-security main");
    }

    #[test]
    fn passwords_are_not_shown() {
        for (uri, shown) in [
            ("https://user:p@ss@m.example/debian", "https://m.example/debian"),
            ("http://m.example/a@b", "http://m.example/a@b"),
            ("http://u@m", "http://m"),
        ] {
            assert_eq!(without_password(uri), shown);
        }
    }
}
