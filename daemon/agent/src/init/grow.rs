//! Growing the root to the size of its device.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::warn;

/// Where the superblock lies, and its length in bytes (Linux' Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;
const LENGTH: usize = 1024;

/// Grows an ext4 that is mounted at `root` if its device has become larger. It is used meanwhile as it is, and stays so
/// if it cannot grow.
pub(super) fn grow(device: &Path, root: &Path) {
    if let Err(error) = try_grow(device, root) {
        warn(&format!("the root cannot grow to the size of {}: {error}", device.display()));
    }
}

fn try_grow(device: &Path, root: &Path) -> io::Result<()> {
    let mut device = File::open(device)?;
    let mut superblock = [0; LENGTH];
    device.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let Some((blocks, size)) = blocks(&superblock) else { return Ok(()) };
    let available = device.seek(SeekFrom::End(0))? / size;
    if available > blocks {
        duet_sys::ext4::resize(File::open(root)?, available)?;
    }
    Ok(())
}

/// How many blocks a filesystem has, and the bytes of one; `None` if this is no ext4.
fn blocks(superblock: &[u8; LENGTH]) -> Option<(u64, u64)> {
    let number = |at: usize, length: usize| {
        superblock[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    // s_magic, s_log_block_size, s_feature_incompat (INCOMPAT_64BIT), s_blocks_count_lo and _hi.
    let (magic, log, wide) = (number(0x38, 2), number(0x18, 4), number(0x60, 4) & 0x80 != 0);
    let high = if wide { number(0x150, 4) } else { 0 };
    (magic == 0xef53 && log <= 6).then(|| (high << 32 | number(0x4, 4), 1024 << log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_filesystem_is_in_its_superblock() {
        let mut superblock = [0; LENGTH];
        assert_eq!(blocks(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        superblock[0x18] = 2;
        superblock[0x4..0x8].copy_from_slice(&[0, 0, 4, 0]);
        superblock[0x150] = 1;
        assert_eq!(blocks(&superblock), Some((1 << 18, 4096)));
        superblock[0x60] = 0x80;
        assert_eq!(blocks(&superblock), Some((1 << 32 | 1 << 18, 4096)));
        superblock[0x18] = 40;
        assert_eq!(blocks(&superblock), None);
    }
}
