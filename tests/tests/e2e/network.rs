//! The network: addresses, names, the way out, and what it leaves alone on the host.

use std::time::Duration;

use duet_tests::machine::{INTERNET_IPV4, INTERNET_IPV6, INTERNET_NAME, UPLINK_IPV4, UPLINK_IPV6};
use duet_tests::wait::within;
use duet_tests::{Host, eventually};

/// The first address of a family that `c1` has in the API, without waiting.
fn address(host: &Host, name: &str, family: &str) -> Option<String> {
    let state = host.get(&format!("/1.0/instances/{name}/state"));
    let addresses = state["network"]["eth0"]["addresses"].as_array()?.clone();
    addresses
        .iter()
        .find(|address| address["family"] == family && address["scope"] == "global")
        .and_then(|address| address["address"].as_str().map(str::to_owned))
}

#[track_caller]
fn wait_for_address(host: &Host, name: &str, family: &str) -> String {
    within(Duration::from_secs(60), &format!("an {family} address of {name}"), || address(host, name, family))
}

#[test]
fn an_instance_gets_an_address_and_the_list_shows_it() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    let ipv4 = address(&host, "c1", "inet").expect("the launch waited for it");
    assert!(host.ok("list -f csv -c n4").contains(&format!("c1,{ipv4}")));
    assert!(host.inside("c1", "ip -4 address show eth0").contains(&ipv4));
    let leases = host.get("/1.0/networks/duetbr0/leases");
    let lease = leases.as_array().unwrap().iter().find(|lease| lease["address"] == ipv4.as_str()).expect("a lease");
    assert_eq!(lease["hostname"], "c1");
    assert_eq!(lease["type"], "dynamic");
    assert_eq!(lease["hwaddr"].as_str().unwrap(), host.inside("c1", "cat /sys/class/net/eth0/address"));
    assert!(host.ok("network list-leases duetbr0 -f csv").contains(&ipv4));
}

#[test]
fn instances_find_each_other_by_name() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    host.ok("launch busybox c2 --wait=ipv4");
    let first = address(&host, "c1", "inet").unwrap();
    for name in ["c1.duet", "c1"] {
        let resolved = host.inside("c2", &format!("nslookup {name} | tail -n +3"));
        assert!(resolved.contains(&first), "{name}: {resolved}");
    }
    host.inside("c2", "ping -c 1 -W 5 c1.duet");
    // And the host finds them, if it asks there.
    let gateway = host.inside("c1", "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'");
    assert!(host.sh(&format!("busybox nslookup c1.duet {gateway} | tail -n +3")).contains(&first));
    // A name goes with its instance.
    host.ok("delete -f c1");
    eventually("the name being gone", || {
        (!host.try_inside("c2", "nslookup c1.duet | tail -n +3").text().contains(&first)).then_some(())
    });
}

#[test]
fn there_is_a_way_out_by_nat() {
    let host = Host::new();
    let listener = host.internet(INTERNET_IPV4);
    host.ok("launch busybox c1 --wait=ipv4");
    let port = listener.address.port();
    let greeting = host.inside("c1", &format!("echo hello | nc -w 10 {INTERNET_IPV4} {port} | head -n 1"));
    assert_eq!(greeting, format!("hello {UPLINK_IPV4}"));
    assert_eq!(listener.caller().ip().to_string(), UPLINK_IPV4);
    // Names of the world outside resolve too.
    assert!(host.inside("c1", &format!("nslookup {INTERNET_NAME}")).contains(INTERNET_IPV4));
    // What is large goes through whole.
    let sum =
        host.inside("c1", &format!("head -c 3000000 /dev/zero | nc -w 5 {INTERNET_IPV4} {port} | tail -n +2 | wc -c"));
    assert_eq!(sum, "3000000");
}

#[test]
fn ipv6_works_as_well() {
    let host = Host::new();
    let listener = host.internet(INTERNET_IPV6);
    host.ok("launch busybox c1 --wait=ipv4");
    host.ok("wait c1 --for ipv6");
    let ipv6 = address(&host, "c1", "inet6").expect("it was waited for");
    assert!(ipv6.starts_with("fd"), "{ipv6}");
    // The network's own server may have asked for the address too early, and the kernel remembers the silence.
    within(Duration::from_secs(30), "the host reaching it over IPv6", || {
        (host.command("ping", &["-6", "-c", "1", "-W", "5", &ipv6]).run().code() == Some(0)).then_some(())
    });
    let port = listener.address.port();
    within(Duration::from_secs(30), "the way out over IPv6", || {
        host.try_inside("c1", &format!("nc -w 5 {INTERNET_IPV6} {port} </dev/null | head -n 1"))
            .text()
            .contains("hello")
            .then_some(())
    });
    assert_eq!(listener.caller().ip().to_string(), UPLINK_IPV6);
}

