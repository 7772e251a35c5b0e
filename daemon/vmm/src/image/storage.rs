//! All that the library imago can do with a layer's file: read, write and nothing else. It has no path, so that no name
//! in an image's header leads anywhere, and needs the system calls that a device's thread may make anyway.
//!
//! *Order.* The library writes its tables in the right order (what counts a cluster before what uses it, when it is taken,
//! and the other way round when it is freed: `MetadataCaches` in its qcow2/cache.rs), but has nothing reach the disk
//! between the two: a host that loses power could keep the second and lose the first, and the cluster would be given away
//! twice. So each of its writes is preceded by an fdatasync(2) if anything was written since the last: every write to a
//! table is on the disk before the next one, and so is the data of new clusters before the table that shows it. The tables
//! are cached and written when the guest flushes, which then costs some more of these.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Mutex, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use rustix::fs::FallocateFlags;

/// A layer's file as the library sees it.
pub struct ImageFile {
    /// The file.
    pub file: File,
    /// Bytes of it when it was opened.
    size: u64,
    /// Where writing ends.
    limit: u64,
    /// Whether its writes are to reach the disk in order.
    ordered: bool,
    /// Whether something was written that may not be on the disk. Whoever writes a table holds this.
    dirty: Mutex<bool>,
    helper: CommonStorageHelper,
    #[cfg(test)]
    log: Mutex<Vec<Event>>,
}

/// What became of a file, in order.
#[cfg(test)]
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes were written at an offset.
    Write(u64, Vec<u8>),
    /// All that was written before is on the disk.
    Sync,
}

impl ImageFile {
    /// A file of so many bytes, in which nothing is written from `limit` on. `ordered`: what is written is to survive a
    /// host that loses power.
    #[must_use]
    pub fn new(file: File, size: u64, limit: u64, ordered: bool) -> Self {
        Self {
            file,
            size,
            limit,
            ordered,
            dirty: Mutex::new(false),
            helper: CommonStorageHelper::default(),
            #[cfg(test)]
            log: Mutex::default(),
        }
    }

    /// Says that data of a new cluster were written, to which the next table refers.
    pub fn wrote_new(&self, offset: u64, len: u64) {
        self.wrote(offset, len);
        *self.dirty.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Says that data were written to a cluster that was there. Nothing depends on that but the tests.
    pub fn wrote(&self, _offset: u64, _len: u64) {
        #[cfg(test)]
        {
            let mut bytes = vec![0; _len as usize];
            std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut bytes, _offset).unwrap();
            self.record(Event::Write(_offset, bytes));
        }
    }

    #[cfg(test)]
    fn record(&self, event: Event) {
        self.log.lock().unwrap().push(event);
    }

    /// What became of the file since it was opened.
    #[cfg(test)]
    pub fn log(&self) -> Vec<Event> {
        self.log.lock().unwrap().clone()
    }

    /// Has what was written reach the disk. `always`: also what was written past this (to clusters that were there).
    ///
    /// # Errors
    /// As fdatasync(2).
    pub fn sync_data(&self, always: bool) -> io::Result<()> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        if *dirty || always {
            self.file.sync_data()?;
            *dirty = false;
            #[cfg(test)]
            self.record(Event::Sync);
        }
        Ok(())
    }

    /// Checks that a range may be written.
    ///
    /// # Errors
    /// `FileTooLarge` if not.
    pub fn check_end(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.limit => Ok(()),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageFile").field("file", &self.file).field("size", &self.size).finish_non_exhaustive()
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image")
    }
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    /// What lies beyond the end of the file reads as zeroes: QEMU makes files that end within a cluster.
    unsafe fn pure_readv(&self, vector: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        let mut slices = vector.into_inner();
        let mut rest: &mut [IoSliceMut<'_>] = &mut slices;
        IoSliceMut::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::preadv(&self.file, rest, offset))? {
                0 => {
                    rest.iter_mut().for_each(|slice| slice.fill(0));
                    break;
                }
                count => {
                    IoSliceMut::advance_slices(&mut rest, count);
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, vector: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        self.check_end(offset, vector.len())?;
        let mut slices = vector.into_inner();
        let mut rest: &mut [IoSlice<'_>] = &mut slices;
        IoSlice::advance_slices(&mut rest, 0);
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ordered && *dirty {
            self.file.sync_data()?;
            #[cfg(test)]
            self.record(Event::Sync);
        }
        *dirty = true;
        #[cfg(test)]
        self.record(Event::Write(offset, rest.iter().flat_map(|slice| slice.to_vec()).collect()));
        while !rest.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::pwritev(&self.file, rest, offset))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => {
                    IoSlice::advance_slices(&mut rest, count);
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    /// Nothing is kept back here: what was written is in the file.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data(true)
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, _size: u64, _mode: PreallocateMode) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Makes a hole in a file. One that has no room for holes stays as it is.
///
/// # Errors
/// As fallocate(2).
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, FallocateFlags::PUNCH_HOLE, offset, len)
}

/// Fills a range of a file with zeroes.
///
/// # Errors
/// As fallocate(2).
pub fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, FallocateFlags::ZERO_RANGE, offset, len)
}

fn fallocate(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    Ok(rustix::fs::fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, len)?)
}
