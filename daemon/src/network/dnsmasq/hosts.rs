//! Static hosts: one small file per instance NIC.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    super::{
        config::DnsMode,
        error::{Error, Result},
        mac::MacAddr,
    },
    NetworkDir,
};

/// One instance NIC that the network knows: it has its name from the first DHCP exchange on, and fixed addresses if
/// it has any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticHost {
    /// Unique in the network: `<instance>.<device>`.
    pub id: String,
    /// The NIC's hardware address.
    pub hwaddr: MacAddr,
    /// The name to register; ignored unless the network's `dns.mode` is `managed`.
    pub name: Option<String>,
    /// Fixed IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Fixed IPv6 address; needs `ipv6.dhcp.stateful`.
    pub ipv6: Option<Ipv6Addr>,
}

impl StaticHost {
    /// The line for dnsmasq (the right side of its `dhcp-host=`), or nothing if there is nothing to say.
    fn line(&self, mode: DnsMode) -> Option<String> {
        let mut line = self.hwaddr.to_string();
        let bare = line.len();
        if let Some(ip) = self.ipv4 {
            let _ = write!(line, ",{ip}");
        }
        if let Some(ip) = self.ipv6 {
            let _ = write!(line, ",[{ip}]");
        }
        if let (Some(name), DnsMode::Managed) = (&self.name, mode) {
            let _ = write!(line, ",{name}");
        }
        (line.len() > bare).then(|| line + "\n")
    }
}

/// What writing or removing a host file asks of a running dnsmasq, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) enum HostChange {
    /// Nothing changed.
    None,
    /// A file is new: dnsmasq's inotify watch reads it.
    Added,
    /// A file that dnsmasq has read was changed or removed: it must read all anew, by SIGHUP (dnsmasq(8),
    /// `--dhcp-hostsdir`: "host records are only added dynamically").
    Replaced,
}

/// Writes one host's file.
pub(in crate::network) fn write_host(dir: &NetworkDir, host: &StaticHost, mode: DnsMode) -> Result<HostChange> {
    let path = dir.host_file(&host.id);
    let Some(line) = host.line(mode) else {
        return remove_host(dir, &host.id);
    };
    let change = match fs::read_to_string(&path) {
        Ok(old) if old == line => return Ok(HostChange::None),
        Ok(_) => HostChange::Replaced,
        Err(_) => HostChange::Added,
    };
    dir.write(&path, &line)?;
    Ok(change)
}

/// Removes one host's file.
pub(in crate::network) fn remove_host(dir: &NetworkDir, id: &str) -> Result<HostChange> {
    let path = dir.host_file(id);
    match dir.remove_host_file(&path) {
        Ok(()) => Ok(HostChange::Replaced),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(HostChange::None),
        Err(e) => Err(Error::file("remove", path, e)),
    }
}

/// Removes the files of all hosts but these.
pub(in crate::network) fn prune_hosts(dir: &NetworkDir, hosts: &[StaticHost]) -> Result<HostChange> {
    let mut change = HostChange::None;
    let known: HashSet<String> = hosts.iter().map(|host| file_name(&host.id)).collect();
    let hosts_dir = dir.hosts();
    for entry in fs::read_dir(&hosts_dir).map_err(|e| Error::file("read", &hosts_dir, e))? {
        let entry = entry.map_err(|e| Error::file("read", &hosts_dir, e))?;
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            dir.remove_host_file(&entry.path()).map_err(|e| Error::file("remove", entry.path(), e))?;
            change = HostChange::Replaced;
        }
    }
    Ok(change)
}

/// A file name for any id: what dnsmasq would pass over (a leading dot or `#`, a trailing `~`) or the file system
/// would misread is written as `%xx`.
pub(super) fn file_name(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'.' if name.is_empty() => name.push_str("%2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(char::from(byte)),
            _ => {
                let _ = write!(name, "%{byte:02x}");
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_dnsmasq_may_know() {
        let mut host = StaticHost {
            id: "c1.eth0".to_owned(),
            hwaddr: "10:66:6a:00:00:01".parse().unwrap(),
            name: Some("c1".to_owned()),
            ipv4: None,
            ipv6: None,
        };
        assert_eq!(host.line(DnsMode::Managed).as_deref(), Some("10:66:6a:00:00:01,c1\n"));
        assert_eq!(host.line(DnsMode::Dynamic), None);
        host.ipv4 = Some(Ipv4Addr::new(10, 1, 2, 3));
        host.ipv6 = Some("fd42::3".parse().unwrap());
        assert_eq!(host.line(DnsMode::Managed).as_deref(), Some("10:66:6a:00:00:01,10.1.2.3,[fd42::3],c1\n"));
        assert_eq!(host.line(DnsMode::None).as_deref(), Some("10:66:6a:00:00:01,10.1.2.3,[fd42::3]\n"));
    }

    #[test]
    fn file_names_are_safe_and_unlike() {
        assert_eq!(file_name("c1.eth0"), "c1.eth0");
        assert_eq!(file_name("../x"), "%2e.%2fx");
        assert_eq!(file_name("c1.a~"), "c1.a%7e");
        assert_eq!(file_name("#c%"), "%23c%25");
        assert_eq!(file_name(".."), "%2e.");
    }

    #[test]
    fn changes_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let dir = NetworkDir::new(directory.path(), "br0");
        dir.create().unwrap();
        let mut host = StaticHost {
            id: "c1.eth0".to_owned(),
            hwaddr: "10:66:6a:00:00:01".parse().unwrap(),
            name: Some("c1".to_owned()),
            ipv4: None,
            ipv6: None,
        };
        let write = |host: &StaticHost, mode| write_host(&dir, host, mode).unwrap();
        assert_eq!(write(&host, DnsMode::Managed), HostChange::Added);
        assert_eq!(write(&host, DnsMode::Managed), HostChange::None);
        host.ipv4 = Some(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(write(&host, DnsMode::Managed), HostChange::Replaced);
        host.ipv4 = None;
        assert_eq!(write(&host, DnsMode::Dynamic), HostChange::Replaced);
        assert_eq!(write(&host, DnsMode::Dynamic), HostChange::None);
        write(&host, DnsMode::Managed);
        assert_eq!(prune_hosts(&dir, std::slice::from_ref(&host)).unwrap(), HostChange::None);
        assert_eq!(prune_hosts(&dir, &[]).unwrap(), HostChange::Replaced);
        assert_eq!(remove_host(&dir, &host.id).unwrap(), HostChange::None);
    }
}
