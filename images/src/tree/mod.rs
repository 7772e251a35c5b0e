//! Writing a file tree from a stranger's description of it.
//!
//! Every entry is created beneath one directory descriptor. Its parent is opened with `openat2` under
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`, so no link that an earlier entry
//! planted is ever followed, and the last component is created with a call that fails when it exists. Nothing is
//! overwritten; a second entry of the same name is an error, except a directory that so far only existed because
//! something in it came first.
//!
//! Directories get their owner, mode, attributes and time at the end: creating children would change their times, and
//! a default ACL set early would be inherited by children that should not have it.
//!
//! What is not kept: `trusted.*` attributes (private to the host's overlayfs), `security.*` other than file
//! capabilities (labels of another host's policy), and sockets. A character device 0/0 is refused: overlayfs would take
//! it for a whiteout.

mod content;
mod xattr;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown,
    linkat, makedev, mkdirat, mknodat, openat, openat2, symlinkat, utimensat,
};
use rustix::io::Errno;

pub(crate) use content::ContentWriter;
pub(crate) use xattr::{is_kept, read_xattrs};

use crate::acl::{self, Acl};
use crate::entry::{Attributes, CleanPath, EntryKind, Xattr, show};
use crate::limits::Limits;
use crate::{ImageError, Result};

/// What a tree was made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Extended attributes that were not kept.
    pub dropped_xattrs: u64,
    /// Sockets that were not kept.
    pub dropped_sockets: u64,
}

/// A tree being written.
pub(crate) struct TreeWriter {
    top: OwnedFd,
    limits: Limits,
    stats: TreeStats,
    /// The directory that the last entry was made in: archives go directory by directory.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that the archive described itself, as against those that were made for what is in them.
    described: HashSet<CleanPath>,
    directories: Vec<(CleanPath, Attributes)>,
    /// ACLs that name users or groups, which only the complete tree can tell: path, pseudo attribute, text.
    named_acls: Vec<(CleanPath, Xattr)>,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl TreeWriter {
    /// Writes beneath `top`, an open directory that should be empty and that nobody else can reach.
    pub(crate) fn new(top: OwnedFd, limits: &Limits) -> TreeWriter {
        TreeWriter {
            top,
            limits: limits.clone(),
            stats: TreeStats::default(),
            parent: None,
            described: HashSet::new(),
            directories: Vec::new(),
            named_acls: Vec::new(),
        }
    }

    /// What was written so far.
    pub(crate) fn stats(&self) -> TreeStats {
        self.stats
    }

    /// Creates a regular file and gives its content's writer; [`TreeWriter::finish_file`] completes it.
    pub(crate) fn create_file(&mut self, path: &CleanPath, size: u64) -> Result<ContentWriter> {
        self.count(path)?;
        if size > self.limits.max_file_size {
            let what = format!("the size of {path:?} ({size} bytes)", path = path.to_string());
            return Err(ImageError::Limit { what, limit: self.limits.max_file_size });
        }
        let (parent, name) = self.parent_of(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(|e| exists(e, "create", path))?;
        Ok(ContentWriter::new(File::from(fd), size))
    }

    /// Completes a regular file: its size, owner, mode, attributes and time.
    pub(crate) fn finish_file(
        &mut self,
        path: &CleanPath,
        content: ContentWriter,
        attributes: &Attributes,
    ) -> Result<()> {
        let file = content.finish().map_err(|e| ImageError::entry("write", path.to_string(), e))?;
        self.dress(file.as_fd(), path, attributes, false)
    }

    /// Counts content against the limit before it is written.
    pub(crate) fn count_bytes(&mut self, bytes: u64) -> Result<()> {
        self.stats.bytes += bytes;
        if self.stats.bytes > self.limits.max_bytes {
            return Err(ImageError::Limit { what: "the size of its files".into(), limit: self.limits.max_bytes });
        }
        Ok(())
    }

    /// Creates anything that has no content of its own. For a hard link, `target` is its cleaned target.
    pub(crate) fn create(
        &mut self,
        path: &CleanPath,
        kind: &EntryKind,
        target: Option<&CleanPath>,
        attributes: &Attributes,
    ) -> Result<()> {
        match kind {
            EntryKind::Directory => self.directory(path, attributes),
            EntryKind::Symlink(text) => self.symlink(path, text, attributes),
            EntryKind::HardLink(raw) => match target {
                Some(target) => self.hard_link(path, target),
                None => Err(ImageError::refused(
                    path.to_string(),
                    format!("it is a hard link to {:?}, outside of the tree", show(raw)),
                )),
            },
            EntryKind::CharDevice { major: 0, minor: 0 } => Err(ImageError::refused(
                path.to_string(),
                "the character device 0/0 would be taken for an overlay whiteout",
            )),
            EntryKind::CharDevice { major, minor } => {
                self.node(path, FileType::CharacterDevice, makedev(*major, *minor), attributes)
            }
            EntryKind::BlockDevice { major, minor } => {
                self.node(path, FileType::BlockDevice, makedev(*major, *minor), attributes)
            }
            EntryKind::Fifo => self.node(path, FileType::Fifo, 0, attributes),
            EntryKind::Socket => {
                self.count(path)?;
                self.stats.dropped_sockets += 1;
                Ok(())
            }
            EntryKind::File => Err(ImageError::Damaged(format!("{:?} has no content", path.to_string()))),
        }
    }

    /// Gives all directories their owner, mode, attributes and time. The tree is complete after this.
    pub(crate) fn finish(mut self) -> Result<TreeStats> {
        self.parent = None;
        for (path, attributes) in std::mem::take(&mut self.directories) {
            let name: &[u8] = if path.is_top() { b"." } else { path.as_bytes() };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat2(&self.top, name, flags, Mode::empty(), BENEATH)
                .map_err(|e| ImageError::entry("open", path.to_string(), e))?;
            self.dress(fd.as_fd(), &path, &attributes, true)?;
        }
        self.resolve_acls()?;
        Ok(self.stats)
    }

    /// Sets the ACLs that name users and groups, by the tree's own `/etc/passwd` and `/etc/group`. One that names
    /// somebody unknown is not kept.
    fn resolve_acls(&mut self) -> Result<()> {
        if self.named_acls.is_empty() {
            return Ok(());
        }
        let (passwd, group) = (self.read_small(b"etc/passwd"), self.read_small(b"etc/group"));
        for (path, (key, text)) in std::mem::take(&mut self.named_acls) {
            let Some(value) = Acl::parse(&text).ok().and_then(|acl| acl.to_value(&passwd, &group)) else {
                self.stats.dropped_xattrs += 1;
                continue;
            };
            let name: &[u8] = if path.is_top() { b"." } else { path.as_bytes() };
            let fail = |e| ImageError::entry("set the ACL of", path.to_string(), e);
            let fd =
                openat2(&self.top, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), BENEATH)
                    .map_err(fail)?;
            xattr::set_by_path_fd(fd.as_fd(), acl::attribute(&key), &value).map_err(fail)?;
        }
        Ok(())
    }

    /// A small text file of the tree; empty when there is none.
    fn read_small(&self, name: &[u8]) -> String {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut text = String::new();
        if let Ok(fd) = openat2(&self.top, name, flags, Mode::empty(), BENEATH) {
            // Unreadable or not UTF-8: then no name is known.
            let _ = File::from(fd).take(1 << 20).read_to_string(&mut text);
        }
        text
    }

    fn directory(&mut self, path: &CleanPath, attributes: &Attributes) -> Result<()> {
        self.count(path)?;
        if !self.described.insert(path.clone()) {
            return Err(duplicate(path));
        }
        if !path.is_top() {
            let (parent, name) = self.parent_of(path)?;
            match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                // Made earlier for what is in it, unless it is no directory.
                Err(Errno::EXIST) if is_directory(parent, name) => {}
                Err(e) => return Err(exists(e, "create", path)),
            }
        }
        self.directories.push((path.clone(), attributes.clone()));
        Ok(())
    }

    fn symlink(&mut self, path: &CleanPath, text: &[u8], attributes: &Attributes) -> Result<()> {
        self.count(path)?;
        let (parent, name) = self.parent_of(path)?;
        symlinkat(text, parent, name).map_err(|e| exists(e, "create", path))?;
        self.dress_at(path, attributes, true)
    }

    fn hard_link(&mut self, path: &CleanPath, target: &CleanPath) -> Result<()> {
        self.count(path)?;
        if target.is_top() {
            return Err(ImageError::refused(path.to_string(), "it is a hard link to a directory"));
        }
        let (target_parent, target_name) = target.split();
        let from = open_directory(&self.top, target_parent).map_err(|e| {
            ImageError::refused(
                path.to_string(),
                format!("it is a hard link to {:?}, whose folder {}", target.to_string(), parent_problem(e)),
            )
        })?;
        let (parent, name) = self.parent_of(path)?;
        linkat(&from, target_name, parent, name, AtFlags::empty()).map_err(|e| match e {
            Errno::NOENT => ImageError::refused(
                path.to_string(),
                format!("it is a hard link to {:?}, which no earlier entry made", target.to_string()),
            ),
            Errno::PERM => ImageError::refused(
                path.to_string(),
                format!("it is a hard link to {:?}, which is a directory", target.to_string()),
            ),
            e => exists(e, "link", path),
        })
    }

    fn node(&mut self, path: &CleanPath, kind: FileType, device: u64, attributes: &Attributes) -> Result<()> {
        self.count(path)?;
        let (parent, name) = self.parent_of(path)?;
        mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device).map_err(|e| exists(e, "create", path))?;
        self.dress_at(path, attributes, false)
    }

    /// Owner, mode, attributes and time of an open file or directory, in the order in which none undoes another: a
    /// change of owner clears setuid bits and capabilities, and an ACL has the last word on the group's permissions.
    fn dress(&mut self, fd: BorrowedFd<'_>, path: &CleanPath, attributes: &Attributes, directory: bool) -> Result<()> {
        let fail = |action| move |e: Errno| ImageError::entry(action, path.to_string(), e);
        fchown(fd, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
            .map_err(fail("change the owner of"))?;
        fchmod(fd, Mode::from_raw_mode(attributes.mode)).map_err(fail("change the mode of"))?;
        self.stats.dropped_xattrs +=
            xattr::set_on_file(fd, attributes, directory).map_err(fail("set the attributes of"))?;
        self.remember_acls(path, attributes, directory);
        rustix::fs::futimens(fd, &times(attributes)).map_err(fail("set the time of"))
    }

    /// The same for what must not be opened: links, devices, pipes.
    fn dress_at(&mut self, path: &CleanPath, attributes: &Attributes, link: bool) -> Result<()> {
        let fail = |action| move |e: Errno| ImageError::entry(action, path.to_string(), e);
        let (parent, name) = self.parent_of(path)?;
        chownat(
            parent,
            name,
            Some(Uid::from_raw(attributes.uid)),
            Some(Gid::from_raw(attributes.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(fail("change the owner of"))?;
        if !link {
            // There is no `AT_SYMLINK_NOFOLLOW` here before Linux 6.6; the name is the node that was just made, and
            // nobody else can reach the tree.
            chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())
                .map_err(fail("change the mode of"))?;
        }
        let dropped = xattr::set_on_node(parent, name, attributes, link).map_err(fail("set the attributes of"))?;
        utimensat(parent, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("set the time of"))?;
        self.stats.dropped_xattrs += dropped;
        if !link {
            self.remember_acls(path, attributes, false);
        }
        Ok(())
    }

    fn remember_acls(&mut self, path: &CleanPath, attributes: &Attributes, directory: bool) {
        for (key, text) in &attributes.xattrs {
            if key == acl::ACCESS_TEXT || (directory && key == acl::DEFAULT_TEXT) {
                self.named_acls.push((path.clone(), (key.clone(), text.clone())));
            }
        }
    }

    fn count(&mut self, path: &CleanPath) -> Result<()> {
        self.stats.entries += 1;
        if self.stats.entries > self.limits.max_entries {
            let what = format!("the number of its entries (at {:?})", path.to_string());
            return Err(ImageError::Limit { what, limit: self.limits.max_entries });
        }
        Ok(())
    }

    /// The open directory that an entry belongs in, made if need be, and the entry's name in it.
    fn parent_of<'a>(&'a mut self, path: &'a CleanPath) -> Result<(BorrowedFd<'a>, &'a [u8])> {
        let (directory, name) = path.split();
        if name.is_empty() {
            return Err(ImageError::refused(".", "the top can only be a directory"));
        }
        if self.parent.as_ref().is_none_or(|(cached, _)| cached != directory) {
            let fd = match open_directory(&self.top, directory) {
                Err(Errno::NOENT) => self.make_directories(directory, path)?,
                other => other.map_err(|e| match e {
                    Errno::LOOP | Errno::NOTDIR | Errno::XDEV => ImageError::refused(
                        path.to_string(),
                        format!("the folder {:?} that it is in {}", show(directory), parent_problem(e)),
                    ),
                    e => ImageError::entry("open the folder of", path.to_string(), e),
                })?,
            };
            self.parent = Some((directory.to_vec(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok((fd.as_fd(), name)),
            None => Ok((self.top.as_fd(), name)),
        }
    }

    /// Makes the directories of a path one by one, never through a link.
    fn make_directories(&mut self, directory: &[u8], path: &CleanPath) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fail = |e| exists(e, "create the folder of", path);
        let mut fd = openat(&self.top, ".", flags, Mode::empty()).map_err(fail)?;
        for part in directory.split(|b| *b == b'/') {
            match mkdirat(&fd, part, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    self.stats.entries += 1;
                    chmodat(&fd, part, Mode::from_raw_mode(0o755), AtFlags::empty()).map_err(fail)?; // past the umask
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(fail(e)),
            }
            fd = openat(&fd, part, flags, Mode::empty()).map_err(|e| {
                ImageError::refused(
                    path.to_string(),
                    format!("the folder {:?} that it is in {}", show(directory), parent_problem(e)),
                )
            })?;
        }
        Ok(fd)
    }
}

fn open_directory(top: &OwnedFd, directory: &[u8]) -> rustix::io::Result<OwnedFd> {
    let name: &[u8] = if directory.is_empty() { b"." } else { directory };
    // No O_NOFOLLOW: with it a link at the end would be told as "not a directory".
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(top, name, flags, Mode::empty(), BENEATH)
}

fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode).is_dir())
}

fn times(attributes: &Attributes) -> Timestamps {
    let stamp = Timespec { tv_sec: attributes.mtime.seconds, tv_nsec: attributes.mtime.nanoseconds.into() };
    Timestamps { last_access: stamp, last_modification: stamp }
}

fn parent_problem(error: Errno) -> String {
    match error {
        Errno::LOOP => "is or passes a symbolic link".into(),
        Errno::NOTDIR => "is a file or a symbolic link, not a directory".into(),
        Errno::XDEV => "is on another file system".into(),
        e => format!("cannot be used ({e})"),
    }
}

fn duplicate(path: &CleanPath) -> ImageError {
    ImageError::refused(path.to_string(), "an earlier entry has the same name")
}

fn exists(error: Errno, action: &'static str, path: &CleanPath) -> ImageError {
    match error {
        Errno::EXIST => duplicate(path),
        e => ImageError::entry(action, path.to_string(), e),
    }
}
