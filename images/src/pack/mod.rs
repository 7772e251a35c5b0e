//! From a folder to image files.

mod archive;
mod tree;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::os::fd::BorrowedFd;

use crate::compress::{Compress, Compressor};
use crate::entry::{Attributes, EntryKind, Timestamp};
use crate::fingerprint::HashingWriter;
use crate::limits::Limits;
use crate::metadata::{Metadata, is_template_name};
use crate::observe::Observer;
use crate::tar::TarWriter;
use crate::{ImageError, Result};

use archive::add_archive;
use tree::add_tree;
pub use tree::{PackedTree, TreeOptions, pack_tree};

/// What an image is made of.
#[derive(Debug)]
pub struct PackSource<'a> {
    /// The root file system: an open directory, best of a read-only mount. Ids are taken as they are seen.
    pub rootfs: BorrowedFd<'a>,
    /// What the image says about itself.
    pub metadata: &'a Metadata,
    /// The templates by file name.
    pub templates: &'a BTreeMap<String, Vec<u8>>,
}

/// An image that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The image's fingerprint.
    pub fingerprint: String,
    /// Size of the file or files, in bytes.
    pub size: u64,
    /// Bytes of file content that went in.
    pub content: u64,
    /// Entries of the root file system.
    pub entries: u64,
}

/// Packs a unified tarball: `metadata.yaml`, `templates/`, `rootfs/`.
///
/// # Errors
/// [`ImageError::Write`] when `out` fails, [`ImageError::Entry`] when the tree cannot be read, and
/// [`ImageError::Refused`] for what no image can hold. What was written to `out` is worthless then.
pub fn pack<W: Write>(
    source: &PackSource<'_>,
    out: W,
    compress: Compress,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let mut archive = Archive::start(HashingWriter::new(out), compress)?;
    archive.metadata(source.metadata, source.templates)?;
    let whole = TreeOptions { prefix: "rootfs", in_use: false, left_empty: &[] };
    let PackedTree { content, entries } = add_tree(source.rootfs, &whole, &mut archive.tar, observer)?;
    let out = archive.finish()?;
    let size = out.written();
    let (_, fingerprint) = out.finish().map_err(ImageError::Write)?;
    Ok(Packed { fingerprint, size, content, entries })
}

/// Packs a split image: a tarball of the metadata and one of the root file system.
///
/// # Errors
/// As [`pack`].
pub fn pack_split<M: Write, R: Write>(
    source: &PackSource<'_>,
    meta: M,
    rootfs: R,
    compress: Compress,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let mut archive = Archive::start(HashingWriter::new(meta), compress)?;
    archive.metadata(source.metadata, source.templates)?;
    let (_, out) = archive.finish()?.continue_with(rootfs).map_err(ImageError::Write)?;
    let mut archive = Archive::start(out, compress)?;
    let whole = TreeOptions { prefix: ".", in_use: false, left_empty: &[] };
    let PackedTree { content, entries } = add_tree(source.rootfs, &whole, &mut archive.tar, observer)?;
    let out = archive.finish()?;
    let size = out.written();
    let (_, fingerprint) = out.finish().map_err(ImageError::Write)?;
    Ok(Packed { fingerprint, size, content, entries })
}

/// Packs a unified tarball of a root file system that comes as a tar archive itself, each name of which is below `rootfs`.
/// The archive may be a stranger's.
///
/// # Errors
/// As [`pack`]; and as for unpacking if the archive is damaged, cut off, too large, or has anything else in it.
pub fn pack_archive<R: BufRead, W: Write>(
    metadata: &Metadata,
    templates: &BTreeMap<String, Vec<u8>>,
    rootfs: R,
    out: W,
    compress: Compress,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let mut archive = Archive::start(HashingWriter::new(out), compress)?;
    archive.metadata(metadata, templates)?;
    let PackedTree { content, entries } = add_archive(rootfs, &mut archive.tar, observer)?;
    let out = archive.finish()?;
    let size = out.written();
    let (_, fingerprint) = out.finish().map_err(ImageError::Write)?;
    Ok(Packed { fingerprint, size, content, entries })
}

/// Reads the templates of an unpacked image: the regular files of a `templates` folder.
///
/// # Errors
/// When the folder cannot be read, or its files are more than the limit. A folder that does not exist has none.
pub fn read_templates(folder: &std::path::Path, limits: &Limits) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut templates = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(templates),
        Err(e) => return Err(ImageError::file("read", folder, e)),
    };
    let mut left = limits.max_templates;
    for entry in entries {
        let entry = entry.map_err(|e| ImageError::file("read", folder, e))?;
        let path = entry.path();
        let meta = entry.metadata().map_err(|e| ImageError::file("examine", &path, e))?; // of the entry, not a link's target
        let Some(name) = entry.file_name().to_str().filter(|n| is_template_name(n)).map(str::to_owned) else {
            continue;
        };
        if !meta.is_file() {
            continue;
        }
        left = left
            .checked_sub(meta.len())
            .ok_or(ImageError::Limit { what: "the size of its templates".into(), limit: limits.max_templates })?;
        templates.insert(name, std::fs::read(&path).map_err(|e| ImageError::file("read", &path, e))?);
    }
    Ok(templates)
}

struct Archive<W: Write> {
    tar: TarWriter<Compressor<HashingWriter<W>>>,
}

impl<W: Write> Archive<W> {
    fn start(out: HashingWriter<W>, compress: Compress) -> Result<Archive<W>> {
        Ok(Archive { tar: TarWriter::new(Compressor::new(out, compress).map_err(ImageError::Write)?) })
    }

    fn metadata(&mut self, metadata: &Metadata, templates: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let yaml = metadata.to_yaml()?;
        let mtime = Timestamp { seconds: metadata.creation_date, nanoseconds: 0 };
        let file = Attributes { mode: 0o644, mtime, ..Attributes::default() };
        let directory = Attributes { mode: 0o755, ..file.clone() };
        self.small_file(b"metadata.yaml", yaml.as_bytes(), &file)?;
        self.tar.entry(b"templates/", &EntryKind::Directory, &directory).map_err(ImageError::Write)?;
        for (name, text) in templates {
            if !is_template_name(name) {
                return Err(ImageError::refused(name, "a template is a plain file right under templates"));
            }
            self.small_file(format!("templates/{name}").as_bytes(), text, &file)?;
        }
        Ok(())
    }

    fn small_file(&mut self, name: &[u8], bytes: &[u8], attributes: &Attributes) -> Result<()> {
        let written = self
            .tar
            .file(name, attributes, bytes.len() as u64, None)
            .and_then(|()| if bytes.is_empty() { Ok(()) } else { self.tar.data(bytes) });
        written.map_err(ImageError::Write)
    }

    fn finish(self) -> Result<HashingWriter<W>> {
        self.tar.finish().and_then(Compressor::finish).map_err(ImageError::Write)
    }
}
