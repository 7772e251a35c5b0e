//! Control groups: where a container's processes are counted, limited, frozen and killed.
//!
//! Each container owns one directory, `<tree>/<slice>/<name>/`, in the cgroup2 tree and in every version 1 hierarchy
//! that holds a controller which Duet uses. Limits are written there, out of the container's reach.
//!
//! ```text
//! <cgroup2>/duet/c1/            limits, freeze, kill, device policy: ours
//! <cgroup2>/duet/c1/payload/    delegated: owned by container root, the root of its cgroup namespace
//! <memory v1>/duet/c1/          limits and members; nothing below it, nothing delegated
//! ```
//!
//! Where systemd is the host's init, the group of a container is a scope unit that systemd made and delegated
//! ([`Cgroup::is_scope`]): its name ends in `.scope`, and what is ours lies one level deeper, since systemd keeps the
//! attributes of the unit's own group for itself (systemd's CGROUP_DELEGATION.md). Only weights, which compare siblings,
//! are the unit's, and are set by asking systemd.
//!
//! ```text
//! <cgroup2>/duet.slice/duet-c1.scope/                     systemd's: weights
//! <cgroup2>/duet.slice/duet-c1.scope/monitor/             the container's monitor
//! <cgroup2>/duet.slice/duet-c1.scope/container/           limits, freeze, kill, device policy: ours
//! <cgroup2>/duet.slice/duet-c1.scope/container/payload/   delegated to the container
//! ```
//!
//! Two layouts exist. On a *pure* host every controller lives in the cgroup2 tree. On a *hybrid* one (controllers
//! mounted as version 1, a cgroup2 tree without controllers beside them) the limits go through version 1, while the
//! container still sees a pure, delegated cgroup2 tree, which is all that a modern init needs. What needs no controller
//! is done through cgroup2 on both: `cgroup.freeze`, `cgroup.kill`, `cgroup.events` and device policy by BPF. Hence
//! there is one implementation of each, and the version 1 hierarchies `freezer`, `devices` and `blkio` are not used.
//!
//! Members: a child is cloned straight into [`Cgroup::payload_fd`] (`CLONE_INTO_CGROUP`) and then writes `0` into each of
//! [`Cgroup::v1_tasks`] itself. That order needs neither a fork race nor the kernel's global lock over all forks.
//!
//! Everything here is by path and stateless: a daemon or monitor that was restarted opens the same names again.
//! Facts: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/.

mod apply;
mod cpus;
mod devices;
mod error;
mod io;
mod layout;
mod limits;
mod oom;
mod remove;
mod state;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use cpus::{CpuList, CpuRequest, balance, pick};
pub use devices::{DeviceKind, DevicePolicy, DeviceRule};
pub use error::{CgroupError, Result};
pub use layout::{Controller, Layout, Mode as LayoutMode, Place};
pub use limits::{CpuAllowance, IoLimit, Limits, MemoryLimit, Swap};
pub use oom::OomWatch;

use crate::spec::{CgroupDir, CgroupKind};

/// The directory, below the container's own, that the container is given.
const PAYLOAD: &str = "payload";

/// In a scope unit's group: the group with the limits.
const CONTAINER: &str = "container";

/// In a scope unit's group: the group of the monitor.
const MONITOR: &str = "monitor";

/// What the names of scope units' groups end in.
const SCOPE: &str = ".scope";

/// How long the monitor of a container that has ended may take to end too, before it is killed.
const MONITOR_PATIENCE: Duration = Duration::from_secs(1);

/// A leaf of the payload group, for processes that enter a running container whose init hands controllers on.
const EXEC_LEAF: &str = ".duet-exec";

/// How long [`Cgroup::create`] waits for an empty leftover of the same name to go.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(5);

/// What a new control group starts with.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Host uid and gid of the container's root, who gets the payload group. `(0, 0)` for a privileged container.
    pub owner: (u32, u32),
    /// The limits to start with.
    pub limits: Limits,
    /// Which device nodes may be used; `None` leaves it to the user namespace, as is right for unprivileged containers.
    pub devices: Option<DevicePolicy>,
    /// The process in a new scope unit's group that is to become the container's monitor: it is moved out of the way of
    /// the controllers.
    pub monitor: Option<u32>,
}

