//! The least that the file service takes for a container: a process in a user and mount namespace, below a root of its own.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use duet_container::files::{FileSession, Target};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chroot, pipe2, setresgid, setresuid};
use rustix::fs::CWD;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::support::private_mounts;

/// The host's id for the container's root.
pub const BASE: u32 = 100_000;

/// How many ids it has.
pub const IDS: u32 = 65_536;

/// A root directory, on a tmpfs that only this test sees, and beside it a folder that no container may reach.
pub struct Ground {
    _folder: tempfile::TempDir,
    pub root: PathBuf,
    pub outside: PathBuf,
}

impl Ground {
    /// `shift` is what host ids are above the container's: [`BASE`] for a running one, 0 for a root as it is on disk.
    pub fn new(shift: u32) -> Self {
        private_mounts();
        let folder = tempfile::tempdir().unwrap();
        mount(Some("ground"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        let ground = Self { _folder: folder, root, outside };
        fs::create_dir(&ground.outside).unwrap();
        fs::write(ground.outside.join("secret"), "secret").unwrap();
        for dir in ["", "bin", "proc", "tmp", "etc"] {
            fs::create_dir(ground.root.join(dir)).unwrap();
            ground.own(dir, shift);
        }
        fs::copy("/bin/busybox", ground.root.join("bin/busybox")).unwrap();
        ground
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    pub fn own(&self, inside: &str, id: u32) {
        std::os::unix::fs::lchown(self.path(inside), Some(id), Some(id)).unwrap();
    }

    /// A file that the container's root owns.
    pub fn file(&self, inside: &str, content: &str, owner: u32) {
        fs::write(self.path(inside), content).unwrap();
        self.own(inside, owner);
    }

    /// What lies outside is as it was.
    pub fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(&self.outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read_to_string(self.outside.join("secret")).unwrap(), "secret");
    }

    /// The root as the daemon hands it over for a stopped container: a mount that is nowhere attached.
    pub fn detached(&self) -> OwnedFd {
        duet_sys::mount::clone_tree(CWD, &self.root, false).unwrap()
    }

    pub fn stopped(&self) -> FileSession {
        let root = self.detached();
        FileSession::spawn(service(), &Target::Root { root: root.as_fd(), id_limit: Some(IDS) }).unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The folder itself goes with the field, which needs it to be no mount any more.
        let folder = self.root.parent().unwrap();
        nix::mount::umount2(folder, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

pub fn service() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_duet-monitor"))
}

/// The process. Killed and reaped when dropped.
pub struct Init {
    pub child: Child,
    pub pidfd: OwnedFd,
}

impl Init {
    /// Runs `busybox sleep` in a new user namespace and mount namespace, below the ground's root.
    pub fn new(ground: &Ground) -> Self {
        let (report, reporter) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (go, goer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let mapper = std::thread::spawn(move || {
            let mut pid = [0; 4];
            fs::File::from(report).read_exact(&mut pid).unwrap();
            let pid = u32::from_le_bytes(pid);
            for file in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{file}"), format!("0 {BASE} {IDS}")).unwrap();
            }
            fs::File::from(goer).write_all(b"g").unwrap();
        });
        let root = ground.root.clone();
        let mut command = Command::new("/bin/busybox");
        command.args(["sleep", "10000"]).stdin(Stdio::null());
        let enter = move || {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            rustix::io::write(&reporter, &std::process::id().to_le_bytes())?;
            rustix::io::read(&go, &mut [0_u8; 1][..])?;
            setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
            setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
            chroot(&root)?;
            std::env::set_current_dir("/")
        };
        // SAFETY: between fork and exec it makes system calls only, and touches no memory that another thread could have
        // locked; the paths it needs were made before.
        unsafe { command.pre_exec(enter) };
        let child = command.spawn().unwrap();
        mapper.join().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        Self { child, pidfd }
    }

    pub fn session(&self) -> FileSession {
        let target = Target::Running { pid: self.child.id(), pidfd: self.pidfd.as_fd(), user_namespace: true };
        FileSession::spawn(service(), &target).unwrap()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that this one has started and not reaped, by name.
pub fn children(name: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let listed = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        for pid in listed.split_whitespace().map(|pid| pid.parse().unwrap()) {
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name) {
                found.push(pid);
            }
        }
    }
    found
}
