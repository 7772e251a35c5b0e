//! The contents of one regular file.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

/// Bytes read per call.
const BUFFER: usize = 256 << 10;

/// Bytes that are left out together where they are all zero. copy_file_range(2) would not look: a journal of systemd's
/// is 8 MiB of preallocated space, nearly all of it zeros in memory, that would be written and flushed.
const BLOCK: usize = 64 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What the filesystems of source and destination can do together, learnt from the first file that is tried.
#[derive(Debug)]
pub(super) struct DataCopier {
    reflink: bool,
    buffer: Box<[u8]>,
}

impl DataCopier {
    pub(super) fn new() -> Self {
        Self { reflink: true, buffer: vec![0; BUFFER].into() }
    }

    /// Whether the last files were cloned, not copied.
    pub(super) fn reflinks(&self) -> bool {
        self.reflink
    }

    /// Copies a file of `size` bytes, `allocated` of them on disk, into an empty one. Holes stay holes, and
    /// where data is copied, long runs of zeros become holes. What is written to it or cut off meanwhile may or may not
    /// be in the copy.
    pub(super) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
        allocated: u64,
    ) -> Result<(), Errno> {
        if size == 0 {
            return Ok(());
        }
        if self.reflink {
            match ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                // ioctl_ficlone(2): not on these filesystems at all...
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => self.reflink = false,
                // ...or not this file: a swap file, one with other flags (NOCOW), one that is locked.
                Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM | Errno::ISDIR) => {}
                Err(e) => return Err(e),
            }
        }
        if allocated >= size {
            self.range(from, to, 0, size)?;
            return ftruncate(to, size);
        }
        let mut at = 0;
        while at < size {
            let start = match seek(from, SeekFrom::Data(at)) {
                Ok(start) => start.min(size),
                // lseek(2): no data after this.
                Err(Errno::NXIO) => break,
                // The filesystem does not know its holes.
                Err(Errno::INVAL) => at,
                Err(e) => return Err(e),
            };
            let end = match seek(from, SeekFrom::Hole(start)) {
                Ok(end) => end.min(size),
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => size,
                Err(e) => return Err(e),
            };
            self.range(from, to, start, end)?;
            at = end;
        }
        // The last hole, and also what was cut off meanwhile, reads as zeros.
        ftruncate(to, size)
    }

    /// Copies what lies between `start` and `end`, but leaves a hole for each block that reads as zeros.
    fn range(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let len = usize::try_from(end - at).map_or(BUFFER, |len| len.min(BUFFER));
            let got = rustix::io::retry_on_intr(|| pread(from, &mut self.buffer[..len], at))?;
            if got == 0 {
                return Ok(());
            }
            for block in self.buffer[..got].chunks(BLOCK) {
                if *block != ZEROS[..block.len()] {
                    write_all(to, block, at)?;
                }
                at += block.len() as u64;
            }
        }
        Ok(())
    }
}

fn write_all(to: BorrowedFd<'_>, mut part: &[u8], mut at: u64) -> Result<(), Errno> {
    while !part.is_empty() {
        let put = rustix::io::retry_on_intr(|| pwrite(to, part, at))?;
        part = &part[put..];
        at += put as u64;
    }
    Ok(())
}
