//! What a container is, as plain values.
//!
//! The daemon translates an instance's configuration into a [`ContainerSpec`] and hands it to the monitor over the
//! handshake socket. Nothing here touches the system. Every field that a later version may lack or add has a default,
//! because a monitor outlives the daemon that started it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use duet_control::attach::{DeviceKind, DeviceNode, MountSource, MountSpec};
use rustix::process::Resource;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::rootfs::RootSource;

/// The size in bytes to which the console log is held when the specification names none.
pub const DEFAULT_CONSOLE_LOG_LIMIT: u64 = 1024 * 1024;

/// The longest host name that the kernel takes, in bytes (`__NEW_UTS_LEN`, uname(2)).
const HOSTNAME_MAX: usize = 64;

/// Everything the monitor must know to start one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The instance's name: in the monitor's process title and in messages.
    pub name: String,
    /// The host name in the container's UTS namespace, at most 64 bytes.
    pub hostname: String,
    /// An existing directory (mode 0700) that holds `monitor.sock` while it runs and `exit.json` afterwards.
    pub run_dir: PathBuf,
    /// The file that gets everything written to the console since this boot. It is truncated at start.
    pub console_log: PathBuf,
    /// The size in bytes to which the console log is held: when it would grow beyond, its older half is dropped.
    #[serde(default = "default_console_log_limit")]
    pub console_log_limit: u64,
    /// The root filesystem, unshifted on disk.
    pub root: RootSource,
    /// Whether the root filesystem is mounted read-only.
    #[serde(default)]
    pub root_read_only: bool,
    /// Files that are written into the root filesystem before anything is mounted on it. The root is then not read-only.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// The user namespace's map; `None` makes the container privileged (no user namespace).
    pub idmap: Option<IdMap>,
    /// The program that becomes PID 1, with its arguments. Empty: the first of [`DEFAULT_INITS`] that exists.
    #[serde(default)]
    pub init: Vec<String>,
    /// Further environment variables of init (`container=lxc` and a `PATH` are always set first).
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// `security.nesting`: a second, unmasked proc and sysfs at `/dev/.lxc/`, so that nested namespaces can mount theirs.
    #[serde(default)]
    pub nesting: bool,
    /// What is mounted besides the root, in this order.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// Device nodes besides the standard ones (null, zero, full, random, urandom, tty, and fuse and net/tun if the host
    /// has them).
    #[serde(default)]
    pub devices: Vec<DeviceNode>,
    /// The payload cgroups that init joins, one for each hierarchy; they exist and are delegated already.
    #[serde(default)]
    pub cgroups: Vec<CgroupDir>,
    /// The AppArmor label of init and of the programs that are run later; its profiles are loaded already. None: the
    /// daemon's own.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// Capabilities taken from the bounding set besides the ones that are always taken, as `CAP_...` or the bare name
    /// in any case.
    #[serde(default)]
    pub drop_capabilities: Vec<String>,
    /// Paths that are hidden behind an empty file or directory; `None` is [`crate::confine::default_masked_paths`].
    #[serde(default)]
    pub masked_paths: Option<Vec<PathBuf>>,
    /// Paths that are made read-only; `None` is [`crate::confine::default_read_only_paths`].
    #[serde(default)]
    pub read_only_paths: Option<Vec<PathBuf>>,
    /// Namespaced sysctls set before init starts: `net.ipv4.ip_forward` -> `1`.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of init by the name of getrlimit(2) in lower case without its prefix: `nofile`.
    #[serde(default)]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// What the daemon will want to know of this start when it was killed before it could write it down: keys and values
    /// that mean nothing to the monitor, which keeps them and tells them on request.
    #[serde(default)]
    pub notes: BTreeMap<String, Option<String>>,
}

fn default_console_log_limit() -> u64 {
    DEFAULT_CONSOLE_LOG_LIMIT
}

/// Where an image's init is looked for, in this order. The kernel's own list (`init/main.c`) without the shells: a
/// container whose init is missing must fail and not appear to run.
pub const DEFAULT_INITS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/init"];

