//! Taps: network interfaces whose other end is a file (Linux' Documentation/networking/tuntap.rst).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use crate::ioctl;

const TUNSETIFF: u32 = ioctl::request(ioctl::WRITE, b'T', 202, size_of::<libc::c_int>());
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// Makes a tap of this name in the calling thread's network namespace, with virtio-net's header before each packet. It is
/// gone when its last descriptor is closed.
///
/// # Errors
/// `EBUSY` where there is an interface of this name, `EINVAL` for a name of more than 15 bytes, else as open(2) of
/// /dev/net/tun.
pub fn make(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: TUNSETIFF takes an ifreq (its number says `int` for reasons of age), which holds no pointer here.
    unsafe { ioctl::with(&tun, TUNSETIFF, &mut request) }?;
    Ok(tun.into())
}
