//! Where the cgroup trees of this host are, and which controller is in which.
//!
//! Read once from the calling thread's `mountinfo`, so that one in a mount namespace of its own sees
//! the trees that are mounted there, wherever they are and whatever part of them was bound.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::cpus::CpuList;
use super::{CgroupError, Result, io};

/// A controller that Duet uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Controller {
    /// Shares and quotas of CPU time.
    Cpu,
    /// Counting of CPU time; part of every cgroup2 group, a controller of its own in version 1.
    CpuAcct,
    /// Which CPUs.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// How many processes.
    Pids,
    /// Reading from and writing to block devices. Used in the cgroup2 tree only: version 1's `blkio` is not, since it does
    /// not see what is written through the page cache.
    Io,
}

impl Controller {
    const ALL: [Self; 6] = [Self::Cpu, Self::CpuAcct, Self::Cpuset, Self::Memory, Self::Pids, Self::Io];

    /// The kernel's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAcct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Which of the two layouts a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every controller is in the cgroup2 tree.
    Pure,
    /// Controllers that Duet uses are mounted as version 1.
    Hybrid,
}

/// A directory in a hierarchy of a known version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a version 1 hierarchy.
    V1(PathBuf),
    /// In the cgroup2 tree.
    V2(PathBuf),
}

/// The cgroup trees of this host.
#[derive(Clone, Debug)]
pub struct Layout {
    unified: PathBuf,
    /// Version 1 hierarchies with a controller of ours, each once, with those controllers.
    v1: Vec<(PathBuf, Vec<Controller>)>,
    /// Controllers of ours that the cgroup2 tree offers.
    v2: Vec<Controller>,
    /// What is written to `cgroup.subtree_control` to hand everything down; `None` when there is nothing.
    enable: Option<String>,
    /// Files of a cgroup2 group that may be given to a delegatee.
    delegated: Vec<String>,
}

impl Layout {
    /// Finds the trees that the calling thread sees.
    ///
    /// # Errors
    /// [`CgroupError::NoUnified`] when no cgroup2 tree is mounted; otherwise what reading failed with.
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/thread-self/mountinfo");
        let table = std::fs::read_to_string(path)
            .map_err(|error| CgroupError::io("read", path, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        Self::from_mounts(&parse_mountinfo(&table))
    }

    fn from_mounts(mounts: &[CgroupMount]) -> Result<Self> {
        // Later mounts cover earlier ones at the same place, and the visible one is what a path leads to.
        let visible: Vec<&CgroupMount> = mounts.iter().filter(|mount| mount.is_visible()).collect();
        let best = |wanted: &dyn Fn(&CgroupMount) -> bool| {
            visible
                .iter()
                .copied()
                .filter(|mount| wanted(mount))
                .min_by_key(|mount| (!mount.point.starts_with("/sys/fs/cgroup"), mount.point.as_os_str().len()))
        };
        let unified = best(&|mount| mount.controllers.is_none()).ok_or(CgroupError::NoUnified)?.point.clone();
        let mut v1: Vec<(PathBuf, Vec<Controller>)> = Vec::new();
        for controller in Controller::ALL {
            let holds = |mount: &CgroupMount| {
                mount.controllers.as_ref().is_some_and(|names| names.iter().any(|name| name == controller.name()))
            };
            let Some(mount) = best(&holds) else { continue };
            match v1.iter_mut().find(|(point, _)| *point == mount.point) {
                Some((_, held)) => held.push(controller),
                None => v1.push((mount.point.clone(), vec![controller])),
            }
        }
        let offered = io::read(&unified.join("cgroup.controllers"))?;
        let offered: Vec<&str> = offered.split_whitespace().collect();
        let v2 = Controller::ALL
            .into_iter()
            .filter(|controller| match controller {
                // `cpu.stat` is there in every cgroup2 group; only version 1 makes a controller of it.
                Controller::CpuAcct => !v1.iter().any(|(_, held)| held.contains(controller)),
                Controller::Cpu | Controller::Cpuset | Controller::Memory | Controller::Pids | Controller::Io => {
                    offered.contains(&controller.name())
                }
            })
            .collect();
        let enable: Vec<String> = ["cpuset", "cpu", "io", "memory", "pids"]
            .iter()
            .filter(|name| offered.contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        Ok(Self {
            unified,
            v1,
            v2,
            enable: (!enable.is_empty()).then(|| enable.join(" ")),
            delegated: delegated_files(&offered),
        })
    }

    /// Which kind of host this is.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.v1.is_empty() { Mode::Pure } else { Mode::Hybrid }
    }

    /// Where the cgroup2 tree is mounted.
    #[must_use]
    pub fn unified(&self) -> &Path {
        &self.unified
    }

    /// The root of the hierarchy that holds `controller`; `None` when the host doesn't offer it.
    #[must_use]
    pub fn place(&self, controller: Controller) -> Option<Place> {
        if let Some((root, _)) = self.v1.iter().find(|(_, held)| held.contains(&controller)) {
            return Some(Place::V1(root.clone()));
        }
        self.v2.contains(&controller).then(|| Place::V2(self.unified.clone()))
    }

    /// The CPUs that an instance can be given: those online, and allowed to this cgroup tree.
    ///
    /// # Errors
    /// What reading or understanding the kernel's list failed with.
    pub fn available_cpus(&self) -> Result<CpuList> {
        let candidates = match self.place(Controller::Cpuset) {
            Some(Place::V1(root)) => {
                vec![root.join("cpuset.effective_cpus"), root.join("cpuset.cpus")]
            }
            Some(Place::V2(root)) => vec![root.join("cpuset.cpus.effective")],
            None => Vec::new(),
        };
        for path in candidates {
            match io::read(&path) {
                Ok(text) if !text.trim().is_empty() => return text.parse(),
                _ => {}
            }
        }
        io::read(Path::new("/sys/devices/system/cpu/online"))?.parse()
    }

    /// The roots of the version 1 hierarchies that hold a controller of ours.
    pub fn v1_roots(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|(root, _)| root.as_path())
    }

