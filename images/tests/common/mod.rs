//! What the tests share: archives built byte by byte, and file trees as values that can be compared.

#![allow(dead_code, missing_docs)] // each test binary uses its own part

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use duet_images::{Compression, ImageFiles, Metadata, Observer, Result, UnpackOptions, Unpacked};

pub const METADATA: &str = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Test\n";

/// An entry of a hand-made tarball.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub flag: u8,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    /// The size that the header states, when it is not that of the data.
    pub size: Option<u64>,
    pub mode: u32,
    pub device: (u32, u32),
    /// Records of an extended header that goes before it.
    pub pax: Vec<(String, Vec<u8>)>,
}

pub fn entry(flag: u8, name: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        flag,
        link: Vec::new(),
        data: Vec::new(),
        size: None,
        mode: 0o644,
        device: (0, 0),
        pax: Vec::new(),
    }
}

pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    Entry { data: data.as_ref().to_vec(), ..entry(b'0', name) }
}

pub fn dir(name: impl AsRef<[u8]>) -> Entry {
    Entry { mode: 0o755, ..entry(b'5', name) }
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(b'2', name) }
}

pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(b'1', name) }
}

pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
    Entry { device: (major, minor), ..entry(b'3', name) }
}

impl Entry {
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Entry {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn size(mut self, size: u64) -> Entry {
        self.size = Some(size);
        self
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &self.pax {
                let rest = key.len() + value.len() + 3;
                let length = (rest + 1..).find(|n| n - n.to_string().len() == rest).unwrap();
                write!(records, "{length} {key}=").unwrap();
                records.extend_from_slice(value);
                records.push(b'\n');
            }
            Entry { data: records, ..entry(b'x', "PaxHeader") }.write(out);
        }
        let mut header = tar::Header::new_gnu();
        let bytes = header.as_mut_bytes();
        let n = self.name.len().min(100);
        bytes[..n].copy_from_slice(&self.name[..n]);
        let n = self.link.len().min(100);
        bytes[157..157 + n].copy_from_slice(&self.link[..n]);
        bytes[156] = self.flag;
        header.set_mode(self.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(self.size.unwrap_or(self.data.len() as u64));
        header.set_device_major(self.device.0).unwrap();
        header.set_device_minor(self.device.1).unwrap();
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

/// A tarball of these entries, with its end mark.
pub fn tarball(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A unified image: metadata, a root with nothing in it, then these entries.
pub fn image(entries: &[Entry]) -> Vec<u8> {
    let head = [file("metadata.yaml", METADATA), dir("templates/"), dir("rootfs/")];
    tarball(&[&head, entries].concat())
}

pub fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        Compression::Xz => {
            let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        Compression::Zstd => {
            let mut out = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            out.include_checksum(true).unwrap();
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
    }
}

/// A folder to unpack in, with a witness outside of the target that nothing may touch.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/victim"), "untouched").unwrap();
        Bench { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn unpack(&self, bytes: &[u8], options: &UnpackOptions) -> Result<Unpacked> {
        let meta = self.put("image", bytes);
        duet_images::unpack(&ImageFiles { meta, rootfs: None }, &self.path("out"), options, &mut Observer::none())
    }

    pub fn unpack_split(&self, meta: &[u8], rootfs: &[u8], options: &UnpackOptions) -> Result<Unpacked> {
        let (meta, rootfs) = (self.put("meta", meta), Some(self.put("rootfs", rootfs)));
        duet_images::unpack(&ImageFiles { meta, rootfs }, &self.path("out"), options, &mut Observer::none())
    }

    /// Nothing is left of a failed unpacking, and nothing outside was touched.
    pub fn assert_clean(&self, what: &str) {
        let names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        for name in names {
            let known = ["outside", "image", "meta", "rootfs"].iter().any(|k| name == *k);
            assert!(known, "{what}: left over: {name:?}");
        }
        let outside: Vec<_> = fs::read_dir(self.path("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside, ["victim"], "{what}");
        let victim = self.path("outside/victim");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched", "{what}");
        assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1, "{what}");
    }
}

/// Options without the wait for the disk.
pub fn quick() -> UnpackOptions {
    UnpackOptions { sync: false, ..UnpackOptions::default() }
}

/// One file of a tree, with everything that an image keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Content of a file, target of a link, numbers of a device.
    pub body: Vec<u8>,
    /// The first name of the same file, when it has several.
    pub same_as: Option<PathBuf>,
}

/// A whole tree by relative path; `whole_seconds` cuts the times, for formats that hold no more.
pub fn tree(top: &Path, whole_seconds: bool) -> BTreeMap<PathBuf, Node> {
    let mut paths = vec![PathBuf::new()];
    let mut at = 0;
    while at < paths.len() {
        let path = top.join(&paths[at]);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                paths.push(paths[at].join(entry.unwrap().file_name()));
            }
        }
        at += 1;
    }
    paths.sort();
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    paths
        .into_iter()
        .map(|relative| {
            let path = top.join(&relative);
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let (kind, body) = if kind.is_dir() {
                ("directory", Vec::new())
            } else if kind.is_symlink() {
                ("link", fs::read_link(&path).unwrap().into_os_string().into_vec())
            } else if kind.is_file() {
                ("file", fs::read(&path).unwrap())
            } else if kind.is_fifo() {
                ("pipe", Vec::new())
            } else if kind.is_char_device() {
                ("char", meta.rdev().to_be_bytes().to_vec())
            } else if kind.is_block_device() {
                ("block", meta.rdev().to_be_bytes().to_vec())
            } else {
                ("socket", Vec::new())
            };
            let mut same_as = None;
            if !meta.is_dir() && meta.nlink() > 1 {
                let id = (meta.dev(), meta.ino());
                match first.get(&id) {
                    Some(name) => same_as = Some(name.clone()),
                    None => drop(first.insert(id, relative.clone())),
                }
            }
            let node = Node {
                kind: kind.to_owned(),
                mode: meta.mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                mtime: (meta.mtime(), if whole_seconds { 0 } else { meta.mtime_nsec() }),
                xattrs: xattrs(&path),
                body,
                same_as,
            };
            (relative, node)
        })
        .collect()
}

pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    names[..length]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
        })
        .collect()
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{path:?} {name}: {e}"));
}

/// File capabilities: `cap_net_raw+ep`, revision 2 (linux/capability.h).
pub const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An ACL: owner rwx, user 1000 r-x, group r-x, mask r-x, others nothing (linux/posix_acl_xattr.h).
pub fn acl() -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    for (tag, permission, id) in
        [(1u16, 7u16, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
    {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permission.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

pub fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

pub fn metadata() -> Metadata {
    Metadata::from_yaml(METADATA.as_bytes()).unwrap()
}
