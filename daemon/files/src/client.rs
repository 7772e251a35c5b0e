//! The daemon's end of a session: one method per operation.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::connection::Connection;
use super::error::{FileError, Result};
use super::path::WirePath;
use super::protocol::{Changes, DirEntry, MAX_DATA, Op, OpenFlags, Owner, Reply, Setup, Space, Stat, Subject, VERSION};

/// How long one answer may take before the session is given up, unless [`FileSession::set_timeout`] says otherwise. Only a
/// filesystem that hangs takes that long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a session works on.
#[derive(Debug)]
pub enum Target<'a> {
    /// A running container.
    Running {
        /// Its init, by number in the caller's pid namespace.
        pid: u32,
        /// Its init's pidfd.
        pidfd: BorrowedFd<'a>,
        /// Whether it has a user namespace of its own (it isn't privileged).
        user_namespace: bool,
    },
    /// A stopped container, as the (detached) mount of its root, ids unshifted as they are on disk.
    Root {
        /// A directory handle; `O_PATH` is enough.
        root: BorrowedFd<'a>,
        /// Uids and gids from this one on are refused: the size of the container's map. `None` for a privileged one.
        id_limit: Option<u32>,
    },
}

/// A session with a container's files. Synchronous, to be used by one thread at a time.
///
/// The service ends with the session: when it is dropped, when the daemon dies, and when the container's init exits. After
/// an error that says the session is lost, or timed out, every operation fails.
#[derive(Debug)]
pub struct FileSession {
    pub(super) connection: Connection,
}

/// An open file or directory of a session. Handles are numbers: one that isn't closed stays until the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub(super) u32);

impl Handle {
    /// The number, for handing out to a client of the caller's.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// A handle from its number. A wrong one only leads to [`FileError::BadHandle`].
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// What opening yielded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// For further operations.
    pub handle: Handle,
    /// Whether the file was created just now.
    pub created: bool,
    /// Its attributes.
    pub stat: Stat,
}

impl FileSession {
    /// Starts the service, `program files` (the path of `duet-monitor`), and waits until it is in the container.
    ///
    /// # Errors
    /// [`FileError::Start`] when the program can't be run, [`FileError::ContainerStopped`] when the container isn't running
    /// any more, [`FileError::Setup`] when it can't be entered.
    pub fn spawn(program: &Path, target: &Target<'_>) -> Result<Self> {
        let (passed, init, subject, id_limit) = match target {
            Target::Running { pid, pidfd, user_namespace } => {
                let init = pidfd
                    .try_clone_to_owned()
                    .map_err(|source| FileError::Start { program: program.to_owned(), source })?;
                (*pidfd, Some(init), Subject::Running { pid: *pid, user_namespace: *user_namespace }, None)
            }
            Target::Root { root, id_limit } => (*root, None, Subject::Root, *id_limit),
        };
        let setup = Setup { version: VERSION, subject, id_limit };
        let connection = Connection::start(program, passed, init, &setup, TIMEOUT)?;
        Ok(Self { connection })
    }

    /// Begins a session with a service that runs already and serves the whole of where it runs, as a virtual machine's agent
    /// starts one. The socket is a stream.
    ///
    /// # Errors
    /// [`FileError::Setup`] when the service can't begin, [`FileError::SessionLost`] and [`FileError::TimedOut`].
    pub fn over(socket: OwnedFd) -> Result<Self> {
        let setup = Setup { version: VERSION, subject: Subject::Root, id_limit: None };
        Ok(Self { connection: Connection::over(socket, &setup, TIMEOUT)? })
    }

