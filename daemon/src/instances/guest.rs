//! What a virtual machine's guest says of itself: its agent is asked again and again, often until the system is up and has
//! an address, and now and then after.
//!
//! A guest can say anything; what it says is bounded and shown, and nothing is decided by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use duet_agent::protocol::message::{self, State};
use duet_control::client::MonitorClient;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, Result, blocking};
use crate::network::{Address, Counters, Interface, MacAddr, NetnsState};

/// How long a guest is waited for: whoever lists instances waits for each.
const ANSWER: Duration = Duration::from_secs(1);
/// How often the agent is asked until there is an address.
const OFTEN: Duration = Duration::from_secs(1);
/// And after.
const SELDOM: Duration = Duration::from_secs(10);

/// Asks one guest until it is dropped.
pub struct Guest {
    run_dir: PathBuf,
    network: watch::Receiver<Arc<NetnsState>>,
    task: JoinHandle<()>,
}

impl Guest {
    /// Begins to ask. Needs a tokio runtime.
    pub fn spawn(run_dir: &Path) -> Self {
        let (said, network) = watch::channel(Arc::default());
        let dir = run_dir.to_owned();
        let task = tokio::spawn(async move {
            loop {
                if let Ok(state) = ask(&dir).await {
                    let new = network_of(&state);
                    said.send_if_modified(|known: &mut Arc<NetnsState>| {
                        let changed = !new.same_but_counters(known);
                        *known = Arc::new(new);
                        changed
                    });
                }
                let pause = if said.borrow().has_ipv4() { SELDOM } else { OFTEN };
                tokio::time::sleep(pause).await;
            }
        });
        Self { run_dir: run_dir.to_owned(), network, task }
    }

    /// Its network as it was last heard of.
    pub fn network(&self) -> Arc<NetnsState> {
        self.network.borrow().clone()
    }

    /// Changes of its links and addresses.
    pub fn subscribe(&self) -> watch::Receiver<Arc<NetnsState>> {
        self.network.clone()
    }

    /// How it is now.
    ///
    /// # Errors
    /// Where its agent does not answer.
    pub async fn state(&self) -> Result<State> {
        ask(&self.run_dir).await
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(run_dir: &Path) -> Result<State> {
    let dir = run_dir.to_owned();
    blocking(move || {
        let answer = MonitorClient::connect(&dir).and_then(|client| client.guest_state(ANSWER));
        let state = answer.map_err(|error| Error::invalid(error.to_string()))?;
        let state: State = serde_json::from_value(state).map_err(|error| Error::invalid(error.to_string()))?;
        Ok::<_, Error>(state.bounded())
    })
    .await
}

/// A guest's network in the form that a container's has.
pub fn network_of(state: &State) -> NetnsState {
    let interfaces = state.network.iter().zip(1..).map(|((name, said), index)| (index, interface(name, said, index)));
    NetnsState { interfaces: interfaces.collect::<BTreeMap<_, _>>() }
}

fn interface(name: &str, said: &message::Interface, index: u32) -> Interface {
    let counters = &said.counters;
    let address = |one: &message::Address| Address {
        address: one.address,
        prefix_len: one.prefix,
        tentative: false,
        protocol: 0,
    };
    Interface {
        index,
        name: name.to_owned(),
        hwaddr: said.hwaddr.parse::<MacAddr>().ok().filter(|_| !said.loopback),
        mtu: said.mtu,
        up: said.up,
        loopback: said.loopback,
        broadcast: said.broadcast,
        point_to_point: said.point_to_point,
        counters: Counters {
            rx_bytes: counters.bytes_received,
            tx_bytes: counters.bytes_sent,
            rx_packets: counters.packets_received,
            tx_packets: counters.packets_sent,
            rx_errors: counters.errors_received,
            tx_errors: counters.errors_sent,
            rx_dropped: counters.packets_dropped_inbound,
            tx_dropped: counters.packets_dropped_outbound,
        },
        addresses: said.addresses.iter().map(address).collect(),
        ..Interface::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_shown_as_a_containers_network() {
        let eth0 = message::Interface {
            hwaddr: "10:66:6a:00:00:01".into(),
            mtu: 1500,
            up: true,
            broadcast: true,
            addresses: vec![
                message::Address { address: [10, 0, 0, 5].into(), prefix: 24 },
                message::Address { address: "fe80::1".parse().unwrap(), prefix: 64 },
            ],
            ..message::Interface::default()
        };
        let lo = message::Interface {
            loopback: true,
            addresses: vec![message::Address { address: [127, 0, 0, 1].into(), prefix: 8 }],
            ..message::Interface::default()
        };
        let mut state = State { network: [("lo".to_owned(), lo.clone())].into(), ..State::default() };
        assert!(!network_of(&state).has_ipv4());
        state.network.insert("eth0".into(), eth0);
        let network = network_of(&state);
        assert!(network.has_ipv4() && !network.has_ipv6());
        let shown = network.to_api();
        assert_eq!(shown["eth0"].addresses[0].address, "10.0.0.5");
        assert_eq!((shown["eth0"].hwaddr.as_str(), shown["eth0"].state.as_str()), ("10:66:6a:00:00:01", "up"));
        assert_eq!(shown["lo"].kind, "loopback");
    }
}
