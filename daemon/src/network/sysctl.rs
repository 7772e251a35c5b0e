//! Kernel network settings under /proc/sys/net: written only where they differ, so that what is right stays untouched
//! and what forbids writing (a read-only /proc/sys) hurts only when a change is needed.
//!
//! Forwarding is the delicate one. Turning `net.ipv6.conf.all.forwarding` on makes the host a router, and a router
//! ignores router advertisements unless `accept_ra` is 2 (kernel Documentation/networking/ip-sysctl.rst): a host that
//! has its default route from one would lose it minutes later, when the route expires. So before the switch, every
//! link that accepts advertisements as a host is told to accept them as a router.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::error::{Error, Result};

const NET: &str = "/proc/sys/net";

/// Whether this kernel has IPv6 in this namespace.
pub(super) fn has_ipv6() -> bool {
    Path::new(NET).join("ipv6").is_dir()
}

/// A setting of one link, or of `all` or `default`.
fn link_setting(family: &str, link: &str, key: &str) -> PathBuf {
    Path::new(NET).join(family).join("conf").join(link).join(key)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn ensure(path: &Path, value: &str) -> Result<()> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim() == value => return Ok(()),
        Ok(_) => {}
        // The kernel was built without it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::file("read", path, source)),
    }
    fs::write(path, value).map_err(|source| Error::Sysctl { path: path.to_owned(), value: value.to_owned(), source })
}

/// Sets one link's IPv4 setting.
pub(super) fn set_ipv4(link: &str, key: &str, value: &str) -> Result<()> {
    ensure(&link_setting("ipv4", link, key), value)
}

/// Sets one link's IPv6 setting.
pub(super) fn set_ipv6(link: &str, key: &str, value: &str) -> Result<()> {
    ensure(&link_setting("ipv6", link, key), value)
}

/// Lets the host route IPv4.
pub(super) fn forward_ipv4() -> Result<()> {
    ensure(&Path::new(NET).join("ipv4/ip_forward"), "1")
}

/// Lets the host route IPv6 and keep what router advertisements tell it.
pub(super) fn forward_ipv6() -> Result<()> {
    let all = link_setting("ipv6", "all", "forwarding");
    if read(&all).as_deref() == Some("1") {
        return Ok(());
    }
    let links = Path::new(NET).join("ipv6/conf");
    for entry in fs::read_dir(&links).map_err(|e| Error::file("read", &links, e))?.flatten() {
        let name = entry.file_name();
        let Some(link) = name.to_str().filter(|link| !matches!(*link, "all" | "default" | "lo")) else {
            continue;
        };
        let accepts = read(&link_setting("ipv6", link, "accept_ra")).as_deref() == Some("1");
        let routes = read(&link_setting("ipv6", link, "forwarding")).as_deref() == Some("1");
        if accepts && !routes {
            set_ipv6(link, "accept_ra", "2")?;
        }
    }
    ensure(&all, "1")
}
