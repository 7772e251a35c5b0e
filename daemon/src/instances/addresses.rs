//! Fixed addresses of NICs: each within its network, and given to one instance only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::expand::{self, Expanded};
use super::plan;
use crate::app::App;
use crate::config::{Device, NicDevice, NicLink};
use crate::error::{Error, Result};
use crate::network::BridgeConfig;

/// Checks the fixed addresses in `devices` of the instance called `name` against their networks and against every other
/// instance.
///
/// # Errors
/// With the device, the address, and what is in its way.
pub fn check(app: &App, name: &str, devices: &BTreeMap<String, Device>) -> Result<()> {
    let wanted: Vec<(&String, &NicDevice, IpAddr)> =
        devices.iter().flat_map(|(device, nic)| fixed(nic).map(move |(nic, ip)| (device, nic, ip))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for (device, nic, ip) in &wanted {
        check_subnet(app, device, nic, *ip)?;
    }
    let others = expand::expand_all(app)?;
    for other in others.iter().filter(|other| other.row.name != name) {
        for (device, nic, ip) in &wanted {
            if let Some(theirs) = holder(other, nic, *ip) {
                return Err(Error::invalid(format!(
                    "device \"{device}\": IP address \"{ip}\" is given to the device \"{theirs}\" of the instance \"{}\"",
                    other.row.name
                )));
            }
        }
    }
    Ok(())
}

/// The addresses that a device fixes.
fn fixed(device: &Device) -> impl Iterator<Item = (&NicDevice, IpAddr)> {
    let nic = match device {
        Device::Nic(nic) => Some(nic),
        Device::Disk(_) | Device::UnixChar(_) | Device::None => None,
    };
    nic.into_iter()
        .flat_map(|nic| nic.ipv4.map(IpAddr::V4).into_iter().chain(nic.ipv6.map(IpAddr::V6)).map(move |ip| (nic, ip)))
}

fn parent(nic: &NicDevice) -> &str {
    let (NicLink::Network(parent) | NicLink::Bridge(parent)) = &nic.link;
    parent
}

/// A bridge that Duet does not manage has no subnet that is known.
fn check_subnet(app: &App, device: &str, nic: &NicDevice, ip: IpAddr) -> Result<()> {
    let Some(network) = app.inventory.network(parent(nic))? else { return Ok(()) };
    let config = BridgeConfig::parse(&network.config).map_err(crate::networks::error)?;
    let (inside, subnet) = match ip {
        IpAddr::V4(ip) => {
            let net = config.ipv4.map(|v4| v4.address.trunc());
            (net.is_some_and(|net| net.contains(&ip)), net.map(|net| net.to_string()))
        }
        IpAddr::V6(ip) => {
            let net = config.ipv6.map(|v6| v6.address.trunc());
            (net.is_some_and(|net| net.contains(&ip)), net.map(|net| net.to_string()))
        }
    };
    if inside {
        return Ok(());
    }
    let subnet = subnet.map_or("has no such addresses".to_owned(), |net| format!("is {net}"));
    Err(Error::invalid(format!(
        "device \"{device}\": IP address \"{ip}\" is not within network \"{}\", which {subnet}",
        network.name
    )))
}

/// The device of another instance that has the address on the same link.
fn holder(other: &Expanded, nic: &NicDevice, ip: IpAddr) -> Option<String> {
    let devices = plan::typed_devices(other).ok()?;
    devices
        .iter()
        .find(|(_, theirs)| fixed(theirs).any(|(n, taken)| taken == ip && parent(n) == parent(nic)))
        .map(|(device, _)| device.clone())
}
