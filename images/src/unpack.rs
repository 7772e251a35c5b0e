//! From image files to a folder.
//!
//! The result is `dest/rootfs`, `dest/templates` and `dest/metadata.yaml`. `dest` is made with mode 0700 and should stay
//! closed to the host's users: `rootfs` holds setuid programs and device nodes, unshifted, as the image has them.
//!
//! Everything is done in one pass over the files: reading, hashing and decompressing in a thread, parsing and writing
//! here. Whatever goes wrong, on any entry or in the end with the fingerprint, what was written is removed again.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::decompress::Decompressed;
use crate::entry::{CleanPath, EntryKind, show};
use crate::format::{ImageFormat, detect_file};
use crate::limits::Limits;
use crate::metadata::{Metadata, is_template_name};
use crate::observe::{Observer, Phase};
use crate::tar::{TarEntry, TarReader};
use crate::tree::{TreeStats, TreeWriter};
use crate::{ImageError, Result, fingerprint};

/// The file or files of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFiles {
    /// The unified tarball, or the metadata tarball of a split image.
    pub meta: PathBuf,
    /// A split image's root file system: a tarball or a squashfs.
    pub rootfs: Option<PathBuf>,
}

/// How to unpack.
#[derive(Debug, Clone)]
pub struct UnpackOptions {
    /// What the image may cost.
    pub limits: Limits,
    /// The fingerprint that the image must have, if one was announced.
    pub fingerprint: Option<String>,
    /// Whether the files are on disk when the call returns, so that a power cut after it loses nothing.
    pub sync: bool,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        UnpackOptions { limits: Limits::default(), fingerprint: None, sync: true }
    }
}

/// An image that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The image's `metadata.yaml`.
    pub metadata: Metadata,
    /// The fingerprint of the image file(s), computed on the way.
    pub fingerprint: String,
    /// Size of the image file(s), in bytes.
    pub size: u64,
    /// What `meta` is.
    pub format: ImageFormat,
    /// What `rootfs` is, for a split image.
    pub rootfs_format: Option<ImageFormat>,
    /// What the root file system was made of.
    pub rootfs: TreeStats,
}

/// Unpacks an image into `dest`, which must not exist or be an empty directory.
///
/// # Errors
/// Any [`ImageError`] but those of building; afterwards `dest` is as it was before.
pub fn unpack(
    source: &ImageFiles,
    dest: &Path,
    options: &UnpackOptions,
    observer: &mut Observer<'_>,
) -> Result<Unpacked> {
    let undo = Undo::prepare(dest)?;
    match Unpacking::start(source, dest, options).and_then(|work| work.run(observer)) {
        Ok(unpacked) => Ok(unpacked),
        Err(failure) => Err(undo.unwind(failure)),
    }
}

/// Reads only the `metadata.yaml` of a unified image or of a split image's metadata file.
///
/// The rest of the file is not looked at: this neither verifies a fingerprint nor finds a hostile entry further on.
///
/// # Errors
/// As [`unpack`]; [`ImageError::Metadata`] when there is none.
pub fn read_metadata(meta: &Path, limits: &Limits) -> Result<Metadata> {
    let ImageFormat::Tar(compression) = detect_file(meta)? else { return Err(lone_squashfs(meta)) };
    let file = File::open(meta).map_err(|e| ImageError::file("open", meta, e))?;
    let bytes = Decompressed::start(file, compression, Sha256::new(), limits).map_err(ImageError::Read)?;
    let mut reader = TarReader::new(bytes, limits);
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(ImageError::Limit { what: "the number of its entries".into(), limit: limits.max_entries });
        }
        if CleanPath::parse(&entry.name, limits)?.as_bytes() == b"metadata.yaml" {
            return Metadata::from_yaml(&metadata_bytes(&entry, &mut reader, limits)?);
        }
    }
    Err(no_metadata())
}

/// Removes what an unpacking wrote, should it fail.
struct Undo<'a> {
    dest: &'a Path,
    made: bool,
}

