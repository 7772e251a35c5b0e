//! Reading blocks: metadata blocks of at most 8 KiB, found one after the other, and data blocks of the file system's
//! block size.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::layout::{Compressor, MetaRef, SUPERBLOCK, Superblock};
use crate::{ImageError, Result};

/// Most that a metadata block holds.
const META: usize = 8192;
/// Bit of a metadata block's header: its bytes are stored as they are.
const META_PLAIN: u16 = 0x8000;
/// Bit of a data block's size: its bytes are stored as they are.
const DATA_PLAIN: u32 = 1 << 24;
/// Decompressed metadata blocks that are remembered: 4 MiB.
const CACHED: usize = 512;
/// Memory that one xz block may take to decompress; the dictionary is no larger than a block.
const XZ_MEMORY: u64 = 64 << 20;

/// Bytes that can be read at any position: a file, or a slice in tests and fuzzing.
pub trait ReadAt {
    /// Fills the buffer from a position.
    ///
    /// # Errors
    /// `UnexpectedEof` when there are not as many bytes.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()>;
}

impl ReadAt for &File {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.read_exact_at(buffer, position)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let bytes =
            usize::try_from(position).ok().and_then(|p| self.get(p..)).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A decompressed metadata block and the position of the next.
type MetaBlock = (Rc<[u8]>, u64);

/// A squashfs as blocks.
pub(super) struct Blocks<S> {
    source: S,
    superblock: Superblock,
    cache: HashMap<u64, MetaBlock>,
}

impl<S: ReadAt> Blocks<S> {
    /// Reads the superblock; `length` is the file's.
    pub(super) fn open(source: S, length: u64) -> Result<Blocks<S>> {
        let mut bytes = [0; SUPERBLOCK];
        source.read_at(&mut bytes, 0).map_err(|e| ImageError::read(e, "the squashfs superblock"))?;
        Ok(Blocks { source, superblock: Superblock::parse(&bytes, length)?, cache: HashMap::new() })
    }

    pub(super) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Reads plain bytes, for the tables' indexes.
    pub(super) fn raw(&self, position: u64, buffer: &mut [u8], what: &str) -> Result<()> {
        self.source.read_at(buffer, position).map_err(|e| ImageError::read(e, what))
    }

    /// A metadata block, decompressed.
    pub(super) fn meta(&mut self, position: u64, what: &str) -> Result<MetaBlock> {
        if let Some(block) = self.cache.get(&position) {
            return Ok(block.clone());
        }
        let (bytes, next) = self.read_meta(position, what)?;
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        let block: MetaBlock = (bytes.into(), next);
        self.cache.insert(position, block.clone());
        Ok(block)
    }

    /// A metadata block that is read once only.
    pub(super) fn meta_uncached(&self, position: u64, what: &str) -> Result<Vec<u8>> {
        Ok(self.read_meta(position, what)?.0)
    }

    fn read_meta(&self, position: u64, what: &str) -> Result<(Vec<u8>, u64)> {
        let mut header = [0; 2];
        self.raw(position, &mut header, what)?;
        let header = u16::from_le_bytes(header);
        let size = header & !META_PLAIN;
        if size == 0 || usize::from(size) > META {
            return Err(damaged(what, "has a metadata block of an impossible size"));
        }
        let mut stored = vec![0; size.into()];
        self.raw(position + 2, &mut stored, what)?;
        let bytes = if header & META_PLAIN != 0 { stored } else { self.decompress(&stored, META, what)? };
        if bytes.is_empty() {
            return Err(damaged(what, "has an empty metadata block"));
        }
        Ok((bytes, position + 2 + u64::from(size)))
    }

    /// A data block, decompressed, and how many bytes it takes in the file. `word` is its size as inodes and fragments
    /// state it.
    pub(super) fn data(&mut self, position: u64, word: u32, what: &str) -> Result<(u64, Vec<u8>)> {
        let size = word & !DATA_PLAIN;
        if size > self.superblock.block_size {
            return Err(damaged(what, "has a block of an impossible size"));
        }
        let mut stored = vec![0; size as usize];
        self.raw(position, &mut stored, what)?;
        let bytes = if word & DATA_PLAIN != 0 {
            stored
        } else {
            self.decompress(&stored, self.superblock.block_size as usize, what)?
        };
        Ok((size.into(), bytes))
    }

    fn decompress(&self, stored: &[u8], most: usize, what: &str) -> Result<Vec<u8>> {
        let bad = |e: io::Error| ImageError::Damaged(format!("a block of {what:?} cannot be decompressed: {e}"));
        let decoder: Box<dyn Read + '_> = match self.superblock.compressor {
            Compressor::Gzip => Box::new(flate2::read::ZlibDecoder::new(stored)),
            Compressor::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(|e| bad(e.into()))?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(stored, stream))
            }
            Compressor::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(stored).map_err(bad)?),
        };
        let mut bytes = Vec::with_capacity(most);
        decoder.take(most as u64 + 1).read_to_end(&mut bytes).map_err(bad)?;
        if bytes.len() > most {
            return Err(damaged(what, "has a block that is too large once decompressed"));
        }
        Ok(bytes)
    }
}

fn damaged(what: &str, problem: &str) -> ImageError {
    ImageError::Damaged(format!("{what:?} {problem}"))
}

/// A place in a table of metadata blocks, from which one reads on across blocks.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    position: u64,
    offset: usize,
}

impl Cursor {
    pub(super) fn new(table: u64, at: MetaRef, what: &str) -> Result<Cursor> {
        let position = table.checked_add(at.block).ok_or_else(|| damaged(what, "is beyond the end"))?;
        if usize::from(at.offset) >= META {
            return Err(damaged(what, "is at an impossible place"));
        }
        Ok(Cursor { position, offset: at.offset.into() })
    }

    pub(super) fn fill<S: ReadAt>(&mut self, blocks: &mut Blocks<S>, mut out: &mut [u8], what: &str) -> Result<()> {
        while !out.is_empty() {
            let (block, next) = blocks.meta(self.position, what)?;
            if self.offset > block.len() {
                return Err(damaged(what, "is at an impossible place"));
            }
            let n = out.len().min(block.len() - self.offset);
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&block[self.offset..self.offset + n]);
            out = later;
            self.offset += n;
            if self.offset == block.len() {
                (self.position, self.offset) = (next, 0);
            }
        }
        Ok(())
    }

    pub(super) fn bytes<S: ReadAt>(&mut self, blocks: &mut Blocks<S>, length: usize, what: &str) -> Result<Vec<u8>> {
        let mut out = vec![0; length];
        self.fill(blocks, &mut out, what)?;
        Ok(out)
    }

    pub(super) fn u16<S: ReadAt>(&mut self, blocks: &mut Blocks<S>, what: &str) -> Result<u16> {
        let mut out = [0; 2];
        self.fill(blocks, &mut out, what)?;
        Ok(u16::from_le_bytes(out))
    }

    pub(super) fn u32<S: ReadAt>(&mut self, blocks: &mut Blocks<S>, what: &str) -> Result<u32> {
        let mut out = [0; 4];
        self.fill(blocks, &mut out, what)?;
        Ok(u32::from_le_bytes(out))
    }

    pub(super) fn u64<S: ReadAt>(&mut self, blocks: &mut Blocks<S>, what: &str) -> Result<u64> {
        let mut out = [0; 8];
        self.fill(blocks, &mut out, what)?;
        Ok(u64::from_le_bytes(out))
    }
}
