//! Network interfaces and netlink sockets of the calling thread's network namespace.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

/// The multicast groups for changes of links and addresses (`RTMGRP_*`, rtnetlink(7)).
const GROUPS: u32 = (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// A route netlink socket that hears of every change of links and addresses in the current network namespace.
///
/// # Errors
/// As socket(2) and bind(2).
pub fn address_monitor() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(socket)
}

/// Gives an interface of the current network namespace, which must be down, another name.
///
/// # Errors
/// As netdevice(7) `SIOCSIFNAME`; `EINVAL` for a name that no interface has, such as a longer one than 15 bytes.
pub fn rename(from: &str, to: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name(from)?;
    request.ifr_ifru.ifru_newname = name(to)?;
    // SAFETY: SIOCSIFNAME reads one ifreq, which lives across the call; both names in it end with a zero.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFNAME, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A name as the kernel takes it, with a zero at its end. A `%` would be a pattern to it (`dev_get_valid_name`,
/// net/core/dev.c).
fn name(text: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    if text.is_empty() || text.len() >= libc::IFNAMSIZ || text.contains(['%', '\0']) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut all = [0; libc::IFNAMSIZ];
    for (to, from) in all.iter_mut().zip(text.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(all)
}

/// Brings the loopback interface of the current network namespace up.
///
/// # Errors
/// As netdevice(7) `SIOCSIFFLAGS`.
pub fn raise_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name("lo")?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for bad in ["", "sixteen-letters-", "eth%d", "a\0b"] {
            assert_eq!(rename("no-such-one", bad).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{bad:?}");
        }
        assert_eq!(rename("no-such-one", "another").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
