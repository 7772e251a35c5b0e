//! `duet network`.

use std::fmt::Write as _;

use anyhow::bail;
use clap::Subcommand;

use super::config::{read_instance, write_instance};
use super::context::{Context, Named as _};
use super::editor::edit_object;
use super::output::{
    Column, Format, bytes_si, column_table, from_yaml, print, print_line, print_list, select_columns, to_yaml, yes_no,
};
use super::parse::{assignments, key_value, required_name};
use crate::Url;
use crate::api::{Network as NetworkObject, NetworkLease, NetworkPost, NetworkPut, NetworkState, NetworksPost};

const COLUMNS: &[Column<NetworkObject>] = &[
    Column { letter: 'n', header: "NAME", cell: |n| n.name.clone() },
    Column { letter: 't', header: "TYPE", cell: |n| n.kind.clone() },
    Column { letter: 'm', header: "MANAGED", cell: |n| yes_no(n.managed) },
    Column { letter: '4', header: "IPV4", cell: |n| key(n, "ipv4.address") },
    Column { letter: '6', header: "IPV6", cell: |n| key(n, "ipv6.address") },
    Column { letter: 'd', header: "DESCRIPTION", cell: |n| n.description.clone() },
    Column { letter: 'u', header: "USED BY", cell: |n| n.used_by.len().to_string() },
    Column { letter: 's', header: "STATE", cell: |n| n.status.to_uppercase() },
    Column { letter: 'e', header: "PROJECT", cell: |n| n.project.clone() },
];

const LEASE_COLUMNS: &[Column<NetworkLease>] = &[
    Column { letter: 'h', header: "HOSTNAME", cell: |l| l.hostname.clone() },
    Column { letter: 'm', header: "MAC ADDRESS", cell: |l| l.hwaddr.clone() },
    Column { letter: 'i', header: "IP ADDRESS", cell: |l| l.address.clone() },
    Column { letter: 't', header: "TYPE", cell: |l| l.kind.to_uppercase() },
    Column { letter: 'L', header: "LOCATION", cell: |l| l.location.clone() },
];

fn key(network: &NetworkObject, key: &str) -> String {
    network.config.get(key).cloned().unwrap_or_default()
}

