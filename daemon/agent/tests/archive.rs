//! The archive of a root filesystem: of a prepared one, in which the agent's program runs in a mount namespace of its own.

#[path = "../../../images/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio as Std};
use std::time::{Duration, Instant};

use common::{Bench, CAPABILITY, acl, metadata, quick, set_xattr, tree};
use duet_agent::client::Client;
use duet_agent::mux::Link;
use duet_agent::protocol::message::ExecStatus;
use duet_images::{Compress, ImageError, Observer, pack_archive};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

const SOON: Duration = Duration::from_secs(30);

/// What mounts the system's programs and others over a root, and starts the agent in it.
const START: &str = "mount --bind /usr \"$1/usr\" && mount --bind /proc \"$1/proc\" && mount --bind \"$2\" \"$1/agent\" && \
                     exec chroot \"$1\" /agent --stdin";

struct Agent {
    client: Client,
    process: Child,
}

impl Agent {
    /// `None` if mounts are not to be had.
    fn start(root: &Path) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            eprintln!("skipped: not root");
            return None;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"])
            .args([root, Path::new(env!("CARGO_BIN_EXE_duet-agent"))])
            .stdin(Std::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let client = Client::connect(ours.into(), Link::Shared, SOON).unwrap();
        Some(Self { client, process })
    }

    /// The archive, what is said of it, and how its program ended.
    fn archive(&self) -> (Vec<u8>, String, ExecStatus) {
        let (archive, theirs) = pipe();
        let (errors, their_errors) = pipe();
        let mut exec = self.client.archive(theirs, their_errors, SOON).unwrap();
        let (mut bytes, mut said) = (Vec::new(), String::new());
        File::from(archive).read_to_end(&mut bytes).unwrap();
        File::from(errors).read_to_string(&mut said).unwrap();
        (bytes, said, exec.wait(SOON).unwrap().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

/// A root in which the agent can be started, with everything that an image should keep.
fn root() -> tempfile::TempDir {
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| top.path().join(name);
    for name in ["usr", "proc", "dev", "run/lock", "sys", "etc/deep", "home/dev"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    symlink("usr/lib", path("lib")).unwrap();
    symlink("usr/lib64", path("lib64")).unwrap();
    fs::write(path("agent"), "").unwrap();
    fs::write(path("run/lock/one"), "left out").unwrap();
    node(&path("dev/null"), FileType::CharacterDevice, makedev(1, 3));
    fs::write(path("home/dev/file"), "kept").unwrap();
    fs::write(path("etc/ping"), vec![7; 3_000_000]).unwrap();
    fs::hard_link(path("etc/ping"), path("etc/deep/ping6")).unwrap();
    fs::write(path(&format!("etc/{}", "n".repeat(250))), "long").unwrap();
    fs::write(path("etc/na\u{ef}ve\nname"), "odd").unwrap();
    symlink("x".repeat(300), path("etc/long-link")).unwrap();
    node(&path("etc/big"), FileType::CharacterDevice, makedev(300, 100_000));
    node(&path("etc/disk"), FileType::BlockDevice, makedev(8, 1));
    node(&path("etc/pipe"), FileType::Fifo, 0);
    let sparse = File::create(path("etc/sparse")).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.set_len(20 << 20).unwrap();
    chown(path("etc/deep"), Some(65534), Some(3_000_000)).unwrap();
    lchown(path("etc/long-link"), Some(1000), Some(1001)).unwrap();
    chown(path("etc/ping"), Some(5), Some(6)).unwrap();
    fs::set_permissions(path("etc/ping"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::set_permissions(path("etc/deep"), PermissionsExt::from_mode(0o3777)).unwrap();
    set_xattr(&path("etc/ping"), "security.capability", CAPABILITY);
    set_xattr(&path("etc/pipe"), "system.posix_acl_access", &acl());
    set_xattr(&path("etc/deep"), "system.posix_acl_default", &acl());
    set_xattr(&path("etc/deep"), "user.note", b"a\nb\0c");
    top
}

#[test]
fn an_archive_unpacks_to_the_same_root() {
    let root = root();
    let _socket = UnixListener::bind(root.path().join("etc/socket")).unwrap();
    let Some(agent) = Agent::start(root.path()) else { return };
    let (archive, said, status) = agent.archive();
    assert_eq!((status, &*said), (ExecStatus::Code(0), ""));

    let (mut image, none) = (Vec::new(), BTreeMap::new());
    pack_archive(&metadata(), &none, &*archive, &mut image, Compress::default(), &mut Observer::none()).unwrap();
    let bench = Bench::new();
    bench.unpack(&image, &quick()).unwrap();
    let mut expected = tree(root.path(), false);
    expected.retain(|path, _| {
        let hidden = ["dev", "run"].iter().any(|dir| path.starts_with(dir) && path != Path::new(dir));
        !hidden && path != Path::new("etc/socket")
    });
    let found = tree(&bench.path("out/rootfs"), false);
    for (path, node) in &expected {
        assert_eq!(found.get(path), Some(node), "{path:?}");
    }
    let more: BTreeMap<_, _> = found.iter().filter(|(path, _)| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "{more:?}");

    // And as GNU tar has it.
    let listed = bench.put("image", &archive);
    let output = Command::new("tar").arg("-tf").arg(listed).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && names.lines().all(|name| name.starts_with("rootfs/")), "{names}");

    // The same once more, on the same connection.
    assert!(agent.archive().0 == archive);
}

#[test]
fn an_archive_that_failed_is_not_whole_and_says_why() {
    let root = root();
    node(&root.path().join("etc/whiteout"), FileType::CharacterDevice, makedev(0, 0));
    let Some(agent) = Agent::start(root.path()) else { return };
    let (archive, said, status) = agent.archive();
    assert_eq!(status, ExecStatus::Code(1));
    let why = "refused the entry \"rootfs/etc/whiteout\": the character device 0/0 is an overlay whiteout\n";
    assert_eq!(said, why);
    assert!(archive.len() > 3_000_000);
    let (none, compress) = (BTreeMap::new(), Compress::default());
    let error = pack_archive(&metadata(), &none, &*archive, std::io::sink(), compress, &mut Observer::none());
    assert!(matches!(error, Err(ImageError::Truncated { .. })), "{error:?}");
}

#[test]
fn an_archive_that_nobody_reads_ends() {
    let root = root();
    let Some(agent) = Agent::start(root.path()) else { return };
    let (archive, theirs) = pipe();
    let (errors, their_errors) = pipe();
    let exec = agent.client.archive(theirs, their_errors, SOON).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", agent.process.id());
    assert!(!fs::read_to_string(&children).unwrap().is_empty());
    drop((exec, archive, errors));
    let deadline = Instant::now() + SOON;
    while !fs::read_to_string(&children).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it is still there");
        std::thread::yield_now();
    }
    // The agent serves on.
    assert!(!agent.archive().0.is_empty());
}
