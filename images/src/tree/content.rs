//! The content of one file, written with holes where the bytes are zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Holes are made in units of the common page and file system block.
const UNIT: usize = 4096;
static ZEROS: [u8; UNIT] = [0; UNIT];

/// A regular file that is being filled.
#[derive(Debug)]
pub(crate) struct ContentWriter {
    file: File,
    size: u64,
    /// The end of what was written, as against left out.
    written: u64,
}

impl ContentWriter {
    pub(super) fn new(file: File, size: u64) -> ContentWriter {
        ContentWriter { file, size, written: 0 }
    }

    /// Writes bytes at an offset, leaving whole units of zeros out, and zeros at either end: what is never written
    /// reads as zeros.
    pub(crate) fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let lead = (UNIT as u64 - offset % UNIT as u64) as usize % UNIT;
        let lead = lead.min(bytes.len());
        // Of the bytes not written yet.
        let mut start = if bytes[..lead].iter().all(|b| *b == 0) { lead } else { 0 };
        let mut at = lead;
        while at + UNIT <= bytes.len() {
            if bytes[at..at + UNIT] == ZEROS {
                self.put(&bytes[start..at], offset + start as u64)?;
                start = at + UNIT;
            }
            at += UNIT;
        }
        let end = if bytes[at..].iter().all(|b| *b == 0) { at } else { bytes.len() };
        self.put(&bytes[start..end], offset + start as u64)
    }

    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !bytes.is_empty() {
            self.file.write_all_at(bytes, offset)?;
            self.written = self.written.max(offset + bytes.len() as u64);
        }
        Ok(())
    }

    /// Makes the file as long as it should be.
    pub(super) fn finish(self) -> io::Result<File> {
        if self.written != self.size {
            self.file.set_len(self.size)?;
        }
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    fn write(pieces: &[(u64, Vec<u8>)], size: u64) -> File {
        let mut writer = ContentWriter::new(tempfile::tempfile().unwrap(), size);
        for (offset, bytes) in pieces {
            writer.write_at(bytes, *offset).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn zeros_take_no_room() {
        let mut bytes = vec![0u8; 4 << 20];
        bytes[1 << 20] = 7;
        let file = write(&[(0, bytes.clone())], bytes.len() as u64);
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), bytes.len() as u64);
        assert!(meta.blocks() * 512 <= 64 << 10, "{} blocks", meta.blocks());
        let mut back = vec![1; bytes.len()];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, bytes);
    }

    proptest! {
        #[test]
        fn reads_back_what_was_written(runs in proptest::collection::vec((any::<bool>(), 1usize..9000), 0..12), cut in 1usize..5000) {
            let mut bytes = Vec::new();
            for (zero, length) in runs {
                bytes.resize(bytes.len() + length, u8::from(!zero));
            }
            let pieces: Vec<(u64, Vec<u8>)> = bytes.chunks(cut).enumerate().map(|(i, c)| ((i * cut) as u64, c.to_vec())).collect();
            let file = write(&pieces, bytes.len() as u64);
            let mut back = vec![9; bytes.len()];
            file.read_exact_at(&mut back, 0).unwrap();
            prop_assert_eq!(back, bytes);
        }
    }
}
