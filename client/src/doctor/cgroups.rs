//! Control groups: which tree holds what, and whether groups can be made, frozen and killed.

use std::fs;
use std::path::Path;

use duet_container::cgroup::{Controller, Layout, LayoutMode, Place};

use super::{Check, said};

pub(super) fn checks(root: bool) -> Vec<Check> {
    const NAME: &str = "cgroups";
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => {
            return vec![Check::fail(
                NAME,
                format!("no cgroup2 tree can be used: {}", said(error)),
                "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified\n\
                 (or boot with systemd, which mounts it)",
            )];
        }
    };
    let mut checks = vec![controllers(&layout)];
    if root {
        checks.push(freeze_and_kill(layout.unified()));
    }
    checks
}

/// What each limit needs.
fn controllers(layout: &Layout) -> Check {
    const NAME: &str = "cgroups";
    let needs = [
        (Controller::Memory, "limits.memory"),
        (Controller::Cpu, "limits.cpu.allowance"),
        (Controller::Cpuset, "limits.cpu"),
        (Controller::Pids, "limits.processes"),
    ];
    let places = needs.map(|(controller, limit)| (controller, limit, layout.place(controller)));
    let missing: Vec<_> = places.iter().filter(|(_, _, place)| place.is_none()).collect();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(controller, ..)| controller.name()).collect();
        let limits: Vec<_> = missing.iter().map(|(_, limit, _)| *limit).collect();
        let mend = match names.contains(&"memory") {
            true => "boot with cgroup_enable=memory, or mount the controller",
            false => "use a kernel that has it, or mount the controller",
        };
        return Check::warn(NAME, format!("without {}, {} has no effect", names.join(", "), limits.join(", ")), mend);
    }
    let kind = match layout.mode() {
        LayoutMode::Pure => "version 2",
        LayoutMode::Hybrid if places.iter().all(|(.., place)| matches!(place, Some(Place::V1(_)))) => {
            "hybrid, with version 1 controllers"
        }
        LayoutMode::Hybrid => "hybrid, with controllers in both versions",
    };
    Check::ok(NAME, format!("{kind}; memory, cpu, cpuset and pids can be limited"))
}

/// Makes a group, looks for the two files and removes it again. The root group itself has neither.
fn freeze_and_kill(unified: &Path) -> Check {
    const NAME: &str = "cgroup2 tree";
    let group = unified.join(format!("duet-doctor-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&group) {
        return Check::fail(
            NAME,
            format!("no group can be made in {}: {}", unified.display(), said(error)),
            "mount the tree writable, and run on the host itself rather than in a container",
        );
    }
    let missing: Vec<_> =
        ["cgroup.freeze", "cgroup.kill"].into_iter().filter(|file| !group.join(file).exists()).collect();
    // An empty group can always be removed.
    let removed = fs::remove_dir(&group);
    match (missing.as_slice(), removed) {
        ([], Ok(())) => Check::ok(NAME, format!("groups in {} can be frozen and killed", unified.display())),
        ([], Err(error)) => {
            let mend = format!("rmdir {}", group.display());
            Check::warn(
                NAME,
                format!("the group {} could not be removed again: {}", group.display(), said(error)),
                mend,
            )
        }
        (files, _) => {
            Check::fail(NAME, format!("the kernel has no {}", files.join(", ")), "use a kernel of 5.14 or later")
        }
    }
}
