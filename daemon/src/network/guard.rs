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
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use rtnetlink::packet_core::NetlinkBuffer;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, netlink, netlink::SocketAddrNetlink, socket_with,
};
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    task::JoinHandle,
    time::{sleep, sleep_until},
};

use super::{
    BridgeConfig, Inner, Manager,
    dnsmasq::{self, Running},
    nft, readable,
};

/// NFNLGRP_NFTABLES is group 7 (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 1 << (7 - 1);
/// Messages of NFNL_SUBSYS_NFTABLES (linux/netfilter/nf_tables.h): NFT_MSG_DELTABLE, and those that tell of chains and
/// rules, NFT_MSG_NEWCHAIN to NFT_MSG_DELRULE.
const SUBSYSTEM: u16 = 10 << 8;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const RULES: std::ops::RangeInclusive<u16> = SUBSYSTEM | 3..=SUBSYSTEM | 8;
/// A firewall that is restarted drops all and then loads its own; ours comes after.
const SETTLE: Duration = Duration::from_millis(500);
/// A dnsmasq that ends again soon, or can't be started, is tried again after this, and then twice as long each time.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LAST_DELAY: Duration = Duration::from_secs(600);
/// How much longer than it was waited for it has to run, so that its end is not one of a row.
const STEADY: Duration = Duration::from_secs(60);

/// Begins to watch; the task ends when the manager is gone.
pub(super) fn spawn(inner: Weak<Inner>) -> JoinHandle<()> {
    let tables = nftables_socket();
    if let Err(error) = &tables {
        tracing::warn!(%error, "the firewall is not watched");
    }
    let Some(rules_changed) = inner.upgrade().map(|inner| inner.rules_changed.clone()) else {
        return tokio::spawn(async {});
    };
    let mut guard = Guard { inner, tables: tables.ok(), rules_changed, attempts: HashMap::new() };
    tokio::spawn(async move { while guard.step().await.is_some() {} })
}

struct Guard {
    inner: Weak<Inner>,
    tables: Option<AsyncFd<OwnedFd>>,
    /// Told when somebody else's rules have changed.
    rules_changed: Arc<Notify>,
    /// By network: when its dnsmasq was last put back, and how long to leave it alone after that.
    attempts: HashMap<String, (Instant, Duration)>,
}

enum Event {
    /// Networks or processes are not what they were.
    Changed,
    TableDeleted,
    /// This network's dnsmasq is missing, and it is time to do something about it.
    Due(String),
}

