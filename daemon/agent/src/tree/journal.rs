//! The journal of an ext4 that was not unmounted: which blocks it has newer contents of.
//!
//! After a hard stop the newest of a filesystem's own blocks are in its journal only, and the next mount writes them back.
//! Nothing is written here; they are read from the journal instead. ext4-view would do so too, but version 1.0 forgets what
//! a transaction revokes of earlier ones: blocks that were a directory's and are a file's now would be read as the
//! directory's. So this is done here as the kernel does (jbd2's recovery.c; the format is in Linux'
//! Documentation/filesystems/ext4/journal.rst). Numbers are big-endian in a journal. Its checksums are not looked at: a
//! transaction whose commit is there was written as a whole before.

use std::collections::{BTreeMap, HashMap};
use std::io;

use ext4_view::Ext4Read;

use super::guard::{refused, u16_at, u32_at};

/// The most blocks that are revoked; each costs some 20 bytes here.
const MAX_REVOKED: usize = 1 << 20;
/// The largest journal that is replayed, in bytes: the largest that mke2fs(8) makes by itself.
const MAX_JOURNAL: u64 = 1 << 30;
const EXTENTS: u32 = 0x8_0000;

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;
/// Features (`JBD2_FEATURE_INCOMPAT_*`): those of other journals than these are not replayed.
const WIDE: u32 = 0x2;
const CHECKSUM_2: u32 = 0x8;
const CHECKSUM_3: u32 = 0x10;
const KNOWN: u32 = 0x1 | WIDE | CHECKSUM_2 | CHECKSUM_3;
/// What a descriptor says of a block: its first bytes were the magic number; no UUID follows; none follows at all.
const ESCAPED: u32 = 0x1;
const SAME_UUID: u32 = 0x2;
const LAST: u32 = 0x8;

/// Where the newest content of a block is.
#[derive(Debug, Clone, Copy)]
struct Newer {
    /// The block on the disk that holds it.
    block: u64,
    escaped: bool,
}

/// The blocks of a filesystem that its journal has newer contents of.
#[derive(Debug, Default)]
pub(super) struct Journal(BTreeMap<u64, Newer>);

impl Journal {
    /// Reads the journal whose inode this is.
    ///
    /// # Errors
    /// Those of the disk, and what cannot be replayed.
    pub fn load(disk: &mut dyn Ext4Read, block: u32, inode: &[u8; 128]) -> io::Result<Self> {
        let mut log = Log::open(disk, block, inode)?;
        log.read()?;
        let revoked = log.revoked;
        let is_revoked = |block: &u64, sequence: u32| {
            // Sequences wrap.
            revoked.get(block).is_some_and(|since| since.wrapping_sub(sequence).cast_signed() >= 0)
        };
        // What is written later replaces what was before.
        let valid = log.committed.into_iter().filter(|(block, sequence, _)| !is_revoked(block, *sequence));
        Ok(Self(valid.map(|(block, _, newer)| (block, newer)).collect()))
    }

    /// Puts what is newer into bytes that were read from the disk at `start`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn apply(&self, disk: &mut dyn Ext4Read, block: usize, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        let size = block as u64;
        let end = start.saturating_add(bytes.len() as u64);
        for (&number, newer) in self.0.range(start / size..end.div_ceil(size)) {
            let mut content = vec![0; block];
            read_block(disk, newer.block, &mut content)?;
            if newer.escaped {
                content[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
            // Where the two overlap.
            let (from, to) = ((number * size).max(start), ((number + 1) * size).min(end));
            let content = &content[(from - number * size) as usize..(to - number * size) as usize];
            bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(content);
        }
        Ok(())
    }
}

/// A block of the filesystem, the transaction that wrote it, and where.
type Write = (u64, u32, Newer);

/// A journal that is being read.
struct Log<'a> {
    disk: &'a mut dyn Ext4Read,
    block: usize,
    extents: Vec<Extent>,
    features: u32,
    /// The log goes around in the blocks from the first to before the last.
    first: u32,
    last: u32,
    start: u32,
    sequence: u32,
    committed: Vec<Write>,
    /// Blocks, and the last transaction that said that what is in it and before is not to be written.
    revoked: HashMap<u64, u32>,
}