/// One container's control group.
///
/// A handle is a name: it holds nothing open, and dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {
    layout: Arc<Layout>,
    name: String,
}

impl Cgroup {
    /// Makes the group `name` (`<slice>/<instance>`, the slice beginning with `duet`) in every hierarchy that is needed.
    /// The group of a scope unit exists already; what belongs in it is made.
    ///
    /// An empty leftover of the same name is removed first. When a step fails, what was made is removed again.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] when processes live in a group of this name; otherwise what the kernel said.
    pub fn create(layout: &Arc<Layout>, name: &str, options: &CreateOptions) -> Result<Self> {
        let cgroup = Self::open(layout, name)?;
        if cgroup.is_scope() {
            cgroup.make_room(options.monitor)?;
        }
        if !cgroup.make_unified()? {
            if cgroup.is_populated()? {
                return Err(CgroupError::InUse { name: name.to_owned() });
            }
            cgroup.destroy(Instant::now() + LEFTOVER_DEADLINE)?;
            cgroup.make_unified()?;
        }
        let made = cgroup
            .make_v1()
            .and_then(|()| cgroup.delegate(options.owner))
            .and_then(|()| apply::apply(&cgroup, &options.limits, apply::State::Fresh))
            .and_then(|()| match &options.devices {
                Some(policy) => cgroup.set_devices(policy),
                None => Ok(()),
            });
        match made {
            Ok(()) => Ok(cgroup),
            Err(cause) => match cgroup.destroy(Instant::now() + LEFTOVER_DEADLINE) {
                Ok(()) => Err(cause),
                Err(cleanup) => Err(CgroupError::Cleanup { cause: Box::new(cause), cleanup: Box::new(cleanup) }),
            },
        }
    }

