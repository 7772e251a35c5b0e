//! Telling what a file is from its first bytes, never from its name.
//!
//! An image is a tarball (plain, gzip, xz or zstd) or, for a split image's root file system, a squashfs. People also
//! bring disk images, ISOs and downloads that turned out to be an error page; each gets a sentence of its own.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::{ImageError, Result};

/// How the bytes of a tarball are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952), several members allowed.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// The usual ending of a tarball's file name, as Incus names exports: `.tar.gz`.
    pub fn extension(self) -> &'static str {
        match self {
            Compression::None => ".tar",
            Compression::Gzip => ".tar.gz",
            Compression::Xz => ".tar.xz",
            Compression::Zstd => ".tar.zst",
        }
    }
}

/// What an image file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// A tar archive.
    Tar(Compression),
    /// A squashfs 4.0 file system.
    Squashfs,
}

impl ImageFormat {
    /// The usual ending of the file's name, as Incus names exports: `.tar.xz`, `.squashfs`.
    pub fn extension(self) -> &'static str {
        match self {
            ImageFormat::Tar(compression) => compression.extension(),
            ImageFormat::Squashfs => ".squashfs",
        }
    }
}

/// Bytes that [`detect`] wants to see: the ISO 9660 mark is the one farthest in.
pub const HEAD: usize = 0x8006;

const CONTAINERS: &str = "a system container's image is a tarball (plain, gzip, xz or zstd) or a squashfs";

/// Signatures of things that are not images, with what to say: offset, bytes, sentence.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb", "is a qcow2 disk image"),
    (0, b"KDMV", "is a VMDK disk image"),
    (0, b"vhdxfile", "is a VHDX disk image"),
    (0, b"conectix", "is a VHD disk image"),
    (0x40, b"\x7f\x10\xda\xbe", "is a VirtualBox disk image"),
    (0x200, b"EFI PART", "is a raw disk image with a GPT"),
    (0x8001, b"CD001", "is an ISO 9660 image"),
    (0x438, b"\x53\xef", "is a raw ext2/3/4 file system"),
    (0, b"BZh", "is compressed with bzip2"),
    (0, b"\x5d\x00\x00", "is compressed with the old lzma format"),
    (0, b"\x04\x22\x4d\x18", "is compressed with lz4"),
    (0, b"PK\x03\x04", "is a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
    (0, b"070701", "is a cpio archive"),
    (0, b"sqsh", "is a big-endian squashfs from before 2009"),
    (0, b"\x7fELF", "is a program"),
    (0, b"!<arch>\n", "is a Debian package or library archive"),
    (0, b"#!", "is a script"),
    (0, b"<", "is a web page or XML document"),
    (0, b"{", "is a JSON document"),
];

/// Says what a file with these first bytes is; `head` should hold [`HEAD`] bytes where the file is that long.
///
/// # Errors
/// A sentence part that says what it is instead ("is a qcow2 disk image; …").
pub fn detect(head: &[u8]) -> std::result::Result<ImageFormat, String> {
    if head.is_empty() {
        return Err("is empty".into());
    }
    if head.starts_with(b"\x1f\x8b") {
        return Ok(ImageFormat::Tar(Compression::Gzip));
    }
    if head.starts_with(b"\xfd7zXZ\0") {
        return Ok(ImageFormat::Tar(Compression::Xz));
    }
    // A Zstandard file may begin with a skippable frame (RFC 8878, 3.1.2).
    let skippable = head.len() >= 4 && (0x50..=0x5f).contains(&head[0]) && head[1..4] == *b"\x2a\x4d\x18";
    if head.starts_with(b"\x28\xb5\x2f\xfd") || skippable {
        return Ok(ImageFormat::Tar(Compression::Zstd));
    }
    if head.starts_with(b"hsqs") {
        return Ok(ImageFormat::Squashfs);
    }
    if is_tar(head) {
        return Ok(ImageFormat::Tar(Compression::None));
    }
    Err(foreign(head))
}

/// Opens a file and says what it is.
///
/// # Errors
/// When it cannot be read, or [`ImageError::WrongFormat`] when it is no image.
pub fn detect_file(path: &Path) -> Result<ImageFormat> {
    let mut head = Vec::with_capacity(HEAD);
    let file = File::open(path).map_err(|e| ImageError::file("open", path, e))?;
    if !file.metadata().map_err(|e| ImageError::file("examine", path, e))?.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(ImageError::file("read", path, source));
    }
    file.take(HEAD as u64).read_to_end(&mut head).map_err(|e| ImageError::file("read", path, e))?;
    detect(&head).map_err(|problem| ImageError::WrongFormat { path: path.into(), problem })
}

/// Names what bytes are that are no image; also used on what comes out of a decompressor.
pub(crate) fn foreign(head: &[u8]) -> String {
    for (offset, magic, sentence) in FOREIGN {
        if head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return format!("{sentence}; {CONTAINERS}");
        }
    }
    if head.get(510..512) == Some(b"\x55\xaa") {
        return format!("is a raw disk image with a boot sector; {CONTAINERS}");
    }
    format!("is of an unknown format; {CONTAINERS}")
}

/// Whether these bytes begin a tar archive: a header block whose checksum is right, or an empty archive.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else { return false };
    let Ok(block) = <&[u8; 512]>::try_from(block) else { return false };
    block.iter().all(|b| *b == 0) || crate::tar::checksum_matches(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![1u8; HEAD];
        head[offset..offset + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn by_magic() {
        let table: &[(&[u8], ImageFormat)] = &[
            (b"\x1f\x8b\x08", ImageFormat::Tar(Compression::Gzip)),
            (b"\xfd7zXZ\0\0", ImageFormat::Tar(Compression::Xz)),
            (b"\x28\xb5\x2f\xfd", ImageFormat::Tar(Compression::Zstd)),
            (b"\x5a\x2a\x4d\x18", ImageFormat::Tar(Compression::Zstd)),
            (b"hsqs", ImageFormat::Squashfs),
            (&[0; 512], ImageFormat::Tar(Compression::None)),
        ];
        for (head, format) in table {
            assert_eq!(detect(head).as_ref(), Ok(format), "{head:?}");
        }
    }

    #[test]
    fn what_is_no_image_is_named() {
        let table = [
            (0, &b"QFI\xfb"[..], "qcow2"),
            (0x200, b"EFI PART", "GPT"),
            (0x8001, b"CD001", "ISO 9660"),
            (0, b"BZh9", "bzip2"),
            (0, b"<html>", "web page"),
            (510, b"\x55\xaa", "boot sector"),
            (0, b"hello", "unknown format"),
        ];
        for (offset, magic, wanted) in table {
            let problem = detect(&padded(offset, magic)).unwrap_err();
            assert!(problem.contains(wanted) && problem.contains("tarball"), "{problem}");
        }
        assert_eq!(detect(b""), Err("is empty".into()));
        assert!(detect(b"QFI\xfb").unwrap_err().contains("qcow2"));
    }

    #[test]
    fn a_folder_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        assert!(detect_file(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    }
}
