//! From a folder to image files.
//!
//! Everything that unpacking keeps is written: owners as numbers, modes, times to the nanosecond, extended attributes
//! and ACLs as `SCHILY.xattr.*`, devices, pipes, hard links (found by device and inode number), holes. Names are in
//! byte order, so the same tree gives the same file. What cannot be in an image is left out: sockets, and the attributes
//! that unpacking would drop.
//!
//! The tree is read beneath a directory descriptor, never following a link. It should be at rest: a file that changes
//! its size while it is read is an error.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, major, minor, openat, readlinkat, seek, statat,
};
use rustix::io::Errno;

use crate::compress::{Compress, Compressor};
use crate::entry::{Attributes, CleanPath, EntryKind, Timestamp};
use crate::fingerprint::HashingWriter;
use crate::limits::Limits;
use crate::metadata::{Metadata, is_template_name};
use crate::observe::{Observer, Phase};
use crate::tar::{Segment, TarWriter};
use crate::tree::read_xattrs;
use crate::{ImageError, Result};

/// What an image is made of.
#[derive(Debug)]
pub struct PackSource<'a> {
    /// The root file system: an open directory, best of a read-only mount. Ids are taken as they are seen.
    pub rootfs: BorrowedFd<'a>,
    /// What the image says about itself.
    pub metadata: &'a Metadata,
    /// The templates by file name.
    pub templates: &'a BTreeMap<String, Vec<u8>>,
}

/// An image that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The image's fingerprint.
    pub fingerprint: String,
    /// Size of the file or files, in bytes.
    pub size: u64,
    /// Bytes of file content that went in.
    pub content: u64,
    /// Entries of the root file system.
    pub entries: u64,
}

/// Packs a unified tarball: `metadata.yaml`, `templates/`, `rootfs/`.
///
/// # Errors
/// [`ImageError::Write`] when `out` fails, [`ImageError::Entry`] when the tree cannot be read, and
/// [`ImageError::Refused`] for what no image can hold. What was written to `out` is worthless then.
pub fn pack<W: Write>(
    source: &PackSource<'_>,
    out: W,
    compress: Compress,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let mut archive = Archive::start(HashingWriter::new(out), compress)?;
    archive.metadata(source)?;
    let (content, entries) = archive.rootfs(source.rootfs, "rootfs", observer)?;
    let out = archive.finish()?;
    let size = out.written();
    let (_, fingerprint) = out.finish().map_err(ImageError::Write)?;
    Ok(Packed { fingerprint, size, content, entries })
}

/// Packs a split image: a tarball of the metadata and one of the root file system.
///
/// # Errors
/// As [`pack`].
pub fn pack_split<M: Write, R: Write>(
    source: &PackSource<'_>,
    meta: M,
    rootfs: R,
    compress: Compress,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let mut archive = Archive::start(HashingWriter::new(meta), compress)?;
    archive.metadata(source)?;
    let (_, out) = archive.finish()?.continue_with(rootfs).map_err(ImageError::Write)?;
    let mut archive = Archive::start(out, compress)?;
    let (content, entries) = archive.rootfs(source.rootfs, ".", observer)?;
    let out = archive.finish()?;
    let size = out.written();
    let (_, fingerprint) = out.finish().map_err(ImageError::Write)?;
    Ok(Packed { fingerprint, size, content, entries })
}

/// Reads the templates of an unpacked image: the regular files of a `templates` folder.
///
/// # Errors
/// When the folder cannot be read, or its files are more than the limit. A folder that does not exist has none.
pub fn read_templates(folder: &std::path::Path, limits: &Limits) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut templates = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(templates),
        Err(e) => return Err(ImageError::file("read", folder, e)),
    };
    let mut left = limits.max_templates;
    for entry in entries {
        let entry = entry.map_err(|e| ImageError::file("read", folder, e))?;
        let path = entry.path();
        let meta = entry.metadata().map_err(|e| ImageError::file("examine", &path, e))?; // of the entry, not a link's target
        let Some(name) = entry.file_name().to_str().filter(|n| is_template_name(n)).map(str::to_owned) else {
            continue;
        };
        if !meta.is_file() {
            continue;
        }
        left = left
            .checked_sub(meta.len())
            .ok_or(ImageError::Limit { what: "the size of its templates".into(), limit: limits.max_templates })?;
        templates.insert(name, std::fs::read(&path).map_err(|e| ImageError::file("read", &path, e))?);
    }
    Ok(templates)
}

/// Size of the pieces in which files are read.
const PIECE: usize = 1 << 20;
/// A file is written with its holes when they save at least this much.
const WORTHWHILE: u64 = 64 << 10;
/// More runs than this are not worth a map.
const MOST_RUNS: usize = 16 << 10;