    /// Every root that may hold groups of ours.
    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.v1_roots().chain([self.unified.as_path()])
    }

    pub(super) fn enable_line(&self) -> Option<&str> {
        self.enable.as_deref()
    }

    pub(super) fn delegated_files(&self) -> impl Iterator<Item = &str> {
        self.delegated.iter().map(String::as_str)
    }

    /// Makes the directory that holds the containers' groups in every hierarchy, and hands the controllers down to it.
    /// Does what is missing when it exists.
    pub(super) fn make_slice(&self, slice: &str) -> Result<()> {
        for root in self.roots() {
            io::make_dir(&root.join(slice))?;
        }
        if let Some(line) = &self.enable {
            for dir in [self.unified.clone(), self.unified.join(slice)] {
                io::write(&dir.join("cgroup.subtree_control"), line)?;
            }
        }
        self.fill_v1_cpuset(slice)
    }

    /// A version 1 cpuset begins without CPUs and takes no process then. The slice gets its parent's, and passes them on
    /// to new children by itself (`cgroup.clone_children`), so that making a container's group costs a mkdir only.
    pub(super) fn fill_v1_cpuset(&self, slice: &str) -> Result<()> {
        let Some(Place::V1(root)) = self.place(Controller::Cpuset) else {
            return Ok(());
        };
        let dir = root.join(slice);
        copy_v1_cpuset(&root, &dir)?;
        io::write(&dir.join("cgroup.clone_children"), "1")
    }
}

/// Gives the version 1 cpuset `child` the CPUs and memory nodes that `parent` has now.
pub(super) fn copy_v1_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        io::write(&child.join(file), io::read(&parent.join(file))?.trim())?;
    }
    Ok(())
}

/// The files that the kernel says a delegatee may own, as far as the host's controllers have them.
fn delegated_files(offered: &[&str]) -> Vec<String> {
    let listed = std::fs::read_to_string("/sys/kernel/cgroup/delegate")
        .unwrap_or_else(|_| "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned());
    listed
        .lines()
        .filter(|file| {
            // Pressure files exist without a controller; other prefixes are controllers.
            file.starts_with("cgroup.")
                || file.ends_with(".pressure")
                || file.split_once('.').is_some_and(|(controller, _)| offered.contains(&controller))
        })
        .map(str::to_owned)
        .collect()
}

/// One cgroup filesystem in a mount table.
#[derive(Debug, PartialEq, Eq)]
struct CgroupMount {
    point: PathBuf,
    device: (u32, u32),
    /// `None` for cgroup2; the names in the options for version 1.
    controllers: Option<Vec<String>>,
}

impl CgroupMount {
    /// Whether the path of the mount point leads to this filesystem, and not to one mounted over it.
    fn is_visible(&self) -> bool {
        std::fs::metadata(&self.point).is_ok_and(|meta| {
            let (major, minor) = self.device;
            meta.is_dir() && meta.dev() == rustix::fs::makedev(major, minor)
        })
    }
}

/// Picks the cgroup mounts out of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)); lines that it can't read are skipped.
fn parse_mountinfo(table: &str) -> Vec<CgroupMount> {
    table.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<CgroupMount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    let mut fields = filesystem.split(' ');
    let controllers = match fields.next()? {
        "cgroup2" => None,
        "cgroup" => Some(fields.nth(1)?.split(',').map(str::to_owned).collect()),
        _ => return None,
    };
    Some(CgroupMount { point, device: (major.parse().ok()?, minor.parse().ok()?), controllers })
}

/// Undoes the octal escapes that the kernel uses for space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match (bytes[at], octal.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::{CgroupMount, parse_mountinfo};

    #[test]
    fn mountinfo_of_both_layouts() {
        let table = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 /part /mnt/with\\040space rw,relatime master:1 propagate_from:2 - cgroup2 cgroup2 rw,nsdelegate
garbage
";
        let found = parse_mountinfo(table);
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0],
            CgroupMount {
                point: "/sys/fs/cgroup/cpu,cpuacct".into(),
                device: (0, 29),
                controllers: Some(vec!["rw".into(), "cpu".into(), "cpuacct".into()]),
            }
        );
        assert_eq!(found[2].point, std::path::Path::new("/mnt/with space"));
        assert_eq!(found[2].controllers, None);
    }
}
