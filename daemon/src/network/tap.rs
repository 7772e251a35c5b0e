//! NICs of virtual machines: taps that are ports of a bridge. The machine's process has the other end, as a descriptor.

use std::os::fd::OwnedFd;

use rtnetlink::packet_route::link::LinkAttribute;

use super::{
    error::{Error, Result},
    nic::{link_index, link_mtu},
    rtnl::Rtnl,
    sysctl,
};

/// A tap to make.
#[derive(Debug, Clone)]
pub struct TapSpec<'a> {
    /// Its name; see [`super::host_name`].
    pub host_name: &'a str,
    /// The bridge to plug it into.
    pub parent: &'a str,
    /// Its MTU, bytes; by default the bridge's.
    pub mtu: Option<u32>,
}

/// A tap that is a port of its bridge.
#[derive(Debug)]
pub struct Tap {
    /// The other end. The tap goes with the last descriptor of it.
    pub file: OwnedFd,
    /// Its MTU, bytes.
    pub mtu: u32,
}

/// Makes a tap. `parent_mtu` is the bridge's MTU, if the caller knows it.
pub(super) async fn attach(rtnl: &Rtnl, spec: &TapSpec<'_>, parent_mtu: Option<u32>) -> Result<Tap> {
    let parent = link_index(spec.parent)?;
    let mtu = match spec.mtu.or(parent_mtu) {
        Some(mtu) => mtu,
        None => link_mtu(rtnl, spec.parent).await?,
    };
    let file = duet_sys::tap::make(spec.host_name)
        .map_err(|error| Error::system(format!("cannot make the tap {}", spec.host_name), error))?;
    // A port needs no address of its own; see `nic`.
    if sysctl::has_ipv6() {
        sysctl::set_ipv6(spec.host_name, "disable_ipv6", "1")?;
    }
    let attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::Controller(parent)];
    rtnl.set_attributes(link_index(spec.host_name)?, spec.host_name, true, attributes).await?;
    Ok(Tap { file, mtu })
}