struct Archive<W: Write> {
    tar: TarWriter<Compressor<HashingWriter<W>>>,
    buffer: Vec<u8>,
    limits: Limits,
    /// First name of each file that has several, by device and inode number.
    links: HashMap<(u64, u64), Vec<u8>>,
    content: u64,
    entries: u64,
}

impl<W: Write> Archive<W> {
    fn start(out: HashingWriter<W>, compress: Compress) -> Result<Archive<W>> {
        Ok(Archive {
            tar: TarWriter::new(Compressor::new(out, compress).map_err(ImageError::Write)?),
            buffer: vec![0; PIECE],
            limits: Limits::default(),
            links: HashMap::new(),
            content: 0,
            entries: 0,
        })
    }

    fn metadata(&mut self, source: &PackSource<'_>) -> Result<()> {
        let yaml = source.metadata.to_yaml()?;
        let mtime = Timestamp { seconds: source.metadata.creation_date, nanoseconds: 0 };
        let file = Attributes { mode: 0o644, mtime, ..Attributes::default() };
        let directory = Attributes { mode: 0o755, ..file.clone() };
        self.small_file(b"metadata.yaml", yaml.as_bytes(), &file)?;
        self.tar.entry(b"templates/", &EntryKind::Directory, &directory).map_err(ImageError::Write)?;
        for (name, text) in source.templates {
            if !is_template_name(name) {
                return Err(ImageError::refused(name, "a template is a plain file right under templates"));
            }
            self.small_file(format!("templates/{name}").as_bytes(), text, &file)?;
        }
        Ok(())
    }

    fn small_file(&mut self, name: &[u8], bytes: &[u8], attributes: &Attributes) -> Result<()> {
        let written = self
            .tar
            .file(name, attributes, bytes.len() as u64, None)
            .and_then(|()| if bytes.is_empty() { Ok(()) } else { self.tar.data(bytes) });
        written.map_err(ImageError::Write)
    }

    /// Packs the tree; returns bytes of content and number of entries.
    fn rootfs(&mut self, top: BorrowedFd<'_>, prefix: &str, observer: &mut Observer<'_>) -> Result<(u64, u64)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(top, ".", flags, Mode::empty()).map_err(|e| ImageError::entry("open", prefix, e))?;
        let stat = fstat(&fd).map_err(|e| ImageError::entry("examine", prefix, e))?;
        self.directory(fd, prefix.as_bytes(), &stat, observer)?;
        observer.report(Phase::Packing, self.content, None, "");
        Ok((self.content, self.entries))
    }

    fn finish(self) -> Result<HashingWriter<W>> {
        self.tar.finish().and_then(Compressor::finish).map_err(ImageError::Write)
    }

    fn directory(&mut self, fd: OwnedFd, path: &[u8], stat: &Stat, observer: &mut Observer<'_>) -> Result<()> {
        let shown = || crate::entry::show(path);
        // The same bounds as for unpacking: what is packed can be unpacked again.
        CleanPath::parse(path, &self.limits)?;
        let attributes = attributes(fd.as_fd(), stat, path, true)?;
        self.count(observer)?;
        self.tar.entry(&[path, b"/"].concat(), &EntryKind::Directory, &attributes).map_err(ImageError::Write)?;
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
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail("examine"))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(parent, name, flags, Mode::empty()).map_err(fail("open"))?;
                return self.directory(fd, path, &stat, observer);
            }
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => {
                EntryKind::Symlink(readlinkat(parent, name, Vec::new()).map_err(fail("read"))?.into_bytes())
            }
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
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let kind = EntryKind::HardLink(first.clone());
                let bare = Attributes { mode: stat.st_mode & 0o7777, ..Attributes::default() };
                return self.tar.entry(path, &kind, &bare).map_err(ImageError::Write);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        if kind == EntryKind::File {
            return self.file(parent, name, path, &stat, observer);
        }
        let node = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(fail("open"))?;
        let attributes = attributes(node.as_fd(), &stat, path, false)?;
        self.tar.entry(path, &kind, &attributes).map_err(ImageError::Write)
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
        let fd = openat(parent, name, flags, Mode::empty()).map_err(fail("open"))?;
        let stat = fstat(&fd).map_err(fail("examine"))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file()
            || (stat.st_dev, stat.st_ino) != (before.st_dev, before.st_ino)
        {
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
        self.tar.file(path, &attributes, size, map.as_deref()).map_err(ImageError::Write)?;
        let whole = [Segment { offset: 0, length: size }];
        let file = File::from(fd);
        for segment in map.as_deref().unwrap_or(&whole) {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let n = match file.read_at(&mut self.buffer[..most], at) {
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
        let end = seek(fd, SeekFrom::Hole(start))?.min(size);
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
