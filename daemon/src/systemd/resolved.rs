//! Names of instances on the host: systemd-resolved asks a network's own DNS server, on its bridge, for names in the
//! network's domain, so that `ping c1.duet` works.
//!
//! Interface: org.freedesktop.resolve1.Manager(5): `SetLinkDNS(i link, a(iay))`, `SetLinkDomains(i link, a(sb))` with true
//! for a domain that only routes (`~duet`), `SetLinkDefaultRoute(i link, b)`, `SetLinkDNSSEC(i link, s)`,
//! `RevertLink(i link)`. They go with the link, and resolved keeps them over a restart of its own; they are set again all
//! the same, since a resolved that was away when a bridge came up knows nothing of it. It is never started for this.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use zbus::{MatchRule, MessageStream, message};

use super::{BUS, DEADLINE, Error, Service, Systemd};
use crate::app::App;
use crate::network::{BridgeConfig, DnsMode};

const RESOLVER: Service = Service {
    name: "org.freedesktop.resolve1",
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};

const NOT_TAKEN: &str = "systemd-resolved does not take the networks' names";
const NOT_TOLD: &str = "systemd-resolved is not told of the networks";

/// How long to leave the bus alone that has broken or cannot be reached.
const BROKEN: Duration = Duration::from_secs(10);

/// Tells resolved of the networks whenever they change or it has come back, as long as the daemon lives.
pub async fn keep_names(app: App) {
    if !app.systemd.present() {
        return;
    }
    tokio::select! {
        () = follow(&app) => {}
        () = app.shutdown.cancelled() => {}
    }
}

async fn follow(app: &App) {
    loop {
        match app.systemd.resolver_owners().await {
            Ok(owners) => follow_owners(app, owners).await,
            Err(error) => app.systemd.complain(NOT_TOLD, &error),
        }
        tokio::time::sleep(BROKEN).await;
    }
}

/// Returns when the bus is gone.
async fn follow_owners(app: &App, mut owners: MessageStream) {
    // By link index, what was set.
    let mut known: BTreeMap<i32, Names> = BTreeMap::new();
    loop {
        // Asked for before looking, so that no change falls between.
        let changed = app.network.changed();
        let wanted: BTreeMap<i32, Names> = app.network.networks().into_iter().filter_map(names_of).collect();
        if wanted != known {
            known = match app.systemd.tell_resolver(&known, &wanted).await {
                Ok(true) => {
                    app.systemd.works(NOT_TAKEN);
                    wanted
                }
                Ok(false) => BTreeMap::new(),
                Err(error) if error.is_broken() => return,
                Err(error) => {
                    app.systemd.complain(NOT_TAKEN, &error);
                    BTreeMap::new()
                }
            };
        }
        tokio::select! {
            () = changed => {}
            owner = owners.next() => match owner {
                Some(Ok(_)) => known.clear(),
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// What one link resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    servers: Vec<IpAddr>,
    domain: String,
}

fn names_of((network, config): (String, BridgeConfig)) -> Option<(i32, Names)> {
    if config.dns_mode == DnsMode::None {
        return None;
    }
    let v4 = config.ipv4.as_ref().map(|v4| IpAddr::from(v4.address.addr()));
    let v6 = config.ipv6.as_ref().map(|v6| IpAddr::from(v6.address.addr()));
    let servers: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    let index = std::fs::read_to_string(format!("/sys/class/net/{network}/ifindex")).ok()?.trim().parse().ok()?;
    (!servers.is_empty()).then_some((index, Names { servers, domain: config.dns_domain }))
}

impl Systemd {
    /// Each time that resolved comes or goes.
    async fn resolver_owners(&self) -> Result<MessageStream, Error> {
        let rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .sender(BUS.name)
            .interface(BUS.interface)
            .member("NameOwnerChanged")
            .add_arg(RESOLVER.name)
            .build()?;
        let bus = self.bus().await?;
        let stream = MessageStream::for_match_rule(rule, &bus, None);
        timeout(DEADLINE, stream).await.map_err(|_| Error::Timeout)?.map_err(Error::Bus)
    }

    /// Sets what is wanted and takes back what is not any more. False: it does not run.
    async fn tell_resolver(&self, known: &BTreeMap<i32, Names>, wanted: &BTreeMap<i32, Names>) -> Result<bool, Error> {
        let answer = self.call(&BUS, "NameHasOwner", &(RESOLVER.name,)).await?;
        if !answer.body().deserialize::<bool>()? {
            return Ok(false);
        }
        for link in known.keys().filter(|link| !wanted.contains_key(link)) {
            // It may be gone with its settings.
            let _ = self.call(&RESOLVER, "RevertLink", &(*link,)).await;
        }
        for (link, names) in wanted.iter().filter(|(link, names)| known.get(link) != Some(*names)) {
            let servers: Vec<(i32, Vec<u8>)> = names.servers.iter().map(|server| wire(*server)).collect();
            self.call(&RESOLVER, "SetLinkDNS", &(*link, servers)).await?;
            self.call(&RESOLVER, "SetLinkDomains", &(*link, vec![(names.domain.as_str(), true)])).await?;
            self.call(&RESOLVER, "SetLinkDefaultRoute", &(*link, false)).await?;
            // Nobody signs the names of instances.
            self.call(&RESOLVER, "SetLinkDNSSEC", &(*link, "no")).await?;
        }
        Ok(true)
    }
}

/// Address family and address.
fn wire(address: IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    }
}
