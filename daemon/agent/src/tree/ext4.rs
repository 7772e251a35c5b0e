//! A root in an ext4 filesystem that is read, not mounted.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ext4_view::{Ext4, Ext4Read, FileType, Metadata};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::guard::{Guard, late, refused};
use super::{Tree, not_regular};

/// How long all that is read of one disk may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most bytes of a directory; /usr/lib of a large Debian has 200 KiB.
const MAX_DIRECTORY: u64 = 4 << 20;
/// The most links on a path, as for the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// The most bytes of a link's target (`PATH_MAX`).
const MAX_TARGET: u64 = 4095;
/// The most directories on a path, and the most steps of resolving one.
const MAX_DEPTH: usize = 64;
const MAX_STEPS: usize = 1000;
/// How much is written at once, in bytes.
const PIECE: usize = 1 << 20;
/// The largest block, which is the most that is read at once, in bytes.
const BLOCK: usize = 4096;

/// An ext4 filesystem. It is for one thread, and short-lived: all that is read of it must be so within 20 seconds of
/// [`Ext4Disk::open`].
///
/// The crate below would follow links itself, but whatever they say: here each step is looked at before it is taken. A
/// journal that was not written back is taken into account; nothing is written.
#[derive(Debug)]
pub struct Ext4Disk {
    fs: Ext4,
    deadline: Instant,
}

impl Ext4Disk {
    /// Opens a filesystem that begins where the disk does. While this exists nobody may write to the disk.
    ///
    /// # Errors
    /// What is wrong with the filesystem.
    pub fn open(disk: Box<dyn Ext4Read>) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        Ok(Self { fs: Ext4::load(Box::new(Guard::new(disk, deadline)?))?, deadline })
    }

    /// The path without links of what a path leads to.
    fn resolve(&self, path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
        let mut left = reversed(path.as_os_str().as_bytes());
        let mut reached: Vec<Vec<u8>> = Vec::new();
        let mut found = self.look_at(&reached)?;
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = left.pop() {
            steps += 1;
            if steps > MAX_STEPS || reached.len() >= MAX_DEPTH {
                return Err(refused("a path in it is longer than is followed"));
            }
            if name == b"." || name == b".." {
                if name == b".." {
                    reached.pop();
                    found = self.look_at(&reached)?;
                }
                continue;
            }
            // What is looked into is read whole.
            if !found.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            if found.len() > MAX_DIRECTORY {
                return Err(refused("a directory in it is larger than any is"));
            }
            reached.push(name);
            found = self.look_at(&reached)?;
            if found.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                if found.len() > MAX_TARGET {
                    return Err(refused("a link in it is longer than any is"));
                }
                let target = self.fs.read_link(joined(&reached).as_slice())?;
                let target: &[u8] = target.as_ref();
                reached.pop();
                if target.starts_with(b"/") {
                    reached.clear();
                }
                left.extend(reversed(target));
                found = self.look_at(&reached)?;
            }
        }
        Ok((joined(&reached), found))
    }

    /// What a path is that leads through no link.
    fn look_at(&self, names: &[Vec<u8>]) -> io::Result<Metadata> {
        self.check_time()?;
        Ok(self.fs.symlink_metadata(joined(names).as_slice())?)
    }

    fn check_time(&self) -> io::Result<()> {
        if Instant::now() >= self.deadline { Err(late()) } else { Ok(()) }
    }

    /// Writes the content of a regular file.
    fn copy(&self, path: &Path, limit: u64, out: &mut dyn Write) -> io::Result<()> {
        let (path, found) = self.resolve(path)?;
        if found.file_type() != FileType::Regular {
            return Err(not_regular());
        }
        if found.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut file = self.fs.open(path.as_slice())?;
        let (mut left, mut piece) = (found.len(), [0; BLOCK]);
        while left > 0 {
            self.check_time()?;
            let count = file.read_bytes(&mut piece)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out.write_all(&piece[..count])?;
            left = left.saturating_sub(count as u64);
        }
        Ok(())
    }
}

impl Tree for Ext4Disk {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy(path, limit, &mut bytes)?;
        Ok(bytes)
    }

    /// The file is a copy in memory (memfd_create(2)), sealed so that it stays as it is.
    fn file(&self, path: &Path, limit: u64) -> io::Result<File> {
        let mut copy = File::from(memfd_create("file", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        let mut pieces = BufWriter::with_capacity(PIECE, &copy);
        self.copy(path, limit, &mut pieces)?;
        pieces.flush()?;
        drop(pieces);
        copy.rewind()?;
        fcntl_add_seals(&copy, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        Ok(copy)
    }

    fn names(&self, dir: &Path, most: usize) -> io::Result<Vec<String>> {
        let (path, found) = self.resolve(dir)?;
        if !found.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if found.len() > MAX_DIRECTORY {
            return Err(refused("a directory in it is larger than any is"));
        }
        let mut names = Vec::new();
        for entry in self.fs.read_dir(path.as_slice())?.take(most) {
            self.check_time()?;
            names.extend(entry?.file_name().as_str().ok().map(str::to_owned));
        }
        Ok(names)
    }
}

/// The names of a path, the last first.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).rev().map(<[u8]>::to_vec).collect()
}

fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    if names.is_empty() {
        return b"/".to_vec();
    }
    names.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect()
}

#[cfg(test)]
mod tests;
