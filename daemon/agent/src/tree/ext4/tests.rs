use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::Command;

mod journal;

use super::*;
use crate::initramfs;
use crate::kernel::{self, Kernel};

/// What `duet_images::disk::make_disk` asks for.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// A header that looks like a static program's.
const AGENT: &[u8] = &{
    let mut header = *b"\x7fELF\x02\x01__________________________________________________________";
    header[56] = 0;
    header[57] = 0;
    header
};

/// A root with two kernels, as a directory. /lib is a link, as in all images.
fn root() -> tempfile::TempDir {
    // Longer than a block, and not a whole number of them.
    root_with(20_000)
}

fn root_with(length: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("boot")).unwrap();
    fs::create_dir_all(root.path().join("usr/lib")).unwrap();
    symlink("usr/lib", root.path().join("lib")).unwrap();
    symlink("vmlinuz-6.9-a", root.path().join("boot/vmlinuz")).unwrap();
    for release in ["6.9-a", "6.12-a"] {
        let modules = root.path().join("usr/lib/modules").join(release);
        fs::create_dir_all(modules.join("kernel")).unwrap();
        fs::write(root.path().join("boot").join(format!("vmlinuz-{release}")), release.repeat(length)).unwrap();
        fs::write(modules.join("kernel/virtio.ko"), format!("virtio of {release}")).unwrap();
        let packed = zstd::encode_all(&*vec![7; 300_000], 3).unwrap();
        fs::write(modules.join("kernel/virtio_blk.ko.zst"), packed).unwrap();
        let list = "kernel/virtio.ko:\nkernel/virtio_blk.ko.zst: kernel/virtio.ko\n";
        fs::write(modules.join("modules.dep"), list).unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/ext4.ko\nkernel/virtio_pci.ko\n").unwrap();
    }
    root
}

/// A disk with the content of a directory, made with more of mke2fs' options.
fn disk_with(root: &tempfile::TempDir, options: &[&str]) -> Vec<u8> {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(16 << 20).unwrap();
    let made = Command::new("mke2fs")
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-I", "256", "-m", "1"])
        .args(options)
        .arg("-d")
        .args([root.path(), disk.path()])
        .status()
        .unwrap();
    assert!(made.success());
    fs::read(disk.path()).unwrap()
}

fn disk(root: &tempfile::TempDir) -> Vec<u8> {
    disk_with(root, &["-b", "4096", "-O", FEATURES])
}

fn open(disk: &[u8]) -> io::Result<Ext4Disk> {
    Ext4Disk::open(Box::new(disk.to_vec()))
}

fn initramfs(tree: &dyn Tree, kernel: &Kernel) -> Vec<u8> {
    let mut out = Vec::new();
    initramfs::write(AGENT, tree, &kernel.modules, "ext4", &mut out).unwrap();
    out
}

#[test]
fn a_disk_gives_what_its_directory_does() {
    let root = root();
    let dir = File::open(root.path()).unwrap();
    let expected = kernel::find(&dir).unwrap().unwrap();
    let mut many = vec![disk(&root)];
    many.push(disk_with(&root, &["-b", "1024", "-O", FEATURES]));
    many.push(disk_with(&root, &["-t", "ext2"]));
    for disk in many {
        let disk = open(&disk).unwrap();
        let mut kernel = kernel::find(&disk).unwrap().unwrap();
        assert_eq!((&*kernel.release, &kernel.modules), ("6.12-a", &expected.modules));
        let mut image = String::new();
        kernel.image.read_to_string(&mut image).unwrap();
        assert_eq!(image, "6.12-a".repeat(20_000));
        assert!(kernel.image.write_all(b"x").is_err(), "it is sealed");
        assert!(initramfs(&disk, &kernel) == initramfs(&dir, &expected));
    }
}