impl<'a> Log<'a> {
    fn open(disk: &'a mut dyn Ext4Read, block: u32, inode: &[u8; 128]) -> io::Result<Self> {
        let length = u64::from(u32_at(inode, 0x6c)) << 32 | u64::from(u32_at(inode, 0x4));
        if length > MAX_JOURNAL {
            return Err(refused("its journal is larger than is replayed"));
        }
        if u32_at(inode, 0x20) & EXTENTS == 0 {
            return Err(refused("its journal is of a kind that is not replayed"));
        }
        let extents = extents(disk, block as usize, &inode[0x28..0x28 + 60])?;
        let mut log = Self {
            disk,
            block: block as usize,
            extents,
            features: 0,
            first: 0,
            last: 1,
            start: 0,
            sequence: 0,
            committed: Vec::new(),
            revoked: HashMap::new(),
        };
        let superblock = log.content(0)?;
        let field = |at| big(&superblock, at);
        if field(0) != MAGIC || !SUPERBLOCKS.contains(&field(4)) || field(0xc) != block {
            return Err(refused("its journal is none"));
        }
        // The first form of a superblock has no features.
        log.features = if field(4) == SUPERBLOCKS[1] { field(0x28) } else { 0 };
        if log.features & !KNOWN != 0 {
            return Err(refused("its journal is of a kind that is not replayed"));
        }
        (log.last, log.first, log.sequence, log.start) = (field(0x10), field(0x14), field(0x18), field(0x1c));
        let in_order = log.first >= 1 && (log.first..log.last).contains(&log.start);
        let fits = u64::from(log.last) * u64::from(block) <= length;
        // It starts nowhere if there is nothing in it.
        if log.start != 0 && !(in_order && fits) {
            return Err(refused("its journal is none"));
        }
        Ok(log)
    }

