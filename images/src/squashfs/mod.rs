//! Reading squashfs 4.0, the usual form of a split image's root file system.
//!
//! Read here rather than by a tool or a crate: the `backhand` crate knows neither extended attributes nor hard links,
//! without which file capabilities are lost; `unsquashfs` decides for itself, as root, what it creates where; and
//! mounting a stranger's file system would hand its bytes to the kernel. So the format's tables are parsed from bounded
//! reads, and everything is created through the same [`TreeWriter`] as a tarball's entries.
//!
//! Layout and numbers: Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h of the Linux kernel.
//!
//! - `layout`: the superblock and the pieces of inodes, as values.
//! - `blocks`: reading and decompressing metadata and data blocks, with a small cache.
//! - `tables`: ids, fragments and extended attributes.

mod blocks;
mod inode;
mod layout;
mod tables;

use std::collections::{HashMap, HashSet};
use std::fs::File;

use blocks::{Blocks, Cursor};
use inode::{Body, Inode};
use layout::MetaRef;
use tables::Tables;

use crate::entry::{Attributes, CleanPath, EntryKind, show};
use crate::limits::Limits;
use crate::tree::TreeWriter;
use crate::{ImageError, Result};

pub use blocks::ReadAt;

/// Called now and then with inodes done and inodes in all; an error stops the work.
pub(crate) type Report<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Writes a squashfs' tree.
///
/// # Errors
/// [`ImageError::Damaged`], [`ImageError::Truncated`], [`ImageError::Refused`], [`ImageError::Limit`] as the bytes are,
/// and what the tree or `report` return.
pub(crate) fn unpack(file: &File, tree: &mut TreeWriter, limits: &Limits, report: &mut Report<'_>) -> Result<()> {
    let length = file.metadata().map_err(ImageError::Read)?.len();
    let blocks = Blocks::open(file, length)?;
    let tables = Tables::read(&blocks, limits)?;
    let total = blocks.superblock().inodes.into();
    let mut walk = Walk {
        blocks,
        tables,
        tree,
        limits,
        length,
        links: HashMap::new(),
        seen: HashSet::new(),
        fragment: None,
        report,
        done: 0,
        total,
    };
    walk.run()
}

struct Walk<'a, 'r, S> {
    blocks: Blocks<S>,
    tables: Tables,
    tree: &'a mut TreeWriter,
    limits: &'a Limits,
    length: u64,
    /// The first name of each inode that has several.
    links: HashMap<MetaRef, CleanPath>,
    /// Directories visited: a second way into one would be a loop or a bomb.
    seen: HashSet<MetaRef>,
    /// The fragment block used last, with its number.
    fragment: Option<(u32, Vec<u8>)>,
    report: &'a mut Report<'r>,
    /// Inodes done and inodes in all, for progress only.
    done: u64,
    total: u64,
}

impl<S: ReadAt> Walk<'_, '_, S> {
    fn run(&mut self) -> Result<()> {
        let top = CleanPath::parse(b".", self.limits)?;
        let mut todo = vec![(top, self.blocks.superblock().root)];
        while let Some((path, at)) = todo.pop() {
            if !self.seen.insert(at) {
                return Err(ImageError::refused(
                    path.to_string(),
                    "it is a directory that is also elsewhere in the tree",
                ));
            }
            let (inode, _) = self.inode(at, &path)?;
            let Body::Directory { block, offset, size } = inode.body else {
                return Err(ImageError::Damaged(format!("{:?} should be a directory", path.to_string())));
            };
            let attributes = self.attributes(&inode, &path)?;
            self.tree.create(&path, &EntryKind::Directory, None, &attributes)?;
            for (name, child) in self.directory(block, offset, size, &path)? {
                if self.done.is_multiple_of(256) {
                    self.tell()?;
                }
                self.done += 1;
                let child_path = self.child_path(&path, &name)?;
                if self.entry(&child_path, child)? {
                    todo.push((child_path, child));
                }
            }
        }
        self.done = self.total;
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        (self.report)(self.done.min(self.total), self.total)
    }

    /// Creates one entry; true when it is a directory, which is visited later.
    fn entry(&mut self, path: &CleanPath, at: MetaRef) -> Result<bool> {
        let (inode, cursor) = self.inode(at, path)?;
        if matches!(inode.body, Body::Directory { .. }) {
            return Ok(true);
        }
        if inode.links > 1 {
            if let Some(first) = self.links.get(&at) {
                let first = first.clone();
                let kind = EntryKind::HardLink(first.as_bytes().to_vec());
                self.tree.create(path, &kind, Some(&first), &Attributes::default())?;
                return Ok(false);
            }
            self.links.insert(at, path.clone());
        }
        let attributes = self.attributes(&inode, path)?;
        let kind = match inode.body {
            Body::Directory { .. } => return Ok(true),
            Body::File { .. } => {
                self.file(path, &inode, cursor, &attributes)?;
                return Ok(false);
            }
            Body::Symlink { target } => EntryKind::Symlink(target),
            Body::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
            Body::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
            Body::Fifo => EntryKind::Fifo,
            Body::Socket => EntryKind::Socket,
        };
        self.tree.create(path, &kind, None, &attributes)?;
        Ok(false)
    }