/// Networks
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Network {
    /// Connect an instance to a network
    Attach {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// The instance
        #[arg(add = super::complete::instances())]
        instance: String,
        /// The device's name; the network's unless given
        device: Option<String>,
        /// The link's name inside the instance
        interface: Option<String>,
    },
    /// Create a network, from YAML on standard input if that is not a terminal
    Create {
        /// Its name
        network: String,
        /// Its keys
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
        /// Its type
        #[arg(short = 't', long = "type", default_value = "bridge")]
        kind: String,
        /// Words for people
        #[arg(long)]
        description: Option<String>,
    },
    /// Delete networks
    #[command(visible_alias = "rm")]
    Delete {
        /// The networks
        #[arg(required = true, value_name = "NETWORK", add = super::complete::networks())]
        networks: Vec<String>,
    },
    /// Disconnect an instance from a network
    Detach {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// The instance
        #[arg(add = super::complete::instances())]
        instance: String,
        /// The device's name, if there are several
        device: Option<String>,
    },
    /// Edit a network as YAML
    Edit {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
    },
    /// Show a network's key
    Get {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// The key
        key: String,
    },
    /// Show a network's link
    Info {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
    },
    /// List networks
    #[command(visible_alias = "ls")]
    List {
        /// Columns: n (name), t (type), m (managed), 4 (IPv4), 6 (IPv6), d (description), u (used by), s (state),
        /// e (project)
        #[arg(short, long, default_value = "ntm46dus")]
        columns: String,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// List a network's addresses in use
    ListLeases {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// Columns: h (host name), m (MAC address), i (IP address), t (type), L (location)
        #[arg(short, long, default_value = "hmit")]
        columns: String,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Rename a network
    #[command(visible_alias = "mv")]
    Rename {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// Its new name
        new_name: String,
    },
    /// Set a network's keys
    Set {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// The keys
        #[arg(required = true, value_name = "KEY=VALUE")]
        config: Vec<String>,
    },
    /// Show a network as YAML
    Show {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
    },
    /// Remove a network's key
    Unset {
        /// The network
        #[arg(add = super::complete::networks())]
        network: String,
        /// The key
        key: String,
    },
}

fn url(name: &str) -> anyhow::Result<Url> {
    Ok(Url::new(&["1.0", "networks", required_name(name, "network")?]))
}

async fn read(context: &Context, name: &str) -> anyhow::Result<(NetworkObject, Option<String>)> {
    context.client.get_with_etag(&url(name)?).await.named(name)
}

async fn write(context: &Context, name: &str, put: &NetworkPut, etag: Option<&str>) -> anyhow::Result<()> {
    let outcome = context.client.put(&url(name)?, put, etag).await?;
    context.finish(&format!("Changing {name}"), outcome).await?;
    Ok(())
}

impl Network {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Attach { network, instance, device, interface } => {
                attach(context, &network, &instance, device, interface).await
            }
            Self::Detach { network, instance, device } => detach(context, &network, &instance, device).await,
            Self::Create { network, config, kind, description } => {
                let mut post: NetworksPost = match super::launch::piped_input()? {
                    Some(text) => from_yaml(&text)?,
                    None => NetworksPost::default(),
                };
                post.name = required_name(&network, "network")?.to_owned();
                post.kind = kind;
                post.config.extend(config);
                if let Some(description) = description {
                    post.description = description;
                }
                let outcome = context.client.post(&Url::new(&["1.0", "networks"]), &post).await?;
                context.finish(&format!("Creating {network}"), outcome).await?;
                context.remark(&format!("Network {network} created"));
                Ok(())
            }
            Self::Delete { networks } => {
                for name in &networks {
                    let outcome = context.client.delete(&url(name)?).await.named(name)?;
                    context.finish(&format!("Deleting {name}"), outcome).await?;
                    context.remark(&format!("Network {name} deleted"));
                }
                Ok(())
            }
            Self::Edit { network } => {
                let (current, etag) = read(context, &network).await?;
                let put = NetworkPut { config: current.config, description: current.description };
                let edited = edit_object(&format!("The network {network}."), &put)?;
                write(context, &network, &edited, etag.as_deref()).await
            }
            Self::Get { network, key } => {
                let (current, _) = read(context, &network).await?;
                print_line(current.config.get(&key).map_or("", String::as_str))
            }
            Self::Info { network } => info(context, &network).await,
            Self::List { columns, format } => list(context, &columns, &format).await,
            Self::ListLeases { network, columns, format } => leases(context, &network, &columns, &format).await,
            Self::Rename { network, new_name } => {
                let post = NetworkPost { name: required_name(&new_name, "network")?.to_owned() };
                let outcome = context.client.post(&url(&network)?, &post).await.named(&network)?;
                context.finish(&format!("Renaming {network}"), outcome).await?;
                context.remark(&format!("Network {network} renamed to {new_name}"));
                Ok(())
            }
            Self::Set { network, config } => {
                let pairs = assignments(&config)?;
                let (mut current, etag) = read(context, &network).await?;
                current.config.extend(pairs);
                let put = NetworkPut { config: current.config, description: current.description };
                write(context, &network, &put, etag.as_deref()).await
            }
            Self::Show { network } => print(&to_yaml(&read(context, &network).await?.0)?),
            Self::Unset { network, key } => {
                let (mut current, etag) = read(context, &network).await?;
                if current.config.remove(&key).is_none() {
                    bail!("the network {network} has no key {key:?} set");
                }
                let put = NetworkPut { config: current.config, description: current.description };
                write(context, &network, &put, etag.as_deref()).await
            }
        }
    }
}

async fn attach(
    context: &Context,
    network: &str,
    instance: &str,
    device: Option<String>,
    interface: Option<String>,
) -> anyhow::Result<()> {
    let network = required_name(network, "network")?;
    let (object, _) = read(context, network).await?;
    let name = required_name(instance, "instance")?;
    let device = device.unwrap_or_else(|| network.to_owned());
    let (current, etag) = read_instance(context, name).await?;
    let mut put = current.writable();
    if put.devices.contains_key(&device) {
        bail!("{name} already has a device {device:?}; give another device name after the instance's");
    }
    let mut options = std::collections::BTreeMap::from([("type".to_owned(), "nic".to_owned())]);
    if object.managed {
        options.insert("network".into(), network.to_owned());
    } else {
        options.insert("nictype".into(), if object.kind == "bridge" { "bridged" } else { "macvlan" }.into());
        options.insert("parent".into(), network.to_owned());
    }
    if let Some(interface) = interface {
        options.insert("name".into(), interface);
    }
    put.devices.insert(device, options);
    write_instance(context, name, &put, etag.as_deref()).await
}

