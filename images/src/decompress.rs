//! Decompression in a thread of its own, so that it overlaps with the writing of files.
//!
//! One thread reads the image file in 1 MiB pieces, feeds the fingerprint's hash and the decompressor, and passes
//! buffers through a short bounded channel; used buffers travel back, so that the steady state allocates nothing. The
//! receiving side is an ordinary [`BufRead`]. Dropping it stops the thread.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use crate::format::Compression;
use crate::limits::Limits;
use crate::{ImageError, Result};

/// Size of the pieces that are read and passed on.
const PIECE: usize = 1 << 20;
/// Pieces under way at most.
const AHEAD: usize = 4;
/// Memory an xz decoder may take: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// The decompressed bytes of an image file.
pub(crate) struct Decompressed {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    thread: Option<JoinHandle<Sha256>>,
    piece: Vec<u8>,
    position: usize,
    ended: bool,
    compressed: Arc<AtomicU64>,
    produced: u64,
    ratio: u64,
    ratio_free: u64,
}

impl Decompressed {
    /// Starts on an open file; `hasher` goes on over its bytes.
    pub(crate) fn start(
        file: File,
        compression: Compression,
        hasher: Sha256,
        limits: &Limits,
    ) -> io::Result<Decompressed> {
        let (sender, pieces) = sync_channel(AHEAD);
        let (used, recycled) = channel();
        let compressed = Arc::new(AtomicU64::new(0));
        let source = Source { file, hasher, buffer: vec![0; PIECE], start: 0, end: 0, count: compressed.clone() };
        let thread = std::thread::Builder::new()
            .name("image-decompress".into())
            .spawn(move || decompress(source, compression, &sender, &recycled))?;
        Ok(Decompressed {
            pieces,
            used,
            thread: Some(thread),
            piece: Vec::new(),
            position: 0,
            ended: false,
            compressed,
            produced: 0,
            ratio: limits.max_ratio,
            ratio_free: limits.ratio_free_bytes,
        })
    }

    /// Compressed bytes read so far (the thread may be a few pieces ahead of the reader).
    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.compressed.load(Ordering::Relaxed)
    }

    /// After the end was read: the hash, now over this file's bytes as well.
    pub(crate) fn finish(mut self) -> Result<Sha256> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(hasher)) if self.ended => Ok(hasher),
            _ => Err(ImageError::Damaged("its decompression did not reach the end".into())),
        }
    }

    fn next_piece(&mut self) -> io::Result<()> {
        match self.pieces.recv() {
            Ok(Ok(piece)) => {
                self.produced += piece.len() as u64;
                self.check_ratio()?;
                let old = std::mem::replace(&mut self.piece, piece);
                self.position = 0;
                let _ = self.used.send(old); // the thread may have ended: then nobody wants it
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                // The sender is gone: the end, unless the thread panicked, which `finish` notices.
                self.ended = true;
                self.piece.clear();
                self.position = 0;
                Ok(())
            }
        }
    }

    fn check_ratio(&self) -> io::Result<()> {
        let compressed = self.compressed_bytes().max(1);
        if self.produced > self.ratio_free && self.produced / compressed > self.ratio {
            let what = format!("its compression ratio of {} to 1", self.produced / compressed);
            return Err(io::Error::other(ImageError::Limit { what, limit: self.ratio }));
        }
        Ok(())
    }
}

impl BufRead for Decompressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.piece.len() && !self.ended {
            self.next_piece()?;
        }
        Ok(&self.piece[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.piece.len());
    }
}

impl Read for Decompressed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl Drop for Decompressed {
    fn drop(&mut self) {
        // The thread ends at its next send, because the receiver is gone by then; it holds nothing else of ours, but
        // waiting for it means that nothing of an unpacking outlives it.
        let (_, closed) = sync_channel(0);
        self.pieces = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The file's bytes, hashed and counted as they are read.
struct Source {
    file: File,
    hasher: Sha256,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    count: Arc<AtomicU64>,
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            let n = loop {
                match self.file.read(&mut self.buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            self.hasher.update(&self.buffer[..n]);
            self.count.fetch_add(n as u64, Ordering::Relaxed);
            (self.start, self.end) = (0, n);
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, amount: usize) {
        self.start = (self.start + amount).min(self.end);
    }
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

/// A decompressor over any source; it reads concatenated streams and refuses what follows them.
pub(crate) fn decoder<'a, R: BufRead + 'a>(source: R, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
    })
}

fn decompress(
    mut source: Source,
    compression: Compression,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    recycled: &Receiver<Vec<u8>>,
) -> Sha256 {
    let outcome = decoder(&mut source, compression).and_then(|mut decoder| pump(&mut *decoder, sender, recycled));
    if let Err(error) = outcome {
        let _ = sender.send(Err(error)); // nobody listens: the reader was dropped
    }
    source.hasher
}

/// Moves decompressed bytes into the channel until the end, an error, or nobody listens.
fn pump(
    decoder: &mut dyn Read,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    recycled: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut piece = recycled.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        while filled < PIECE {
            match decoder.read(&mut piece[filled..]) {
                Ok(0) => {
                    piece.truncate(filled);
                    let _ = sender.send(Ok(piece)); // as above
                    return Ok(());
                }
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if sender.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}
