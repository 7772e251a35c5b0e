//! A root of a distribution's packages, by `mmdebstrap`.
//!
//! `mmdebstrap` takes several suites at once, so that the image has the security updates of the day, fetches through
//! apt, so that the machine's proxy and passwords work, and needs half of `debootstrap`'s time.

use std::path::Path;

use super::mirror::Mirror;
use super::recipe::{AptRecipe, Recipe};
use super::sources;
use super::{BuildOptions, Percent, apt_conf};
use crate::command::{Job, find_program};
use crate::observe::{Observer, Phase};
use crate::{ImageError, Result};

/// What packages bring that a container hardly misses: translations, and documentation beyond the copyright. It applies
/// to the build only; what is installed later is complete, and written with care.
const DPKG_OPTIONS: &[&str] = &[
    // The root is packed in the end; until then a crash costs nothing.
    "force-unsafe-io",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/man/[a-z][a-z]/*",
    "path-exclude=/usr/share/man/[a-z][a-z]_*/*",
];

/// Hooks that come with mmdebstrap: without them, releases from before merged /usr was in the packages would install all
/// of Perl to convert it.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";

/// Files of the build that must not stay.
const LEFTOVERS: &[&str] =
    &["/etc/apt/apt.conf.d/99mmdebstrap", "/etc/dpkg/dpkg.cfg.d/99mmdebstrap", "/etc/apt/sources.list"];

/// Makes the root at `root`, which does not exist. Returns what was left out, as sentences.
pub(super) fn bootstrap(
    recipe: &Recipe,
    apt: &AptRecipe,
    options: &BuildOptions,
    architecture: &str,
    scratch: &Path,
    root: &Path,
    observer: &mut Observer<'_>,
) -> Result<Vec<String>> {
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("apt-config", "apt"), ("unshare", "util-linux")] {
        if !find_program(program) {
            return Err(ImageError::MissingProgram { program, package });
        }
    }
    Percent::START.report(observer, Phase::Downloading, "asking the package mirror");
    let conf = scratch.join("apt.conf");
    std::fs::write(&conf, apt_conf::text()?).map_err(|e| ImageError::file("write", &conf, e))?;
    let machine = sources::read_all(Path::new("/etc/apt"));
    let mut mirror = Mirror::choose(apt, options.mirror.as_deref(), &machine, architecture);
    if !mirror.suites.iter().all(|s| s.has_keys(apt)) {
        return Err(ImageError::Build {
            recipe: recipe.name.clone(),
            step: "checking signatures".into(),
            detail: format!("{} is missing; install it with: apt install {}", apt.keyring, apt.keyring_package),
        });
    }
    let notes = mirror.probe(&recipe.name, &conf, scratch, observer)?;
    let mut job = command(recipe, apt, architecture, scratch, &conf, root);
    for line in mirror.lines(apt, scratch)? {
        job.arg(line);
    }
    let mut watch = Watch::default();
    let outcome = job.run(observer, &mut |line, observer| {
        watch.line(line);
        let phase = if watch.percent < 20 { Phase::Downloading } else { Phase::Installing };
        Percent(watch.percent).report(observer, phase, &watch.detail);
        Ok(())
    })?;
    outcome.map_err(|failure| ImageError::Build {
        recipe: recipe.name.clone(),
        step: "installing packages".into(),
        detail: failure.summary(),
    })?;
    let fresh = super::root::Root::open(root)?;
    for path in LEFTOVERS {
        fresh.remove(path)?;
    }
    Ok(notes)
}