async fn detach(context: &Context, network: &str, instance: &str, device: Option<String>) -> anyhow::Result<()> {
    let network = required_name(network, "network")?;
    let name = required_name(instance, "instance")?;
    let (current, etag) = read_instance(context, name).await?;
    let mut put = current.writable();
    let connected: Vec<String> = put
        .devices
        .iter()
        .filter(|(_, options)| options.get("type").is_some_and(|kind| kind == "nic"))
        .filter(|(_, options)| [options.get("network"), options.get("parent")].contains(&Some(&network.to_owned())))
        .map(|(device, _)| device.clone())
        .filter(|connected| device.as_ref().is_none_or(|device| device == connected))
        .collect();
    match connected.as_slice() {
        [device] => {
            put.devices.remove(device);
            write_instance(context, name, &put, etag.as_deref()).await
        }
        [] => bail!("{name} has no device of its own that connects it to {network}"),
        several => bail!("{name} is connected to {network} by {}; name one of them", several.join(", ")),
    }
}

async fn list(context: &Context, columns: &str, format: &Format) -> anyhow::Result<()> {
    let columns = select_columns(columns, COLUMNS)?;
    let url = Url::new(&["1.0", "networks"]).query("recursion", "1");
    let networks: Vec<NetworkObject> = context.client.get(&url).await?;
    print_list(format, &networks, || column_table(&columns, &networks))
}

async fn leases(context: &Context, network: &str, columns: &str, format: &Format) -> anyhow::Result<()> {
    let columns = select_columns(columns, LEASE_COLUMNS)?;
    let name = required_name(network, "network")?;
    let url = Url::new(&["1.0", "networks", name, "leases"]);
    let leases: Vec<NetworkLease> = context.client.get(&url).await.named(name)?;
    print_list(format, &leases, || column_table(&columns, &leases))
}

async fn info(context: &Context, network: &str) -> anyhow::Result<()> {
    let name = required_name(network, "network")?;
    let url = Url::new(&["1.0", "networks", name, "state"]);
    let state: NetworkState = context.client.get(&url).await.named(name)?;
    print(&info_text(name, &state)?)
}

fn info_text(name: &str, state: &NetworkState) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(out, "Name: {name}\nMAC address: {}\nMTU: {}", state.hwaddr, state.mtu)?;
    writeln!(out, "State: {}\nType: {}", state.state, state.kind)?;
    if !state.addresses.is_empty() {
        writeln!(out, "\nIP addresses:")?;
        for address in &state.addresses {
            writeln!(out, "  {}\t{}/{} ({})", address.family, address.address, address.netmask, address.scope)?;
        }
    }
    let counters = &state.counters;
    writeln!(out, "\nNetwork usage:")?;
    writeln!(out, "  Bytes received: {}", bytes_si(counters.bytes_received.unsigned_abs()))?;
    writeln!(out, "  Bytes sent: {}", bytes_si(counters.bytes_sent.unsigned_abs()))?;
    writeln!(out, "  Packets received: {}", counters.packets_received)?;
    writeln!(out, "  Packets sent: {}", counters.packets_sent)?;
    if let Some(bridge) = &state.bridge {
        writeln!(out, "\nBridge:\n  ID: {}\n  STP: {}", bridge.id, bridge.stp)?;
        writeln!(out, "  Forward delay: {}\n  Default VLAN ID: {}", bridge.forward_delay, bridge.vlan_default)?;
        writeln!(out, "  VLAN filtering: {}", bridge.vlan_filtering)?;
        writeln!(out, "  Upper devices: {}", bridge.upper_devices.join(", "))?;
    }
    if let Some(vlan) = &state.vlan {
        writeln!(out, "\nVLAN:\n  Lower device: {}\n  VLAN ID: {}", vlan.lower_device, vlan.vid)?;
    }
    if let Some(bond) = &state.bond {
        writeln!(out, "\nBond:\n  Mode: {}\n  Lower devices: {}", bond.mode, bond.lower_devices.join(", "))?;
    }
    Ok(out)
}
