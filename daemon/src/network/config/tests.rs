use super::*;

fn map(pairs: &[(&str, &str)]) -> ConfigMap {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn fills_in_what_a_bare_network_lacks() {
    let mut config = ConfigMap::new();
    fill_defaults(&mut config, &Occupied::default(), true, &mut rand::rng()).unwrap();
    let parsed = BridgeConfig::parse(&config).unwrap();
    let v4 = parsed.ipv4.unwrap();
    assert!(v4.nat && v4.dhcp && v4.firewall && v4.routing);
    assert_eq!(v4.expiry, "1h");
    let v6 = parsed.ipv6.unwrap();
    assert!(v6.nat && v6.dhcp && !v6.stateful);
    assert_eq!(parsed.dns_domain, "duet");
    // A second time nothing moves.
    let before = config.clone();
    fill_defaults(&mut config, &Occupied::default(), true, &mut rand::rng()).unwrap();
    assert_eq!(config, before);
}

#[test]
fn keeps_what_the_user_chose() {
    let chosen = map(&[("ipv4.address", "10.99.0.1/24"), ("ipv4.nat", "false"), ("ipv6.address", "none")]);
    let mut config = chosen.clone();
    fill_defaults(&mut config, &Occupied::default(), true, &mut rand::rng()).unwrap();
    assert_eq!(config, chosen);
    let mut config = map(&[("ipv4.nat", "false")]);
    fill_defaults(&mut config, &Occupied::default(), false, &mut rand::rng()).unwrap();
    assert_eq!(config["ipv4.nat"], "false");
    assert_eq!(config["ipv6.address"], "none");
}

#[test]
fn refuses_what_cannot_work() {
    let table = [
        ("ipv4.address", "10.0.0.1"),
        ("ipv4.address", "10.0.0.0/24"),
        ("ipv4.address", "10.0.0.255/24"),
        ("ipv4.address", "10.0.0.1/31"),
        ("ipv4.address", "127.0.0.1/8"),
        ("ipv4.address", "fd42::1/64"),
        ("ipv4.nat", "maybe"),
        ("ipv4.dhcp.expiry", "1y"),
        ("ipv4.dhcp.expiry", "60"),
        ("ipv6.address", "fd42::/64"),
        ("ipv6.address", "fd42::1/96"),
        ("ipv6.address", "fe80::1/64"),
        ("ipv6.address", "fd42::1/60"),
        ("dns.mode", "magic"),
        ("dns.domain", "a,b"),
        ("dns.domain", "-x"),
        ("dns.domain", "x/../y"),
        ("dns.search", "ok.net, no good"),
        ("bridge.mtu", "10"),
        ("bridge.mtu", "1279"),
        ("bridge.hwaddr", "01:66:6a:00:00:01"),
        ("bridge.external_interfaces", "eth0,a/b"),
    ];
    for (key, value) in table {
        let error = validate(&map(&[(key, value)])).expect_err(value);
        assert!(error.to_string().contains(key), "{error}");
    }
    validate(&map(&[("ipv4.address", "auto"), ("user.x", "y"), ("raw.dnsmasq", "log-queries\n")])).unwrap();
}

#[test]
fn ranges_lie_in_the_subnet() {
    let with =
        |ranges: &str| BridgeConfig::parse(&map(&[("ipv4.address", "10.5.0.1/24"), ("ipv4.dhcp.ranges", ranges)]));
    let v4 = with("10.5.0.10-10.5.0.20, 10.5.0.30-10.5.0.40").unwrap().ipv4.unwrap();
    assert_eq!(v4.ranges.len(), 2);
    assert_eq!(v4.ranges[1].last, Ipv4Addr::new(10, 5, 0, 40));
    for bad in ["10.5.1.1-10.5.1.9", "10.5.0.9-10.5.0.1", "x-y"] {
        assert!(with(bad).is_err(), "{bad}");
    }
}

#[test]
fn names() {
    for good in ["duetbr0", "br9", "my-net.1", "a_b"] {
        validate_name(good).unwrap();
    }
    for bad in ["", "x", "a-name-that-is-too-long", "a/b", "../a", "-a", "lo", "all", "duet0123abcd", "a b", "ä"] {
        assert!(validate_name(bad).is_err(), "{bad}");
    }
}