#[test]
fn what_is_no_kernel_is_passed_over() {
    let root = root();
    let boot = |release: &str| root.path().join(format!("boot/vmlinuz-{release}"));
    let outside = tempfile::NamedTempFile::new().unwrap();
    symlink(outside.path(), boot("7.1")).unwrap();
    symlink(format!("{}{}", "../".repeat(30), outside.path().display()), boot("7.2")).unwrap();
    symlink("vmlinuz-7.3", boot("7.3")).unwrap();
    symlink(format!("{}vmlinuz-6.12-a", "./".repeat(100)), boot("7.4")).unwrap();
    fs::create_dir(boot("7.5")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, boot("7.6"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    File::create(boot("7.7")).unwrap().set_len(300 << 20).unwrap();
    fs::write(boot("7.8"), "no modules").unwrap();
    for release in 1..8 {
        let modules = root.path().join(format!("usr/lib/modules/7.{release}"));
        fs::create_dir(&modules).unwrap();
        fs::write(modules.join("modules.dep"), "").unwrap();
    }
    let disk = open(&disk(&root)).unwrap();
    // The one that is a long link within is one.
    assert_eq!(kernel::find(&disk).unwrap().unwrap().release, "7.4");
    let why = |release: &str| disk.read(&Path::new("boot").join(format!("vmlinuz-{release}")), 1 << 20).unwrap_err();
    assert_eq!(why("7.1").kind(), io::ErrorKind::NotFound);
    assert_eq!(why("7.2").kind(), io::ErrorKind::NotFound);
    assert_eq!(why("7.3").raw_os_error(), Some(libc::ELOOP));
    assert_eq!(why("7.5").to_string(), "it is no regular file");
    assert_eq!(why("7.6").to_string(), "it is no regular file");
    assert_eq!(why("7.7").kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(disk.read(Path::new("/boot/../../lib/../../boot/vmlinuz"), 1 << 20).unwrap().len(), 100_000);
    assert_eq!(disk.names(Path::new("boot/vmlinuz"), 9).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    let below = disk.read(Path::new("boot/vmlinuz/x"), 9).unwrap_err();
    assert_eq!(below.kind(), io::ErrorKind::NotADirectory);
    assert_eq!(disk.read(Path::new(""), 9).unwrap_err().to_string(), "it is no regular file");
}

#[test]
fn a_disk_without_a_kernel_has_none() {
    let root = tempfile::tempdir().unwrap();
    assert!(kernel::find(&open(&disk(&root)).unwrap()).unwrap().is_none());
    fs::write(root.path().join("boot"), "").unwrap();
    assert!(kernel::find(&open(&disk(&root)).unwrap()).unwrap().is_none());
    fs::remove_file(root.path().join("boot")).unwrap();
    symlink("/boot", root.path().join("boot")).unwrap();
    let error = kernel::find(&open(&disk(&root)).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("\"boot\" cannot be read: Too many levels of symbolic links"), "{error}");
}

/// Looks for a kernel and makes an initramfs, as far as that comes.
fn use_disk(disk: &[u8]) -> Result<usize, String> {
    let disk = open(disk).map_err(|error| error.to_string())?;
    let kernel = kernel::find(&disk).map_err(|error| error.to_string())?.ok_or("no kernel")?;
    let mut out = Vec::new();
    initramfs::write(AGENT, &disk, &kernel.modules, "ext4", &mut out).map_err(|error| error.to_string())?;
    Ok(out.len())
}

#[test]
fn a_disk_that_was_cut_off_is_told() {
    let whole = disk(&root());
    let length = use_disk(&whole).unwrap();
    for end in [0, 1024, 2000, 4096, 5000, 40_000, 100_000, 1 << 20, 5 << 20] {
        match use_disk(&whole[..end]) {
            // The end of the disk may be free.
            Ok(got) => assert_eq!(got, length),
            Err(error) => assert!(error.len() > 15, "{error}"),
        }
    }
    assert!(use_disk(&whole[..100_000]).is_err());
    assert_eq!(use_disk(&[0; 1 << 20]).unwrap_err(), "there is no ext4 filesystem");
}

/// Puts a number into a disk's superblock; only disks without checksums can be read after that.
fn with_field(disk: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut disk = disk.to_vec();
    disk[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
    disk
}

#[test]
fn a_superblock_that_asks_for_too_much_is_refused() {
    let disk = disk(&root());
    let refused = |at, bytes: &[u8], why: &str| {
        assert_eq!(use_disk(&with_field(&disk, at, bytes)).unwrap_err(), why);
    };
    refused(0x18, &[21, 0, 0, 0], "its blocks are larger than 4 KiB");
    refused(0x150, &[255; 4], "it has more groups of blocks than a disk");
    let narrow = disk_with(&root(), &["-b", "4096", "-O", "none,filetype,extent"]);
    let error = use_disk(&with_field(&narrow, 0x150, &[255; 4])).unwrap_err();
    assert_eq!(error, "it has more groups of blocks than a disk");
    refused(0x20, &[0; 4], "corrupt filesystem: blocks per group is zero");
    refused(0x58, &[0; 2], "the size of its inodes is none");
    refused(0x58, &[0, 64], "the size of its inodes is none");
    // Not written back, and a journal that is no file of the first inodes.
    let dirty = with_field(&disk, 0x60, &[disk[1024 + 0x60] | 4]);
    assert_eq!(use_disk(&with_field(&dirty, 0xe0, &[9])).unwrap_err(), "its journal is not where it belongs");
    assert_eq!(use_disk(&with_field(&dirty, 0x28, &[0; 4])).unwrap_err(), "its journal is not where it belongs");
}

/// Has debugfs(8) change a disk.
fn changed(disk: &[u8], commands: &[&str]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), disk).unwrap();
    for command in commands {
        let output = Command::new("debugfs").args(["-w", "-R", command]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    fs::read(file.path()).unwrap()
}

/// The first block of a file's content, by debugfs.
fn first_block(disk: &[u8], path: &str) -> usize {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), disk).unwrap();
    let command = format!("blocks {path}");
    let output = Command::new("debugfs").args(["-R", &command]).arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn sizes_that_no_file_has_take_no_memory() {
    let disk = disk(&root());
    let error = use_disk(&changed(&disk, &["sif /lib size 0xffffffff000"])).unwrap_err();
    assert!(error.ends_with("a link in it is longer than any is"), "{error}");
    let error = use_disk(&changed(&disk, &["sif /boot size 0x10000000"])).unwrap_err();
    assert_eq!(error, "\"boot\" cannot be read: a directory in it is larger than any is");
    let error = use_disk(&changed(&disk, &["sif / size 0x10000000"])).unwrap_err();
    assert_eq!(error, "\"boot\" cannot be read: a directory in it is larger than any is");
    let module = "sif /usr/lib/modules/6.12-a/kernel/virtio.ko size 0xffffffff000";
    let error = use_disk(&changed(&disk, &[module])).unwrap_err();
    assert_eq!(error, "\"lib/modules/6.12-a/kernel/virtio.ko\" of the kernel is larger than 33554432 bytes");
    let journal = changed(&disk, &["sif <8> size 0x4000000000"]);
    let dirty = with_field(&journal, 0x60, &[disk[1024 + 0x60] | 4]);
    assert_eq!(use_disk(&dirty).unwrap_err(), "its journal is larger than is replayed");
}

/// ext4-view 1.0 panics here if it is let.
#[test]
fn an_index_that_counts_beyond_its_block_is_an_error() {
    let disk = disk(&root());
    let mut disk = changed(&disk, &["sif /boot flags 0x81000"]);
    let at = first_block(&disk, "/boot") * 4096;
    disk[at + 0x22..at + 0x24].fill(0xff);
    assert!(use_disk(&disk).is_err());
}

/// ext4-view 1.0 is busy for days here if it is let.
#[test]
fn blocks_that_lead_to_each_other_are_not_followed() {
    let disk = disk(&root());
    let node = |depth: u16, child: u32| {
        let entries: u16 = if depth == 5 { 4 } else { 340 };
        let mut node = [0xf30a, entries, entries, depth, 0, 0].map(u16::to_le_bytes).concat();
        for entry in 0..u32::from(entries) {
            node.extend([entry, child, 0].map(u32::to_le_bytes).concat());
        }
        node
    };
    let mut disk = changed(&disk, &["sif /boot flags 0x80000", "sif /boot size 0x200000"]);
    // Free blocks at the end of the disk.
    for depth in 1..5 {
        let node = node(depth, 4090 + u32::from(depth) - 1);
        let at = (4090 + usize::from(depth)) * 4096;
        disk[at..at + node.len()].copy_from_slice(&node);
    }
    let empty = [0xf30a, 0, 340, 0, 0, 0].map(u16::to_le_bytes).concat();
    disk[4090 * 4096..4090 * 4096 + 12].copy_from_slice(&empty);
    let top = node(5, 4094);
    let at = inode_of(&disk, "/boot") + 0x28;
    disk[at..at + top.len()].copy_from_slice(&top);
    let error = use_disk(&disk).unwrap_err();
    assert_eq!(error, "\"boot\" cannot be read: a file is in more pieces than are followed");
}

/// Where an inode is in the disk, by debugfs.
fn inode_of(disk: &[u8], path: &str) -> usize {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), disk).unwrap();
    let output = Command::new("debugfs").args(["-R", &format!("imap {path}")]).arg(file.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // "Inode 12 is part of block group 0\n\tlocated at block 42, offset 0x0b00"
    let (_, place) = text.split_once("located at block ").unwrap();
    let (block, offset) = place.trim().split_once(", offset 0x").unwrap();
    block.parse::<usize>().unwrap() * 4096 + usize::from_str_radix(offset, 16).unwrap()
}

/// The same numbers every time (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % limit
    }
}

#[test]
fn whatever_a_disk_holds_is_survived() {
    let disk = disk_with(&root_with(1), &["-b", "1024", "-N", "64", "-O", FEATURES]);
    // The files are small: most of what is not zero describes them.
    let places: Vec<usize> = (1024..disk.len()).filter(|at| disk[*at] != 0).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut worked, mut failed) = (0, 0);
    for _ in 0..150 {
        let mut disk = disk.clone();
        for _ in 0..1 + random.below(12) {
            disk[places[random.below(places.len())]] = [0, 1, 0xff, random.below(256) as u8][random.below(4)];
        }
        match use_disk(&disk) {
            Ok(_) => worked += 1,
            Err(error) => {
                assert!(!error.is_empty());
                failed += 1;
            }
        }
    }
    eprintln!("{worked} worked, {failed} failed");
    assert!(worked > 0 && failed > 0);
}
