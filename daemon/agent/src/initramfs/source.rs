//! The files of a kernel, below a root that is not trusted.

use std::io::{self, Read};
use std::path::Path;

use super::InitramfsError;
use crate::tree::Tree;

/// The most bytes of a list; that of Debian's kernel has 600 KiB.
pub(crate) const MAX_LIST: u64 = 8 << 20;
/// The most bytes of a module, packed and unpacked.
const MAX_MODULE: u64 = 32 << 20;
/// The memory that unpacking xz may take, in bytes. Kernels are packed with a dictionary of 1 to 2 MiB.
const XZ_MEMORY: u64 = 96 << 20;

pub(super) struct Source<'a> {
    root: &'a dyn Tree,
    dir: &'a Path,
}

impl<'a> Source<'a> {
    pub fn new(root: &'a dyn Tree, dir: &'a Path) -> Self {
        Self { root, dir }
    }

    /// One of the lists.
    pub fn text(&self, name: &str) -> Result<String, InitramfsError> {
        let bytes = self.read(&self.dir.join(name), MAX_LIST)?;
        // Names are ASCII; what is not is the name of no module that is looked for.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A module, unpacked. Its path is relative to the directory.
    pub fn module(&self, path: &str) -> Result<Vec<u8>, InitramfsError> {
        let path = self.dir.join(path);
        let unreadable = |source| InitramfsError::Read { path: path.clone(), source };
        let packed = self.read(&path, MAX_MODULE)?;
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("gz") => limited(flate2::bufread::GzDecoder::new(&*packed), &path),
            Some("xz") => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
                    .map_err(|error| unreadable(error.into()))?;
                limited(liblzma::bufread::XzDecoder::new_stream(&*packed, stream), &path)
            }
            Some("zst") => limited(zstd::stream::read::Decoder::with_buffer(&*packed).map_err(unreadable)?, &path),
            _ => Ok(packed),
        }
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, InitramfsError> {
        self.root.read(path, limit).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => InitramfsError::TooLarge { path: path.to_owned(), limit },
            _ => InitramfsError::Read { path: path.to_owned(), source },
        })
    }
}

fn limited(from: impl Read, path: &Path) -> Result<Vec<u8>, InitramfsError> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_MODULE + 1).read_to_end(&mut bytes);
    read.map_err(|source| InitramfsError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_MODULE {
        return Err(InitramfsError::TooLarge { path: path.to_owned(), limit: MAX_MODULE });
    }
    Ok(bytes)
}