    /// Sets how long one answer may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.connection.timeout = timeout;
    }

    /// Opens a regular file, links followed. `mode` and `owner` are for a file that is created.
    ///
    /// # Errors
    /// [`FileError::SpecialFile`] for devices, pipes and sockets, which are never opened; otherwise what the name says.
    pub fn open(&mut self, path: impl AsRef<Path>, flags: OpenFlags, mode: u32, owner: Owner) -> Result<Opened> {
        let path = path.as_ref();
        self.opened(Op::Open { path: wire(path), flags, mode, owner }, path)
    }

    /// Reads from `offset` into `buffer`; fewer bytes than it holds only at the end of the file.
    ///
    /// # Errors
    /// [`FileError::BadHandle`], or what reading failed with.
    pub fn read(&mut self, handle: Handle, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let wanted = (buffer.len() - filled).min(MAX_DATA);
            self.send_read(handle, offset + filled as u64, wanted)?;
            let count = self.receive_data(Path::new(""), |data| {
                let count = data.len().min(wanted);
                buffer[filled..filled + count].copy_from_slice(&data[..count]);
                count
            })?;
            filled += count;
            if count < wanted {
                break;
            }
        }
        Ok(filled)
    }

    /// Writes all of `data` at `offset`, or at the end if the file was opened to append.
    ///
    /// # Errors
    /// [`FileError::BadHandle`], or what writing failed with; part of it may have been written.
    pub fn write(&mut self, handle: Handle, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = offset;
        for chunk in data.chunks(MAX_DATA) {
            self.send_write(handle, at, chunk)?;
            self.receive_done(Path::new(""))?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// [`FileError::BadHandle`], or what the disk said.
    pub fn sync(&mut self, handle: Handle) -> Result<()> {
        self.done(Op::Sync { handle: handle.0 }, Path::new(""))
    }

    /// Closes a file or directory.
    ///
    /// # Errors
    /// [`FileError::BadHandle`].
    pub fn close(&mut self, handle: Handle) -> Result<()> {
        self.done(Op::Close { handle: handle.0 }, Path::new(""))
    }

    /// Attributes of what `path` leads to.
    ///
    /// # Errors
    /// What the name says.
    pub fn stat(&mut self, path: impl AsRef<Path>) -> Result<Stat> {
        self.stat_with(path.as_ref(), true)
    }

    /// Attributes of `path` itself, be it a link.
    ///
    /// # Errors
    /// What the name says.
    pub fn lstat(&mut self, path: impl AsRef<Path>) -> Result<Stat> {
        self.stat_with(path.as_ref(), false)
    }

    /// Attributes of something open.
    ///
    /// # Errors
    /// [`FileError::BadHandle`].
    pub fn fstat(&mut self, handle: Handle) -> Result<Stat> {
        self.stat_reply(Op::StatHandle { handle: handle.0 }, Path::new(""))
    }

    /// Changes attributes of what `path` leads to, or with `follow` false of a link itself.
    ///
    /// # Errors
    /// [`FileError::BadId`] for a user or group that the container doesn't have; otherwise what the name says.
    pub fn set_stat(&mut self, path: impl AsRef<Path>, follow: bool, changes: Changes) -> Result<()> {
        let path = path.as_ref();
        self.done(Op::Change { path: wire(path), follow, changes }, path)
    }

    /// Changes attributes of something open.
    ///
    /// # Errors
    /// As [`Self::set_stat`].
    pub fn fset_stat(&mut self, handle: Handle, changes: Changes) -> Result<()> {
        self.done(Op::ChangeHandle { handle: handle.0, changes }, Path::new(""))
    }

    /// Opens a directory to read its entries.
    ///
    /// # Errors
    /// What the name says.
    pub fn open_dir(&mut self, path: impl AsRef<Path>) -> Result<Opened> {
        let path = path.as_ref();
        self.opened(Op::OpenDir { path: wire(path) }, path)
    }

    /// The next entries of an open directory, without `.` and `..`, and whether they were the last.
    ///
    /// # Errors
    /// [`FileError::BadHandle`], or what reading failed with.
    pub fn read_dir(&mut self, handle: Handle) -> Result<(Vec<DirEntry>, bool)> {
        match self.ask(Op::ReadDir { handle: handle.0 }, Path::new(""))? {
            Reply::Entries { entries, end } => Ok((entries, end)),
            other => self.connection.nonsense(&other),
        }
    }

    /// Makes a directory with exactly these permission bits.
    ///
    /// # Errors
    /// [`FileError::Exists`] and others.
    pub fn mkdir(&mut self, path: impl AsRef<Path>, mode: u32, owner: Owner) -> Result<()> {
        let path = path.as_ref();
        self.done(Op::MakeDir { path: wire(path), mode, owner }, path)
    }

    /// Removes a name that isn't a directory's; of a link, the link.
    ///
    /// # Errors
    /// [`FileError::IsADirectory`] and others.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.done(Op::Remove { path: wire(path) }, path)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`FileError::NotEmpty`] and others.
    pub fn rmdir(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.done(Op::RemoveDir { path: wire(path) }, path)
    }

    /// Removes whatever `path` names with all below it, never through a link and never into something mounted. `goes_on` is
    /// told how many names are gone so far, and ends it by `false`; then the rest stays and the result is `false`.
    ///
    /// # Errors
    /// [`FileError::Busy`] where something is mounted, [`FileError::Changed`] when the container moves directories
    /// meanwhile, and others. What was removed by then is gone.
    pub fn remove_tree(&mut self, path: impl AsRef<Path>, mut goes_on: impl FnMut(u64) -> bool) -> Result<bool> {
        let path = path.as_ref();
        let mut total = 0;
        loop {
            match self.ask(Op::RemoveTree { path: wire(path) }, path)? {
                Reply::Removed { done: true, .. } => return Ok(true),
                // Each answer has removed something, unless the container has moved it all away meanwhile.
                Reply::Removed { count: 0, done: false } => return Err(FileError::Changed { path: path.to_owned() }),
                Reply::Removed { count, done: false } => total += count,
                other => return self.connection.nonsense(&other),
            }
            if !goes_on(total) {
                return Ok(false);
            }
        }
    }

    /// Renames; `replace` allows that something with the new name is replaced.
    ///
    /// # Errors
    /// [`FileError::Exists`] and others, about `from` if it can't be told which.
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>, replace: bool) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        match self.done(Op::Rename { from: wire(from), to: wire(to), replace }, from) {
            Err(FileError::Exists { .. }) => Err(FileError::Exists { path: to.to_owned() }),
            Err(FileError::NotEmpty { .. }) => Err(FileError::NotEmpty { path: to.to_owned() }),
            other => other,
        }
    }

    /// Makes the symbolic link `path` that says `target`.
    ///
    /// # Errors
    /// [`FileError::Exists`] and others.
    pub fn symlink(&mut self, target: impl AsRef<Path>, path: impl AsRef<Path>, owner: Owner) -> Result<()> {
        let path = path.as_ref();
        self.done(Op::Symlink { target: wire(target.as_ref()), path: wire(path), owner }, path)
    }

    /// What a symbolic link says.
    ///
    /// # Errors
    /// [`FileError::Other`] with `EINVAL` when it isn't one, and others.
    pub fn read_link(&mut self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        self.path_reply(Op::ReadLink { path: wire(path) }, path)
    }

    /// The absolute path without links and dots. The last component need not exist.
    ///
    /// # Errors
    /// What the name says.
    pub fn real_path(&mut self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        self.path_reply(Op::RealPath { path: wire(path) }, path)
    }

    /// Space on the filesystem that `path` is on.
    ///
    /// # Errors
    /// What the name says.
    pub fn space(&mut self, path: impl AsRef<Path>) -> Result<Space> {
        let path = path.as_ref();
        match self.ask(Op::Space { path: wire(path) }, path)? {
            Reply::Space(space) => Ok(space),
            other => self.connection.nonsense(&other),
        }
    }

    fn opened(&mut self, op: Op, path: &Path) -> Result<Opened> {
        match self.ask(op, path)? {
            Reply::Opened { handle, created, stat } => Ok(Opened { handle: Handle(handle), created, stat }),
            other => self.connection.nonsense(&other),
        }
    }

    fn stat_with(&mut self, path: &Path, follow: bool) -> Result<Stat> {
        self.stat_reply(Op::Stat { path: wire(path), follow }, path)
    }

    fn stat_reply(&mut self, op: Op, path: &Path) -> Result<Stat> {
        match self.ask(op, path)? {
            Reply::Stat(stat) => Ok(stat),
            other => self.connection.nonsense(&other),
        }
    }

    fn path_reply(&mut self, op: Op, path: &Path) -> Result<PathBuf> {
        match self.ask(op, path)? {
            Reply::Path(path) => Ok(path.into_os_string().into()),
            other => self.connection.nonsense(&other),
        }
    }

    fn done(&mut self, op: Op, path: &Path) -> Result<()> {
        self.connection.send(op, &[])?;
        self.receive_done(path)
    }

    pub(super) fn send_read(&mut self, handle: Handle, offset: u64, length: usize) -> Result<()> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.connection.send(Op::Read { handle: handle.0, offset, length }, &[])
    }

    pub(super) fn send_write(&mut self, handle: Handle, offset: u64, data: &[u8]) -> Result<()> {
        self.connection.send(Op::Write { handle: handle.0, offset }, data)
    }

    pub(super) fn receive_done(&mut self, path: &Path) -> Result<()> {
        match self.connection.receive(path)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => self.connection.nonsense(&other),
        }
    }

    /// Hands the data of the next answer to `take`.
    pub(super) fn receive_data<T>(&mut self, path: &Path, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        match self.connection.receive(path)? {
            (Reply::Data, data) => Ok(take(data)),
            (other, _) => self.connection.nonsense(&other),
        }
    }

    fn ask(&mut self, op: Op, path: &Path) -> Result<Reply> {
        self.connection.send(op, &[])?;
        Ok(self.connection.receive(path)?.0)
    }
}

/// A path as it is sent.
fn wire(path: &Path) -> WirePath {
    WirePath::from(path)
}
