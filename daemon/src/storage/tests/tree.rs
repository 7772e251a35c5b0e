//! A tree as a value, to be compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything that is visible of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
    Fifo,
    Socket,
    Device(u64),
}

/// Path (the root's is empty) to entry.
pub(super) type Tree = BTreeMap<PathBuf, Node>;

/// Reads a whole tree. Not for hostile ones.
pub(super) fn capture(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        // The empty path would be the /proc link itself.
        let full = if path.as_os_str().is_empty() { root.join(".") } else { root.join(&path) };
        let node = capture_entry(&full);
        if node.kind == Kind::Directory {
            pending.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        tree.insert(path, node);
    }
    tree
}

fn capture_entry(path: &Path) -> Node {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = match meta.file_type() {
        t if t.is_dir() => Kind::Directory,
        t if t.is_file() => Kind::File(fs::read(path).unwrap()),
        t if t.is_symlink() => Kind::Link(fs::read_link(path).unwrap()),
        t if t.is_fifo() => Kind::Fifo,
        t if t.is_socket() => Kind::Socket,
        _ => Kind::Device(meta.rdev()),
    };
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    let xattrs = names.map(|name| {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), value[..len].to_vec())
    });
    Node {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        xattrs: xattrs.collect(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
    }
}