    /// Writes a regular file: its blocks, whose sizes follow the inode, then its end, which may be in a fragment.
    fn file(&mut self, path: &CleanPath, inode: &Inode, mut sizes: Cursor, attributes: &Attributes) -> Result<()> {
        let Body::File { start, size, fragment } = inode.body else { return Ok(()) };
        let name = path.to_string();
        let mut content = self.tree.create_file(path, size)?;
        let block_size = u64::from(self.blocks.superblock().block_size);
        let whole = if fragment.is_some() { size / block_size } else { size.div_ceil(block_size) };
        let mut position = start;
        for index in 0..whole {
            if index % 64 == 63 {
                self.tell()?;
            }
            let expected = block_size.min(size - index * block_size);
            let word = sizes.u32(&mut self.blocks, &name)?;
            if word == 0 {
                self.tree.count_bytes(4)?; // a hole costs its entry in the list
                continue;
            }
            let (stored, bytes) = self.blocks.data(position, word, &name)?;
            position = position.saturating_add(stored);
            if bytes.len() as u64 != expected {
                return Err(ImageError::Damaged(format!("a block of {name:?} has the wrong size")));
            }
            self.count(expected)?;
            content.write_at(&bytes, index * block_size).map_err(|e| ImageError::entry("write", &name, e))?;
        }
        if let Some((number, offset)) = fragment {
            let rest = size - whole * block_size;
            self.count(rest)?;
            let block = self.fragment(number, &name)?;
            let begin = offset as usize;
            let bytes = begin
                .checked_add(rest as usize)
                .and_then(|end| block.get(begin..end))
                .ok_or_else(|| ImageError::Damaged(format!("the end of {name:?} is outside of its fragment")))?;
            content.write_at(bytes, whole * block_size).map_err(|e| ImageError::entry("write", &name, e))?;
        }
        self.tree.finish_file(path, content, attributes)
    }

    fn fragment(&mut self, number: u32, name: &str) -> Result<&[u8]> {
        if self.fragment.as_ref().is_none_or(|(n, _)| *n != number) {
            let (start, word) = self
                .tables
                .fragment(number)
                .ok_or_else(|| ImageError::Damaged(format!("{name:?} ends in a fragment that does not exist")))?;
            let (_, bytes) = self.blocks.data(start, word, name)?;
            self.fragment = Some((number, bytes));
        }
        Ok(self.fragment.as_ref().map_or(&[][..], |(_, bytes)| bytes))
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.tree.count_bytes(bytes)?;
        let written = self.tree.stats().bytes;
        if written > self.limits.ratio_free_bytes && written / self.length.max(1) > self.limits.max_ratio {
            let what = format!("its compression ratio of {} to 1", written / self.length.max(1));
            return Err(ImageError::Limit { what, limit: self.limits.max_ratio });
        }
        Ok(())
    }

    fn inode(&mut self, at: MetaRef, path: &CleanPath) -> Result<(Inode, Cursor)> {
        let table = self.blocks.superblock().inode_table;
        let name = path.to_string();
        let mut cursor = Cursor::new(table, at, &name)?;
        let inode = Inode::read(&mut cursor, &mut self.blocks, &name)?;
        Ok((inode, cursor))
    }

    fn attributes(&mut self, inode: &Inode, path: &CleanPath) -> Result<Attributes> {
        let name = path.to_string();
        let id = |index: u16| {
            self.tables
                .id(index)
                .ok_or_else(|| ImageError::Damaged(format!("the owner of {name:?} is not in the table")))
        };
        let (uid, gid) = (id(inode.uid)?, id(inode.gid)?);
        let xattrs = match inode.xattr {
            Some(index) => self.tables.xattrs(&mut self.blocks, index, &name, self.limits)?,
            None => Vec::new(),
        };
        Ok(Attributes { mode: inode.mode, uid, gid, mtime: inode.mtime, xattrs })
    }

    /// The names in a directory and where their inodes are.
    fn directory(&mut self, block: u32, offset: u16, size: u32, path: &CleanPath) -> Result<Vec<(Vec<u8>, MetaRef)>> {
        let name = path.to_string();
        let damaged = |what: &str| ImageError::Damaged(format!("the directory {name:?} {what}"));
        // The size counts "." and "..", which are not stored, as 3 bytes (squashfs_fs.h; dir.c).
        let Some(mut left) = size.checked_sub(3) else { return Ok(Vec::new()) };
        let spend = |left: u32, n: u32| left.checked_sub(n).ok_or_else(|| damaged("is longer than it says"));
        let mut cursor =
            Cursor::new(self.blocks.superblock().dir_table, MetaRef { block: block.into(), offset }, &name)?;
        let mut entries = Vec::new();
        while left > 0 {
            left = spend(left, 12)?;
            let count = cursor.u32(&mut self.blocks, &name)?;
            let inode_block = cursor.u32(&mut self.blocks, &name)?;
            let _base = cursor.u32(&mut self.blocks, &name)?;
            if count >= 256 {
                return Err(damaged("has a run of more than 256 names"));
            }
            for _ in 0..=count {
                let inode_offset = cursor.u16(&mut self.blocks, &name)?;
                let _number = cursor.u16(&mut self.blocks, &name)?;
                let _kind = cursor.u16(&mut self.blocks, &name)?;
                let length = u32::from(cursor.u16(&mut self.blocks, &name)?) + 1;
                if length > 256 {
                    return Err(damaged("has a name of more than 256 bytes"));
                }
                left = spend(left, 8 + length)?;
                let text = cursor.bytes(&mut self.blocks, length as usize, &name)?;
                entries.push((text, MetaRef { block: inode_block.into(), offset: inode_offset }));
            }
            if entries.len() as u64 + self.tree.stats().entries > self.limits.max_entries {
                return Err(ImageError::Limit {
                    what: "the number of its entries".into(),
                    limit: self.limits.max_entries,
                });
            }
        }
        Ok(entries)
    }

    fn child_path(&self, parent: &CleanPath, name: &[u8]) -> Result<CleanPath> {
        if name.contains(&b'/') || name == b"." || name == b".." {
            return Err(ImageError::refused(show(name), format!("it is no file name (in {:?})", parent.to_string())));
        }
        let mut path = parent.as_bytes().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        CleanPath::parse(&path, self.limits)
    }
}
