//! SFTP, version 3, over the rooted file service: what `incus file`, sshfs and other clients of the protocol see of an
//! instance (draft-ietf-secsh-filexfer-02, and the extensions of OpenSSH's PROTOCOL, section 4).
//!
//! Paths are UTF-8 here, as the protocol's library has them; names that are not are shown with replacement characters
//! and cannot be opened.

use std::collections::HashMap;

use duet_container::files::{Changes, FileError, FileKind, FileSession, Handle, OpenFlags, Owner, Stat, Time};
use russh_sftp::extensions::{FSYNC, FsyncExtension, STATVFS, Statvfs, StatvfsExtension};
use russh_sftp::protocol::{self, Attrs, Data, ExtendedReply, File, FileAttributes, Name, Packet, Status, StatusCode};
use russh_sftp::server::{Handler, StatusReply};

use super::files::Files;

/// Renames over what is there (OpenSSH's PROTOCOL, section 4.3).
const POSIX_RENAME: &str = "posix-rename@openssh.com";
/// Bytes that are read at once at most.
const LARGEST_READ: u32 = 256 << 10;

type Reply<T> = Result<T, StatusReply>;

/// One client's session.
pub struct Sftp {
    /// None only while a worker has it, and after one panicked.
    files: Option<Files>,
}

impl Sftp {
    /// Serves what these files are.
    pub fn new(files: Files) -> Self {
        Self { files: Some(files) }
    }

    /// Runs work, which blocks, on a worker thread.
    async fn with<T, F>(&mut self, work: F) -> Reply<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut FileSession) -> Result<T, FileError> + Send + 'static,
    {
        let mut files = self.files.take().ok_or(StatusCode::ConnectionLost)?;
        let (files, outcome) = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut files.session);
            (files, outcome)
        })
        .await
        .map_err(|_| StatusCode::ConnectionLost)?;
        self.files = Some(files);
        outcome.map_err(|error| refusal(&error))
    }

    async fn done<F>(&mut self, id: u32, work: F) -> Reply<Status>
    where
        F: FnOnce(&mut FileSession) -> Result<(), FileError> + Send + 'static,
    {
        self.with(work).await?;
        Ok(ok(id))
    }
}

fn ok(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".to_owned(), language_tag: "en-US".to_owned() }
}

fn refusal(error: &FileError) -> StatusReply {
    let code = match error {
        FileError::NotFound { .. } => StatusCode::NoSuchFile,
        FileError::PermissionDenied { .. } | FileError::ReadOnly { .. } => StatusCode::PermissionDenied,
        FileError::SessionLost | FileError::ContainerStopped => StatusCode::ConnectionLost,
        _ => StatusCode::Failure,
    };
    code.with_message(error.to_string())
}

fn handle(text: &str) -> Reply<Handle> {
    let number = text.parse().map_err(|_| StatusCode::Failure.with_message(format!("no handle \"{text}\" is open")))?;
    Ok(Handle::from_number(number))
}

fn opened(id: u32, handle: Handle) -> protocol::Handle {
    protocol::Handle { id, handle: handle.number().to_string() }
}

/// The protocol's times are 32 bits wide.
fn seconds(time: Time) -> Option<u32> {
    u32::try_from(time.seconds).ok()
}

fn attributes(stat: &Stat) -> FileAttributes {
    let kind = match stat.kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Unknown => 0,
    };
    FileAttributes {
        size: Some(stat.size),
        uid: Some(stat.uid),
        gid: Some(stat.gid),
        permissions: Some(kind | stat.mode),
        atime: seconds(stat.atime),
        mtime: seconds(stat.mtime),
        ..FileAttributes::empty()
    }
}

fn changes(attributes: &FileAttributes) -> Changes {
    let time = |seconds: u32| Time { seconds: i64::from(seconds), nanoseconds: 0 };
    Changes {
        mode: attributes.permissions.map(|mode| mode & 0o7777),
        owner: Owner { uid: attributes.uid, gid: attributes.gid },
        size: attributes.size,
        atime: attributes.atime.map(time),
        mtime: attributes.mtime.map(time),
    }
}

