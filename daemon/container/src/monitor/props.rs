//! What a container is made of, as detached mounts made on the host's side: its /dev and the mounts of its specification.
//! (Its root filesystem is [`crate::rootfs`]'s.)
//!
//! /dev is a tmpfs of the host's with real device nodes in it, owned by the container's root. The alternative, a tmpfs
//! of the container's onto which each of the host's nodes is bind-mounted, costs two calls and a mount for every node;
//! and a node can be added to a running container by just making it. No process of an unprivileged container can make
//! further ones (mknod(2) asks for the capability in the initial user namespace).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use duet_control::attach::open_source;
use duet_sys::mount::{self, Change, NODEV, NOEXEC, NOSUID, RDONLY};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, makedev};

use crate::inside::mounts::NODES_DIR;
use crate::spec::{ContainerSpec, DeviceKind, DeviceNode, IdMap, MountSource, MountSpec};
use crate::step::{Step, StepError};

/// The device nodes of every container, with their numbers (`Documentation/admin-guide/devices.txt`).
const STANDARD: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Those that it has if the host has them.
const OPTIONAL: [(&str, u32, u32); 2] = [("fuse", 10, 229), ("net/tun", 10, 200)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The container's /dev.
pub(super) struct Dev {
    /// Its root directory, by which nodes are added later.
    pub mount: OwnedFd,
    idmap: Option<IdMap>,
}

impl Dev {
    /// Makes a /dev with the standard devices and those of the specification.
    pub fn make(spec: &ContainerSpec) -> Result<Self, StepError> {
        let (uid, gid) = host_ids(spec.idmap, 0, 0);
        let owner = (uid.to_string(), gid.to_string());
        // The container's own files in /dev are few; the bound keeps it from using /dev as memory.
        let options = [
            ("size", Some("500k")),
            ("nr_inodes", Some("4k")),
            ("mode", Some("755")),
            ("uid", Some(&*owner.0)),
            ("gid", Some(&*owner.1)),
        ];
        let mount = mount::new_filesystem("tmpfs", &options, NOSUID | NOEXEC).step("make /dev")?;
        let dev = Self { mount, idmap: spec.idmap };
        dev.furnish().step("furnish /dev")?;
        for (name, major, minor) in STANDARD {
            dev.add_standard(name, major, minor).step_at("make the device", &name)?;
        }
        for (name, major, minor) in OPTIONAL {
            if host_has(name, major, minor) {
                dev.add_standard(name, major, minor).step_at("make the device", &name)?;
            }
        }
        for (index, device) in spec.devices.iter().enumerate() {
            match device.target.strip_prefix("/dev") {
                Ok(below) => dev.add(below, device),
                Err(_) => dev.add(&Path::new(NODES_DIR).join(index.to_string()), device),
            }
            .step_at("make the device", &device.target)?;
        }
        Ok(dev)
    }

    fn furnish(&self) -> io::Result<()> {
        let (uid, gid) = host_ids(self.idmap, 0, 0);
        for (dir, mode) in [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777), ("net", 0o755), (NODES_DIR, 0o700)] {
            rustix::fs::mkdirat(&self.mount, dir, Mode::from_raw_mode(mode))?;
            rustix::fs::chownat(&self.mount, dir, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        for (link, target) in LINKS {
            rustix::fs::symlinkat(target, &self.mount, link)?;
        }
        Ok(())
    }

    fn add_standard(&self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        let gid = if name == "tty" { 5 } else { 0 };
        let device = DeviceNode { target: name.into(), kind: DeviceKind::Char, major, minor, mode: 0o666, uid: 0, gid };
        self.add(Path::new(name), &device)
    }

    /// Makes a node at a path below /dev. If the same device is there already, it is given its owner.
    pub fn add(&self, path: &Path, device: &DeviceNode) -> io::Result<()> {
        let (parent, name) = self.open_parent(path, true)?;
        let file_type = match device.kind {
            DeviceKind::Char => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
        };
        let number = makedev(device.major, device.minor);
        let mode = Mode::from_raw_mode(device.mode & 0o7777);
        match rustix::fs::mknodat(&parent, name, file_type, mode, number) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != file_type || stat.st_rdev != number {
                    return Err(rustix::io::Errno::EXIST.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        // By descriptor: the container may exchange the name at any time, and root's chmod must not follow.
        let node = rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let (uid, gid) = host_ids(self.idmap, device.uid, device.gid);
        rustix::fs::chownat(&node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        Ok(())
    }

    /// Removes a device node below /dev.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.open_parent(path, false)?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice | FileType::BlockDevice => {
                Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    /// Opens the directory of a path below /dev, in the tmpfs itself: links and other mounts are refused.
    fn open_parent<'p>(&self, path: &'p Path, make: bool) -> io::Result<(OwnedFd, &'p std::ffi::OsStr)> {
        let name = path.file_name().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut dir = self.open_below(self.mount.as_fd(), Path::new("."))?;
        for part in path.parent().unwrap_or(Path::new("")).components() {
            let part = Path::new(part.as_os_str());
            if make {
                match rustix::fs::mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        let (uid, gid) = host_ids(self.idmap, 0, 0);
                        rustix::fs::chownat(&dir, part, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                    Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            dir = self.open_below(dir.as_fd(), part)?;
        }
        Ok((dir, name))
    }

    fn open_below(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)?)
    }
}

/// Ids of the container as the host sees them.
pub(crate) fn host_ids(idmap: Option<IdMap>, uid: u32, gid: u32) -> (Uid, Gid) {
    let (base_uid, base_gid) = idmap.map_or((0, 0), |map| (map.host_base_uid, map.host_base_gid));
    (Uid::from_raw(base_uid.wrapping_add(uid)), Gid::from_raw(base_gid.wrapping_add(gid)))
}

fn host_has(name: &str, major: u32, minor: u32) -> bool {
    let device = rustix::fs::stat(Path::new("/dev").join(name));
    device.is_ok_and(|stat| stat.st_rdev == makedev(major, minor))
}

/// Opens the mounts of a specification, in order; `None` for an optional one whose source does not exist.
pub(super) fn open_mounts(
    spec: &ContainerSpec,
    fds: Vec<OwnedFd>,
    userns: Option<BorrowedFd<'_>>,
) -> Result<Vec<Option<OwnedFd>>, StepError> {
    let mut fds: Vec<_> = fds.into_iter().map(Some).collect();
    let mut mounts = Vec::new();
    for wanted in &spec.mounts {
        let opened = match &wanted.source {
            MountSource::Fd(index) => fds.get_mut(*index).and_then(Option::take).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "its descriptor was not passed, or belongs to two mounts")
            }),
            source => open_source(source, wanted.recursive),
        };
        let prepared = opened.and_then(|mount| prepare_mount(mount, wanted, spec.idmap, userns));
        match prepared {
            Ok(mount) => mounts.push(Some(mount)),
            Err(error) if wanted.optional && error.kind() == io::ErrorKind::NotFound => mounts.push(None),
            Err(error) => return Err(error).step_at(&format!("open {} for", describe(&wanted.source)), &wanted.target),
        }
    }
    Ok(mounts)
}

fn describe(source: &MountSource) -> String {
    match source {
        MountSource::Path(path) => format!("{path:?}"),
        MountSource::Fd(index) => format!("descriptor {index}"),
        MountSource::Tmpfs { .. } => "a tmpfs".to_owned(),
    }
}

/// Gives a detached mount the attributes that its specification asks for.
pub(super) fn prepare_mount(
    mount: OwnedFd,
    wanted: &MountSpec,
    idmap: Option<IdMap>,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut change = Change { propagation: libc::MS_PRIVATE, recursive: wanted.recursive, ..Change::default() };
    if wanted.read_only {
        change.set |= RDONLY;
    }
    // A directory of the host may hold device nodes, and an unprivileged container's root may own them.
    let stat = rustix::fs::fstat(&mount)?;
    let is_device = matches!(FileType::from_raw_mode(stat.st_mode), FileType::CharacterDevice | FileType::BlockDevice);
    if idmap.is_some() && !is_device {
        change.set |= NODEV;
    }
    match wanted.source {
        // A new tmpfs belongs to the container's root without a shift.
        MountSource::Tmpfs { .. } => {
            let (uid, gid) = host_ids(idmap, 0, 0);
            rustix::fs::chownat(&mount, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        MountSource::Path(_) | MountSource::Fd(_) if wanted.shift => change.idmap = userns,
        MountSource::Path(_) | MountSource::Fd(_) => {}
    }
    mount::change(&mount, change)?;
    Ok(mount)
}