    /// A handle on the group `name`, whether or not it exists.
    ///
    /// # Errors
    /// [`CgroupError::BadName`] when it isn't `<slice>/<instance>`.
    pub fn open(layout: &Arc<Layout>, name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self { layout: Arc::clone(layout), name: name.to_owned() })
    }

    /// The names `<slice>/<instance>` that exist below `slice` in any hierarchy, for the sweep of leftovers.
    ///
    /// # Errors
    /// What the kernel said, except that a slice which doesn't exist is simply empty.
    pub fn list(layout: &Layout, slice: &str) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for root in layout.roots() {
            let dir = root.join(slice);
            for entry in io::subdirectories(&dir)? {
                names.insert(format!("{slice}/{entry}"));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Whether it is the group of a scope unit of systemd's.
    #[must_use]
    pub fn is_scope(&self) -> bool {
        self.name.ends_with(SCOPE)
    }

    /// The name it was opened with, `<slice>/<instance>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The layout it lives in.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Whether the group exists in the cgroup2 tree.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.unified().is_dir()
    }

    /// Its directory in the cgroup2 tree: the one with the limits.
    #[must_use]
    pub fn unified(&self) -> PathBuf {
        let outer = self.outer();
        if self.is_scope() { outer.join(CONTAINER) } else { outer }
    }

    /// What holds all of the container's processes, its monitor included where that has a group of its own.
    fn outer(&self) -> PathBuf {
        self.layout.unified().join(&self.name)
    }

    /// The directory that holds `controller`'s files for this group, and their version.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] when this host doesn't offer it.
    pub fn dir_of(&self, controller: Controller) -> Result<Place> {
        match self.layout.place(controller) {
            Some(Place::V1(root)) => Ok(Place::V1(root.join(&self.name))),
            Some(Place::V2(_)) => Ok(Place::V2(self.unified())),
            None => Err(CgroupError::NoController { controller }),
        }
    }

    /// The payload group, for `CLONE_INTO_CGROUP` of the container's init.
    ///
    /// # Errors
    /// What opening it failed with.
    pub fn payload_fd(&self) -> Result<OwnedFd> {
        io::open_dir(&self.unified().join(PAYLOAD))
    }

    /// The directories that the container's processes join, as its specification lists them.
    #[must_use]
    pub fn joined(&self) -> Vec<CgroupDir> {
        let v1 = self.layout.v1_roots().map(|root| CgroupDir { path: root.join(&self.name), kind: CgroupKind::V1 });
        let payload = CgroupDir { path: self.unified().join(PAYLOAD), kind: CgroupKind::V2 };
        v1.chain([payload]).collect()
    }

    /// See [`exec_group`].
    ///
    /// # Errors
    /// What the kernel said.
    pub fn exec_fd(&self, owner: (u32, u32)) -> Result<OwnedFd> {
        exec_group(&self.unified().join(PAYLOAD), owner)
    }

    /// The `tasks` files of the version 1 hierarchies, open for writing: a new member writes `0` into each.
    ///
    /// The kernel judges such a write by the rights of whoever opened the file, so a process that has already become
    /// container root may use them.
    ///
    /// # Errors
    /// What opening one failed with.
    pub fn v1_tasks(&self) -> Result<Vec<OwnedFd>> {
        self.layout
            .v1_roots()
            .map(|root| {
                let path = root.join(&self.name).join("tasks");
                rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| CgroupError::io("open", &path, errno))
            })
            .collect()
    }

    /// Makes the live limits equal to `limits`; what is unset there becomes unlimited again.
    ///
    /// # Errors
    /// [`CgroupError::MemoryInUse`] when memory can't be cut that far, [`CgroupError::NoController`] when the host lacks
    /// what a set limit needs, otherwise what the kernel said. Limits before the failing one are in force by then.
    pub fn apply(&self, limits: &Limits) -> Result<()> {
        apply::apply(self, limits, apply::State::Live)
    }

    /// Puts a device policy in force, replacing the one before.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_devices(&self, policy: &DevicePolicy) -> Result<()> {
        devices::attach(&self.unified(), policy)
    }

    /// Kills every process of the container at once, forks in flight included (`cgroup.kill`).
    ///
    /// # Errors
    /// What the kernel said; a group that doesn't exist has nothing to kill.
    pub fn kill(&self) -> Result<()> {
        match io::write(&self.unified().join("cgroup.kill"), "1") {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Kills what still runs and removes the group from every hierarchy, with all groups that the container made.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] when it isn't gone by `deadline`; otherwise what the kernel said.
    pub fn destroy(&self, deadline: Instant) -> Result<()> {
        if self.exists() {
            self.kill()?;
            self.wait_empty(deadline)?;
        }
        // The cgroup2 group goes last: while it stands, the sweep and a second attempt find the rest by its name.
        for root in self.layout.v1_roots() {
            remove::remove_tree(&root.join(&self.name), deadline)?;
        }
        remove::remove_tree(&self.unified(), deadline)?;
        if self.is_scope() { self.empty_scope(deadline) } else { Ok(()) }
    }

    /// Waits until the scope's group has no process left, upon which systemd removes the unit and the group. The monitor
    /// of a container that has ended ends by itself; whatever stays is killed.
    fn empty_scope(&self, deadline: Instant) -> Result<()> {
        let outer = self.outer();
        let patience = deadline.min(Instant::now() + MONITOR_PATIENCE);
        match state::wait_empty(&outer, patience) {
            Err(CgroupError::Timeout { .. }) => {}
            other => return other,
        }
        io::write_if_present(&outer.join("cgroup.kill"), "1")?;
        state::wait_empty(&outer, deadline)
    }

    /// Moves the monitor to a group beside the container's, and hands the scope's controllers down: a group that does so
    /// may hold no process itself (cgroup-v2.rst, "No Internal Process Constraint").
    fn make_room(&self, monitor: Option<u32>) -> Result<()> {
        let outer = self.outer();
        let beside = outer.join(MONITOR);
        io::make_dir(&beside)?;
        if let Some(pid) = monitor {
            io::write(&beside.join("cgroup.procs"), &pid.to_string())?;
        }
        match self.layout.enable_line() {
            Some(wanted) => io::write(&outer.join("cgroup.subtree_control"), wanted),
            None => Ok(()),
        }
    }

    /// Makes the group and its payload in the cgroup2 tree. False when the group exists.
    fn make_unified(&self) -> Result<bool> {
        let dir = self.unified();
        let made = match io::make_dir(&dir) {
            Err(error) if error.errno() == Some(Errno::NOENT) && !self.is_scope() => {
                self.layout.make_slice(self.slice())?;
                io::make_dir(&dir)?
            }
            other => other?,
        };
        if !made {
            return Ok(false);
        }
        if let Some(wanted) = self.layout.enable_line() {
            let file = dir.join("cgroup.subtree_control");
            if let Err(error) = io::write(&file, wanted) {
                if self.is_scope() {
                    return Err(error);
                }
                // The slice was left half made by something that was killed: finish it.
                self.layout.make_slice(self.slice())?;
                io::write(&file, wanted)?;
            }
        }
        io::make_dir(&dir.join(PAYLOAD))?;
        Ok(true)
    }

    /// Makes the group in the version 1 hierarchies; one that exists there is a leftover without members and is reused.
    fn make_v1(&self) -> Result<()> {
        for root in self.layout.v1_roots() {
            let dir = root.join(&self.name);
            match io::make_dir(&dir) {
                Err(error) if error.errno() == Some(Errno::NOENT) => {
                    self.layout.make_slice(self.slice())?;
                    io::make_dir(&dir)?;
                }
                other => {
                    other?;
                }
            }
        }
        if let Some(Place::V1(root)) = self.layout.place(Controller::Cpuset) {
            // A cpuset without CPUs takes no process. It is empty only when the slice was left half made.
            let dir = root.join(&self.name);
            if io::read(&dir.join("cpuset.cpus"))?.trim().is_empty() {
                self.layout.fill_v1_cpuset(self.slice())?;
                layout::copy_v1_cpuset(&root.join(self.slice()), &dir)?;
            }
        }
        Ok(())
    }

    fn delegate(&self, owner: (u32, u32)) -> Result<()> {
        if owner == (0, 0) {
            return Ok(());
        }
        give(&self.unified().join(PAYLOAD), owner, self.layout.delegated_files())
    }

    fn slice(&self) -> &str {
        self.name.rsplit_once('/').map_or(self.name.as_str(), |(slice, _)| slice)
    }
}

