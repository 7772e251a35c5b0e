//! An instance's files, seen from outside: push, pull, list and SFTP, however hostile the instance.
//!
//! The daemon never touches those files itself. It starts `duet-monitor files`, a process that gives up everything but the
//! container's own rights before it looks at the first path, and speaks with it over a socket pair.
//!
//! ```text
//!  daemon                                   duet-monitor files
//!  FileSession ── SOCK_SEQPACKET, fd 0 ──>  running: joins the user and mount namespaces of the container's init
//!              ── pidfd or root,  fd 1 ──>           (not its pid namespace: nobody inside can see or trace it)
//!                                           stopped: the detached mount of the root is all it can reach
//!                                           then: chroot, few capabilities, no new privileges, not dumpable
//! ```
//!
//! Paths are bytes and are resolved by the kernel alone (`openat2` with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`): links,
//! absolute ones too, lead to where the container's own processes would get. No path is ever checked as a string and
//! then used. Operations on a name itself (remove, rename, make) resolve the directory and work below its descriptor.
//!
//! Only regular files and directories are opened. A file is first held by `O_PATH`, which has no effect on it, then
//! looked at, then opened again through that very descriptor; so no swap in between can make the service open a FIFO,
//! a terminal or a tape drive.
//!
//! The service ends when its socket does (the session was dropped, the daemon died) and when the container's init exits,
//! which a thread of its own waits for: it must not hold a stopped container's root mounted, not even while an operation
//! hangs in a filesystem that the container itself serves.
//!
//! In a virtual machine the same service is run by its agent, at the other end of a stream ([`FileSession::over`]).
//!
//! The shape of the operations is SFTP's. Rejected: handing file descriptors to the daemon (its reads would then happen
//! with the host's rights, and could hang it), and a thread of the daemon joining the namespaces (a user namespace can't
//! be joined by one thread of many).

mod client;
mod connection;
mod error;
mod path;
pub mod protocol;
pub mod server;
mod transfer;
mod wire;

pub use client::{FileSession, Handle, Opened, Target};
pub use error::{FileError, Result};
pub use path::WirePath;
pub use protocol::{Changes, DirEntry, FileKind, OpenFlags, Owner, Space, Stat, Time};
pub use transfer::WriteOptions;