impl<'a> Undo<'a> {
    fn prepare(dest: &'a Path) -> Result<Undo<'a>> {
        match DirBuilder::new().mode(0o700).create(dest) {
            Ok(()) => Ok(Undo { dest, made: true }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut entries = std::fs::read_dir(dest).map_err(|e| ImageError::file("read", dest, e))?;
                match entries.next() {
                    None => Ok(Undo { dest, made: false }),
                    Some(_) => Err(ImageError::file("unpack into", dest, io::Error::other("it is not empty"))),
                }
            }
            Err(e) => Err(ImageError::file("create", dest, e)),
        }
    }

    fn unwind(self, failure: ImageError) -> ImageError {
        let outcome = if self.made {
            std::fs::remove_dir_all(self.dest)
        } else {
            std::fs::read_dir(self.dest).and_then(|entries| {
                for entry in entries {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        std::fs::remove_dir_all(entry.path())?;
                    } else {
                        std::fs::remove_file(entry.path())?;
                    }
                }
                Ok(())
            })
        };
        match outcome {
            Ok(()) => failure,
            Err(e) => ImageError::Cleanup {
                failure: Box::new(failure),
                cleanup: format!("{:?} is left over: {e}", self.dest),
            },
        }
    }
}

/// Which part of an image a tarball is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Unified,
    Metadata,
    Rootfs,
}

struct Unpacking<'a> {
    source: &'a ImageFiles,
    dest: &'a Path,
    options: &'a UnpackOptions,
    format: ImageFormat,
    rootfs_format: Option<ImageFormat>,
    size: u64,
    /// Bytes of image files that were read through, for progress.
    done: u64,
    rootfs: Option<TreeWriter>,
    metadata: Option<Metadata>,
    templates: u64,
    top_entries: u64,
}

impl<'a> Unpacking<'a> {
    fn start(source: &'a ImageFiles, dest: &'a Path, options: &'a UnpackOptions) -> Result<Self> {
        let format = detect_file(&source.meta)?;
        if format == ImageFormat::Squashfs {
            return Err(lone_squashfs(&source.meta));
        }
        let rootfs_format = source.rootfs.as_deref().map(detect_file).transpose()?;
        let mut size = 0;
        for path in std::iter::once(&source.meta).chain(&source.rootfs) {
            size += path.metadata().map_err(|e| ImageError::file("examine", path, e))?.len();
        }
        make_directory(&dest.join("templates"))?;
        Ok(Unpacking {
            source,
            dest,
            options,
            format,
            rootfs_format,
            size,
            done: 0,
            rootfs: None,
            metadata: None,
            templates: 0,
            top_entries: 0,
        })
    }

    fn run(mut self, observer: &mut Observer<'_>) -> Result<Unpacked> {
        let meta_part = if self.source.rootfs.is_some() { Part::Metadata } else { Part::Unified };
        let mut hasher = self.file(&self.source.meta, self.format, meta_part, Sha256::new(), observer)?;
        if let (Some(path), Some(format)) = (&self.source.rootfs, self.rootfs_format) {
            self.rootfs_tree()?;
            hasher = self.file(path, format, Part::Rootfs, hasher, observer)?;
        }
        let metadata = self.metadata.take().ok_or_else(no_metadata)?;
        let rootfs = match self.rootfs.take() {
            Some(tree) => tree.finish()?,
            None => {
                let problem = "has no rootfs folder; of a split image, give the root file system's file as well".into();
                return Err(ImageError::WrongFormat { path: self.source.meta.clone(), problem });
            }
        };
        let actual = fingerprint::hex(hasher);
        if let Some(expected) = self.options.fingerprint.as_ref().filter(|e| **e != actual) {
            return Err(ImageError::FingerprintMismatch { expected: expected.clone(), actual });
        }
        if self.options.sync {
            let fd = open_directory(self.dest)?;
            rustix::fs::syncfs(&fd).map_err(|e| ImageError::file("write out", self.dest, e))?;
        }
        observer.report(Phase::Unpacking, self.size, Some(self.size), "");
        Ok(Unpacked {
            metadata,
            fingerprint: actual,
            size: self.size,
            format: self.format,
            rootfs_format: self.rootfs_format,
            rootfs,
        })
    }

