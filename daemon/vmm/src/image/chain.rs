//! A disk of several layers, of which the top one is qcow2. imago says where the data of a place lie; they are moved from
//! and to the guest's memory here, without a copy in between.
//!
//! *Locks.* Reading, and writing to clusters that the top layer has already, share the lock: any number of queues do so
//! at a time. Whoever gives a place a cluster, or takes it away, is alone: so no cluster is given away while a queue
//! still reads it, and of two writes to the same new cluster none copies what the other is about to write.
//!
//! *New clusters.* What a guest does not write of a new cluster comes from below. It is copied here and not by the
//! library, so that all that the library writes by itself are tables (see [`super::storage`]). The data of a new cluster
//! are written first, then the mapping is changed: a write that fails changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::io_buffers::IoVectorMut;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping, ShallowMapping};

use super::header::{self, Header};
use super::storage::{self, ImageFile};
use super::{Format, ImageError, Layer, length};
use crate::virtio::buffers::Buffers;

type Access = FormatAccess<ImageFile>;

/// A disk of layers.
#[derive(Debug)]
pub struct Chain {
    access: RwLock<Access>,
    size: u64,
    /// Bytes of a cluster of the top layer.
    cluster: u64,
}

/// What is at a place of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Bytes of this file (stat(2)).
    Data {
        /// Its device.
        dev: u64,
        /// Its inode.
        ino: u64,
    },
    /// Zeroes.
    Zero,
    /// Compressed bytes.
    Packed,
}

/// How a range is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clear {
    /// Its contents are of no interest any more.
    Discard,
    /// It is zero, and its room is given back.
    Unmap,
    /// It is zero, and keeps its room.
    Zero,
}

