//! An image's name: the SHA-256 of its file or files.
//!
//! As Incus defines it: of a unified tarball, the hash of the file as it is stored (compressed); of a split image, the
//! hash of the metadata file's bytes followed by the root file system file's. So a file that travels keeps its name.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::observe::{Observer, Phase};
use crate::{ImageError, Result};

/// The lower-case hexadecimal fingerprint of a unified image (`rootfs` is `None`) or of a split one.
///
/// # Errors
/// When a file cannot be opened or read, or the observer cancels.
pub fn fingerprint(meta: &Path, rootfs: Option<&Path>, observer: &mut Observer<'_>) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let files: Vec<&Path> = std::iter::once(meta).chain(rootfs).collect();
    let mut total = 0;
    let mut open = Vec::with_capacity(files.len());
    for path in files {
        let file = File::open(path).map_err(|e| ImageError::file("open", path, e))?;
        total += file.metadata().map_err(|e| ImageError::file("examine", path, e))?.len();
        open.push((path, file));
    }
    let mut done = 0;
    for (path, mut file) in open {
        loop {
            observer.check()?;
            let n = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ImageError::file("read", path, e)),
            };
            hasher.update(&buffer[..n]);
            done += n as u64;
            observer.report(Phase::Hashing, done, Some(total), "");
        }
    }
    Ok(hex(hasher))
}

/// Whether a string has the form of a whole fingerprint: 64 lower-case hexadecimal digits.
pub fn is_fingerprint(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().fold(String::with_capacity(64), |mut out, byte| {
        use std::fmt::Write as _;
        let _ = write!(out, "{byte:02x}"); // a String takes every write
        out
    })
}

/// Passes bytes on and keeps their SHA-256 and count: the fingerprint of an image that is being received or packed,
/// without a second reading.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    written: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Starts a new hash over what will be written to `inner`.
    pub fn new(inner: W) -> Self {
        HashingWriter { inner, hasher: Sha256::new(), written: 0 }
    }

    /// Goes on with the same hash over a second file: a split image's root file system after its metadata.
    ///
    /// # Errors
    /// When flushing the first file fails.
    pub fn continue_with<V: Write>(mut self, next: V) -> io::Result<(W, HashingWriter<V>)> {
        self.inner.flush()?;
        Ok((self.inner, HashingWriter { inner: next, hasher: self.hasher, written: self.written }))
    }

    /// Bytes written so far, over all files.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Flushes and gives back the writer with the fingerprint of everything written.
    ///
    /// # Errors
    /// When flushing fails.
    pub fn finish(mut self) -> io::Result<(W, String)> {
        self.inner.flush()?;
        Ok((self.inner, hex(self.hasher)))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-4's example

    #[test]
    fn unified_is_the_hash_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(fingerprint(&path, None, &mut Observer::none()).unwrap(), ABC);
    }

    #[test]
    fn split_is_the_hash_of_both_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (meta, rootfs) = (dir.path().join("meta"), dir.path().join("rootfs"));
        std::fs::write(&meta, "a").unwrap();
        std::fs::write(&rootfs, "bc").unwrap();
        let mut seen = Vec::new();
        let mut note = |p: crate::Progress| seen.push((p.done, p.total));
        let never = || false;
        let print = fingerprint(&meta, Some(&rootfs), &mut Observer::new(&mut note, &never)).unwrap();
        assert_eq!(print, ABC);
        assert_eq!(seen, [(1, Some(3)), (3, Some(3))]);
    }

    #[test]
    fn a_stream_has_the_same_fingerprint() {
        let mut first = HashingWriter::new(Vec::new());
        first.write_all(b"a").unwrap();
        let (meta, mut second) = first.continue_with(Vec::new()).unwrap();
        second.write_all(b"bc").unwrap();
        assert_eq!(second.written(), 3);
        let (rootfs, print) = second.finish().unwrap();
        assert_eq!((meta.as_slice(), rootfs.as_slice(), print.as_str()), (&b"a"[..], &b"bc"[..], ABC));
        assert!(is_fingerprint(&print));
        assert!(!is_fingerprint(&print[1..]) && !is_fingerprint(&print.to_uppercase()));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = fingerprint(Path::new("/nonexistent/image"), None, &mut Observer::none()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/image"), "{error}");
    }
}
