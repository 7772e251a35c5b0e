//! Instance NICs: veth pairs with one end a port of a bridge and the other inside a container.
//!
//! A pair is made by one netlink request that says everything: both names, the hardware address and MTU, the bridge,
//! the namespace that the peer is born in, and that the host's end is up. There is no moment at which the peer is
//! visible on the host, and no cleanup if the request fails: the kernel makes all of it or nothing. The peer stays
//! down, as in Incus, until the guest's own network configuration raises it.
//!
//! The host's end bears a name of ours, `duet` and 8 hexadecimal digits. It goes when either end goes, so a container's
//! end normally takes care of itself; [`super::Manager::detach_nic`] is for unplugging, and for not waiting until the
//! kernel has got round to the dead namespace.

use std::os::fd::{AsRawFd, BorrowedFd};

use rand::{Rng, RngExt};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index};

use super::{
    bridge::raise,
    error::{Error, Result},
    interface::Interface,
    mac::MacAddr,
    rtnl::Rtnl,
    sysctl,
};

/// What the names of host ends begin with.
const HOST_PREFIX: &str = "duet";
/// And how many hexadecimal digits follow.
const HOST_DIGITS: usize = 8;

/// The network namespace that a NIC goes into.
#[derive(Debug, Clone, Copy)]
pub enum Netns<'a> {
    /// The one of this process, which the caller keeps from being reaped meanwhile.
    Pid(u32),
    /// An open namespace file (`/proc/<pid>/ns/net`).
    Fd(BorrowedFd<'a>),
}

/// A NIC to attach.
#[derive(Debug, Clone)]
pub struct NicSpec<'a> {
    /// Name of the end on the host; see [`host_name`].
    pub host_name: &'a str,
    /// Name inside the container, such as `eth0`.
    pub peer_name: &'a str,
    /// The bridge to plug it into.
    pub parent: &'a str,
    /// Hardware address of the container's end.
    pub hwaddr: MacAddr,
    /// MTU of both ends, bytes; by default the bridge's.
    pub mtu: Option<u32>,
    /// Where the container's end goes.
    pub netns: Netns<'a>,
}

/// A new name for the host's end of a pair.
pub fn host_name(rng: &mut impl Rng) -> String {
    format!("{HOST_PREFIX}{:0width$x}", rng.random::<u32>(), width = HOST_DIGITS)
}

/// Whether a link name has the form of [`host_name`]'s.
pub fn is_host_name(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX)
        .is_some_and(|rest| rest.len() == HOST_DIGITS && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Makes the pair. See the module's documentation. `parent_mtu` is the bridge's MTU, if the caller knows it.
pub(super) async fn attach(rtnl: &Rtnl, spec: &NicSpec<'_>, parent_mtu: Option<u32>) -> Result<()> {
    let parent = link_index(spec.parent)?;
    let mtu = match spec.mtu.or(parent_mtu) {
        Some(mtu) => mtu,
        None => link_mtu(rtnl, spec.parent).await?,
    };
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(spec.peer_name.to_owned()),
        LinkAttribute::Address(spec.hwaddr.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        match spec.netns {
            Netns::Pid(pid) => LinkAttribute::NetNsPid(pid),
            Netns::Fd(fd) => LinkAttribute::NetNsFd(fd.as_raw_fd()),
        },
    ];
    let mut host = LinkMessage::default();
    raise(&mut host);
    host.attributes = vec![
        LinkAttribute::IfName(spec.host_name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(parent),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    rtnl.add_link(host, spec.host_name).await?;
    // A port needs no address of its own. The kernel would give it a link-local one as soon as the peer is raised.
    if sysctl::has_ipv6() {
        sysctl::set_ipv6(spec.host_name, "disable_ipv6", "1")?;
    }
    Ok(())
}

/// The index of a link, by ioctl: a hundredth of what parsing all that netlink tells of it costs.
pub(super) fn link_index(name: &str) -> Result<u32> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let index = socket.and_then(|socket| name_to_index(socket, name));
    index.map_err(|errno| match errno {
        rustix::io::Errno::NODEV => Error::NoSuchLink { name: name.to_owned() },
        errno => Error::system(format!("cannot look up interface {name}"), errno),
    })
}

pub(super) async fn link_mtu(rtnl: &Rtnl, name: &str) -> Result<u32> {
    let link = rtnl.link_by_name(name).await?.ok_or_else(|| Error::NoSuchLink { name: name.to_owned() })?;
    Ok(Interface::parse(&link).mtu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_recognised() {
        for _ in 0..100 {
            let name = host_name(&mut rand::rng());
            assert!(is_host_name(&name) && name.len() <= 15, "{name}");
        }
        for other in ["duetbr0", "duet0123abc", "duet0123abcde", "duet0123ABCD", "veth01234567"] {
            assert!(!is_host_name(other), "{other}");
        }
    }
}