/// The group for a process that enters the running container whose payload group is the directory `payload`.
///
/// It is the payload itself while that may hold processes. cgroup2 allows none in a group that distributes controllers (the
/// "no internal process constraint"), and distributing is what a systemd in the container does; then it is a leaf in it,
/// made on demand and given to `owner` (host ids of container root), so that the container's init may move what is in there
/// and remove it.
///
/// # Errors
/// What the kernel said.
pub fn exec_group(payload: &Path, owner: (u32, u32)) -> Result<OwnedFd> {
    if io::read(&payload.join("cgroup.subtree_control"))?.trim().is_empty() {
        return io::open_dir(payload);
    }
    let leaf = payload.join(EXEC_LEAF);
    if io::make_dir(&leaf)? {
        give(&leaf, owner, ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"])?;
    }
    io::open_dir(&leaf)
}

/// Hands a cgroup2 directory to `owner`: the directory and those of the files that it has.
fn give<'a>(dir: &Path, owner: (u32, u32), files: impl IntoIterator<Item = &'a str>) -> Result<()> {
    io::chown(dir, owner)?;
    for file in files {
        match io::chown(&dir.join(file), owner) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Accepts `<slice>/<instance>`: plain components, the first beginning with `duet`. A slice of systemd's may lie in
/// another, and the names of units have escapes (`\x2d`, systemd.unit(5)).
fn check_name(name: &str) -> Result<()> {
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 255
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'\\'))
    };
    match name.rsplit_once('/') {
        Some((slice, instance))
            if slice.starts_with("duet")
                && plain(instance)
                && slice.split('/').all(plain)
                && (!slice.contains('/') || instance.ends_with(SCOPE)) =>
        {
            Ok(())
        }
        _ => Err(CgroupError::BadName { name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_are_plain_components() {
        for good in [
            "duet/c1",
            "duet-1a2b3c4d/web_1",
            "duet/a.b",
            "duet.slice/duet-a\\x2db.scope",
            "duet.slice/duet-1a.slice/duet-1a-c1.scope",
        ] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in
            ["", "duet", "duet/", "duet/..", "duet/.", "docker/c1", "duet/a/b", "/duet/c1", "duet/a b", "duet/\0"]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
