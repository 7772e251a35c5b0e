//! Removing what nothing refers to any more: host ends of NICs whose instance is gone, dnsmasq processes, directories
//! and bridges of networks that are not in the inventory.
//!
//! Only what is provably ours goes. A host end is recognised by its name's form, by being a veth, and by being a port
//! of one of our bridges or of none: another daemon on the same host (with a state directory of its own) has bridges of
//! its own, and those don't bear our alias. A dnsmasq is recognised by the directory that its command line names.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::Path,
};

use super::{
    bridge::{self, Owner},
    dnsmasq::{self, NetworkDir},
    error::{Error, Result},
    interface::Interface,
    nic::is_host_name,
    rtnl::Rtnl,
};

/// What a sweep removed, and what it could not.
#[derive(Debug, Default)]
pub struct Swept {
    /// Host ends of NICs.
    pub links: Vec<String>,
    /// Networks whose leftovers were removed.
    pub networks: Vec<String>,
    /// What could not be removed; the rest was swept nevertheless.
    pub failures: Vec<Error>,
}

/// Removes what belongs to neither a known NIC nor a known network.
pub(super) async fn sweep(
    rtnl: &Rtnl,
    owner: &Owner,
    networks_dir: &Path,
    known_links: &HashSet<String>,
    known_networks: &BTreeSet<&str>,
) -> Result<Swept> {
    let mut swept = Swept::default();
    let links: Vec<Interface> = rtnl.links().await?.iter().map(Interface::parse).collect();
    let ours: HashSet<u32> = links.iter().filter(|link| owner.owns(link)).map(|link| link.index).collect();
    for link in &links {
        let stray = is_host_name(&link.name)
            && link.kind.as_deref() == Some("veth")
            && link.controller.is_none_or(|bridge| ours.contains(&bridge))
            && !known_links.contains(&link.name);
        if stray {
            match rtnl.delete_link(&link.name).await {
                Ok(_) => swept.links.push(link.name.clone()),
                Err(error) => swept.failures.push(error),
            }
        }
    }
    let mut stale: BTreeSet<String> = directories(networks_dir)?.into_iter().collect();
    stale.extend(links.iter().filter(|link| owner.owns(link)).map(|link| link.name.clone()));
    for name in stale.into_iter().filter(|name| !known_networks.contains(name.as_str())) {
        match remove_network(rtnl, owner, &NetworkDir::new(networks_dir, &name), &name).await {
            Ok(()) => swept.networks.push(name),
            Err(error) => swept.failures.push(error),
        }
    }
    Ok(swept)
}

/// Removes all of a network: its dnsmasq, its link and its files, in this order, so that an interrupted removal is
/// taken up again by the next sweep.
pub(super) async fn remove_network(rtnl: &Rtnl, owner: &Owner, dir: &NetworkDir, name: &str) -> Result<()> {
    dnsmasq::stop(dir).await?;
    bridge::down(rtnl, owner, dir, name).await?;
    dir.remove()
}

fn directories(networks_dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(networks_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", networks_dir, e)),
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