impl Chain {
    /// Opens layers, top first. All but the top one are only read, and that one too if `read_only`.
    ///
    /// # Errors
    /// If they do not make a disk.
    pub fn open(layers: Vec<Layer>, read_only: bool) -> Result<Self, ImageError> {
        let mut files: Vec<(u64, u64)> = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let status = layer.file.metadata().map_err(|source| ImageError::Host { layer: index, source })?;
            let file = (status.dev(), status.ino());
            if files.contains(&file) {
                return Err(ImageError::Twice(index));
            }
            files.push(file);
            if layer.format == Format::Raw && index + 1 < layers.len() {
                return Err(ImageError::RawAbove(index));
            }
        }
        let mut below: Option<(Access, Format)> = None;
        let mut cluster = 1;
        for (index, layer) in layers.into_iter().enumerate().rev() {
            let (format, writable) = (layer.format, index == 0 && !read_only);
            let access = match format {
                Format::Raw => open_raw(layer.file).map_err(|source| ImageError::Host { layer: index, source })?,
                Format::Qcow2 => {
                    let (header, access) = open_qcow2(layer.file, index, writable, below)?;
                    cluster = header.cluster;
                    access
                }
            };
            below = Some((access, format));
        }
        let (access, _) = below.ok_or(ImageError::Layers(0))?;
        Ok(Self { size: access.size(), access: RwLock::new(access), cluster })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is at an offset, and for how many bytes in a row, at most `wanted`.
    ///
    /// # Errors
    /// If a layer is broken there.
    pub fn look(&self, offset: u64, wanted: u64) -> io::Result<(Found, u64)> {
        let access = self.shared();
        let (mapping, len) = access.get_mapping(offset, wanted)?;
        let found = match mapping {
            Mapping::Raw { storage, .. } => {
                let status = storage.file.metadata()?;
                Found::Data { dev: status.dev(), ino: status.ino() }
            }
            Mapping::Zero { .. } => Found::Zero,
            Mapping::Special { .. } => Found::Packed,
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        Ok((found, some(len, wanted)?))
    }

    fn shared(&self) -> RwLockReadGuard<'_, Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Access> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills buffers from an offset on.
    ///
    /// # Errors
    /// If a layer cannot be read, or is broken there.
    pub fn read(&self, mut buffers: Buffers<'_>, mut offset: u64) -> io::Result<()> {
        let access = self.shared();
        while !buffers.is_empty() {
            let wanted = buffers.len() as u64;
            let (mapping, len) = access.get_mapping(offset, wanted)?;
            let len = some(len, wanted)?;
            let mut piece = buffers.take(len as usize);
            match mapping {
                Mapping::Raw { storage, offset, .. } => piece.fill_at_or_zero(&storage.file, offset)?,
                Mapping::Zero { .. } => piece.clear(),
                Mapping::Special { layer, mut offset, .. } => {
                    // Compressed clusters.
                    let mut bytes = vec![0; self.cluster.min(len) as usize];
                    while !piece.is_empty() {
                        let part = &mut bytes[..piece.len().min(self.cluster as usize)];
                        layer.inner().readv_special(IoVectorMut::from(&mut *part), offset)?;
                        offset += part.len() as u64;
                        piece.write(part);
                    }
                }
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            offset += len;
        }
        Ok(())
    }

    /// Writes buffers from an offset on.
    ///
    /// # Errors
    /// If a layer cannot be written, or is broken there.
    pub fn write(&self, mut buffers: Buffers<'_>, mut offset: u64) -> io::Result<()> {
        let access = self.shared();
        while !buffers.is_empty() {
            let wanted = buffers.len() as u64;
            let Some((file, place, len)) = owned(&access, offset, wanted)? else { break };
            file.check_end(place, len)?;
            buffers.take(len as usize).store_at(&file.file, place)?;
            file.wrote(place, len);
            offset += len;
        }
        drop(access);
        if buffers.is_empty() {
            return Ok(());
        }
        let access = self.alone();
        while !buffers.is_empty() {
            let wanted = buffers.len() as u64;
            let written = match owned(&access, offset, wanted)? {
                Some((file, place, len)) => {
                    file.check_end(place, len)?;
                    buffers.take(len as usize).store_at(&file.file, place)?;
                    file.wrote(place, len);
                    len
                }
                None => self.write_new(&access, &mut buffers, offset)?,
            };
            offset += written;
        }
        Ok(())
    }

    /// Writes to clusters that the top layer does not have, and says how many bytes.
    fn write_new(&self, access: &Access, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<u64> {
        let wanted = buffers.len() as u64;
        // The end of the run that is not there: what comes after it is written in place.
        let (_, len) = access.get_shallow_mapping(offset, wanted)?;
        let len = some(len, wanted)?;
        let start = offset - offset % self.cluster;
        if start != offset || len < self.cluster {
            return self.write_part(access, buffers, offset);
        }
        let whole = len - len % self.cluster;
        let mapping = access.prepare_data_mapping(offset, whole, true)?;
        let (file, place) = (mapping.storage(), mapping.offset());
        let len = some(mapping.length(), whole)?;
        file.check_end(place, len)?;
        let stored = buffers.take(len as usize).store_at(&file.file, place);
        file.wrote_new(place, len);
        stored?;
        access.commit_data_mapping(mapping)?;
        Ok(len)
    }

    /// Writes what lies in one cluster that the top layer does not have, with what lay there around it.
    fn write_part(&self, access: &Access, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<u64> {
        let inside = offset % self.cluster;
        let start = offset - inside;
        let end = (start + self.cluster).min(self.size);
        let mut bytes = vec![0; (end - start) as usize];
        access.read(&mut bytes, start)?;
        let count = buffers.read(&mut bytes[inside as usize..]);
        let mapping = access.prepare_data_mapping(start, end - start, true)?;
        let (file, place) = (mapping.storage(), mapping.offset());
        file.check_end(place, bytes.len() as u64)?;
        let stored = write_all(&file.file, &bytes, place);
        file.wrote_new(place, bytes.len() as u64);
        stored?;
        access.commit_data_mapping(mapping)?;
        Ok(count as u64)
    }

    /// Has all that was written reach the disk: the data, then the tables that refer to them.
    ///
    /// # Errors
    /// As write(2) and fdatasync(2).
    pub fn flush(&self) -> io::Result<()> {
        let access = self.shared();
        let file = top(&access)?;
        file.sync_data(true)?;
        access.flush()?;
        file.sync_data(false)
    }

    /// What became of the top layer's file.
    #[cfg(test)]
    pub fn log(&self) -> Vec<storage::Event> {
        top(&self.shared()).unwrap().log()
    }

    /// Puts the tables into the file.
    ///
    /// # Errors
    /// As write(2).
    pub fn settle(&self) -> io::Result<()> {
        self.shared().flush()
    }

    /// Clears a range. Whole clusters become ones that are zero; what is less than a cluster is written to, or left as it
    /// is if it is only discarded.
    ///
    /// A cluster stays where it is, and its room is given back to the host by a hole in the file. If it were given away
    /// instead, and the host lost power before the mapping that is no more reached the disk, then a place of the disk
    /// would have another one's data.
    ///
    /// # Errors
    /// If the top layer cannot be written, or is broken there.
    pub fn clear(&self, offset: u64, len: u64, how: Clear) -> io::Result<()> {
        let end = offset + len;
        let first = offset.next_multiple_of(self.cluster).min(end);
        // The last cluster of the disk may be less than one.
        let last = if end == self.size { end } else { (end - end % self.cluster).max(first) };
        let access = self.alone();
        if how != Clear::Discard {
            self.write_zeroes(&access, offset, first)?;
        }
        let mut at = first;
        while at < last {
            let end = at + MOST_AT_ONCE.min(last - at);
            if how != Clear::Zero {
                self.punch(&access, at, end)?;
            }
            let (place, done) = access.inner().ensure_zero_mapping(at, end - at)?;
            if place != at || done == 0 {
                return Err(io::Error::other("a range of whole clusters was not cleared"));
            }
            at += done;
        }
        if how != Clear::Discard {
            self.write_zeroes(&access, last, end)?;
        }
        Ok(())
    }

    /// Makes holes of the clusters of its own that the top layer has from an offset to another. The guest may find zeroes
    /// there from now on, even if the host loses power: what was there before is of no interest to it, or was to become
    /// zero.
    fn punch(&self, access: &Access, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let (mapping, len) = access.get_shallow_mapping(offset, end - offset)?;
            let len = some(len, end - offset)?;
            if let ShallowMapping::Raw { storage, offset, writable: true, .. } = mapping {
                match storage::punch(&storage.file, offset, len) {
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                    result => result?,
                }
            }
            offset += len;
        }
        Ok(())
    }

    /// Writes zeroes from an offset to another that is less than a cluster away, where there are none.
    fn write_zeroes(&self, access: &Access, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let (mapping, len) = access.get_mapping(offset, end - offset)?;
            let len = some(len, end - offset)?;
            match mapping {
                Mapping::Zero { .. } => {}
                Mapping::Raw { storage, offset, writable: true, .. } => {
                    storage.check_end(offset, len)?;
                    write_all(&storage.file, &vec![0; len as usize], offset)?;
                    storage.wrote(offset, len);
                }
                _ => {
                    // Of a new cluster, so that all of it has to be written.
                    let start = offset - offset % self.cluster;
                    let stop = (start + self.cluster).min(self.size);
                    let mut bytes = vec![0; (stop - start) as usize];
                    access.read(&mut bytes, start)?;
                    let from = (offset - start) as usize;
                    bytes[from..from + len as usize].fill(0);
                    let mapping = access.prepare_data_mapping(start, stop - start, true)?;
                    let (file, place) = (mapping.storage(), mapping.offset());
                    file.check_end(place, bytes.len() as u64)?;
                    let stored = write_all(&file.file, &bytes, place);
                    file.wrote_new(place, bytes.len() as u64);
                    stored?;
                    access.commit_data_mapping(mapping)?;
                }
            }
            offset += len;
        }
        Ok(())
    }
}

/// How much is discarded before the next look at what it is.
const MOST_AT_ONCE: u64 = 1 << 30;

/// A length that the library gives: some, and no more than what was asked for.
fn some(len: u64, most: u64) -> io::Result<u64> {
    if len == 0 || len > most {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(len)
}

/// Where the top layer has a place's data of its own, from an offset on, and how many bytes of it in a row.
fn owned(access: &Access, offset: u64, wanted: u64) -> io::Result<Option<(&ImageFile, u64, u64)>> {
    let (mapping, len) = access.get_shallow_mapping(offset, wanted)?;
    Ok(match mapping {
        ShallowMapping::Raw { storage, offset, writable: true, .. } => Some((storage, offset, some(len, wanted)?)),
        _ => None,
    })
}

/// The file of the top layer.
fn top(access: &Access) -> io::Result<&ImageFile> {
    // The library lists what lies below first.
    access.inner().collect_storage_dependencies().pop().ok_or(io::ErrorKind::NotFound.into())
}

fn write_all(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let part = [io::IoSlice::new(bytes)];
        match rustix::io::retry_on_intr(|| rustix::io::pwritev(file, &part, offset))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

fn open_raw(mut file: File) -> io::Result<Access> {
    let size = length(&mut file)?;
    Ok(FormatAccess::new(Raw::open_image(ImageFile::new(file, size, 0, false), false)?))
}

fn open_qcow2(
    mut file: File,
    layer: usize,
    writable: bool,
    below: Option<(Access, Format)>,
) -> Result<(Header, Access), ImageError> {
    let header = header::check(&mut file, writable).map_err(|source| ImageError::Header { layer, source })?;
    if header.backing != below.is_some() {
        return Err(ImageError::Backing { layer, named: header.backing });
    }
    if let (Some(said), Some((_, given))) = (&header.backing_format, &below) {
        let same = match given {
            // "file" is what QEMU once called it.
            Format::Raw => ["raw", "file", "host_device"].contains(&said.as_str()),
            Format::Qcow2 => said == "qcow2",
        };
        if !same {
            return Err(ImageError::BackingFormat { layer, said: said.clone() });
        }
    }
    // All of the disk new, its tables, and what may be lost to machines that ended without closing it.
    let limit = if writable { header.file.saturating_add(header.size / 8 * 9).saturating_add(16 << 20) } else { 0 };
    let image = ImageFile::new(file, header.file, limit, true);
    let host = |source| ImageError::Host { layer, source };
    let mut qcow2 = Qcow2::<ImageFile, Access>::open_image(image, writable).map_err(host)?;
    // Neither is looked for by a name.
    qcow2.set_data_file(None);
    qcow2.set_backing(below.map(|(access, _)| access));
    Ok((header, FormatAccess::new(qcow2)))
}