    /// Unpacks one file and carries the hash on over its bytes.
    fn file(
        &mut self,
        path: &Path,
        format: ImageFormat,
        part: Part,
        hasher: Sha256,
        observer: &mut Observer<'_>,
    ) -> Result<Sha256> {
        let file = File::open(path).map_err(|e| ImageError::file("open", path, e))?;
        let length = file.metadata().map_err(|e| ImageError::file("examine", path, e))?.len();
        let hasher = match format {
            ImageFormat::Tar(compression) => {
                let bytes =
                    Decompressed::start(file, compression, hasher, &self.options.limits).map_err(ImageError::Read)?;
                let mut reader = TarReader::new(bytes, &self.options.limits);
                self.tarball(&mut reader, part, observer)?;
                reader.finish()?;
                reader.into_inner().finish()?
            }
            ImageFormat::Squashfs => {
                let hasher = hash_file(&file, path, hasher, observer)?;
                let (done, size, limits) = (self.done, self.size, &self.options.limits);
                let tree = self.rootfs_tree()?;
                let mut report = |part: u64, whole: u64| -> Result<()> {
                    let of_file = u128::from(length) * u128::from(part) / u128::from(whole.max(1));
                    observer.report(Phase::Unpacking, done + of_file as u64, Some(size), "");
                    observer.check()
                };
                crate::squashfs::unpack(&file, tree, limits, &mut report)?;
                hasher
            }
        };
        self.done += length;
        Ok(hasher)
    }

    fn tarball(&mut self, reader: &mut TarReader<Decompressed>, part: Part, observer: &mut Observer<'_>) -> Result<()> {
        let mut entries = 0u64;
        while let Some(entry) = reader.next_entry()? {
            if entries.is_multiple_of(256) {
                self.tell(reader, observer)?;
            }
            entries += 1;
            let path = CleanPath::parse(&entry.name, &self.options.limits)?;
            if part == Part::Rootfs {
                self.rootfs_entry(&entry, &path, part, reader, observer)?;
                continue;
            }
            self.top_entries += 1;
            let (first, rest) = path.split_first();
            match first {
                b"" if entry.kind == EntryKind::Directory => {}
                b"metadata.yaml" if rest.is_top() => self.metadata_entry(&entry, reader)?,
                b"templates" => self.template_entry(&entry, &rest, reader)?,
                b"rootfs" if part == Part::Unified => self.rootfs_entry(&entry, &rest, part, reader, observer)?,
                b"rootfs.img" | b"root.img" | b"disk.qcow2" => {
                    let problem = "is a virtual machine's image; only system containers' images can be used".into();
                    return Err(ImageError::WrongFormat { path: self.source.meta.clone(), problem });
                }
                _ if part == Part::Metadata => {
                    return Err(ImageError::refused(
                        path.to_string(),
                        "a split image's metadata file holds only metadata.yaml and templates",
                    ));
                }
                _ => {
                    return Err(ImageError::refused(
                        path.to_string(),
                        "an image holds metadata.yaml, templates and rootfs, and nothing else",
                    ));
                }
            }
            // Entries outside the tree are few in a real image; without a count, empty ones would cost nothing.
            if self.top_entries > self.options.limits.max_entries {
                let limit = self.options.limits.max_entries;
                return Err(ImageError::Limit { what: "the number of its entries".into(), limit });
            }
        }
        Ok(())
    }

    fn tell(&self, reader: &TarReader<Decompressed>, observer: &mut Observer<'_>) -> Result<()> {
        observer.check()?;
        let done = self.done + reader.get_ref().compressed_bytes();
        observer.report(Phase::Unpacking, done.min(self.size), Some(self.size), "");
        Ok(())
    }

    fn metadata_entry(&mut self, entry: &TarEntry, reader: &mut TarReader<Decompressed>) -> Result<()> {
        if self.metadata.is_some() {
            return Err(ImageError::refused("metadata.yaml", "an earlier entry has the same name"));
        }
        let bytes = metadata_bytes(entry, reader, &self.options.limits)?;
        self.metadata = Some(Metadata::from_yaml(&bytes)?);
        write_file(&self.dest.join("metadata.yaml"), &bytes)
    }

