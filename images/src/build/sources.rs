//! The machine's own package sources: `sources.list` and its relatives, in the one-line and the deb822 form
//! (sources.list(5)).

use std::path::{Path, PathBuf};

use super::recipe::Vendor;

/// One place that packages come from, for one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub uri: String,
    pub suite: String,
    pub signed_by: SignedBy,
    /// `trusted=yes`: its signatures are not checked.
    pub trusted: bool,
}

/// Which keys a source's lists must be signed with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum SignedBy {
    /// Those the machine trusts for everything.
    #[default]
    Unsaid,
    /// Those in these files.
    Files(Vec<PathBuf>),
    /// This one, which stands in the source itself.
    Key(String),
}

/// Reads the one-line form.
pub(super) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(list_line).collect()
}

fn list_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None; // deb-src
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let mut source =
        Source { uri: clean_uri(uri), suite: suite.to_owned(), signed_by: SignedBy::Unsaid, trusted: false };
    for (key, value) in options.split_whitespace().filter_map(|o| o.split_once('=')) {
        match key.trim_end_matches(['+', '-']) {
            "signed-by" => source.signed_by = SignedBy::Files(value.split(',').map(PathBuf::from).collect()),
            "trusted" => source.trusted = value == "yes",
            _ => {}
        }
    }
    Some(source)
}

/// Reads the deb822 form.
pub(super) fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain(std::iter::once("")) {
        if line.trim().is_empty() {
            stanza(&fields, &mut sources);
            fields.clear();
        } else if line.starts_with('#') {
            // Comments may stand within a field.
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)], sources: &mut Vec<Source>) {
    let get = |name: &str| fields.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
    let off = ["no", "false", "0", "off"].contains(&get("enabled").to_ascii_lowercase().as_str());
    if off || !get("types").split_whitespace().any(|t| t == "deb") {
        return;
    }
    let signed = get("signed-by").trim();
    let signed_by = if signed.contains("BEGIN PGP") {
        // An empty line of the key stands as a single dot.
        SignedBy::Key(signed.lines().map(|l| if l == "." { "" } else { l }).collect::<Vec<_>>().join("\n") + "\n")
    } else if signed.is_empty() {
        SignedBy::Unsaid
    } else {
        SignedBy::Files(signed.split_whitespace().map(PathBuf::from).collect())
    };
    for uri in get("uris").split_whitespace() {
        for suite in get("suites").split_whitespace() {
            sources.push(Source {
                uri: clean_uri(uri),
                suite: suite.to_owned(),
                signed_by: signed_by.clone(),
                trusted: get("trusted").eq_ignore_ascii_case("yes"),
            });
        }
    }
}

fn clean_uri(uri: &str) -> String {
    uri.trim_end_matches('/').to_owned()
}

/// Reads all sources of a machine whose apt configuration is under `etc` (`/etc/apt`). Files that cannot be read are
/// passed over: another one, or the public archive, will do.
pub(super) fn read_all(etc: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    if let Ok(text) = std::fs::read_to_string(etc.join("sources.list")) {
        sources.extend(parse_list(&text));
    }
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    for file in files {
        let parse = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => parse_list,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        if let Ok(text) = std::fs::read_to_string(&file) {
            sources.extend(parse(&text));
        }
    }
    sources
}

/// Code names that Debian and Ubuntu have used or announced; a suite is told by its name, because a mirror's address
/// tells nothing.
const DEBIAN: &[&str] = &[
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "stable",
    "testing",
    "unstable",
    "oldstable",
    "oldoldstable",
];
const UBUNTU: &[&str] = &[
    "bionic", "focal", "jammy", "kinetic", "lunar", "mantic", "noble", "oracular", "plucky", "questing", "resolute",
    "devel",
];

/// Which part of an archive a suite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pocket {
    Main,
    Updates,
    Security,
}

/// Whose suite this is, and which part; `None` for third parties', backports and the like.
pub(super) fn classify(suite: &str) -> Option<(Vendor, Pocket)> {
    let (base, pocket) = if let Some(base) = suite.strip_suffix("-updates") {
        (base, Pocket::Updates)
    } else if let Some(base) = suite.strip_suffix("-security").or_else(|| suite.strip_suffix("/updates")) {
        (base, Pocket::Security)
    } else {
        (suite, Pocket::Main)
    };
    if DEBIAN.contains(&base) {
        Some((Vendor::Debian, pocket))
    } else if UBUNTU.contains(&base) {
        Some((Vendor::Ubuntu, pocket))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_line_form() {
        let text = "# comment\n\
            deb http://mirror.example/debian/ bookworm main contrib # why\n\
            deb-src http://mirror.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg,/b.gpg] https://u:p@m.example/d bookworm-security main\n\
            deb [ trusted=yes ] http://local/ ./\n\
            debugging http://x y z\n\
            deb\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 3);
        assert_eq!((sources[0].uri.as_str(), sources[0].suite.as_str()), ("http://mirror.example/debian", "bookworm"));
        assert_eq!(sources[1].signed_by, SignedBy::Files(vec!["/usr/share/keyrings/a.gpg".into(), "/b.gpg".into()]));
        assert_eq!(sources[1].uri, "https://u:p@m.example/d");
        assert!(sources[2].trusted && !sources[1].trusted);
    }

    #[test]
    fn the_deb822_form() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://a/debian\n  http://b/debian/\nSuites: trixie trixie-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
            Types: deb\nEnabled: no\nURIs: http://off\nSuites: trixie\n\n\
            Types: deb-src\nURIs: http://src\nSuites: trixie\n\n\
            types: deb\nuris: http://c\nsuites: noble\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let sources = parse_deb822(text);
        let places: Vec<_> = sources.iter().map(|s| (s.uri.as_str(), s.suite.as_str())).collect();
        assert_eq!(
            places,
            [
                ("http://a/debian", "trixie"),
                ("http://a/debian", "trixie-updates"),
                ("http://b/debian", "trixie"),
                ("http://b/debian", "trixie-updates"),
                ("http://c", "noble")
            ]
        );
        assert_eq!(sources[0].signed_by, SignedBy::Files(vec!["/k.gpg".into()]));
        let SignedBy::Key(key) = &sources[4].signed_by else { panic!("{:?}", sources[4]) };
        assert_eq!(key, "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n");
    }

    #[test]
    fn suites_tell_the_vendor() {
        assert_eq!(classify("bookworm"), Some((Vendor::Debian, Pocket::Main)));
        assert_eq!(classify("buster/updates"), Some((Vendor::Debian, Pocket::Security)));
        assert_eq!(classify("jammy-security"), Some((Vendor::Ubuntu, Pocket::Security)));
        assert_eq!(classify("noble-updates"), Some((Vendor::Ubuntu, Pocket::Updates)));
        assert_eq!(classify("bookworm-backports"), None);
        assert_eq!(classify("nodistro"), None);
    }

    #[test]
    fn all_files_of_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        std::fs::write(dir.path().join("sources.list"), "deb http://a trixie main\n").unwrap();
        std::fs::write(dir.path().join("sources.list.d/b.list"), "deb http://b trixie main\n").unwrap();
        std::fs::write(dir.path().join("sources.list.d/c.sources"), "Types: deb\nURIs: http://c\nSuites: trixie\n")
            .unwrap();
        std::fs::write(dir.path().join("sources.list.d/d.list.off"), "deb http://d trixie main\n").unwrap();
        let uris: Vec<_> = read_all(dir.path()).into_iter().map(|s| s.uri).collect();
        assert_eq!(uris, ["http://a", "http://b", "http://c"]);
        assert!(read_all(Path::new("/nonexistent")).is_empty());
    }
}