    /// Reads the transactions that were committed.
    fn read(&mut self) -> io::Result<()> {
        let (mut at, mut sequence) = (self.start, self.sequence);
        let (mut writes, mut revokes) = (Vec::new(), Vec::new());
        // No log is longer than its journal.
        let mut left = self.last - self.first.min(self.last);
        while self.start != 0 && left > 0 {
            let content = self.content(at)?;
            if big(&content, 0) != MAGIC || big(&content, 8) != sequence {
                break;
            }
            (at, left) = (self.after(at), left - 1);
            match big(&content, 4) {
                DESCRIPTOR => {
                    for (block, flags) in self.tags(&content) {
                        let Some(less) = left.checked_sub(1) else { return Ok(()) };
                        let newer = Newer { block: self.place(at)?, escaped: flags & ESCAPED != 0 };
                        writes.push((block, sequence, newer));
                        (at, left) = (self.after(at), less);
                    }
                }
                REVOKE => {
                    revokes.extend(self.revokes(&content));
                    if revokes.len() + self.revoked.len() > MAX_REVOKED {
                        return Err(refused("its journal revokes more than is replayed"));
                    }
                }
                COMMIT => {
                    self.committed.append(&mut writes);
                    self.revoked.extend(revokes.drain(..).map(|block| (block, sequence)));
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// The blocks that follow a descriptor: where they belong, and their flags.
    fn tags(&self, content: &[u8]) -> Vec<(u64, u32)> {
        let third = self.features & CHECKSUM_3 != 0;
        let wide = self.features & WIDE != 0;
        let length = match (third, self.features & CHECKSUM_2 != 0, wide) {
            (true, ..) => 16,
            (false, true, true) => 14,
            (false, true, false) => 10,
            (false, false, true) => 12,
            (false, false, false) => 8,
        };
        let mut tags = Vec::new();
        let (mut at, end) = (12, self.end_of_entries());
        while at + length <= end {
            let flags = if third { big(content, at + 4) } else { big(content, at + 4) & 0xffff };
            let high = if wide { big(content, at + 8) } else { 0 };
            tags.push((u64::from(high) << 32 | u64::from(big(content, at)), flags));
            if flags & LAST != 0 {
                break;
            }
            at += length + if flags & SAME_UUID == 0 { 16 } else { 0 };
        }
        tags
    }

    /// The blocks that are revoked. The count is one of bytes, those before the first number included.
    fn revokes(&self, content: &[u8]) -> Vec<u64> {
        let end = (big(content, 12) as usize).min(self.end_of_entries());
        let entries = content.get(16..end).unwrap_or_default();
        if self.features & WIDE != 0 {
            let number = |entry: &[u8]| u64::from(big(entry, 0)) << 32 | u64::from(big(entry, 4));
            entries.chunks_exact(8).map(number).collect()
        } else {
            entries.chunks_exact(4).map(|entry| u64::from(big(entry, 0))).collect()
        }
    }

    /// Where a checksum follows, if there is one.
    fn end_of_entries(&self) -> usize {
        if self.features & (CHECKSUM_2 | CHECKSUM_3) != 0 { self.block - 4 } else { self.block }
    }

    fn after(&self, at: u32) -> u32 {
        if at + 1 >= self.last { self.first } else { at + 1 }
    }

    fn content(&mut self, at: u32) -> io::Result<Vec<u8>> {
        let place = self.place(at)?;
        let mut content = vec![0; self.block];
        read_block(self.disk, place, &mut content)?;
        Ok(content)
    }

    /// Where a block of the journal is on the disk.
    fn place(&self, at: u32) -> io::Result<u64> {
        let found = self.extents.iter().find(|extent| at.checked_sub(extent.first).is_some_and(|n| n < extent.length));
        let found = found.ok_or_else(|| refused("its journal has a hole"))?;
        Ok(found.place + u64::from(at - found.first))
    }
}

/// Blocks of a file that follow each other on the disk.
struct Extent {
    first: u32,
    length: u32,
    place: u64,
}

/// A file's extents: those in the inode, or in the nodes that are listed there (ifork.rst).
fn extents(disk: &mut dyn Ext4Read, block: usize, root: &[u8]) -> io::Result<Vec<Extent>> {
    let mut all = Vec::new();
    match u16_at(root, 6) {
        0 => leaf(root, &mut all)?,
        1 => {
            for entry in entries(root)? {
                let mut node = vec![0; block];
                read_block(disk, u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4)), &mut node)?;
                if u16_at(&node, 6) != 0 {
                    return Err(refused("its journal is in more pieces than are followed"));
                }
                leaf(&node, &mut all)?;
            }
        }
        _ => return Err(refused("its journal is in more pieces than are followed")),
    }
    Ok(all)
}

fn leaf(node: &[u8], all: &mut Vec<Extent>) -> io::Result<()> {
    all.extend(entries(node)?.map(|entry| Extent {
        first: u32_at(entry, 0),
        length: u16_at(entry, 4).into(),
        place: u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8)),
    }));
    Ok(())
}

fn entries(node: &[u8]) -> io::Result<impl Iterator<Item = &[u8]>> {
    let count = usize::from(u16_at(node, 2));
    if u16_at(node, 0) != 0xf30a || count > node.len() / 12 - 1 {
        return Err(refused("its journal is not where it belongs"));
    }
    Ok(node[12..].chunks_exact(12).take(count))
}

fn read_block(disk: &mut dyn Ext4Read, number: u64, content: &mut [u8]) -> io::Result<()> {
    let start =
        number.checked_mul(content.len() as u64).ok_or_else(|| refused("its journal is not where it belongs"))?;
    disk.read(start, content).map_err(io::Error::other)
}

fn big(bytes: &[u8], at: usize) -> u32 {
    u32_at(bytes, at).swap_bytes()
}
