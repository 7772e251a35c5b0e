//! The superblock, and how the file system points at things.

use crate::{ImageError, Result};

/// Size of the superblock, in bytes.
pub(super) const SUPERBLOCK: usize = 96;
/// Value of a table's position when there is no such table.
pub(super) const NO_TABLE: u64 = u64::MAX;

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compressor {
    Gzip,
    Xz,
    Zstd,
}

/// Where something is in a table of metadata blocks: a block's position from the table's start, and an offset in it
/// once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MetaRef {
    pub block: u64,
    pub offset: u16,
}

impl MetaRef {
    /// From the 64-bit form: 48 bits of position, 16 of offset.
    pub(super) fn from_word(word: u64) -> MetaRef {
        MetaRef { block: word >> 16, offset: (word & 0xffff) as u16 } // masked to 16 bits
    }
}

/// `struct squashfs_super_block`, as far as it matters for reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub inodes: u32,
    pub block_size: u32,
    pub fragments: u32,
    pub compressor: Compressor,
    pub ids: u16,
    pub root: MetaRef,
    pub id_table: u64,
    pub xattr_table: u64,
    pub inode_table: u64,
    pub dir_table: u64,
    pub fragment_table: u64,
}

impl Superblock {
    pub(super) fn parse(bytes: &[u8; SUPERBLOCK], length: u64) -> Result<Superblock> {
        let damaged = |what: &str| ImageError::Damaged(format!("the squashfs {what}"));
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        if &bytes[..4] != b"hsqs" {
            return Err(damaged("has no magic number"));
        }
        let (major, minor) = (u16_at(28), u16_at(30));
        if (major, minor) != (4, 0) {
            return Err(damaged(&format!("is of version {major}.{minor}; only 4.0 can be read")));
        }
        let compressor = match u16_at(20) {
            1 => Compressor::Gzip,
            4 => Compressor::Xz,
            6 => Compressor::Zstd,
            other => {
                let name = match other {
                    2 => "lzma",
                    3 => "lzo",
                    5 => "lz4",
                    _ => "an unknown method",
                };
                return Err(damaged(&format!("is compressed with {name}; gzip, xz and zstd can be read")));
            }
        };
        let block_size = u32_at(12);
        if !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
            return Err(damaged("has an impossible block size"));
        }
        if u64_at(40) > length {
            return Err(ImageError::Truncated { within: format!("the squashfs ({length} of {} bytes)", u64_at(40)) });
        }
        Ok(Superblock {
            inodes: u32_at(4),
            block_size,
            fragments: u32_at(16),
            compressor,
            ids: u16_at(26),
            root: MetaRef::from_word(u64_at(32)),
            id_table: u64_at(48),
            xattr_table: u64_at(56),
            inode_table: u64_at(64),
            dir_table: u64_at(72),
            fragment_table: u64_at(80),
        })
    }
}