    fn template_entry(
        &mut self,
        entry: &TarEntry,
        rest: &CleanPath,
        reader: &mut TarReader<Decompressed>,
    ) -> Result<()> {
        let refuse = |reason: &str| Err(ImageError::refused(show(&entry.name), reason));
        if rest.is_top() {
            return if entry.kind == EntryKind::Directory { Ok(()) } else { refuse("it should be a directory") };
        }
        let name = match std::str::from_utf8(rest.as_bytes()) {
            Ok(name) if is_template_name(name) => name,
            _ => return refuse("a template is a plain file right under templates"),
        };
        if entry.kind != EntryKind::File {
            return refuse("a template is a regular file");
        }
        let left = self.options.limits.max_templates - self.templates;
        if entry.size > left {
            let limit = self.options.limits.max_templates;
            return Err(ImageError::Limit { what: "the size of its templates".into(), limit });
        }
        if entry.segments.iter().any(|s| s.offset != 0) || entry.data_size() != entry.size {
            return refuse("a template is not sparse");
        }
        let bytes = reader.read_all(left)?;
        self.templates += bytes.len() as u64;
        match write_file(&self.dest.join("templates").join(name), &bytes) {
            Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                refuse("an earlier entry has the same name")
            }
            other => other,
        }
    }

    fn rootfs_entry(
        &mut self,
        entry: &TarEntry,
        path: &CleanPath,
        part: Part,
        reader: &mut TarReader<Decompressed>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let limits = &self.options.limits;
        if entry.kind == EntryKind::File {
            return self.rootfs_file(entry, path, reader, observer);
        }
        let target = match &entry.kind {
            EntryKind::HardLink(name) => {
                let target = CleanPath::parse(name, limits).map_err(|_| {
                    ImageError::refused(
                        path.to_string(),
                        format!("it is a hard link to {:?}, outside of the tree", show(name)),
                    )
                })?;
                match (part, target.split_first()) {
                    (Part::Rootfs, _) => Some(target),
                    (_, (b"rootfs", rest)) => Some(rest),
                    _ => None,
                }
            }
            _ => None,
        };
        self.rootfs_tree()?.create(path, &entry.kind, target.as_ref(), &entry.attributes)
    }

    fn rootfs_file(
        &mut self,
        entry: &TarEntry,
        path: &CleanPath,
        reader: &mut TarReader<Decompressed>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let mut content = self.rootfs_tree()?.create_file(path, entry.size)?;
        let mut since = 0;
        for segment in &entry.segments {
            let (mut offset, mut left) = (segment.offset, segment.length);
            while left > 0 {
                let piece = reader.data()?;
                let n = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.rootfs_tree()?.count_bytes(n as u64)?;
                content.write_at(&piece[..n], offset).map_err(|e| ImageError::entry("write", path.to_string(), e))?;
                reader.consume(n);
                offset += n as u64;
                left -= n as u64;
                since += n;
                if since >= 4 << 20 {
                    since = 0;
                    self.tell(reader, observer)?;
                }
            }
        }
        self.rootfs_tree()?.finish_file(path, content, &entry.attributes)
    }

    /// The root file system's tree, begun when it is first needed.
    fn rootfs_tree(&mut self) -> Result<&mut TreeWriter> {
        match &mut self.rootfs {
            Some(tree) => Ok(tree),
            empty => {
                let path = self.dest.join("rootfs");
                make_directory(&path)?;
                Ok(empty.insert(TreeWriter::new(open_directory(&path)?, &self.options.limits)))
            }
        }
    }
}

fn metadata_bytes(entry: &TarEntry, reader: &mut TarReader<Decompressed>, limits: &Limits) -> Result<Vec<u8>> {
    if entry.kind != EntryKind::File || entry.data_size() != entry.size {
        return Err(ImageError::refused("metadata.yaml", "it should be a regular file"));
    }
    reader.read_all(limits.max_metadata)
}

fn no_metadata() -> ImageError {
    ImageError::Metadata("is missing from the image".into())
}

fn lone_squashfs(path: &Path) -> ImageError {
    let problem = "is a squashfs without metadata; give the image's metadata tarball first and this file second".into();
    ImageError::WrongFormat { path: path.into(), problem }
}

/// Reads a whole file into the hash.
fn hash_file(file: &File, path: &Path, mut hasher: Sha256, observer: &Observer<'_>) -> Result<Sha256> {
    let mut buffer = vec![0u8; 1 << 20];
    let mut file = file;
    loop {
        observer.check()?;
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(hasher),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ImageError::file("read", path, e)),
        }
    }
}

/// Makes a directory with mode 0755 whatever the umask is.
fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o755).create(path).map_err(|e| ImageError::file("create", path, e))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o755)).map_err(|e| ImageError::file("change the mode of", path, e))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ImageError::file("open", path, e))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|e| ImageError::file("create", path, e))
}
