//! Network cards: the links of /sys/class/net that have hardware (kernel: Documentation/ABI/testing/sysfs-class-net).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use duet_client::api::{ResourcesNetwork, ResourcesNetworkCard, ResourcesNetworkPort};

use super::pci::{self, Names};
use super::tree::{self, Tree};

/// ARPHRD_INFINIBAND (linux/if_arp.h).
const INFINIBAND: u64 = 32;

pub(super) fn read(tree: &Tree, names: &Names) -> ResourcesNetwork {
    let mut ports: BTreeMap<(String, PathBuf), Vec<ResourcesNetworkPort>> = BTreeMap::new();
    for link in tree.list("sys/class/net") {
        let device = link.join("device");
        let card = match tree::pci_device(&device) {
            Some((dir, address)) => (address, dir),
            None => match device.canonicalize() {
                Ok(dir) => (String::new(), dir),
                Err(_) => continue,
            },
        };
        ports.entry(card).or_default().push(port(&link));
    }
    let card = |((pci_address, dir), ports): ((String, PathBuf), Vec<ResourcesNetworkPort>)| {
        let identity = pci::identify(tree, names, &dir);
        ResourcesNetworkCard {
            driver: identity.driver,
            driver_version: identity.driver_version,
            ports,
            numa_node: identity.numa_node,
            pci_address,
            vendor: identity.vendor,
            vendor_id: identity.vendor_id,
            product: identity.product,
            product_id: identity.product_id,
        }
    };
    let cards: Vec<_> = ports.into_iter().map(card).collect();
    ResourcesNetwork { total: cards.len() as u64, cards }
}

fn port(link: &Path) -> ResourcesNetworkPort {
    let number = |file: &str| tree::number(&link.join(file));
    let kind = number("type");
    ResourcesNetworkPort {
        id: tree::name(link),
        address: tree::text(&link.join("address")).unwrap_or_default(),
        port: number("dev_port").unwrap_or(0),
        protocol: if kind == Some(INFINIBAND) { "infiniband" } else { "ethernet" }.to_owned(),
        auto_negotiation: false,
        // A link that is down has no carrier to be read.
        link_detected: number("carrier") == Some(1),
        link_speed: number("speed").unwrap_or(0),
        link_duplex: tree::text(&link.join("duplex")).filter(|duplex| duplex != "unknown").unwrap_or_default(),
    }
}
