//! The firewall: one table, `inet duet`, for all managed bridges.
//!
//! The table is rendered whole from the networks that are up and loaded in one transaction (`nft -f -`), in which the
//! old one is dropped and the new one made: packets meet the one or the other, never neither. Nothing else on the host
//! is touched, and when no network needs a rule the table is gone.
//!
//! # Beside other firewalls
//!
//! Every table's base chains at a hook see every packet, in the order of their priorities. A *drop* anywhere is final.
//! An *accept* ends only its own base chain: it keeps our later rules from the packet, not another table's drop
//! (nft(8), "accept"). So:
//!
//! - Our chains have policy accept and drop nothing but what a network's `routing=false` asks to be rejected. They
//!   can't break what ufw, firewalld, Docker or the admin allow.
//! - Neither can they undo what those drop. Docker sets the policy of its `FORWARD` chain to drop, ufw the one of
//!   `INPUT` (DHCP and DNS requests to the bridge end there) and of `FORWARD`, firewalld rejects what comes from a link
//!   in no zone. Room is left by each in its own place: Docker's `DOCKER-USER` chain, `ufw allow in on` and
//!   `ufw route allow`, firewalld's `trusted` zone.
//! - The accepts below still have their use: an admin's rule added to this table's chains behind them can't cut off
//!   what an instance needs to get its address, and they say what that is.
//!
//! # What the rules are
//!
//! Per bridge and address family: DHCP, DNS and ICMP between instances and the host; forwarding in and out; and with
//! `nat`, masquerading of what leaves the subnet. The masquerade rule names the link it must *not* leave by: with
//! `br_netfilter` active (Docker turns it on) packets between ports of one bridge pass the postrouting hook too, and
//! multicast among instances would have its source rewritten.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    config::{BridgeConfig, Ipv4Config, Ipv6Config},
    error::{Error, Result},
};
use crate::program::{self, Program, complaint};

/// nftables' command line.
const NFT: Program = Program { name: "nft", package: "nftables" };

/// The table's family and name.
pub const TABLE: &str = "inet duet";

/// Chains by hook: name and the hook with its priority. `srcnat` is where masquerading belongs (nft(8), "standard
/// priority names").
const CHAINS: [(&str, &str); 4] = [
    ("input", "type filter hook input priority filter"),
    ("output", "type filter hook output priority filter"),
    ("forward", "type filter hook forward priority filter"),
    ("postrouting", "type nat hook postrouting priority srcnat"),
];

/// The rules of all chains, in the order of [`CHAINS`].
#[derive(Default)]
struct Rules([String; CHAINS.len()]);

impl Rules {
    fn input(&mut self, rule: impl AsRef<str>) {
        self.add(0, rule.as_ref());
    }

    fn output(&mut self, rule: impl AsRef<str>) {
        self.add(1, rule.as_ref());
    }

    fn forward(&mut self, rule: impl AsRef<str>) {
        self.add(2, rule.as_ref());
    }

    fn postrouting(&mut self, rule: impl AsRef<str>) {
        self.add(3, rule.as_ref());
    }

    fn add(&mut self, chain: usize, rule: &str) {
        let _ = writeln!(self.0[chain], "\t\t{rule}");
    }
}

/// The script that makes the table be what these networks need.
pub fn render(networks: &BTreeMap<String, BridgeConfig>) -> String {
    let mut rules = Rules::default();
    for (bridge, config) in networks {
        if let Some(v4) = &config.ipv4 {
            ipv4_rules(bridge, v4, &mut rules);
        }
        if let Some(v6) = &config.ipv6 {
            ipv6_rules(bridge, v6, &mut rules);
        }
    }
    // To delete a table it must exist; to declare one it need not be absent.
    let mut script = format!("table {TABLE}\ndelete table {TABLE}\n");
    if rules.0.iter().all(String::is_empty) {
        return script;
    }
    let _ = writeln!(script, "table {TABLE} {{");
    for ((name, hook), body) in CHAINS.iter().zip(&rules.0) {
        if !body.is_empty() {
            let _ = writeln!(script, "\tchain {name} {{\n\t\t{hook}; policy accept;\n{body}\t}}");
        }
    }
    script.push_str("}\n");
    script
}

fn ipv4_rules(bridge: &str, v4: &Ipv4Config, rules: &mut Rules) {
    let (from, to) =
        (format!("iifname \"{bridge}\" meta nfproto ipv4"), format!("oifname \"{bridge}\" meta nfproto ipv4"));
    if v4.firewall {
        let icmp = "icmp type { echo-request, echo-reply, destination-unreachable, time-exceeded, parameter-problem }";
        rules.input(format!("{from} udp dport {{ 53, 67 }} accept"));
        rules.input(format!("{from} tcp dport 53 accept"));
        rules.input(format!("{from} {icmp} accept"));
        rules.output(format!("{to} udp sport {{ 53, 67 }} accept"));
        rules.output(format!("{to} tcp sport 53 accept"));
        rules.output(format!("{to} {icmp} accept"));
        forwarding(&from, &to, v4.routing, rules);
    }
    if v4.nat {
        let subnet = v4.address.trunc();
        rules.postrouting(format!("oifname != \"{bridge}\" ip saddr {subnet} ip daddr != {subnet} masquerade"));
    }
}

