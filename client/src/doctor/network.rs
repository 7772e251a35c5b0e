//! Links, rules, forwarding and free subnets.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

use super::{Check, programs, read, said};

pub(super) fn checks(root: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    if root {
        checks.extend(in_own_namespace());
    } else if programs::find("nft").is_none() {
        checks.push(no_nft());
    }
    checks.extend([forwarding(), ipv6(), subnets(), port_53()]);
    checks
}

/// Makes links and loads rules in a network namespace that ends together with its thread.
fn in_own_namespace() -> Vec<Check> {
    let probe = || {
        // SAFETY: only the network namespace of this thread is split off; descriptors and memory stay shared.
        match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
            Ok(()) => vec![links(), rules()],
            Err(error) => vec![Check::fail(
                "network namespaces",
                format!("making one failed: {}", said(error)),
                "use a kernel with CONFIG_NET_NS, and run on the host itself rather than in a container",
            )],
        }
    };
    std::thread::scope(|scope| scope.spawn(probe).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn links() -> Check {
    const NAME: &str = "bridge and veth";
    for kind in ["bridge", "veth"] {
        if let Err(error) = make_link(kind) {
            return Check::fail(
                NAME,
                format!("making a link of type {kind} failed: {}", said(error)),
                format!("modprobe {kind}, or use a kernel that has it"),
            );
        }
    }
    Check::ok(NAME, "one of each was made in a network namespace")
}

/// Sends `RTM_NEWLINK` for a link of that kind and waits for the kernel's verdict (rtnetlink(7)).
fn make_link(kind: &str) -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::sendto(&socket, &newlink(kind), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 4096];
    let (_, count) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // An acknowledgement is an error message with the code 0, after the header of 16 bytes (netlink(7)).
    let code = answer.get(16..20).filter(|_| count >= 20).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// The message: `nlmsghdr`, `ifinfomsg`, then a name and the kind as attributes (`struct rtattr`, 4-aligned).
fn newlink(kind: &str) -> Vec<u8> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_ACK_CREATE_EXCL: u16 = 0x1 | 0x4 | 0x400 | 0x200;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    let attribute = |id: u16, value: &[u8]| {
        let mut bytes = u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&id.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let name = format!("dtprobe-{kind}\0");
    let info = attribute(IFLA_INFO_KIND, kind.as_bytes());
    // An ifinfomsg of zeroes: any family, any type, no index, no flags.
    let body = [vec![0; 16], attribute(IFLA_IFNAME, name.as_bytes()), attribute(IFLA_LINKINFO, &info)].concat();
    let mut message = u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ACK_CREATE_EXCL.to_ne_bytes());
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&body);
    message
}

fn no_nft() -> Check {
    Check::fail("nft", "is not installed; instances would have no way out to the network", "apt install nftables")
}

/// The kinds of rules that a bridge gets.
const RULES: &str = "table inet duet_doctor {
    chain incoming { type filter hook input priority filter; policy accept;
        iifname \"x\" meta nfproto ipv4 udp dport { 53, 67 } accept
        iifname \"x\" meta nfproto ipv6 meta l4proto ipv6-icmp accept
    }
    chain through { type filter hook forward priority filter; policy accept;
        iifname \"x\" meta nfproto ipv6 reject with icmpx admin-prohibited
    }
    chain outgoing { type nat hook postrouting priority srcnat; policy accept;
        oifname != \"x\" ip saddr 10.0.0.0/24 ip daddr != 10.0.0.0/24 masquerade
        oifname != \"x\" ip6 saddr fd42::/64 ip6 daddr != fd42::/64 masquerade
    }
}
";

fn rules() -> Check {
    const NAME: &str = "nft";
    let Some(program) = programs::find("nft") else { return no_nft() };
    match load_rules(&program) {
        Ok(None) => Check::ok(NAME, "filter and NAT rules were loaded in a network namespace"),
        Ok(Some(complaint)) => Check::fail(
            NAME,
            format!("the kernel did not take filter and NAT rules: {complaint}"),
            "use a kernel with nf_tables, nft_masq and nft_reject_inet (modprobe nft_masq shows what \
                is missing)",
        ),
        Err(error) => {
            Check::fail(NAME, format!("{} does not run: {}", program.display(), said(error)), "apt install nftables")
        }
    }
}

/// Feeds the rules to nft, which inherits this thread's network namespace; returns its first complaint.
fn load_rules(program: &std::path::Path) -> io::Result<Option<String>> {
    let mut command = Command::new(program);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It fits into the pipe's buffer, so this cannot wait for a reader that has already given up.
        let _ = stdin.write_all(RULES.as_bytes());
    }
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no reason given").to_owned();
    Ok((!output.status.success()).then_some(complaint))
}

/// The daemon switches forwarding on itself, so all that matters is that it can.
fn forwarding() -> Check {
    const NAME: &str = "forwarding";
    let on = |path: &str| read(path).is_some_and(|value| value == "1");
    let (v4, v6) = (on("/proc/sys/net/ipv4/ip_forward"), on("/proc/sys/net/ipv6/conf/all/forwarding"));
    if !v4 && read_only("/proc/sys/net/ipv4/ip_forward") {
        return Check::fail(
            NAME,
            "is off, and /proc/sys cannot be written to",
            "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1, outside of this \
                container",
        );
    }
    match (v4, v6) {
        (true, true) => Check::ok(NAME, "is on for IPv4 and IPv6"),
        (true, false) => Check::ok(NAME, "is on for IPv4; the daemon turns it on for IPv6 when a network needs it"),
        _ => Check::ok(NAME, "is off; the daemon turns it on when a network needs it"),
    }
}

