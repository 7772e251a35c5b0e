//! What a disk is made of on the host: one raw file or block device, or qcow2 layers with what lies below them.
//!
//! A raw disk is its file ([`Image::Raw`]). Everything else is a [`chain`] of descriptors, read and mapped by the library
//! imago. Which layers there are and what format each has is said by whoever starts the machine, never by their contents:
//! a guest can write a qcow2 header into its raw disk, and whoever believed that would open any file that it names.
//!
//! *Hostile layers.* [`header`] checks what the library does not, before the library sees the file; [`storage`] is all
//! that the library can do with a file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::virtio::buffers::Buffers;

pub mod chain;
pub mod header;
pub mod join;
pub mod make;
pub mod storage;
#[cfg(test)]
mod tests;

use chain::Chain;
use header::HeaderError;

/// The most layers of a disk, each of which costs a guest's first access to a place a look-up.
pub const MAX_LAYERS: usize = 32;

/// The format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The bytes as they are.
    #[default]
    Raw,
    /// QEMU's format (docs/interop/qcow2.txt in QEMU), version 2 or 3; version 3 where it is written to.
    Qcow2,
}

/// A layer that is open: for reading, and for writing if it is the top one of a disk that is not read-only.
#[derive(Debug)]
pub struct Layer {
    /// The file or block device.
    pub file: File,
    /// How it is to be read.
    pub format: Format,
}

/// Why layers are no disk. Layers are counted from the top, which is 0.
#[derive(Debug, Error)]
pub enum ImageError {
    /// None or too many.
    #[error("a disk has 1 to {MAX_LAYERS} layers, not {0}")]
    Layers(usize),
    /// A raw layer has all of the disk's contents, so that nothing can lie below it.
    #[error("layer {0} of a disk is raw and can only be the last one: nothing of what lies below it could be seen")]
    RawAbove(usize),
    /// The same file twice.
    #[error("layer {0} of a disk is the same file as one above it")]
    Twice(usize),
    /// No qcow2 image, or one that is not served.
    #[error("layer {layer} of a disk: {source}")]
    Header {
        /// Which.
        layer: usize,
        /// Why.
        source: HeaderError,
    },
    /// The header says that something lies below, and nothing was given; or the other way round.
    #[error("layer {layer} of a disk {}", if *.named { "names a backing file, but there is no layer below it" } else { "names no backing file, but there is a layer below it" })]
    Backing {
        /// Which.
        layer: usize,
        /// Whether the header names a backing file.
        named: bool,
    },
    /// The header says that what lies below has another format.
    #[error("layer {layer} of a disk says that the one below has the format {said:?}, which is not what was given")]
    BackingFormat {
        /// Which.
        layer: usize,
        /// What the header says.
        said: String,
    },
    /// The library or the host.
    #[error("layer {layer} of a disk cannot be used: {source}")]
    Host {
        /// Which.
        layer: usize,
        /// Why.
        source: io::Error,
    },
}

/// A disk's contents.
#[derive(Debug)]
pub enum Image {
    /// A file or block device that has them as they are.
    Raw(File),
    /// Layers.
    Chain(Chain),
}

impl Image {
    /// The disk that these layers are, top first, and its size in bytes.
    ///
    /// # Errors
    /// If they are none.
    pub fn open(mut layers: Vec<Layer>, read_only: bool) -> Result<(Self, u64), ImageError> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(ImageError::Layers(layers.len()));
        }
        if layers.len() == 1 && layers[0].format == Format::Raw {
            let mut file = layers.remove(0).file;
            let size = length(&mut file).map_err(|source| ImageError::Host { layer: 0, source })?;
            return Ok((Self::Raw(file), size));
        }
        let chain = Chain::open(layers, read_only)?;
        let size = chain.size();
        Ok((Self::Chain(chain), size))
    }

    /// Fills memory of the process's own from an offset on. All of it is within the disk.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn read_own(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(Buffers::own(bytes), offset)
    }

    /// Fills buffers from an offset on. All of it is within the disk.
    ///
    /// # Errors
    /// What the host says, or that a layer is broken there.
    pub fn read(&self, buffers: Buffers<'_>, offset: u64) -> io::Result<()> {
        match self {
            Self::Raw(file) => buffers.fill_at(file, offset),
            Self::Chain(chain) => chain.read(buffers, offset),
        }
    }

    /// Writes buffers from an offset on. All of it is within the disk.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn write(&self, buffers: Buffers<'_>, offset: u64) -> io::Result<()> {
        match self {
            Self::Raw(file) => buffers.store_at(file, offset),
            Self::Chain(chain) => chain.write(buffers, offset),
        }
    }

    /// Has all that was written before survive a host that loses power.
    ///
    /// # Errors
    /// As fdatasync(2).
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Self::Raw(file) => Ok(file.sync_data()?),
            Self::Chain(chain) => chain.flush(),
        }
    }

    /// Gives back the room of a range, of which a guest expects nothing any more. What cannot be given back stays.
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self {
            Self::Raw(file) => storage::punch(file, offset, len),
            Self::Chain(chain) => chain.clear(offset, len, chain::Clear::Discard),
        }
    }

    /// Fills a range with zeroes, and gives back its room if that is wanted.
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        match self {
            Self::Raw(file) if unmap => storage::punch(file, offset, len),
            Self::Raw(file) => storage::zero(file, offset, len),
            Self::Chain(chain) => {
                chain.clear(offset, len, if unmap { chain::Clear::Unmap } else { chain::Clear::Zero })
            }
        }
    }

    /// Puts into the file what is yet in this process's memory alone, so that the process can end.
    ///
    /// # Errors
    /// As write(2).
    pub fn settle(&self) -> io::Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Chain(chain) => chain.settle(),
        }
    }
}

/// Bytes of a file or block device: the latter's status does not say it.
fn length(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
