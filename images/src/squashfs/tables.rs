//! The tables that inodes point into: owners, fragments, extended attributes.
//!
//! Each is a run of metadata blocks that an index of 64-bit positions leads to.

use super::blocks::{Blocks, Cursor, ReadAt};
use super::layout::{MetaRef, NO_TABLE};
use crate::entry::{Xattr, show};
use crate::limits::Limits;
use crate::{ImageError, Result};

/// Bytes of a table that one metadata block holds.
const META: u64 = 8192;
/// Bit of an attribute's type: its value is stored elsewhere (`SQUASHFS_XATTR_VALUE_OOL`).
const ELSEWHERE: u16 = 0x100;
/// Most attributes that one file may have; the kernel's list of names is at most 64 KiB.
const MOST_XATTRS: u32 = 4096;

/// The tables, read when the file system is opened; attributes themselves are read when an inode wants them.
#[derive(Debug)]
pub(super) struct Tables {
    ids: Vec<u32>,
    fragments: Vec<(u64, u32)>,
    xattrs: Vec<(MetaRef, u32)>,
    xattr_start: u64,
}

impl Tables {
    pub(super) fn read<S: ReadAt>(blocks: &Blocks<S>, limits: &Limits) -> Result<Tables> {
        let superblock = *blocks.superblock();
        if u64::from(superblock.inodes) > limits.max_entries || u64::from(superblock.fragments) > limits.max_entries {
            return Err(ImageError::Limit { what: "the number of its entries".into(), limit: limits.max_entries });
        }
        let ids = table(blocks, superblock.id_table, superblock.ids.into(), 4, "the table of owners")?;
        let ids = ids.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        let fragments = if superblock.fragments == 0 {
            Vec::new()
        } else {
            let bytes =
                table(blocks, superblock.fragment_table, superblock.fragments.into(), 16, "the table of fragments")?;
            bytes.chunks_exact(16).map(|c| (u64_of(&c[..8]), u32_of(&c[8..12]))).collect()
        };
        let mut tables = Tables { ids, fragments, xattrs: Vec::new(), xattr_start: 0 };
        if superblock.xattr_table != NO_TABLE {
            let what = "the table of attributes";
            let mut head = [0; 16];
            blocks.raw(superblock.xattr_table, &mut head, what)?;
            let count = u64::from(u32_of(&head[8..12]));
            if count > limits.max_entries {
                return Err(ImageError::Limit {
                    what: "the number of its attributes".into(),
                    limit: limits.max_entries,
                });
            }
            let position = superblock.xattr_table.checked_add(16).ok_or_else(|| beyond(what))?;
            let bytes = table(blocks, position, count, 16, what)?;
            tables.xattr_start = u64_of(&head[..8]);
            tables.xattrs =
                bytes.chunks_exact(16).map(|c| (MetaRef::from_word(u64_of(&c[..8])), u32_of(&c[8..12]))).collect();
        }
        Ok(tables)
    }

    pub(super) fn id(&self, index: u16) -> Option<u32> {
        // (uid_t) -1 means "unchanged" to chown.
        self.ids.get(usize::from(index)).copied().filter(|id| *id != u32::MAX)
    }

    /// A fragment block's position and size.
    pub(super) fn fragment(&self, number: u32) -> Option<(u64, u32)> {
        self.fragments.get(number as usize).copied()
    }

    /// The attributes that an inode's index stands for.
    pub(super) fn xattrs<S: ReadAt>(
        &self,
        blocks: &mut Blocks<S>,
        index: u32,
        name: &str,
        limits: &Limits,
    ) -> Result<Vec<Xattr>> {
        let damaged = |what: &str| ImageError::Damaged(format!("the attributes of {name:?} {what}"));
        let (at, count) = *self.xattrs.get(index as usize).ok_or_else(|| damaged("are not in the table"))?;
        if count > MOST_XATTRS {
            return Err(ImageError::Limit {
                what: format!("the number of attributes of {name:?}"),
                limit: MOST_XATTRS.into(),
            });
        }
        let mut cursor = Cursor::new(self.xattr_start, at, name)?;
        let mut out = Vec::new();
        for _ in 0..count {
            let kind = cursor.u16(blocks, name)?;
            let length = cursor.u16(blocks, name)?;
            if length == 0 || length > 255 {
                return Err(damaged("have a name of an impossible length"));
            }
            let prefix: &[u8] = match kind & !ELSEWHERE {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                _ => return Err(damaged("are of an unknown kind")),
            };
            let key = [prefix, &cursor.bytes(blocks, length.into(), name)?].concat();
            let mut size = cursor.u32(blocks, name)?;
            let value = if kind & ELSEWHERE != 0 {
                if size != 8 {
                    return Err(damaged("point at nothing"));
                }
                let at = MetaRef::from_word(cursor.u64(blocks, name)?);
                let mut elsewhere = Cursor::new(self.xattr_start, at, name)?;
                size = elsewhere.u32(blocks, name)?;
                within(size, &key, name, limits)?;
                elsewhere.bytes(blocks, size as usize, name)?
            } else {
                within(size, &key, name, limits)?;
                cursor.bytes(blocks, size as usize, name)?
            };
            out.push((key, value));
        }
        Ok(out)
    }
}

fn within(size: u32, key: &[u8], name: &str, limits: &Limits) -> Result<()> {
    if size as usize > limits.max_xattr {
        let what = format!("the size of the attribute {:?} of {name:?}", show(key));
        return Err(ImageError::Limit { what, limit: limits.max_xattr as u64 });
    }
    Ok(())
}

/// Reads `count` records of `size` bytes through the index at `position`.
fn table<S: ReadAt>(blocks: &Blocks<S>, position: u64, count: u64, size: u64, what: &str) -> Result<Vec<u8>> {
    let total = count * size; // at most 4 million times 16
    let mut out = Vec::new();
    let mut left = total;
    for number in 0..total.div_ceil(META) {
        let at = position.checked_add(number * 8).ok_or_else(|| beyond(what))?;
        let mut word = [0; 8];
        blocks.raw(at, &mut word, what)?;
        let want = usize::try_from(left.min(META)).unwrap_or(usize::MAX);
        let bytes = blocks.meta_uncached(u64::from_le_bytes(word), what)?;
        out.extend_from_slice(bytes.get(..want).ok_or_else(|| ImageError::Truncated { within: what.into() })?);
        left -= want as u64;
    }
    Ok(out)
}

fn beyond(what: &str) -> ImageError {
    ImageError::Damaged(format!("{what} is beyond the end"))
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b))
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |n, b| (n << 8) | u32::from(*b))
}
