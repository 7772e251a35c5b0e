//! Keeping networks up while the daemon runs.
//!
//! Two things of a network can go without anyone's asking us: its dnsmasq may die (the kernel was out of memory, or
//! somebody restarted "all of dnsmasq"), and its firewall table may be swept away with everybody's when the admin
//! restarts the host's own firewall (`nft flush ruleset` is the first line of Debian's /etc/nftables.conf). Instances
//! would lose their leases and their way out until the daemon's next start. So one task watches both and puts back what
//! is missing. It polls nothing: the end of a process makes its pidfd readable, and nf_tables tells a multicast group
//! of each deleted table.
//!
//! What is merely different is left alone: a rule that the admin added to our table stays there until the next change of
//! a network.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::Weak,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use rtnetlink::packet_core::NetlinkBuffer;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, netlink, netlink::SocketAddrNetlink, socket_with,
};
use tokio::{
    io::unix::AsyncFd,
    task::JoinHandle,
    time::{sleep, sleep_until},
};

use super::{
    Inner, Manager,
    dnsmasq::{self, Running},
    nft, readable,
};

/// NFNLGRP_NFTABLES is group 7 (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 1 << (7 - 1);
/// NFT_MSG_DELTABLE of NFNL_SUBSYS_NFTABLES (linux/netfilter/nf_tables.h).
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// A firewall that is restarted drops all and then loads its own; ours comes after.
const SETTLE: Duration = Duration::from_millis(500);
/// A dnsmasq that ends again and again is started no more often than this.
const RESTART_INTERVAL: Duration = Duration::from_secs(10);

/// Begins to watch; the task ends when the manager is gone.
pub(super) fn spawn(inner: Weak<Inner>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let tables = match nftables_socket() {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "the firewall is not watched");
                None
            }
        };
        let mut guard = Guard { inner, tables, started: HashMap::new() };
        while guard.step().await.is_some() {}
    })
}

struct Guard {
    inner: Weak<Inner>,
    tables: Option<AsyncFd<OwnedFd>>,
    /// When each network's dnsmasq was last put back.
    started: HashMap<String, Instant>,
}

enum Event {
    NetworksChanged,
    TableDeleted,
    Ended(String),
}

impl Guard {
    /// Waits for one event and acts on it; nothing if the manager is gone.
    async fn step(&mut self) -> Option<()> {
        let manager = Manager(self.inner.upgrade()?);
        // Asked for before looking, so that no change falls between.
        let changed = manager.0.changed.clone().notified_owned();
        let names: Vec<String> = manager.up().keys().cloned().collect();
        let mut watched = Vec::new();
        for name in names {
            match Running::find_noted(&manager.dir(&name)).map(|running| running.watch()) {
                Some(Ok(fd)) => watched.push((name, fd)),
                Some(Err(error)) => tracing::warn!(network = name, %error, "its dnsmasq is not watched"),
                None => {}
            }
        }
        // While waiting, nothing is kept that would keep the manager.
        drop(manager);
        let ended = async {
            if watched.is_empty() {
                return std::future::pending().await;
            }
            let each = watched.iter().map(|(_, fd)| Box::pin(fd.readable()));
            watched[select_all(each).await.1].0.clone()
        };
        let event = tokio::select! {
            () = changed => Event::NetworksChanged,
            name = ended => Event::Ended(name),
            deleted = table_deleted(self.tables.as_ref()) => {
                deleted?;
                Event::TableDeleted
            }
        };
        let manager = Manager(self.inner.upgrade()?);
        match event {
            Event::NetworksChanged => {}
            Event::TableDeleted => {
                sleep(SETTLE).await;
                restore_table(&manager).await;
            }
            Event::Ended(name) => self.restart(&manager, &name).await,
        }
        Some(())
    }

    async fn restart(&mut self, manager: &Manager, name: &str) {
        if let Some(last) = self.started.get(name) {
            sleep_until((*last + RESTART_INTERVAL).into()).await;
        }
        let _changing = manager.0.changes.lock().await;
        // Taken down meanwhile, or put back by whoever changed it.
        let Ok(config) = manager.applied(name) else { return };
        let dir = manager.dir(name);
        if Running::find_noted(&dir).is_some() {
            return;
        }
        tracing::warn!(network = name, "dnsmasq has ended; starting it again");
        self.started.insert(name.to_owned(), Instant::now());
        let wanted = dnsmasq::render(&dir, &config);
        if let Err(error) = dnsmasq::ensure(&dir, wanted.as_deref(), false).await {
            tracing::error!(network = name, %error, "dnsmasq could not be started again");
        }
    }
}

/// Puts the firewall table back if it is gone.
async fn restore_table(manager: &Manager) {
    let _changing = manager.0.changes.lock().await;
    let networks = manager.up().clone();
    if !nft::is_missing(&networks).await {
        return;
    }
    tracing::warn!("the firewall table \"{}\" was removed; loading it again", nft::TABLE);
    if let Err(error) = nft::load(&networks).await {
        tracing::error!(%error, "the firewall could not be put back");
    }
}

fn nftables_socket() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, NFTABLES_GROUP))?;
    readable::register(socket)
}

/// Waits until a table is deleted, whosever it is. An overflowed queue counts too, since it may have held that.
async fn table_deleted(socket: Option<&AsyncFd<OwnedFd>>) -> Option<()> {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        let mut ready = socket.readable().await.ok()?;
        loop {
            buffer.clear();
            let spare = rustix::buffer::spare_capacity(&mut buffer);
            match ready.try_io(|fd| Ok(rustix::net::recv(fd, spare, RecvFlags::DONTWAIT)?)) {
                Ok(Ok(_)) if !holds_deletion(&buffer) => {}
                Ok(Ok(_)) => return Some(()),
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => return Some(()),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the firewall is no longer watched");
                    return std::future::pending().await;
                }
                Err(_would_block) => break,
            }
        }
    }
}

fn holds_deletion(mut datagram: &[u8]) -> bool {
    while let Ok(header) = NetlinkBuffer::new_checked(datagram) {
        if header.message_type() == DELETE_TABLE {
            return true;
        }
        let length = usize::try_from(header.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    false
}
