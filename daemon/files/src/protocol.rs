//! What the two sides say.
//!
//! Each packet is `u32` little-endian length of the head, the head in JSON, then raw data up to the packet's end. The client
//! sends [`Setup`] first and gets a [`Response`] with id 0. Then each [`Request`] gets one [`Response`] with its id, in
//! order, so that several may be under way. Unknown fields are ignored, unknown operations answered with an error.

use serde::{Deserialize, Serialize};

use super::path::WirePath;

/// The version that both sides name in [`Setup`] and [`Reply::Ready`]. It changes when an old peer would misunderstand.
pub const VERSION: u32 = 1;

/// The most data in one packet, in bytes.
pub const MAX_DATA: usize = 256 * 1024;

/// The largest packet, in bytes: data and a head, or a head alone with a batch of directory entries.
pub const MAX_PACKET: usize = MAX_DATA + 64 * 1024;

/// Names in one batch of a directory. Escaped and with attributes, that many of the longest fit into one packet.
pub const MAX_BATCH: usize = 200;

/// The first packet: what to serve.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What descriptor 1 is.
    pub subject: Subject,
    /// Uids and gids from this one on are refused; `None` leaves it to the user namespace.
    #[serde(default)]
    pub id_limit: Option<u32>,
}

/// What the service is given to work on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The pidfd of a running container's init.
    Running {
        /// The same process by number, in the daemon's pid namespace.
        pid: u32,
        /// Whether it has a user namespace of its own.
        user_namespace: bool,
    },
    /// A directory handle: the root of a stopped container.
    Root,
}

/// One operation.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, returned in the response. Not 0.
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// The operations. Paths are relative to the container's root, with or without a leading `/`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Opens a regular file. -> [`Reply::Opened`]
    Open {
        /// The file; links are followed.
        path: WirePath,
        /// How.
        flags: OpenFlags,
        /// Permission bits if it is created.
        mode: u32,
        /// Owner if it is created.
        #[serde(default)]
        owner: Owner,
    },
    /// Reads. -> [`Reply::Data`], shorter than asked only at the end of the file.
    Read {
        /// An open file.
        handle: u32,
        /// From where, in bytes.
        offset: u64,
        /// How much, in bytes, at most [`MAX_DATA`].
        length: u32,
    },
    /// Writes the packet's data. -> [`Reply::Done`]
    Write {
        /// An open file.
        handle: u32,
        /// To where, in bytes; the file's end if it was opened to append.
        offset: u64,
    },
    /// Flushes a file to the disk. -> [`Reply::Done`]
    Sync {
        /// An open file.
        handle: u32,
    },
    /// Forgets an open file or directory. -> [`Reply::Done`]
    Close {
        /// Which.
        handle: u32,
    },
    /// -> [`Reply::Stat`]
    Stat {
        /// Which.
        path: WirePath,
        /// Whether a link as the last component is followed.
        follow: bool,
    },
    /// -> [`Reply::Stat`]
    StatHandle {
        /// Which.
        handle: u32,
    },
    /// -> [`Reply::Done`]
    Change {
        /// Which.
        path: WirePath,
        /// Whether a link as the last component is followed.
        follow: bool,
        /// To what.
        changes: Changes,
    },
    /// -> [`Reply::Done`]
    ChangeHandle {
        /// Which.
        handle: u32,
        /// To what.
        changes: Changes,
    },
    /// Opens a directory. -> [`Reply::Opened`]
    OpenDir {
        /// Which; links are followed.
        path: WirePath,
    },
    /// -> [`Reply::Entries`]
    ReadDir {
        /// An open directory.
        handle: u32,
    },
    /// -> [`Reply::Done`]
    MakeDir {
        /// Which.
        path: WirePath,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        #[serde(default)]
        owner: Owner,
    },
    /// Removes a name that isn't a directory's. -> [`Reply::Done`]
    Remove {
        /// Which; a link itself is removed.
        path: WirePath,
    },
    /// Removes an empty directory. -> [`Reply::Done`]
    RemoveDir {
        /// Which.
        path: WirePath,
    },
    /// Removes whatever is there with all below. -> [`Reply::Removed`], and is to be repeated until that says `done`.
    RemoveTree {
        /// Which; a link itself is removed.
        path: WirePath,
    },
    /// -> [`Reply::Done`]
    Rename {
        /// The old name.
        from: WirePath,
        /// The new one.
        to: WirePath,
        /// Whether something with the new name is replaced.
        replace: bool,
    },
    /// -> [`Reply::Done`]
    Symlink {
        /// What the link says.
        target: WirePath,
        /// The link.
        path: WirePath,
        /// The link's owner.
        #[serde(default)]
        owner: Owner,
    },
    /// -> [`Reply::Path`]
    ReadLink {
        /// The link.
        path: WirePath,
    },
    /// The path without links and dots. The last component need not exist. -> [`Reply::Path`]
    RealPath {
        /// Of what.
        path: WirePath,
    },
    /// -> [`Reply::Space`]
    Space {
        /// A path on the filesystem in question.
        path: WirePath,
    },
}