#[test]
fn the_host_reaches_an_instance() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    let ipv4 = address(&host, "c1", "inet").unwrap();
    host.inside("c1", "(while true; do echo served | nc -l -p 8080; done) </dev/null >/dev/null 2>&1 &");
    eventually("the host reaching it", || {
        host.command("busybox", &["nc", "-w", "2", &ipv4, "8080"]).run().text().contains("served").then_some(())
    });
}

#[test]
fn an_instance_reaches_dns_and_dhcp_of_the_host() {
    let host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    let network = host.get("/1.0/networks/duetbr0");
    let gateway = network["config"]["ipv4.address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    assert_eq!(host.inside("c1", "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'"), gateway);
    host.inside("c1", &format!("ping -c 1 -W 5 {gateway}"));
}

#[test]
fn a_static_address_is_leased() {
    let host = Host::new();
    let network = host.get("/1.0/networks/duetbr0");
    let gateway = network["config"]["ipv4.address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    let fixed = format!("{}.77", gateway.rsplit_once('.').unwrap().0);
    host.ok("create busybox c1");
    host.ok(&format!("config device override c1 eth0 ipv4.address={fixed}"));
    host.ok("start c1");
    host.ok("wait c1 --for ipv4");
    assert_eq!(address(&host, "c1", "inet").as_deref(), Some(fixed.as_str()));
    let leases = host.get("/1.0/networks/duetbr0/leases");
    assert!(
        leases.as_array().unwrap().iter().any(|lease| lease["address"] == fixed.as_str() && lease["type"] == "static"),
        "{leases:#}"
    );
    host.ok("create busybox c2");
    let twice = host.duet(&format!("config device override c2 eth0 ipv4.address={fixed}")).run();
    assert_ne!(twice.code(), Some(0), "the same address twice: {twice:?}");
    let outside = host.duet("config device override c2 eth0 ipv4.address=192.0.2.7").run();
    assert_ne!(outside.code(), Some(0), "an address outside of the subnet: {outside:?}");
}

#[test]
fn an_address_stays_over_restarts() {
    let mut host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    let first = address(&host, "c1", "inet").unwrap();
    host.ok("restart c1 --force");
    assert_eq!(wait_for_address(&host, "c1", "inet"), first);
    host.restart_daemon();
    assert_eq!(wait_for_address(&host, "c1", "inet"), first);
}

#[test]
fn subnets_avoid_what_the_host_uses() {
    let mut host = Host::bare();
    // Everything that is usually chosen from is taken on the uplink's side.
    host.sh("for n in 0 1 2 3 4 5 6 7 8 9 10 100 150 200; do ip route add 10.$n.0.0/16 dev uplink; done; \
         ip route add 192.168.0.0/16 dev uplink; ip -6 route add fd00::/16 dev uplink");
    host.start_daemon();
    let address = host.get("/1.0/networks/duetbr0")["config"]["ipv4.address"].as_str().unwrap().to_owned();
    let second: u8 = address.split('.').nth(1).unwrap().parse().unwrap();
    assert!(!address.starts_with("192.168."), "{address}");
    assert!(
        !address.starts_with("10.") || ![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 150, 200].contains(&second),
        "{address}"
    );
}

#[test]
fn only_duets_own_table_is_touched() {
    let host = Host::new();
    host.sh("nft add table inet mine; nft add chain inet mine c '{ type filter hook input priority 0; }'; nft add rule inet mine c counter");
    let before = host.sh("nft -s list table inet mine");
    host.ok("launch busybox c1 --wait=ipv4");
    host.ok("delete -f c1");
    assert_eq!(host.sh("nft -s list table inet mine"), before);
    let tables = host.sh("nft list tables");
    assert_eq!(tables.lines().filter(|line| line.contains("duet")).count(), 1, "{tables}");
    // iptables' own tables, as ufw, firewalld and Docker have them, are not made.
    assert!(!tables.contains("table ip filter") && !tables.contains("table ip nat"), "{tables}");
    host.sh("nft delete table inet mine");
}

#[test]
fn a_firewall_beside_it_stays_in_force_and_lets_it_live() {
    let host = Host::new();
    let listener = host.internet(INTERNET_IPV4);
    // An accept here undoes no drop elsewhere, and a table of somebody else's says nothing of Duet's links.
    host.sh("nft -f - <<E\ntable inet other {\n chain forward { type filter hook forward priority 10; policy accept; \
         ct state established,related accept; }\n}\nE");
    host.ok("launch busybox c1 --wait=ipv4");
    host.inside("c1", &format!("nc -w 10 {INTERNET_IPV4} {} </dev/null", listener.address.port()));
    assert!(host.sh("nft list tables").contains("inet other"));
    host.sh("nft delete table inet other");
}

#[test]
fn a_firewall_in_the_way_is_a_warning_until_it_lets_instances_through() {
    let host = Host::empty();
    let status = |wanted: &str| {
        within(Duration::from_secs(30), wanted, || {
            let warnings = host.get("/1.0/warnings?recursion=1");
            let of_firewalls =
                |warning: &&serde_json::Value| warning["type"] == "Firewall of the host cuts instances off";
            let found = warnings.as_array()?.iter().find(of_firewalls)?;
            (found["status"] == wanted).then(|| found.clone())
        })
    };
    host.sh("nft -f - <<E\ntable ip filter {\n chain FORWARD { type filter hook forward priority 0; policy drop; \
             jump DOCKER-USER; }\n chain DOCKER-USER { }\n}\nE");
    let warning = status("new");
    assert_eq!(warning["entity_url"], "/1.0/networks/duetbr0");
    let message = warning["last_message"].as_str().unwrap();
    assert!(message.contains("ip filter FORWARD") && message.contains("duet doctor --fix"), "{message}");
    host.sh("nft add rule ip filter DOCKER-USER iifname duetbr0 accept");
    status("resolved");
    host.sh("nft delete table ip filter");
}

#[test]
fn the_network_is_made_anew_after_a_reboot() {
    let mut host = Host::new();
    host.ok("launch busybox c1 --wait=ipv4");
    let before = host.get("/1.0/networks/duetbr0")["config"].clone();
    host.ok("stop c1 --force");
    host.stop_daemon();
    // What a reboot leaves of it: nothing but the files.
    let dnsmasq = host.running("dnsmasq");
    assert_eq!(dnsmasq.len(), 1);
    host.sh(&format!("kill {}; ip link delete duetbr0; nft flush ruleset", dnsmasq[0]));
    eventually("dnsmasq's end", || host.running("dnsmasq").is_empty().then_some(()));
    host.start_daemon();
    assert_eq!(host.get("/1.0/networks/duetbr0")["config"], before);
    let listener = host.internet(INTERNET_IPV4);
    host.ok("start c1");
    host.ok("wait c1 --for ipv4");
    host.inside("c1", &format!("nc -w 10 {INTERNET_IPV4} {} </dev/null", listener.address.port()));
}

#[test]
fn what_was_flushed_under_a_running_instance_comes_back() {
    let mut host = Host::new();
    let listener = host.internet(INTERNET_IPV4);
    host.ok("launch busybox c1 --wait=ipv4");
    host.stop_daemon();
    host.sh("nft flush ruleset; ip address flush dev duetbr0");
    host.sh(&format!("kill {}", host.running("dnsmasq")[0]));
    host.start_daemon();
    let port = listener.address.port();
    within(Duration::from_secs(30), "the way out", || {
        let output = host.try_inside("c1", &format!("nc -w 3 {INTERNET_IPV4} {port} </dev/null | head -n 1"));
        output.text().contains("hello").then_some(())
    });
    assert_eq!(host.running("dnsmasq").len(), 1);
    assert!(host.inside("c1", "nslookup c1.duet").contains("c1"));
}

#[test]
fn networks_are_made_changed_and_removed() {
    let host = Host::new();
    host.ok("network create other ipv4.address=10.99.88.1/24 ipv6.address=none");
    let network = host.get("/1.0/networks/other");
    assert_eq!((network["status"].as_str(), network["managed"].as_bool()), (Some("Created"), Some(true)));
    assert!(host.sh("ip -4 address show dev other").contains("10.99.88.1/24"));
    host.ok("launch busybox c1 --network other");
    host.ok("wait c1 --for ipv4");
    assert!(address(&host, "c1", "inet").unwrap().starts_with("10.99.88."));
    host.fails("network delete other", "in use");
    host.ok("network set other ipv4.nat=false");
    assert_eq!(host.ok("network get other ipv4.nat"), "false");
    assert!(host.ok("network info other").contains("other"));
    assert!(host.ok("network show other").contains("ipv4.address: 10.99.88.1/24"));
    assert!(host.ok("network list -f csv").contains("other,bridge,YES"));
    host.ok("delete -f c1");
    host.ok("network delete other");
    assert!(!host.sh("ip -o link show").contains("other"));
    for wrong in ["ipv4.address=10.1.2.3/33", "ipv4.address=nonsense", "ipv4.nat=perhaps", "colour=red"] {
        host.fails(&format!("network create wrong {wrong}"), "");
    }
    host.fails("network create toolongforthekernel1 ipv4.address=none", "name");
    host.fails("network create lo", "");
    let state = host.get("/1.0/networks/duetbr0/state");
    assert_eq!(state["state"], "up", "{state:#}");
}

#[test]
fn two_networks_do_not_mix() {
    let host = Host::new();
    host.ok("network create other ipv4.address=10.99.88.1/24 ipv6.address=none");
    host.ok("launch busybox c1 --wait=ipv4");
    host.ok("launch busybox c2 --network other --wait=ipv4");
    let (one, two) = (address(&host, "c1", "inet").unwrap(), address(&host, "c2", "inet").unwrap());
    assert_ne!(one.rsplit_once('.').unwrap().0, two.rsplit_once('.').unwrap().0);
    // Names of the other network are not to be had here.
    assert!(!host.try_inside("c1", "nslookup c2.duet | tail -n +3").text().contains(&two));
}
