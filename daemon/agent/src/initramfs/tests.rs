use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::*;

/// What looks like a static program: a header that tells of no other.
const AGENT: &[u8; 64] = &{
    let mut header = *b"\x7fELF\x02\x01__________________________________________________________";
    header[56] = 0;
    header[57] = 0;
    header
};

const RELEASE: &str = "lib/modules/6.1.0-test";

/// A root with a kernel's modules, packed in every way; /lib is a link, as in all images.
fn kernel() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("usr").join(RELEASE).join("kernel");
    fs::create_dir_all(&dir).unwrap();
    symlink("/usr/lib", root.path().join("lib")).unwrap();
    let packed = |name: &str, content: &[u8]| {
        let file = File::create(dir.join(name)).unwrap();
        match name.rsplit('.').next() {
            Some("gz") => flate2::write::GzEncoder::new(file, flate2::Compression::default()).write_all(content),
            Some("xz") => liblzma::write::XzEncoder::new(file, 6).write_all(content),
            Some("zst") => zstd::stream::copy_encode(content, file, 3),
            _ => { file }.write_all(content),
        }
        .unwrap();
    };
    packed("virtio.ko", b"module virtio");
    packed("virtio_pci.ko.xz", b"module virtio_pci");
    packed("virtio_blk.ko.zst", b"module virtio_blk");
    packed("virtio-rng.ko.gz", b"module virtio_rng");
    let list = "kernel/virtio.ko:\nkernel/virtio_pci.ko.xz: kernel/virtio.ko\nkernel/virtio_blk.ko.zst: kernel/virtio.ko\n\
                kernel/virtio-rng.ko.gz: kernel/virtio.ko\n";
    fs::write(dir.with_file_name("modules.dep"), list).unwrap();
    fs::write(dir.with_file_name("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    root
}

fn make(root: &tempfile::TempDir, filesystem: &str) -> Result<(Vec<u8>, Vec<String>), InitramfsError> {
    let dir = File::open(root.path()).unwrap();
    let mut out = Vec::new();
    let modules = write(AGENT, &dir, Path::new(RELEASE), filesystem, &mut out)?;
    Ok((out, modules))
}

#[test]
fn an_initramfs_holds_the_agent_and_the_modules() {
    let root = kernel();
    let (archive, modules) = make(&root, "ext4").unwrap();
    assert_eq!(modules, ["virtio", "virtio_pci", "virtio_blk", "virtio_rng"]);
    assert_eq!(make(&root, "ext4").unwrap().0, archive, "the same every time");

    // As busybox's cpio sees it.
    let unpacked = tempfile::tempdir().unwrap();
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-i", "-d", "init", "modules/*"])
        .current_dir(unpacked.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cpio.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(cpio.wait().unwrap().success());
    let read = |name: &str| fs::read_to_string(unpacked.path().join(name)).unwrap();
    assert_eq!(read("init").as_bytes(), AGENT);
    assert_eq!(read("modules/list"), "virtio.ko\nvirtio_pci.ko\nvirtio_blk.ko\nvirtio_rng.ko\n");
    for module in modules {
        assert_eq!(read(&format!("modules/{module}.ko")), format!("module {module}"));
    }
}

#[test]
fn a_kernel_that_cannot_reach_its_root_is_told_from_one_that_can() {
    let root = kernel();
    let error = make(&root, "xfs").unwrap_err().to_string();
    assert_eq!(error, "the kernel has no xfs, neither built in nor as a module: it cannot reach its root");
    fs::remove_file(root.path().join("usr").join(RELEASE).join("modules.dep")).unwrap();
    let error = make(&root, "ext4").unwrap_err().to_string();
    assert!(error.starts_with("\"lib/modules/6.1.0-test/modules.dep\" of the kernel cannot be read"), "{error}");
}

#[test]
fn nothing_of_the_host_is_read_and_no_device_opened() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let root = kernel();
    let module = root.path().join("usr").join(RELEASE).join("kernel/virtio.ko");
    let refused = |why: &str| match make(&root, "ext4") {
        Err(InitramfsError::Read { path, .. }) => assert!(path.ends_with("virtio.ko"), "{why}"),
        other => panic!("{why}: {other:?}"),
    };
    fs::remove_file(&module).unwrap();
    symlink(outside.path(), &module).unwrap();
    refused("a link out of the root");
    fs::remove_file(&module).unwrap();
    symlink(format!("{}{}", "../".repeat(30), outside.path().display()), &module).unwrap();
    refused("a path out of the root");
    fs::remove_file(&module).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &module, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    refused("a pipe that nobody writes to");
}

#[test]
fn an_agent_that_needs_libraries_is_refused() {
    let (root, mut out) = (kernel(), Vec::new());
    let dir = File::open(root.path()).unwrap();
    let shell = fs::read("/bin/sh").unwrap();
    assert!(matches!(write(&shell, &dir, Path::new(RELEASE), "ext4", &mut out), Err(InitramfsError::Agent)));
    assert!(out.is_empty());
}

#[test]
fn what_unpacks_to_more_than_a_module_is_refused() {
    let root = kernel();
    let bomb = root.path().join("usr").join(RELEASE).join("kernel/virtio_blk.ko.zst");
    zstd::stream::copy_encode(std::io::repeat(0).take(64 << 20), File::create(bomb).unwrap(), 1).unwrap();
    assert!(matches!(make(&root, "ext4"), Err(InitramfsError::TooLarge { .. })));
}

#[test]
fn what_a_boot_is_told_stands_behind() {
    let (mut archive, _) = make(&kernel(), "ext4").unwrap();
    let length = archive.len();
    assert_eq!(length % 4, 0, "the kernel looks for a next one at multiples of four");
    let setup = Setup { hostname: Some("guest".into()), ..Setup::default() };
    append_setup(&setup, &mut archive).unwrap();
    let behind = &archive[length..];
    assert!(behind.starts_with(b"070701") && behind.len() % 4 == 0);
    let text = String::from_utf8_lossy(behind);
    let json = &text[text.find('{').unwrap()..=text.rfind('}').unwrap()];
    assert_eq!(serde_json::from_str::<Setup>(json).unwrap(), setup);
    assert_eq!(serde_json::from_str::<Setup>("{\"of a newer host\": 1}").unwrap(), Setup::default());
}