impl Guard {
    /// Waits for one event and acts on it; nothing if the manager is gone.
    async fn step(&mut self) -> Option<()> {
        let manager = Manager(self.inner.upgrade()?);
        // Asked for before looking, so that no change falls between.
        let changed = manager.0.changed.clone().notified_owned();
        let served = |config: &BridgeConfig| config.ipv4.is_some() || config.ipv6.is_some();
        let names: Vec<String> =
            manager.up().iter().filter(|(_, config)| served(config)).map(|(name, _)| name.clone()).collect();
        let mut watched = Vec::new();
        let mut due: Option<(Instant, String)> = None;
        for name in names {
            match Running::find_noted(&manager.dir(&name)).map(|running| running.watch()) {
                Some(Ok(fd)) => watched.push(fd),
                Some(Err(error)) => tracing::warn!(network = name, %error, "its dnsmasq is not watched"),
                None => {
                    let at = self.attempts.get(&name).map_or_else(Instant::now, |(at, delay)| *at + *delay);
                    if due.as_ref().is_none_or(|(earliest, _)| at < *earliest) {
                        due = Some((at, name));
                    }
                }
            }
        }
        // While waiting, nothing is kept that would keep the manager.
        drop(manager);
        let ended = async {
            if watched.is_empty() {
                std::future::pending::<()>().await;
            }
            // Which of them, the next look will tell.
            drop(select_all(watched.iter().map(|fd| Box::pin(fd.readable()))).await);
        };
        let time = async {
            match due {
                Some((at, name)) => {
                    sleep_until(at.into()).await;
                    name
                }
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            () = changed => Event::Changed,
            () = ended => Event::Changed,
            name = time => Event::Due(name),
            deleted = table_deleted(self.tables.as_ref(), &self.rules_changed) => {
                deleted?;
                Event::TableDeleted
            }
        };
        match event {
            Event::Changed => {}
            Event::TableDeleted => {
                sleep(SETTLE).await;
                restore_table(&Manager(self.inner.upgrade()?)).await;
            }
            Event::Due(name) => self.restart(&Manager(self.inner.upgrade()?), &name).await,
        }
        Some(())
    }

    async fn restart(&mut self, manager: &Manager, name: &str) {
        let _changing = manager.0.changes.lock().await;
        // Taken down meanwhile, or put back by whoever changed it.
        let Ok(config) = manager.applied(name) else { return };
        let dir = manager.dir(name);
        if Running::find_noted(&dir).is_some() {
            return;
        }
        tracing::warn!(network = name, "dnsmasq has ended; starting it again");
        let now = Instant::now();
        let delay = match self.attempts.get(name) {
            Some((at, delay)) if now.duration_since(*at) < *delay + STEADY => (*delay * 2).min(LAST_DELAY),
            _ => FIRST_DELAY,
        };
        self.attempts.insert(name.to_owned(), (now, delay));
        let wanted = dnsmasq::render(&dir, &config);
        match dnsmasq::ensure(&dir, wanted.as_deref(), false).await {
            Ok(_) => manager.0.changed.notify_waiters(),
            Err(error) => tracing::error!(network = name, %error, "dnsmasq could not be started again"),
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

/// Waits until a table is deleted, whosever it is, and tells of others' rules meanwhile. An overflowed queue counts as
/// both, since it may have held that.
async fn table_deleted(socket: Option<&AsyncFd<OwnedFd>>, rules_changed: &Notify) -> Option<()> {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        let mut ready = socket.readable().await.ok()?;
        loop {
            buffer.clear();
            let spare = rustix::buffer::spare_capacity(&mut buffer);
            let news = match ready.try_io(|fd| Ok(rustix::net::recv(fd, spare, RecvFlags::DONTWAIT)?)) {
                Ok(Ok(_)) => News::of(&buffer),
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => News { deleted: true, rules: true },
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the firewall is no longer watched");
                    return std::future::pending().await;
                }
                Err(_would_block) => break,
            };
            if news.rules {
                rules_changed.notify_one();
            }
            if news.deleted {
                return Some(());
            }
        }
    }
}

/// What one datagram tells.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    /// A table was deleted.
    deleted: bool,
    /// Chains or rules changed that are not ours, or went with their table.
    rules: bool,
}

impl News {
    fn of(mut datagram: &[u8]) -> Self {
        let mut news = Self::default();
        while let Ok(header) = NetlinkBuffer::new_checked(datagram) {
            let length = usize::try_from(header.length()).unwrap_or(usize::MAX);
            let message = datagram.get(..length).unwrap_or(datagram);
            let deleted = header.message_type() == DELETE_TABLE;
            news.deleted |= deleted;
            news.rules |= (deleted || RULES.contains(&header.message_type())) && !is_ours(message);
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        news
    }
}

/// Whether a message about a table, a chain or a rule is about our table. Behind the netlink header of 16 bytes and
/// `nfgenmsg` of 4, the kernel's first attribute is the table's name with a zero (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and
/// NFTA_RULE_TABLE, `nf_tables_fill_table_info` and the like in net/netfilter/nf_tables_api.c).
fn is_ours(message: &[u8]) -> bool {
    let name = nft::TABLE.split(' ').next_back().unwrap_or_default().as_bytes();
    let value = message.get(24..).unwrap_or_default();
    value.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0))
}
