//! The check after every test that nothing is left of what it did.
//!
//! Everything is deleted through the API, as a user would, and then looked for in every place where a manager of
//! containers can forget something: mounts, links, cgroups, processes, nftables, loop devices, files, and the
//! daemon's own descriptors.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::cgroups;
use crate::host::Host;
use crate::processes;
use crate::sweep::{self, loop_devices};
use crate::wait::poll;

/// How long what ends by itself may take to be gone.
const GRACE: Duration = Duration::from_secs(30);

/// What the host looked like before a daemon ran in it.
#[derive(Debug, Default)]
pub struct Baseline {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
}

impl Baseline {
    /// Looks at the host as it is.
    pub fn take(host: &Host) -> Self {
        Self { mounts: mounts(host.holder()), links: links(host), tables: tables(host) }
    }
}

/// Mount points in a process' mount namespace.
fn mounts(pid: i32) -> BTreeSet<String> {
    u32::try_from(pid).map(sweep::mounts).unwrap_or_default().into_iter().collect()
}

/// Names of the links in the host's network namespace.
fn links(host: &Host) -> BTreeSet<String> {
    host.sh("ip -o link show")
        .lines()
        .filter_map(|line| line.split(": ").nth(1).map(|name| name.split('@').next().unwrap_or(name).to_owned()))
        .collect()
}

/// The nftables tables in it.
fn tables(host: &Host) -> BTreeSet<String> {
    host.sh("nft list tables").lines().map(str::to_owned).collect()
}

/// Deletes instances, images, profiles, networks and pools.
#[track_caller]
pub fn remove_everything(host: &Host) {
    for name in names(host, "instances") {
        // One that a test set to be protected is deleted all the same.
        let _ = host.request("PATCH", &name, Some(&json!({"config": {"security.protection.delete": ""}})));
        if host.get(&name)["status"] != "Stopped" {
            let stop = json!({"action": "stop", "force": true, "timeout": 30});
            let stopped = host.operate("PUT", &format!("{name}/state"), &stop);
            // An ephemeral instance is gone when it has stopped.
            assert!(
                stopped["status_code"] == 200 || host.request("GET", &name, None).status == 404,
                "stopping {name}: {stopped:#}"
            );
        }
        if host.request("GET", &name, None).status == 200 {
            host.done("DELETE", &name, &json!({}));
        }
    }
    for image in names(host, "images") {
        host.done("DELETE", &image, &json!({}));
    }
    let bare = json!({"config": {}, "description": "", "devices": {}});
    host.request("PUT", "/1.0/profiles/default", Some(&bare)).metadata();
    for profile in names(host, "profiles").iter().filter(|name| !name.ends_with("/default")) {
        host.request("DELETE", profile, None).metadata();
    }
    for pool in names(host, "storage-pools").iter().filter(|name| !name.ends_with("/default")) {
        host.request("DELETE", pool, None).metadata();
    }
    for network in names(host, "networks") {
        if host.get(&network)["managed"] == true {
            host.request("DELETE", &network, None).metadata();
        }
    }
}

fn names(host: &Host, kind: &str) -> Vec<String> {
    let listed = host.get(&format!("/1.0/{kind}"));
    listed.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// What is still there although everything was deleted. Some of it ends a moment after the operation that ended it,
/// such as a process between its exit and its reaping or the files of a whole Debian, so it is given time to go.
pub fn left_behind(host: &Host) -> Vec<String> {
    let mut left = Vec::new();
    poll(GRACE, || {
        left = look(host);
        left.is_empty().then_some(())
    });
    left
}

fn look(host: &Host) -> Vec<String> {
    let mut left = Vec::new();
    let before = host.baseline();
    left.extend(mounts(host.holder()).difference(&before.mounts).map(|mount| format!("a mount on {mount}")));
    left.extend(links(host).difference(&before.links).map(|link| format!("the link {link}")));
    left.extend(tables(host).difference(&before.tables).map(|table| format!("nftables' {table}")));
    for pid in host.processes() {
        left.push(format!("process {pid}: {}", processes::command_line(pid).join(" ")));
    }
    for root in host.cgroup_roots() {
        let own = root.join("host");
        left.extend(
            cgroups::below(&root)
                .into_iter()
                // The daemon's own top-level cgroup may stay, empty.
                .filter(|folder| *folder != own && folder.parent() != Some(&root))
                .map(|folder| format!("the cgroup {}", folder.display())),
        );
    }
    left.extend(files(&host.state()));
    left.extend(everywhere(host));
    left
}

/// Files of instances, images and networks below the state directory.
fn files(state: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["run", "devices", "work", "images", "networks", "disks"] {
        left.extend(entries(&state.join(folder)));
    }
    left.extend(entries(&state.join("logs")).into_iter().filter(|path| Path::new(path).is_dir()));
    // Of a pool its own folders stay: storage-pools/<pool>/<kind>.
    for pool in entries(&state.join("storage-pools")) {
        for kind in entries(Path::new(&pool)) {
            left.extend(entries(Path::new(&kind)));
        }
    }
    left.into_iter().map(|path| format!("the file {path}")).collect()
}

fn entries(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .collect()
}

/// What would be outside of the host: a leak into the machine itself.
fn everywhere(host: &Host) -> Vec<String> {
    let state = host.state();
    let mut left: Vec<String> = mounts(nix::unistd::getpid().as_raw())
        .into_iter()
        // A host's own disk is mounted where its test runs, which may be the process' first thread.
        .filter(|mount| Path::new(mount).starts_with(&state) && Path::new(mount) != state)
        .map(|mount| format!("a mount on {mount}, outside of the host"))
        .collect();
    match loop_devices(&state) {
        Ok(devices) => left.extend(devices.into_iter().map(|device| format!("the loop device {device}"))),
        Err(error) => left.push(format!("loop devices could not be listed: {error}")),
    }
    left
}

/// What is still there when no daemon runs any more and nothing was left for it to do.
pub fn left_after_the_end(host: &Host) -> Vec<String> {
    let mut left = Vec::new();
    poll(GRACE, || {
        left = host
            .processes()
            .into_iter()
            .map(|pid| format!("process {pid}: {}", processes::command_line(pid).join(" ")))
            .collect();
        left.extend(everywhere(host));
        left.is_empty().then_some(())
    });
    left
}
