//! What stands between the crate that reads ext4 and a disk that a stranger filled.
//!
//! ext4-view answers a damaged filesystem with errors where it expects damage. Version 1.0 does not everywhere: numbers of
//! the superblock become allocations as they are, the checksum of a directory's index is computed over as many bytes as
//! the index says and panics beyond the block, and trees of extents that lead to the same blocks again and again are
//! walked to their end, which may be years away. So the superblock is checked before the crate sees it, and each block as
//! it is read; and the journal is kept from it ([`super::journal`]).

use std::io;
use std::time::Instant;

use ext4_view::Ext4Read;

use super::journal::Journal;

/// What the crate's reader answers with.
type BoxedError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Where the superblock is, and how long it is (Linux' Documentation/filesystems/ext4/super.rst; offsets below are there
/// too, and in group_descr.rst, inodes.rst and ifork.rst).
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 1024;
const MAGIC: u16 = 0xef53;
/// The largest `s_log_block_size`: 4 KiB, the size of a page, beyond which few kernels mount anything.
const MAX_LOG_BLOCK: u32 = 2;
/// The most groups of blocks, of each of which the crate keeps 16 bytes: 16 TiB in blocks of 4 KiB.
const MAX_GROUPS: u64 = 1 << 17;
const JOURNAL_INODE: u32 = 8;
const HAS_JOURNAL: u32 = 0x4;
const NEEDS_RECOVERY: u32 = 0x4;
const IS_64BIT: u32 = 0x80;
const METADATA_CSUM: u32 = 0x400;
/// Where the features are that one must know, and those that only who writes must know.
const INCOMPATIBLE: usize = 0x60;
const READ_ONLY: usize = 0x64;

/// A disk whose superblock was found to be in order.
pub(super) struct Guard {
    disk: Box<dyn Ext4Read>,
    /// In bytes.
    block: usize,
    journal: Journal,
    deadline: Instant,
}

impl Guard {
    /// Looks at the superblock, and reads the journal if there is something in it.
    ///
    /// # Errors
    /// What is out of order.
    pub fn new(mut disk: Box<dyn Ext4Read>, deadline: Instant) -> io::Result<Self> {
        let layout = Layout::read(&mut *disk)?;
        let block = layout.block as usize;
        let mut guard = Self { disk, block, journal: Journal::default(), deadline };
        if layout.journal {
            let inode = layout.journal_inode(&mut *guard.disk)?;
            guard.journal = Journal::load(&mut *guard.disk, layout.block, &inode)?;
            // There may be another superblock in it.
            if Layout::read(&mut guard)?.block != layout.block {
                return Err(refused("its journal is that of another filesystem"));
            }
        }
        Ok(guard)
    }
}

impl Ext4Read for Guard {
    fn read(&mut self, start: u64, bytes: &mut [u8]) -> Result<(), BoxedError> {
        if Instant::now() >= self.deadline {
            return Err(late().into());
        }
        self.disk.read(start, bytes)?;
        self.journal.apply(&mut *self.disk, self.block, start, bytes)?;
        if start == SUPERBLOCK && bytes.len() == SUPERBLOCK_SIZE {
            // Then it reads no journal.
            clear(bytes, INCOMPATIBLE, NEEDS_RECOVERY);
            // Then it computes no checksums. They tell a bad disk, not a bad owner.
            clear(bytes, READ_ONLY, METADATA_CSUM);
        }
        if start.is_multiple_of(self.block as u64) && bytes.chunks_exact(self.block).any(is_inner_node) {
            return Err(refused("a file is in more pieces than are followed").into());
        }
        Ok(())
    }
}

fn clear(bytes: &mut [u8], at: usize, feature: u32) {
    let features = u32_at(bytes, at) & !feature;
    bytes[at..at + 4].copy_from_slice(&features.to_le_bytes());
}

/// Whether a block is a node of a tree of extents that leads to other nodes. A tree of two levels, the first of which is in
/// the inode, holds 1360 extents in blocks of 4 KiB. Nothing that is read here has more, and it bounds the work: the crate
/// follows each entry. Those that it refuses by itself are none here, so that no other data are taken for one.
fn is_inner_node(block: &[u8]) -> bool {
    let (entries, most, depth) = (u16_at(block, 2), u16_at(block, 4), u16_at(block, 6));
    let fits = usize::from(most) <= (block.len() - 12) / 12;
    u16_at(block, 0) == 0xf30a && entries <= most && fits && (1..=5).contains(&depth)
}

/// What the superblock says, as far as it matters here.
struct Layout {
    block: u32,
    inode: u16,
    wide: bool,
    /// There is a journal to replay.
    journal: bool,
}

impl Layout {
    fn read(disk: &mut dyn Ext4Read) -> io::Result<Self> {
        let mut superblock = [0; SUPERBLOCK_SIZE];
        disk.read(SUPERBLOCK, &mut superblock).map_err(io::Error::other)?;
        let long = |at| u32_at(&superblock, at);
        let short = |at| u16_at(&superblock, at);
        if short(0x38) != MAGIC {
            return Err(refused("there is no ext4 filesystem"));
        }
        let (compatible, incompatible) = (long(0x5c), long(INCOMPATIBLE));
        let log_block = long(0x18);
        if log_block > MAX_LOG_BLOCK {
            return Err(refused("its blocks are larger than 4 KiB"));
        }
        let (block, wide) = (1024 << log_block, incompatible & IS_64BIT != 0);
        // The crate takes the upper half as it is, also where it has no meaning.
        let blocks = u64::from(long(0x150)) << 32 | u64::from(long(0x4));
        let groups = blocks.div_ceil(u64::from(long(0x20).max(1)));
        if groups > MAX_GROUPS {
            return Err(refused("it has more groups of blocks than a disk"));
        }
        // Revision 0 has inodes of 128 bytes and no such field (EXT4_GOOD_OLD_REV), and no extents either.
        let inode = short(0x58);
        if !inode.is_power_of_two() || inode < 128 || u32::from(inode) > block {
            return Err(refused("the size of its inodes is none"));
        }
        let journal = compatible & HAS_JOURNAL != 0 && incompatible & NEEDS_RECOVERY != 0;
        if journal && (long(0xe0) != JOURNAL_INODE || long(0x28) < JOURNAL_INODE) {
            return Err(refused("its journal is not where it belongs"));
        }
        Ok(Self { block, inode, wide, journal })
    }

    /// Reads the journal's inode, or what every inode has of it. It is among those of the first group.
    fn journal_inode(&self, disk: &mut dyn Ext4Read) -> io::Result<[u8; 128]> {
        let mut descriptor = [0; 64];
        let first = if self.block == 1024 { 2 } else { 1 };
        let length = if self.wide { 64 } else { 32 };
        disk.read(first * u64::from(self.block), &mut descriptor[..length]).map_err(io::Error::other)?;
        let table = u64::from(u32_at(&descriptor, 0x28)) << 32 | u64::from(u32_at(&descriptor, 0x8));
        let before = u64::from(JOURNAL_INODE - 1) * u64::from(self.inode);
        let at = table.checked_mul(u64::from(self.block)).and_then(|table| table.checked_add(before));
        let at = at.ok_or_else(|| refused("its journal is not where it belongs"))?;
        let mut inode = [0; 128];
        disk.read(at, &mut inode).map_err(io::Error::other)?;
        Ok(inode)
    }
}

pub(super) fn refused(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(super) fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "reading the filesystem takes too long")
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at + 2)) << 16 | u32::from(u16_at(bytes, at))
}