/// One answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// The request's id; 0 for the answer to [`Setup`].
    pub id: u64,
    /// What came of it.
    pub reply: Reply,
}

/// What came of an operation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The service is in the container and listens.
    Ready {
        /// [`VERSION`] of the service.
        version: u32,
    },
    /// It is done.
    Done,
    /// It is open.
    Opened {
        /// For further operations.
        handle: u32,
        /// Whether it was created just now.
        created: bool,
        /// Its attributes.
        stat: Stat,
    },
    /// The packet's data is what was read.
    Data,
    /// Attributes.
    Stat(Stat),
    /// Some of a directory's entries, `.` and `..` left out.
    Entries {
        /// In the filesystem's order.
        entries: Vec<DirEntry>,
        /// Whether these were the last.
        end: bool,
    },
    /// A path.
    Path(WirePath),
    /// Space on a filesystem.
    Space(Space),
    /// How far removing a tree has come.
    Removed {
        /// Names removed by this request.
        count: u64,
        /// Whether nothing is left.
        done: bool,
    },
    /// It failed.
    Failed {
        /// In what way, where the error number doesn't say it.
        kind: FailureKind,
        /// errno(3), 0 if none applies.
        errno: i32,
        /// What was being done, for logs.
        detail: String,
    },
}

/// Failures that have no error number of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The error number says it.
    System,
    /// It is neither a regular file nor a directory.
    SpecialFile,
    /// There is no such handle, or it is of the other kind.
    BadHandle,
    /// Too many are open.
    TooManyHandles,
    /// The container has no such uid or gid.
    BadId,
    /// Something is mounted there.
    MountPoint,
    /// The tree was moved while it was being removed.
    Changed,
    /// The path can't be one: a zero byte, or nothing to work on.
    BadPath,
    /// Setting up failed.
    Setup,
    /// The request isn't understood.
    #[serde(other)]
    Unsupported,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "these are SSH_FXF_* and open(2)'s own independent flags")]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// For writing at its end only.
    pub append: bool,
    /// Make it if it doesn't exist.
    pub create: bool,
    /// With `create`: fail if it exists, be it as a dangling link.
    pub exclusive: bool,
    /// Empty it.
    pub truncate: bool,
}

/// Uid and gid as the container sees them. What is absent is left as it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// Attributes to set. What is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    /// Permission bits, with set-user-ID, set-group-ID and sticky (07777).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner.
    #[serde(flatten)]
    pub owner: Owner,
    /// Length in bytes: cut, or extended by a hole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Time of last access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub atime: Option<Time>,
    /// Time of last modification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtime: Option<Time>,
}

/// A moment since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds beyond them.
    #[serde(default)]
    pub nanoseconds: u32,
}

/// What sort of thing a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// Attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, with set-user-ID, set-group-ID and sticky (07777).
    pub mode: u32,
    /// Owner as the container sees it; 65534 for one that it has no number for.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes on disk.
    pub allocated: u64,
    /// Names of it.
    pub links: u32,
    /// Time of last access.
    pub atime: Time,
    /// Time of last modification.
    pub mtime: Time,
    /// Time of last change of its attributes.
    pub ctime: Time,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name.
    pub name: WirePath,
    /// The attributes of the name itself, a link not followed.
    pub stat: Stat,
}

/// Space on a filesystem, in bytes where not said otherwise (statvfs(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// The block size that suits transfers.
    pub block_size: u64,
    /// In all.
    pub total: u64,
    /// Free.
    pub free: u64,
    /// Free for users other than root.
    pub available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
    /// The longest name.
    pub name_max: u64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}
