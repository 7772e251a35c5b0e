//! A cgroup subtree per test host, in every hierarchy that the machine has mounted.
//!
//! The subtree is what the host sees as its whole cgroup tree, so tests cannot meet in it and everything a test
//! started is found, and killed, by it. Layout of each hierarchy: `<mount>/<name>` is the host's root, which stays
//! empty of processes (cgroup v2 forbids processes in an inner cgroup that hands controllers on), and
//! `<mount>/<name>/host` holds the daemon and the test's own commands.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait;

/// One hierarchy of the machine.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// Where it is mounted on the machine, such as `/sys/fs/cgroup/memory`.
    pub mount: PathBuf,
    /// Whether it is the unified (v2) one.
    pub unified: bool,
}

impl Hierarchy {
    /// The file to write "0" into to enter a cgroup. v1's `tasks` moves one thread and spares the lock that
    /// `cgroup.procs` takes; between fork and exec there is only one.
    pub fn entry(&self) -> &'static str {
        if self.unified { "cgroup.procs" } else { "tasks" }
    }
}

/// Reads which hierarchies are mounted below `/sys/fs/cgroup`.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let found: Vec<Hierarchy> = mounts
        .lines()
        .filter_map(|line| {
            let mount = PathBuf::from(line.split(' ').nth(4)?);
            let kind = line.split(" - ").nth(1)?.split(' ').next()?;
            let unified = kind == "cgroup2";
            ((unified || kind == "cgroup") && mount.starts_with("/sys/fs/cgroup"))
                .then_some(Hierarchy { mount, unified })
        })
        .collect();
    if found.is_empty() {
        bail!("no cgroup hierarchy is mounted below /sys/fs/cgroup");
    }
    Ok(found)
}

/// Makes the subtree `name` in every hierarchy, with its `host` leaf.
pub fn create(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    for hierarchy in hierarchies {
        if hierarchy.unified {
            hand_on_controllers(&hierarchy.mount);
        }
        let root = hierarchy.mount.join(name);
        for folder in [root.clone(), root.join("host")] {
            fs::create_dir(&folder).with_context(|| format!("creating the cgroup {}", folder.display()))?;
            inherit_cpuset(&folder)?;
        }
    }
    Ok(())
}

/// Gives the root's children all controllers, as a machine's init does. On a hybrid machine there are none.
fn hand_on_controllers(root: &Path) {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // One that cannot be handed on here is one the tests run without.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// v1's cpuset takes no process before its two sets are filled in.
fn inherit_cpuset(folder: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = folder.join(file);
        if folder.join("tasks").exists() && own.exists() {
            let parent = folder.parent().unwrap_or(folder).join(file);
            let value = fs::read_to_string(&parent).with_context(|| format!("reading {}", parent.display()))?;
            fs::write(&own, value.trim()).with_context(|| format!("writing {}", own.display()))?;
        }
    }
    Ok(())
}

/// Every cgroup below `root`, the deepest first, without `root` itself.
pub fn below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else {
        return found;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}

/// The processes in `root` and everything below it.
pub fn processes(root: &Path) -> Vec<i32> {
    let mut folders = below(root);
    folders.push(root.to_path_buf());
    let mut found: Vec<i32> = folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Kills everything in the subtree `name` and removes it from every hierarchy.
pub fn destroy(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    let deadline = Duration::from_secs(30);
    let roots: Vec<PathBuf> = hierarchies.iter().map(|hierarchy| hierarchy.mount.join(name)).collect();
    wait::poll(deadline, || {
        let mut alive = 0;
        for root in &roots {
            // cgroup.kill reaches frozen processes and those that fork while they are killed; v1 has no such thing.
            let _ = fs::write(root.join("cgroup.kill"), "1");
            for pid in processes(root) {
                alive += 1;
                // Only ever a process of this subtree; a pid that was reused in between is not, in practice, reached
                // within the microseconds since it was read.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        (alive == 0).then_some(())
    })
    .context("processes of the test host did not die")?;
    wait::poll(deadline, || {
        for root in &roots {
            for folder in below(root).into_iter().chain([root.clone()]) {
                let _ = fs::remove_dir(folder);
            }
        }
        roots.iter().all(|root| !root.exists()).then_some(())
    })
    .context("the cgroups of the test host could not be removed")
}

/// Opens the files through which a process enters the `host` leaf of subtree `name`.
pub fn open_entries(hierarchies: &[Hierarchy], name: &str) -> io::Result<Vec<fs::File>> {
    hierarchies
        .iter()
        .map(|hierarchy| {
            let path = hierarchy.mount.join(name).join("host").join(hierarchy.entry());
            fs::OpenOptions::new().write(true).open(path)
        })
        .collect()
}