fn read_only(path: &str) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn ipv6() -> Check {
    const NAME: &str = "IPv6";
    if !std::path::Path::new("/proc/sys/net/ipv6").is_dir() {
        return Check::ok(NAME, "is not in this kernel; networks are made without it");
    }
    match read("/proc/sys/net/ipv6/conf/all/disable_ipv6").as_deref() {
        Some("1") => Check::warn(NAME, "is switched off on every link", "sysctl -w net.ipv6.conf.all.disable_ipv6=0"),
        _ => Check::ok(NAME, "is there"),
    }
}

/// Whether a /24 is left for a bridge: a VPN that routes all private addresses leaves none.
fn subnets() -> Check {
    const NAME: &str = "free subnets";
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    match first_free(&used_subnets(&table)) {
        Some(subnet) => Check::ok(NAME, format!("there are some for bridges, for example {subnet}/24")),
        None => Check::warn(
            NAME,
            "the host's routes cover all private IPv4 addresses",
            "choose one yourself: duet network create duetbr0 ipv4.address=10.200.1.1/24",
        ),
    }
}

/// Destinations of routes as address and mask (proc(5), /proc/net/route: hexadecimal, in the machine's own byte
/// order). Routes wider than a /8 stand for the rest of the world and say nothing.
fn used_subnets(table: &str) -> Vec<(u32, u32)> {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let destination = u32::from_str_radix(fields.nth(1)?, 16).ok()?.swap_bytes();
        let mask = u32::from_str_radix(fields.nth(5)?, 16).ok()?.swap_bytes();
        (mask.count_ones() >= 8).then_some((destination, mask))
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// The first /24 of 10/8, 172.16/12 and 192.168/16 (RFC 1918) that no route touches.
fn first_free(used: &[(u32, u32)]) -> Option<Ipv4Addr> {
    const MASK: u32 = 0xffff_ff00;
    let spaces = [(0x0a00_0000_u32, 0x1_0000_u32), (0xac10_0000, 0x1000), (0xc0a8_0000, 0x100)];
    let mut candidates = spaces.iter().flat_map(|(base, count)| (0..*count).map(move |i| base + (i << 8)));
    let touches = |subnet: u32| used.iter().any(|(net, mask)| subnet & mask & MASK == net & mask & MASK);
    candidates.find(|subnet| !touches(*subnet)).map(Ipv4Addr::from)
}

/// A DNS server on every address of the host leaves none for a bridge's own.
fn port_53() -> Check {
    const NAME: &str = "port 53";
    let taken = ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .any(|path| listens_everywhere(&fs::read_to_string(path).unwrap_or_default(), 53));
    match taken {
        false => Check::ok(NAME, "is free on new bridges"),
        true => Check::warn(
            NAME,
            "a DNS server holds it on all addresses, so bridges would have no names",
            "let that server listen on its own addresses only (dnsmasq: bind-interfaces and \
                listen-address in /etc/dnsmasq.conf)",
        ),
    }
}

/// Whether a socket of /proc/net/udp or udp6 is bound to the port on the unspecified address (proc(5)).
fn listens_everywhere(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let local = line.split_whitespace().nth(1).and_then(|local| local.split_once(':'));
        local.is_some_and(|(address, number)| {
            address.bytes().all(|digit| digit == b'0') && u16::from_str_radix(number, 16) == Ok(port)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        // 0.0.0.0/0 via eth0, 10.0.0.0/24, 0.0.0.0/1 of a VPN (little endian).
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                     tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n";
        let used = used_subnets(table);
        assert_eq!(used, [(0x0a00_0000, 0xffff_ff00)]);
        assert_eq!(first_free(&used), Some(Ipv4Addr::new(10, 0, 1, 0)));
    }

    #[test]
    fn a_vpn_can_take_everything() {
        let all = [(0x0a00_0000, 0xff00_0000), (0xac10_0000, 0xfff0_0000)];
        assert_eq!(first_free(&all), Some(Ipv4Addr::new(192, 168, 0, 0)));
        let more = [&all[..], &[(0xc0a8_0000, 0xffff_0000)]].concat();
        assert_eq!(first_free(&more), None);
        assert_eq!(first_free(&[(0x0a00_0005, 0xffff_ffff)]), Some(Ipv4Addr::new(10, 0, 1, 0)), "a host route counts");
    }

    #[test]
    fn only_sockets_on_every_address_are_in_the_way() {
        let head = "  sl  local_address rem_address   st\n";
        assert!(listens_everywhere(&format!("{head} 1: 00000000:0035 00000000:0000 07"), 53));
        assert!(listens_everywhere(&format!("{head} 1: 00000000000000000000000000000000:0035 0:0 07"), 53));
        assert!(!listens_everywhere(&format!("{head} 1: 3500007F:0035 00000000:0000 07"), 53));
        assert!(!listens_everywhere(&format!("{head} 1: 00000000:0043 00000000:0000 07"), 53));
    }
}
