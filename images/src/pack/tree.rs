//! From a folder to a tar archive of it.
//!
//! Everything that unpacking keeps is written: owners as numbers, modes, times to the nanosecond, extended attributes
//! and ACLs as `SCHILY.xattr.*`, devices, pipes, hard links (found by device and inode number), holes. Names are in
//! byte order, so the same tree gives the same file. What cannot be in an image is left out: sockets, and the attributes
//! that unpacking would drop.
//!
//! The tree is read beneath a directory descriptor, never following a link. Of one that is in use, each file is as it was
//! at some moment: what vanishes before it is opened is left out, and what is shortened while it is read ends in zeros, as
//! GNU tar has it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, major, minor, openat, readlinkat, seek, statat,
};
use rustix::io::Errno;

use crate::entry::{Attributes, CleanPath, EntryKind, Timestamp};
use crate::limits::Limits;
use crate::observe::{Observer, Phase};
use crate::tar::{Segment, TarWriter};
use crate::tree::read_xattrs;
use crate::{ImageError, Result};

/// How to pack a tree.
#[derive(Debug, Clone, Copy)]
pub struct TreeOptions<'a> {
    /// What stands before each name, without a slash at its end.
    pub prefix: &'a str,
    /// The tree may change meanwhile. One at rest does not, and a file that changes its size is an error.
    pub in_use: bool,
    /// Directories right below the top whose content is left out.
    pub left_empty: &'a [&'a str],
}

/// A tree that was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedTree {
    /// Bytes of file content.
    pub content: u64,
    /// Number of entries.
    pub entries: u64,
}

/// Packs a tree as a plain tar archive. Its end mark is only written if all went well.
///
/// # Errors
/// As [`crate::pack()`].
pub fn pack_tree<W: Write>(
    top: BorrowedFd<'_>,
    options: &TreeOptions<'_>,
    out: W,
    observer: &mut Observer<'_>,
) -> Result<PackedTree> {
    let mut tar = TarWriter::new(out);
    let packed = add_tree(top, options, &mut tar, observer)?;
    tar.finish().and_then(|mut out| out.flush()).map_err(ImageError::Write)?;
    Ok(packed)
}

/// Packs a tree into an archive that has, or gets, other entries.
pub(super) fn add_tree<W: Write>(
    top: BorrowedFd<'_>,
    options: &TreeOptions<'_>,
    tar: &mut TarWriter<W>,
    observer: &mut Observer<'_>,
) -> Result<PackedTree> {
    let mut work = Packing {
        tar,
        options: *options,
        buffer: vec![0; PIECE],
        limits: Limits::default(),
        links: HashMap::new(),
        content: 0,
        entries: 0,
    };
    let prefix = options.prefix;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(top, ".", flags, Mode::empty()).map_err(|e| ImageError::entry("open", prefix, e))?;
    let stat = fstat(&fd).map_err(|e| ImageError::entry("examine", prefix, e))?;
    work.directory(fd, prefix.as_bytes(), &stat, observer)?;
    observer.report(Phase::Packing, work.content, None, "");
    Ok(PackedTree { content: work.content, entries: work.entries })
}

/// Size of the pieces in which files are read.
const PIECE: usize = 1 << 20;
/// A file is written with its holes when they save at least this much.
const WORTHWHILE: u64 = 64 << 10;
/// More runs than this are not worth a map.
const MOST_RUNS: usize = 16 << 10;

struct Packing<'a, W: Write> {
    tar: &'a mut TarWriter<W>,
    options: TreeOptions<'a>,
    buffer: Vec<u8>,
    limits: Limits,
    /// First name of each file that has several, by device and inode number.
    links: HashMap<(u64, u64), Vec<u8>>,
    content: u64,
    entries: u64,
}

