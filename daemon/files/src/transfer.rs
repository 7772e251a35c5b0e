//! Whole files, whole directories: what most callers want of a session.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;

use super::client::{FileSession, Handle, Opened};
use super::connection::WINDOW;
use super::error::{FileError, Result};
use super::protocol::{Changes, DirEntry, FileKind, MAX_DATA, OpenFlags, Owner, Stat};

/// How [`FileSession::write_from`] treats the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits. Absent: 0644 for a new file, unchanged for an old one.
    pub mode: Option<u32>,
    /// Owner. Absent: root for a new file, unchanged for an old one.
    pub owner: Owner,
    /// Add to the file instead of replacing what it holds.
    pub append: bool,
}

/// Permission bits of a new file, unless said otherwise.
const NEW_FILE: u32 = 0o644;

/// Set-user-ID and set-group-ID.
const SET_ID_BITS: u32 = 0o6000;

impl FileSession {
    /// Reads the whole file into `writer` and returns its length in bytes.
    ///
    /// # Errors
    /// [`FileError::Transfer`] when `writer` fails, otherwise as [`Self::open`] and [`Self::read`].
    pub fn read_to(&mut self, path: impl AsRef<Path>, writer: &mut dyn Write) -> Result<u64> {
        let path = path.as_ref();
        let opened = self.open(path, OpenFlags { read: true, ..OpenFlags::default() }, 0, Owner::default())?;
        let read = self.read_handle_to(opened.handle, path, writer);
        self.finish(opened.handle, read)
    }

    /// Reads an open file from its beginning to its end into `writer`. `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::read_to`].
    pub fn read_handle_to(&mut self, handle: Handle, path: &Path, writer: &mut dyn Write) -> Result<u64> {
        let mut asked = 0;
        let mut total = 0;
        let result = loop {
            // The file's length is no guide: what proc makes up has none.
            while self.connection.under_way() < WINDOW as u64 {
                self.send_read(handle, asked, MAX_DATA)?;
                asked += MAX_DATA as u64;
            }
            match self.receive_data(path, |data| writer.write_all(data).map(|()| data.len())) {
                Ok(Ok(count)) => {
                    total += count as u64;
                    if count < MAX_DATA {
                        break Ok(total);
                    }
                }
                Ok(Err(error)) => break Err(FileError::Transfer(error)),
                Err(error) => break Err(error),
            }
        };
        self.connection.drain();
        result
    }

    /// Writes everything from `reader` into the file, which is made if it doesn't exist and emptied (or added to) if it
    /// does, and returns how many bytes that was. An existing file keeps its owner and mode unless `options` names others.
    ///
    /// # Errors
    /// [`FileError::Transfer`] when `reader` fails, otherwise as [`Self::open`] and [`Self::write`]. What was written until
    /// then stays.
    pub fn write_from(&mut self, path: impl AsRef<Path>, reader: &mut dyn Read, options: &WriteOptions) -> Result<u64> {
        let path = path.as_ref();
        let flags = OpenFlags {
            write: true,
            append: options.append,
            create: true,
            truncate: !options.append,
            ..OpenFlags::default()
        };
        let mode = options.mode.unwrap_or(NEW_FILE);
        let Opened { handle, created, .. } = self.open(path, flags, mode, options.owner)?;
        let written = self.write_handle_from(handle, path, reader).and_then(|total| {
            // A new file has them, but writing clears the set-ID bits.
            let owner = if created { Owner::default() } else { options.owner };
            let mode = options.mode.filter(|mode| !created || mode & SET_ID_BITS != 0);
            if mode.is_some() || owner != Owner::default() {
                let changes = Changes { mode, owner, ..Changes::default() };
                self.fset_stat(handle, changes).map_err(|error| error.about(path))?;
            }
            Ok(total)
        });
        self.finish(handle, written)
    }

    /// Writes everything from `reader` into an open file, from its beginning (or to its end, if it was opened to append).
    ///
    /// # Errors
    /// As [`Self::write_from`].
    pub fn write_handle_from(&mut self, handle: Handle, path: &Path, reader: &mut dyn Read) -> Result<u64> {
        let mut buffer = vec![0; MAX_DATA];
        let mut total = 0;
        let result = loop {
            let count = match fill(reader, &mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) => break Err(FileError::Transfer(error)),
            };
            if self.connection.under_way() >= WINDOW as u64
                && let Err(error) = self.receive_done(path)
            {
                break Err(error);
            }
            self.send_write(handle, total, &buffer[..count])?;
            total += count as u64;
        };
        let result = result.and_then(|()| {
            while self.connection.under_way() > 0 {
                self.receive_done(path)?;
            }
            Ok(total)
        });
        self.connection.drain();
        result
    }

    /// The entries of a directory, in the order of their names, without `.` and `..`.
    ///
    /// # Errors
    /// As [`Self::open_dir`] and [`Self::read_dir`].
    pub fn list(&mut self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        let path = path.as_ref();
        let handle = self.open_dir(path)?.handle;
        let mut entries = Vec::new();
        let listed = loop {
            match self.read_dir(handle) {
                Ok((batch, end)) => {
                    entries.extend(batch);
                    if end {
                        entries.sort_by(|one, other| one.name.cmp(&other.name));
                        break Ok(entries);
                    }
                }
                Err(error) => break Err(error.about(path)),
            }
        };
        self.finish(handle, listed)
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn names(&mut self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        Ok(self.list(path)?.into_iter().map(|entry| entry.name.into_os_string()).collect())
    }

    /// Makes a directory and those above it that don't exist, all with `mode` and `owner`. What exists stays as it is.
    ///
    /// # Errors
    /// [`FileError::NotADirectory`] when something else is in the way, and as [`Self::mkdir`].
    pub fn mkdir_all(&mut self, path: impl AsRef<Path>, mode: u32, owner: Owner) -> Result<()> {
        let path = path.as_ref();
        match self.mkdir(path, mode, owner) {
            Err(FileError::Exists { .. }) => return self.expect_directory(path),
            // What lies above may be missing; or the last component is no name that could be made, like `..`.
            Err(FileError::NotFound { .. } | FileError::BadPath { .. }) => {}
            other => return other,
        }
        if let Some(parent) = path.parent() {
            self.mkdir_all(parent, mode, owner)?;
        }
        match self.mkdir(path, mode, owner) {
            Err(FileError::Exists { .. } | FileError::BadPath { .. }) => self.expect_directory(path),
            other => other,
        }
    }

    /// Attributes of `path` itself, or `None` when there is nothing.
    ///
    /// # Errors
    /// As [`Self::lstat`], save that it isn't there.
    pub fn look(&mut self, path: impl AsRef<Path>) -> Result<Option<Stat>> {
        match self.lstat(path) {
            Ok(stat) => Ok(Some(stat)),
            Err(FileError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn expect_directory(&mut self, path: &Path) -> Result<()> {
        match self.stat(path)?.kind {
            FileKind::Directory => Ok(()),
            _ => Err(FileError::NotADirectory { path: path.to_owned() }),
        }
    }

    /// Closes a handle and passes a result on; of two failures the first.
    fn finish<T>(&mut self, handle: Handle, result: Result<T>) -> Result<T> {
        let closed = self.close(handle);
        let value = result?;
        closed.map(|()| value)
    }
}

/// Reads until the buffer is full or there is nothing more: full packets whatever the reader's own pieces are.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