fn ipv6_rules(bridge: &str, v6: &Ipv6Config, rules: &mut Rules) {
    let (from, to) =
        (format!("iifname \"{bridge}\" meta nfproto ipv6"), format!("oifname \"{bridge}\" meta nfproto ipv6"));
    if v6.firewall {
        // All of ICMPv6: neighbour and router discovery are part of it (RFC 4890).
        rules.input(format!("{from} udp dport {{ 53, 547 }} accept"));
        rules.input(format!("{from} tcp dport 53 accept"));
        rules.input(format!("{from} meta l4proto ipv6-icmp accept"));
        rules.output(format!("{to} udp sport {{ 53, 547 }} accept"));
        rules.output(format!("{to} tcp sport 53 accept"));
        rules.output(format!("{to} meta l4proto ipv6-icmp accept"));
        forwarding(&from, &to, v6.routing, rules);
    }
    if v6.nat {
        let subnet = v6.address.trunc();
        rules.postrouting(format!("oifname != \"{bridge}\" ip6 saddr {subnet} ip6 daddr != {subnet} masquerade"));
    }
}

fn forwarding(from: &str, to: &str, routing: bool, rules: &mut Rules) {
    let verdict = if routing { "accept" } else { "reject with icmpx admin-prohibited" };
    if !routing {
        // Bridged traffic is not routed, though br_netfilter shows it here.
        let both = from.replace(" meta ", &format!(" {} meta ", to.split(" meta ").next().unwrap_or_default()));
        rules.forward(format!("{both} accept"));
    }
    rules.forward(format!("{from} {verdict}"));
    rules.forward(format!("{to} {verdict}"));
}

/// Loads the table for these networks. Without nft installed a host whose networks need no rule is left alone.
pub async fn load(networks: &BTreeMap<String, BridgeConfig>) -> Result<()> {
    let script = render(networks);
    let needed = script.contains("chain ");
    match NFT.run(&["-f".as_ref(), "-".as_ref()], &script).await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Error::Nft { message: complaint(&output) }),
        Err(program::Error::Missing { .. }) if !needed => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether these networks need the table and the kernel has none.
pub(super) async fn is_missing(networks: &BTreeMap<String, BridgeConfig>) -> bool {
    if !render(networks).contains("chain ") {
        return false;
    }
    let mut list = vec!["-t".as_ref(), "list".as_ref(), "table".as_ref()];
    list.extend(TABLE.split(' ').map(std::ffi::OsStr::new));
    NFT.run(&list, "").await.is_ok_and(|output| !output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::config::ConfigMap;

    fn config(pairs: &[(&str, &str)]) -> BridgeConfig {
        let map: ConfigMap = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        BridgeConfig::parse(&map).unwrap()
    }

    fn one(pairs: &[(&str, &str)]) -> String {
        render(&BTreeMap::from([("duetbr0".to_owned(), config(pairs))]))
    }

    #[test]
    fn no_network_means_no_table() {
        let script = render(&BTreeMap::new());
        assert_eq!(script, "table inet duet\ndelete table inet duet\n");
        assert_eq!(one(&[("ipv4.address", "none")]), script);
    }

    #[test]
    fn nat_only_where_asked() {
        let with = one(&[("ipv4.address", "10.1.2.1/24"), ("ipv4.nat", "true")]);
        assert!(with.contains("oifname != \"duetbr0\" ip saddr 10.1.2.0/24 ip daddr != 10.1.2.0/24 masquerade"));
        let without = one(&[("ipv4.address", "10.1.2.1/24")]);
        assert!(!without.contains("masquerade") && !without.contains("postrouting"));
    }

    #[test]
    fn firewall_and_routing_are_honoured() {
        let none = one(&[("ipv4.address", "10.1.2.1/24"), ("ipv4.firewall", "false")]);
        assert!(!none.contains("chain "));
        let shut = one(&[("ipv6.address", "fd42::1/64"), ("ipv6.routing", "false")]);
        assert!(shut.contains("iifname \"duetbr0\" meta nfproto ipv6 reject"));
        assert!(shut.contains("iifname \"duetbr0\" oifname \"duetbr0\" meta nfproto ipv6 accept"));
        assert!(!shut.contains("ipv4"));
    }
}