impl<W: Write> Packing<'_, W> {
    fn directory(&mut self, fd: OwnedFd, path: &[u8], stat: &Stat, observer: &mut Observer<'_>) -> Result<()> {
        let shown = || crate::entry::show(path);
        // The same bounds as for unpacking: what is packed can be unpacked again.
        CleanPath::parse(path, &self.limits)?;
        let attributes = attributes(fd.as_fd(), stat, path, true)?;
        self.count(observer)?;
        self.tar.entry(&[path, b"/"].concat(), &EntryKind::Directory, &attributes).map_err(ImageError::Write)?;
        let below = path.strip_prefix(self.options.prefix.as_bytes()).and_then(|path| path.strip_prefix(b"/"));
        if below.is_some_and(|name| self.options.left_empty.iter().any(|empty| empty.as_bytes() == name)) {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(|e| ImageError::entry("read", shown(), e))? {
            let entry = entry.map_err(|e| ImageError::entry("read", shown(), e))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        for name in names {
            let child = [path, b"/", name.as_slice()].concat();
            self.child(fd.as_fd(), &name, &child, observer)?;
        }
        Ok(())
    }

    fn child(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], observer: &mut Observer<'_>) -> Result<()> {
        let fail = |action| move |e: Errno| ImageError::entry(action, crate::entry::show(path), e);
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(e) if self.is_gone(e) => return Ok(()),
            stat => stat.map_err(fail("examine"))?,
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return match openat(parent, name, flags, Mode::empty()) {
                    Err(e) if self.is_gone(e) => Ok(()),
                    fd => self.directory(fd.map_err(fail("open"))?, path, &stat, observer),
                };
            }
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => match readlinkat(parent, name, Vec::new()) {
                Err(e) if self.is_gone(e) => return Ok(()),
                target => EntryKind::Symlink(target.map_err(fail("read"))?.into_bytes()),
            },
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => {
                EntryKind::CharDevice { major: major(stat.st_rdev), minor: minor(stat.st_rdev) }
            }
            FileType::BlockDevice => EntryKind::BlockDevice { major: major(stat.st_rdev), minor: minor(stat.st_rdev) },
            // A socket means nothing without its process.
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        if kind == (EntryKind::CharDevice { major: 0, minor: 0 }) {
            return Err(ImageError::refused(
                crate::entry::show(path),
                "the character device 0/0 is an overlay whiteout",
            ));
        }
        CleanPath::parse(path, &self.limits)?;
        self.count(observer)?;
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            let kind = EntryKind::HardLink(first.clone());
            let bare = Attributes { mode: stat.st_mode & 0o7777, ..Attributes::default() };
            return self.tar.entry(path, &kind, &bare).map_err(ImageError::Write);
        }
        if kind == EntryKind::File {
            return self.file(parent, name, path, &stat, observer);
        }
        let node = match openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(e) if self.is_gone(e) => return Ok(()),
            node => node.map_err(fail("open"))?,
        };
        let attributes = attributes(node.as_fd(), &stat, path, false)?;
        self.remember(&stat, path);
        self.tar.entry(path, &kind, &attributes).map_err(ImageError::Write)
    }

    /// Whether an error says that a file is no longer there, or another kind of file, and that is to be expected
    /// (open(2): `ENXIO` and `ELOOP` are a socket and a link).
    fn is_gone(&self, error: Errno) -> bool {
        let gone = matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::LOOP | Errno::NXIO);
        self.options.in_use && gone
    }

    /// Keeps the name of a file that has others.
    fn remember(&mut self, stat: &Stat, path: &[u8]) {
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        before: &Stat,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let fail = |action| move |e: Errno| ImageError::entry(action, crate::entry::show(path), e);
        // Not blocking: should the file have become a pipe since it was looked at.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match openat(parent, name, flags, Mode::empty()) {
            Err(e) if self.is_gone(e) => return Ok(()),
            fd => fd.map_err(fail("open"))?,
        };
        let stat = fstat(&fd).map_err(fail("examine"))?;
        let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
        if self.options.in_use && !is_file {
            return Ok(());
        }
        let same = (stat.st_dev, stat.st_ino) == (before.st_dev, before.st_ino);
        if !is_file || !(same || self.options.in_use) {
            return Err(ImageError::entry(
                "read",
                crate::entry::show(path),
                io::Error::other("it was replaced while it was read"),
            ));
        }
        let size = u64::try_from(stat.st_size)
            .map_err(|_| ImageError::entry("read", crate::entry::show(path), Errno::OVERFLOW))?;
        let attributes = attributes(fd.as_fd(), &stat, path, false)?;
        let map = holes(&fd, size, &stat).map_err(fail("find the holes of"))?;
        self.remember(&stat, path);
        self.tar.file(path, &attributes, size, map.as_deref()).map_err(ImageError::Write)?;
        let whole = [Segment { offset: 0, length: size }];
        let file = File::from(fd);
        for segment in map.as_deref().unwrap_or(&whole) {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let n = match file.read_at(&mut self.buffer[..most], at) {
                    Ok(0) if self.options.in_use => {
                        self.buffer[..most].fill(0);
                        Ok(most)
                    }
                    Ok(0) => Err(io::Error::other("it shrank while it was read")),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    other => other,
                };
                let n = n.map_err(|e| ImageError::entry("read", crate::entry::show(path), e))?;
                self.tar.data(&self.buffer[..n]).map_err(ImageError::Write)?;
                at += n as u64;
                self.content += n as u64;
                observer.check()?;
                observer.report(Phase::Packing, self.content, None, "");
            }
        }
        Ok(())
    }

    fn count(&mut self, observer: &mut Observer<'_>) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(ImageError::Limit { what: "the number of its entries".into(), limit: self.limits.max_entries });
        }
        if self.entries.is_multiple_of(256) {
            observer.check()?;
            observer.report(Phase::Packing, self.content, None, "");
        }
        Ok(())
    }
}

fn attributes(fd: BorrowedFd<'_>, stat: &Stat, path: &[u8], directory: bool) -> Result<Attributes> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let xattrs = read_xattrs(fd, kind.is_file(), directory, kind.is_symlink())
        .map_err(|e| ImageError::entry("read the attributes of", crate::entry::show(path), e))?;
    Ok(Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        xattrs,
    })
}

/// The runs of data of a file whose holes are worth a map.
fn holes(fd: &OwnedFd, size: u64, stat: &Stat) -> rustix::io::Result<Option<Vec<Segment>>> {
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if size.saturating_sub(allocated) < WORTHWHILE {
        return Ok(None);
    }
    let mut runs = Vec::new();
    let (mut at, mut data) = (0, 0);
    while at < size {
        let start = match seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // a hole up to the end
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = match seek(fd, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => return Ok(None), // shortened since
            Err(e) => return Err(e),
        };
        if start >= end {
            break;
        }
        runs.push(Segment { offset: start, length: end - start });
        data += end - start;
        at = end;
        if runs.len() > MOST_RUNS {
            return Ok(None);
        }
    }
    if size - data < WORTHWHILE {
        return Ok(None);
    }
    // GNU tar ends the map with an empty run, by which it knows the size.
    runs.push(Segment { offset: size, length: 0 });
    Ok(Some(runs))
}
