//! A private mount namespace whose cgroup trees are subtrees of the machine's, made for one test and gone after it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use duet_container::cgroup::{Cgroup, Layout};
use nix::mount::{MsFlags, mount};
use rustix::fs::{AtFlags, Mode, OFlags, unlinkat};

use crate::support::{deadline, private_mounts};

pub struct Trees {
    name: String,
    /// The machine's own roots, held from before they were covered.
    roots: Vec<(PathBuf, OwnedFd)>,
    pub layout: Arc<Layout>,
}

impl Trees {
    pub fn new() -> Self {
        private_mounts();
        let name = format!("duet-test-{}", rustix::thread::gettid().as_raw_nonzero());
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let mut roots = Vec::new();
        for line in table.lines().filter(|line| line.contains(" - cgroup")) {
            let point = PathBuf::from(line.split(' ').nth(4).unwrap());
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(&point, flags, Mode::empty()).unwrap();
            let part = point.join(&name);
            fs::create_dir(&part).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if part.join("tasks").exists() && part.join(file).exists() {
                    fs::write(part.join(file), fs::read_to_string(point.join(file)).unwrap().trim()).unwrap();
                }
            }
            if let Ok(controllers) = fs::read_to_string(point.join("cgroup.controllers")) {
                for controller in controllers.split_whitespace() {
                    let _ = fs::write(point.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            mount(Some(&part), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            roots.push((point, root));
        }
        Self { name, roots, layout: Arc::new(Layout::detect().unwrap()) }
    }

    /// Every group below the trees' roots, as paths.
    pub fn groups(&self) -> Vec<PathBuf> {
        fn below(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    below(&entry.path(), found);
                    found.push(entry.path());
                }
            }
        }
        let mut found = Vec::new();
        for (point, _) in &self.roots {
            below(point, &mut found);
        }
        found
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        for group in self.groups() {
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        let until = deadline();
        while Instant::now() < until {
            for group in self.groups() {
                let _ = fs::remove_dir(group);
            }
            if self.groups().is_empty() {
                break;
            }
            std::thread::yield_now();
        }
        for (point, root) in &self.roots {
            nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH).unwrap();
            let removed = unlinkat(root, &self.name, AtFlags::REMOVEDIR);
            if !std::thread::panicking() {
                removed.unwrap_or_else(|error| panic!("{}: {error}", point.display()));
            }
        }
    }
}

/// A shell that joins `cgroup` like a container's process does and then runs `script`. Killed and reaped when dropped.
pub struct Member(pub Child);

impl Member {
    pub fn new(cgroup: &Cgroup, script: &str) -> Self {
        let mut joins = String::new();
        for dir in cgroup.joined() {
            joins.push_str(&format!("echo $$ > {}/cgroup.procs || exit 99\n", dir.path.display()));
        }
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{joins}echo joined\n{script}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut member = Self(child);
        assert_eq!(member.line(), "joined");
        member
    }

    /// The next line of its output.
    pub fn line(&mut self) -> String {
        use std::io::Read;
        let mut line = Vec::new();
        let mut byte = [0];
        let out = self.0.stdout.as_mut().unwrap();
        while duet_sys::socket::wait_readable(&*out, deadline()).unwrap()
            && out.read(&mut byte).unwrap() == 1
            && byte[0] != b'\n'
        {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