fn command(recipe: &Recipe, apt: &AptRecipe, architecture: &str, scratch: &Path, conf: &Path, root: &Path) -> Job {
    let mut job = Job::new("mmdebstrap");
    job.env("TMPDIR", scratch);
    job.arg("--mode=root").arg("--format=directory").arg("--variant=minbase").arg("--verbose");
    job.arg(format!("--architectures={architecture}"));
    job.arg(format!("--include={}", apt.packages.join(",")));
    job.arg(format!("--aptopt={}", conf.display()));
    for option in DPKG_OPTIONS {
        job.arg(format!("--dpkgopt={option}"));
    }
    if apt.merge_usr && Path::new(MERGED_USR).is_dir() {
        job.arg(format!("--hook-dir={MERGED_USR}"));
    }
    if !recipe.content.enable.is_empty() {
        // By the image's own systemctl: only it knows its units.
        let units = recipe.content.enable.join(" ");
        job.arg(format!("--customize-hook=chroot \"$1\" systemctl --quiet enable {units}"));
    }
    job.arg(&apt.suite).arg(root);
    job
}

/// Where in its run mmdebstrap is, told from what it says: apt's and dpkg's lines, twice over (the base, then the rest).
#[derive(Debug, Default)]
struct Watch {
    percent: u8,
    detail: String,
    /// 0 before the base is known, 1 during it, 2 for the rest.
    round: usize,
    packages: u32,
    fetched: u32,
    set_up: u32,
}

/// Percent at which each round's fetching starts, its setting up starts, and it ends.
const ROUNDS: [(u8, u8, u8); 3] = [(2, 2, 2), (3, 15, 40), (42, 55, 90)];

/// Hooks install a package or two of their own, which is no round.
const A_ROUND: u32 = 5;

impl Watch {
    fn line(&mut self, line: &str) {
        let (get, set, end) = ROUNDS[self.round];
        if let Some((_, rest)) = line.split_once("upgraded, ").filter(|_| line.contains(" newly installed")) {
            let packages = rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
            if packages < A_ROUND {
                return;
            }
            self.packages = packages;
            self.round = (self.round + 1).min(2);
            (self.fetched, self.set_up) = (0, 0);
            self.reach(ROUNDS[self.round].0);
        } else if line.starts_with("Get:") && self.round > 0 {
            self.fetched += 1;
            self.reach(part(get, set, self.fetched, self.packages));
            // "Get:3 http://mirror suite/component architecture package …"
            if let Some(package) = line.split_whitespace().nth(4) {
                self.detail = format!("fetching {package}");
            }
        } else if let Some(rest) = line.strip_prefix("Setting up ") {
            self.set_up += 1;
            self.reach(part(set, end, self.set_up, self.packages));
            let package = rest.split([' ', ':']).next().unwrap_or(rest);
            self.detail = format!("setting up {package}");
        } else if line.starts_with("I: extracting archives") {
            self.detail = "extracting the base".into();
        } else if line.starts_with("I: cleaning") {
            self.reach(90);
            self.detail = "cleaning up".into();
        }
    }

    fn reach(&mut self, percent: u8) {
        self.percent = self.percent.max(percent);
    }
}

fn part(from: u8, to: u8, done: u32, of: u32) -> u8 {
    let share = u32::from(to - from) * done.min(of) / of.max(1);
    from + u8::try_from(share).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_only_grows() {
        let lines = [
            "I: automatically chosen mode: root",
            "Get:1 http://m trixie InRelease [140 kB]",
            "0 upgraded, 59 newly installed, 0 to remove and 0 not upgraded.",
            "Get:1 http://m trixie/main amd64 bash amd64 5.2 [1 kB]",
            "I: extracting archives...",
            "Setting up debconf (1.5.91) ...",
            "Setting up libpcre2-8-0:amd64 (10.46) ...",
            "0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.",
            "0 upgraded, 20 newly installed, 0 to remove and 0 not upgraded.",
            "Get:2 http://m trixie/main amd64 systemd amd64 257 [1 kB]",
            "Setting up systemd (257) ...",
            "Setting up apt (3) ...",
            "I: cleaning package lists and apt cache...",
        ];
        let mut watch = Watch::default();
        let mut last = 0;
        let mut details = Vec::new();
        for line in lines {
            watch.line(line);
            assert!(watch.percent >= last, "{line}");
            last = watch.percent;
            details.push(watch.detail.clone());
        }
        assert_eq!(last, 90);
        assert_eq!((details[3].as_str(), details[6].as_str()), ("fetching bash", "setting up libpcre2-8-0"));
    }
}
