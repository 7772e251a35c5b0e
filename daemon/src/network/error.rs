//! What can go wrong in this module, each with the thing it went wrong with.

use std::{io, path::PathBuf};

/// Result of the network manager.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the network manager. The messages are one sentence each and fit to be shown to a user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration key holds a value that can't be used.
    #[error("invalid value for network option {key:?}: {problem}")]
    Config {
        /// The configuration key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },

    /// A network name that the kernel or we can't use.
    #[error("invalid network name {name:?}: {problem}")]
    Name {
        /// The name asked for.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },

    /// The link of that name exists and was not made by us.
    #[error(
        "a network interface called {name:?} already exists ({kind}) and is not managed by Duet; \
         choose another network name or remove that interface"
    )]
    LinkTaken {
        /// Interface name.
        name: String,
        /// Its kind, such as `bridge` or `dummy`.
        kind: String,
    },

    /// The link does not exist.
    #[error("network interface {name:?} does not exist")]
    NoSuchLink {
        /// Interface name.
        name: String,
    },

    /// No subnet is free.
    #[error("no free {family} subnet found on this host; set {key} to the one to use, or to \"none\"")]
    NoFreeSubnet {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The configuration key that names a subnet by hand.
        key: &'static str,
    },

    /// The subnet collides with something that is there already.
    #[error("{key} {subnet} overlaps {other}; choose another subnet")]
    SubnetTaken {
        /// The configuration key.
        key: &'static str,
        /// The subnet asked for.
        subnet: String,
        /// What it collides with.
        other: String,
    },

    /// A program that we need did not run.
    #[error(transparent)]
    Program(#[from] crate::program::Error),

    /// `nft` refused our ruleset.
    #[error("nft could not load the firewall rules: {message}")]
    Nft {
        /// What nft printed.
        message: String,
    },

    /// dnsmasq did not start.
    #[error("dnsmasq for network {network:?} did not start: {message}")]
    Dnsmasq {
        /// The network.
        network: String,
        /// What dnsmasq printed.
        message: String,
    },

    /// dnsmasq did not stop within its deadline, not even by force.
    #[error("dnsmasq for network {network:?} (pid {pid}) did not stop within {seconds} s")]
    DnsmasqStuck {
        /// The network.
        network: String,
        /// Its process.
        pid: i32,
        /// How long we waited, seconds.
        seconds: u64,
    },

    /// The kernel refused a netlink request.
    #[error("{action}: {source}")]
    Netlink {
        /// What we tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// A kernel answer that we can't read.
    #[error("{action}: unexpected answer from the kernel: {message}")]
    Protocol {
        /// What we tried.
        action: String,
        /// What was wrong with it.
        message: String,
    },

    /// A kernel network setting could not be changed.
    #[error("cannot set {} to {value:?}: {source}", path.display())]
    Sysctl {
        /// File under /proc/sys.
        path: PathBuf,
        /// The value wanted.
        value: String,
        /// Why not.
        source: io::Error,
    },

    /// A file of ours could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Verb: read, write, create, remove.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// Any other failed system call.
    #[error("{action}: {source}")]
    System {
        /// What we tried.
        action: String,
        /// Why not.
        source: io::Error,
    },

    /// The network is not up, or was never registered with this manager.
    #[error("network {name:?} is not managed by this daemon")]
    Unknown {
        /// The network.
        name: String,
    },

    /// The namespace watcher ended, because its container is gone or its socket failed.
    #[error("the container's network namespace is no longer watched: {message}")]
    WatcherGone {
        /// Why.
        message: String,
    },
}

impl Error {
    /// The kernel's errno, where there was one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Netlink { source, .. }
            | Error::Sysctl { source, .. }
            | Error::File { source, .. }
            | Error::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(super) fn config(key: &str, problem: impl Into<String>) -> Self {
        Error::Config { key: key.to_owned(), problem: problem.into() }
    }

    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::File { action, path: path.into(), source }
    }

    pub(super) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::System { action: action.into(), source: source.into() }
    }
}
