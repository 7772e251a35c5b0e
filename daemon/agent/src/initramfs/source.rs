//! The files of a kernel, below a root that is not trusted.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::InitramfsError;

/// The most bytes of a list; that of Debian's kernel has 600 KiB.
const MAX_LIST: usize = 8 << 20;
/// The most bytes of a module, packed and unpacked.
const MAX_MODULE: usize = 32 << 20;
/// The memory that unpacking xz may take, in bytes. Kernels are packed with a dictionary of 1 to 2 MiB.
const XZ_MEMORY: u64 = 96 << 20;

pub(super) struct Source<'a> {
    root: BorrowedFd<'a>,
    dir: &'a Path,
}

impl<'a> Source<'a> {
    pub fn new(root: BorrowedFd<'a>, dir: &'a Path) -> Self {
        Self { root, dir }
    }

    /// One of the lists.
    pub fn text(&self, name: &str) -> Result<String, InitramfsError> {
        let path = self.dir.join(name);
        let bytes = regular_file(self.root, &path).map(|file| limited(file, &path, MAX_LIST));
        let bytes = bytes.map_err(|source| InitramfsError::Read { path, source })??;
        // Names are ASCII; what is not is the name of no module that is looked for.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A module, unpacked. Its path is relative to the directory.
    pub fn module(&self, path: &str) -> Result<Vec<u8>, InitramfsError> {
        let path = self.dir.join(path);
        let unreadable = |source| InitramfsError::Read { path: path.clone(), source };
        let file = BufReader::new(regular_file(self.root, &path).map_err(unreadable)?.take(MAX_MODULE as u64));
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("gz") => limited(flate2::bufread::GzDecoder::new(file), &path, MAX_MODULE),
            Some("xz") => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
                    .map_err(|error| unreadable(error.into()))?;
                limited(liblzma::bufread::XzDecoder::new_stream(file, stream), &path, MAX_MODULE)
            }
            Some("zst") => {
                let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(unreadable)?;
                limited(decoder, &path, MAX_MODULE)
            }
            _ => limited(file, &path, MAX_MODULE),
        }
    }
}

/// Opens a regular file below a root. It is looked at before it is opened, because to open a device would be an act in
/// itself.
pub(crate) fn regular_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file"));
    }
    // The very file that was looked at, by the host's own /proc.
    File::open(PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd())))
}

fn limited(from: impl Read, path: &Path, limit: usize) -> Result<Vec<u8>, InitramfsError> {
    let mut bytes = Vec::new();
    let read = from.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| InitramfsError::Read { path: path.to_owned(), source })?;
    if bytes.len() > limit {
        return Err(InitramfsError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