impl ContainerSpec {
    /// The least specification of an unprivileged container; everything else has its default.
    pub fn new(name: &str, run_dir: &Path, console_log: &Path, root: RootSource, idmap: Option<IdMap>) -> Self {
        Self {
            name: name.to_owned(),
            hostname: name.to_owned(),
            run_dir: run_dir.to_owned(),
            console_log: console_log.to_owned(),
            console_log_limit: DEFAULT_CONSOLE_LOG_LIMIT,
            root,
            root_read_only: false,
            files: Vec::new(),
            idmap,
            init: Vec::new(),
            environment: BTreeMap::new(),
            nesting: false,
            mounts: Vec::new(),
            devices: Vec::new(),
            cgroups: Vec::new(),
            apparmor: None,
            drop_capabilities: Vec::new(),
            masked_paths: None,
            read_only_paths: None,
            sysctls: BTreeMap::new(),
            rlimits: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first field that is unusable, with the reason.
    pub fn check(&self, passed_fds: usize) -> Result<(), SpecError> {
        if self.hostname.is_empty() || self.hostname.len() > HOSTNAME_MAX {
            return Err(SpecError::Hostname(self.hostname.clone()));
        }
        for (field, path) in [("run_dir", &self.run_dir), ("console_log", &self.console_log)] {
            if !path.is_absolute() {
                return Err(SpecError::RelativePath { field, path: path.clone() });
            }
        }
        if let Some(map) = &self.idmap {
            map.check()?;
        }
        let targets = self.mounts.iter().map(|m| &m.target).chain(self.devices.iter().map(|d| &d.target));
        for target in targets.chain(self.files.iter().map(|file| &file.path)) {
            check_target(target)?;
        }
        for mount in &self.mounts {
            if let MountSource::Fd(index) = mount.source
                && index >= passed_fds
            {
                return Err(SpecError::MissingFd { index, passed: passed_fds, target: mount.target.clone() });
            }
        }
        for name in &self.drop_capabilities {
            if crate::confine::capability_by_name(name).is_none() {
                return Err(SpecError::Capability(name.clone()));
            }
        }
        for name in self.rlimits.keys() {
            if rlimit_by_name(name).is_none() {
                return Err(SpecError::Rlimit(name.clone()));
            }
        }
        if let Some(label) = self.apparmor.as_ref().filter(|label| label.is_empty() || label.contains(['\0', '\n'])) {
            return Err(SpecError::AppArmor(label.clone()));
        }
        for (key, value) in &self.environment {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return Err(SpecError::Environment(key.clone()));
            }
        }
        Ok(())
    }
}

/// Refuses targets that are relative, are the root itself, or climb with `..`.
///
/// # Errors
/// [`SpecError::Target`] names the path.
pub fn check_target(target: &Path) -> Result<(), SpecError> {
    use std::path::Component;
    let mut normal = 0;
    for part in target.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(_) => normal += 1,
            Component::ParentDir | Component::Prefix(_) => return Err(SpecError::Target(target.to_owned())),
        }
    }
    if target.is_absolute() && normal > 0 { Ok(()) } else { Err(SpecError::Target(target.to_owned())) }
}

/// Finds a resource limit by its name in getrlimit(2), in lower case and without `RLIMIT_`.
pub fn rlimit_by_name(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// One contiguous range of ids: container ids `0..range` are host ids `host_base..host_base + range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The host uid of the container's uid 0.
    pub host_base_uid: u32,
    /// The host gid of the container's gid 0.
    pub host_base_gid: u32,
    /// How many ids are mapped.
    pub range: u32,
}

impl IdMap {
    fn check(&self) -> Result<(), SpecError> {
        let fits = |base: u32| base > 0 && base.checked_add(self.range).is_some();
        if self.range > 0 && fits(self.host_base_uid) && fits(self.host_base_gid) {
            Ok(())
        } else {
            Err(SpecError::IdMap(*self))
        }
    }
}

/// A file that the container's root filesystem gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Its absolute path in the container; resolved within the root. What is missing on the way is made.
    pub path: PathBuf,
    /// Its content.
    pub content: String,
    /// Whether one that is there already is left as it is.
    pub create_only: bool,
}

/// A cgroup directory that the container's processes join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDir {
    /// The absolute path of the payload directory on the host.
    pub path: PathBuf,
    /// How its hierarchy is joined.
    pub kind: CgroupKind,
}

/// The kind of a cgroup hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupKind {
    /// A v1 hierarchy: the process writes itself into `tasks`.
    V1,
    /// The v2 tree: init is cloned into it.
    V2,
}

/// A soft and a hard limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The limit in force.
    pub soft: Option<u64>,
    /// The ceiling up to which the process itself may raise it.
    pub hard: Option<u64>,
}

/// Why a specification is refused.
#[derive(Debug, Error)]
pub enum SpecError {
    /// The host name is empty or too long.
    #[error("the host name {0:?} must have 1 to 64 bytes")]
    Hostname(String),
    /// A path must be absolute.
    #[error("{field} must be an absolute path, not {path:?}")]
    RelativePath {
        /// The field of the specification.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A target is not usable.
    #[error("the target {0:?} must be an absolute path below /, without \"..\"")]
    Target(PathBuf),
    /// The map is empty, starts at host root or overflows.
    #[error("the id map {0:?} must have a range above 0, a base above 0, and end below 2^32")]
    IdMap(IdMap),
    /// A mount speaks of a descriptor that was not passed.
    #[error("the mount at {target:?} wants descriptor {index}, but {passed} were passed")]
    MissingFd {
        /// The index asked for.
        index: usize,
        /// How many came along.
        passed: usize,
        /// The mount's target.
        target: PathBuf,
    },
    /// No such capability.
    #[error("{0:?} is not the name of a capability")]
    Capability(String),
    /// No such resource limit.
    #[error("{0:?} is not the name of a resource limit")]
    Rlimit(String),
    /// No such label can be.
    #[error("{0:?} is not an AppArmor label")]
    AppArmor(String),
    /// A variable's name or value cannot be passed to a process.
    #[error("the environment variable {0:?} has an empty name, or contains \"=\" or a zero byte")]
    Environment(String),
}