/// Who owns what is made, where the client does not say.
fn owner(attributes: &FileAttributes) -> Owner {
    Owner { uid: attributes.uid.or(Some(0)), gid: attributes.gid.or(Some(0)) }
}

fn named(id: u32, files: Vec<File>) -> Name {
    Name { id, files }
}

impl Handler for Sftp {
    type Error = StatusReply;

    fn unimplemented(&self) -> StatusReply {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _version: u32, _: HashMap<String, String>) -> Reply<protocol::Version> {
        let mut version = protocol::Version::new();
        for (name, number) in [(POSIX_RENAME, "1"), (STATVFS, "2"), (FSYNC, "1")] {
            version.extensions.insert(name.to_owned(), number.to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: protocol::OpenFlags,
        attributes: FileAttributes,
    ) -> Reply<protocol::Handle> {
        use protocol::OpenFlags as Flag;
        let flags = OpenFlags {
            read: flags.contains(Flag::READ),
            write: flags.contains(Flag::WRITE) || flags.contains(Flag::APPEND),
            append: flags.contains(Flag::APPEND),
            create: flags.contains(Flag::CREATE),
            exclusive: flags.contains(Flag::EXCLUDE),
            truncate: flags.contains(Flag::TRUNCATE),
        };
        let mode = attributes.permissions.map_or(0o644, |mode| mode & 0o7777);
        let work = move |files: &mut FileSession| match files.open(&path, flags, mode, owner(&attributes)) {
            // As open(2): a directory may be opened for reading, and Incus' client opens what it pulls before it asks
            // what it is.
            Err(FileError::IsADirectory { .. }) if !flags.write => files.open_dir(&path),
            outcome => outcome,
        };
        let handle = self.with(work).await?.handle;
        Ok(opened(id, handle))
    }

    async fn close(&mut self, id: u32, open: String) -> Reply<Status> {
        let handle = handle(&open)?;
        self.done(id, move |files| files.close(handle)).await
    }

    async fn read(&mut self, id: u32, open: String, offset: u64, len: u32) -> Reply<Data> {
        let handle = handle(&open)?;
        let data = self
            .with(move |files| {
                let mut data = vec![0; len.min(LARGEST_READ) as usize];
                let read = files.read(handle, offset, &mut data)?;
                data.truncate(read);
                Ok(data)
            })
            .await?;
        if data.is_empty() && len > 0 {
            return Err(StatusCode::Eof.into());
        }
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, open: String, offset: u64, data: Vec<u8>) -> Reply<Status> {
        let handle = handle(&open)?;
        self.done(id, move |files| files.write(handle, offset, &data)).await
    }

    async fn lstat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let stat = self.with(move |files| files.lstat(path)).await?;
        Ok(Attrs { id, attrs: attributes(&stat) })
    }

    async fn fstat(&mut self, id: u32, open: String) -> Reply<Attrs> {
        let handle = handle(&open)?;
        let stat = self.with(move |files| files.fstat(handle)).await?;
        Ok(Attrs { id, attrs: attributes(&stat) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let stat = self.with(move |files| files.stat(path)).await?;
        Ok(Attrs { id, attrs: attributes(&stat) })
    }

    async fn setstat(&mut self, id: u32, path: String, attributes: FileAttributes) -> Reply<Status> {
        self.done(id, move |files| files.set_stat(path, true, changes(&attributes))).await
    }

    async fn fsetstat(&mut self, id: u32, open: String, attributes: FileAttributes) -> Reply<Status> {
        let handle = handle(&open)?;
        self.done(id, move |files| files.fset_stat(handle, changes(&attributes))).await
    }

    async fn opendir(&mut self, id: u32, path: String) -> Reply<protocol::Handle> {
        let handle = self.with(move |files| files.open_dir(path)).await?.handle;
        Ok(opened(id, handle))
    }

    async fn readdir(&mut self, id: u32, open: String) -> Reply<Name> {
        let handle = handle(&open)?;
        // The end may come with nothing before it, and has an answer of its own.
        let entries = self.with(move |files| files.read_dir(handle).map(|(entries, _)| entries)).await?;
        if entries.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        let file = |entry: &duet_container::files::DirEntry| {
            File::new(String::from_utf8_lossy(entry.name.as_bytes()), attributes(&entry.stat))
        };
        Ok(named(id, entries.iter().map(file).collect()))
    }

    async fn remove(&mut self, id: u32, path: String) -> Reply<Status> {
        self.done(id, move |files| files.remove(path)).await
    }

    async fn mkdir(&mut self, id: u32, path: String, attributes: FileAttributes) -> Reply<Status> {
        let mode = attributes.permissions.map_or(0o755, |mode| mode & 0o7777);
        self.done(id, move |files| files.mkdir(path, mode, owner(&attributes))).await
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Reply<Status> {
        self.done(id, move |files| files.rmdir(path)).await
    }

    async fn realpath(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = if path.is_empty() { ".".to_owned() } else { path };
        let real = self.with(move |files| files.real_path(path)).await?;
        Ok(named(id, vec![File::dummy(real.to_string_lossy())]))
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Reply<Status> {
        self.done(id, move |files| files.rename(from, to, false)).await
    }

    async fn readlink(&mut self, id: u32, path: String) -> Reply<Name> {
        let target = self.with(move |files| files.read_link(path)).await?;
        Ok(named(id, vec![File::dummy(target.to_string_lossy())]))
    }

    /// The library names the arguments as the draft does; every client sends them the other way round, as OpenSSH does
    /// (its PROTOCOL, section 4.1): first what the link says, then where it is.
    async fn symlink(&mut self, id: u32, target: String, path: String) -> Reply<Status> {
        let owner = Owner { uid: Some(0), gid: Some(0) };
        self.done(id, move |files| files.symlink(target, path, owner)).await
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Reply<Packet> {
        let bad = |_| StatusReply::from(StatusCode::BadMessage);
        let mut data = bytes::Bytes::from(data);
        match request.as_str() {
            POSIX_RENAME => {
                let (from, to): (String, String) = russh_sftp::de::from_bytes(&mut data).map_err(bad)?;
                self.done(id, move |files| files.rename(from, to, true)).await.map(Packet::from)
            }
            FSYNC => {
                let wanted: FsyncExtension = russh_sftp::de::from_bytes(&mut data).map_err(bad)?;
                let handle = handle(&wanted.handle)?;
                self.done(id, move |files| files.sync(handle)).await.map(Packet::from)
            }
            STATVFS => {
                let wanted: StatvfsExtension = russh_sftp::de::from_bytes(&mut data).map_err(bad)?;
                let space = self.with(move |files| files.space(wanted.path)).await?;
                let blocks = |bytes: u64| bytes / space.block_size.max(1);
                let answer = Statvfs {
                    block_size: space.block_size,
                    fragment_size: space.block_size,
                    blocks: blocks(space.total),
                    blocks_free: blocks(space.free),
                    blocks_avail: blocks(space.available),
                    inodes: space.inodes,
                    inodes_free: space.inodes_free,
                    inodes_avail: space.inodes_free,
                    fs_id: 0,
                    // SSH_FXE_STATVFS_ST_RDONLY is 1.
                    flags: u64::from(space.read_only),
                    name_max: space.name_max,
                };
                let data = russh_sftp::ser::to_bytes(&answer).map_err(bad)?.to_vec();
                Ok(Packet::ExtendedReply(ExtendedReply { id, data }))
            }
            _ => Err(self.unimplemented()),
        }
    }
}
