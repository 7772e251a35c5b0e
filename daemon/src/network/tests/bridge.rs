//! The bridge: made, mended, changed, removed, never stolen.

use super::*;

/// All that bringing a network up may touch.
fn everything(host: &Host, name: &str) -> String {
    let dir = host.network_dir(name);
    let files =
        run(&format!("cd {} && stat -c '%n %i %Y %Z %s' hwaddr dnsmasq.conf dnsmasq.pid", dir.path().display()));
    let settings =
        run("grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward | sort");
    // Its details hold timers.
    let links = run("ip addr show; ip -d -o link show | sed s/[a-z_]*_timer.*//");
    let rules = run("nft list ruleset");
    format!("{files}{settings}{links}{rules}{:?}", host.dnsmasq(name))
}

#[test]
fn comes_up_complete_and_a_second_time_changes_nothing() {
    isolated(|host| async move {
        let net = network("duetbr0");
        host.manager().bridge_up(&net).await.unwrap();
        let shown = run("ip -d addr show duetbr0");
        for part in [
            "10.123.7.1/24",
            "fd42:1:2:3::1/64",
            "alias duet:",
            "UP",
            "inet6 fe80::1266:6aff:fe",
            "10:66:6a",
            "mcast_querier 1",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("tentative"), "{shown}");
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/duetbr0/accept_ra").trim(), "0");
        assert!(host.dnsmasq("duetbr0").is_some());

        let before = everything(&host, "duetbr0");
        // Another manager is what a restarted daemon has.
        let restarted = host.manager();
        restarted.bridge_up(&net).await.unwrap();
        assert_eq!(restarted.bridges_up(std::slice::from_ref(&net)).await.len(), 0);
        let after = everything(&host, "duetbr0");
        let changed: Vec<_> = after.lines().zip(before.lines()).filter(|(a, b)| a != b).collect();
        assert!(changed.is_empty() && after == before, "{changed:#?}");

        restarted.remove("duetbr0").await.unwrap();
        assert!(!run("ip link").contains("duetbr0"));
        assert_eq!(run("nft list ruleset"), "");
        assert_eq!(host.dnsmasq("duetbr0"), None);
        assert!(!host.network_dir("duetbr0").path().exists());
        restarted.remove("duetbr0").await.unwrap();
    });
}

#[test]
fn mends_what_was_broken() {
    isolated(|host| async move {
        let net = network("duetbr0");
        let manager = host.manager();
        manager.bridge_up(&net).await.unwrap();
        let mac = manager.network_state("duetbr0").await.unwrap().hwaddr;
        let first = host.dnsmasq("duetbr0").unwrap();

        run("nft flush ruleset; ip addr flush dev duetbr0; ip link set duetbr0 down");
        run(&format!("kill -9 {first}"));
        eventually("dnsmasq is dead", || host.dnsmasq("duetbr0").is_none()).await;
        manager.bridge_up(&net).await.unwrap();
        let shown = run("ip addr show duetbr0");
        assert!(
            shown.contains("10.123.7.1/24") && shown.contains("fd42:1:2:3::1/64") && shown.contains("UP"),
            "{shown}"
        );
        assert!(run("nft list table inet duet").contains("masquerade"));
        let second = host.dnsmasq("duetbr0").unwrap();

        // As after a reboot: the link is gone, its files are there. dnsmasq's socket was bound to the old link.
        run("ip link del duetbr0");
        manager.bridge_up(&net).await.unwrap();
        assert_eq!(manager.network_state("duetbr0").await.unwrap().hwaddr, mac);
        assert_ne!(host.dnsmasq("duetbr0").unwrap(), second);

        // A lost pid file does not make for a second dnsmasq.
        let third = host.dnsmasq("duetbr0").unwrap();
        fs::remove_file(host.network_dir("duetbr0").path().join("dnsmasq.pid")).unwrap();
        host.manager().bridge_up(&net).await.unwrap();
        assert_eq!(host.dnsmasq("duetbr0"), Some(third));

        // Made but not yet marked, as by a crash: known by its hardware address.
        run("ip link set duetbr0 alias ''");
        host.manager().bridge_up(&net).await.unwrap();
        assert!(run("ip link show duetbr0").contains("alias duet:"));
    });
}

#[test]
fn follows_a_changed_configuration() {
    isolated(|host| async move {
        let manager = host.manager();
        let mut net = network("duetbr0");
        manager.bridge_up(&net).await.unwrap();
        run("ip addr add 192.0.2.1/32 dev duetbr0");
        let first = host.dnsmasq("duetbr0").unwrap();

        net.config = config(&[
            ("ipv4.address", "10.9.9.1/24"),
            ("bridge.mtu", "1400"),
            ("bridge.hwaddr", "10:66:6a:00:00:99"),
            ("dns.domain", "example.net"),
            ("raw.dnsmasq", "address=/fixed.test/192.0.2.7"),
        ]);
        manager.bridge_up(&net).await.unwrap();
        let shown = run("ip addr show duetbr0");
        assert!(
            shown.contains("10.9.9.1/24") && shown.contains("mtu 1400") && shown.contains("10:66:6a:00:00:99"),
            "{shown}"
        );
        assert!(shown.contains("192.0.2.1/32"), "what the admin added stays: {shown}");
        assert!(!shown.contains("10.123") && !shown.contains("inet6"), "{shown}");
        assert!(!run("nft list ruleset").contains("masquerade"));
        assert_ne!(host.dnsmasq("duetbr0").unwrap(), first);
        assert!(run("busybox nslookup -type=a fixed.test 10.9.9.1").contains("192.0.2.7"));

        // What dnsmasq would refuse leaves the one that runs alone.
        let running = host.dnsmasq("duetbr0");
        net.config.raw_dnsmasq = "no-such-option=1".to_owned();
        let error = manager.bridge_up(&net).await.unwrap_err().to_string();
        assert!(error.contains("dnsmasq for network \"duetbr0\" did not start: bad option"), "{error}");
        assert_eq!(host.dnsmasq("duetbr0"), running);

        // Nothing to serve, no server.
        net.config = config(&[("ipv4.address", "none"), ("ipv6.address", "none")]);
        manager.bridge_up(&net).await.unwrap();
        assert_eq!(host.dnsmasq("duetbr0"), None);
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn leaves_foreign_links_alone() {
    isolated(|host| async move {
        let manager = host.manager();
        for (kind, making) in
            [("bridge", "ip link add br5 type bridge"), ("veth", "ip link add br6 type veth peer name pbr6")]
        {
            run(making);
            let name = making.split(' ').nth(3).unwrap();
            let before = run("ip addr show");
            let error = manager.bridge_up(&network(name)).await.unwrap_err();
            assert!(matches!(&error, Error::LinkTaken { name: n, kind: k } if n == name && k == kind), "{error}");
            manager.remove(name).await.unwrap();
            assert_eq!(run("ip addr show"), before);
        }
        assert!(manager.bridge_up(&network("../x")).await.is_err());
        // A failure late in the making leaves nothing of it.
        let mut bad = network("duetbr0");
        bad.config.raw_dnsmasq = "no-such-option=1".to_owned();
        assert!(matches!(manager.bridge_up(&bad).await, Err(Error::Dnsmasq { .. })));
        assert!(!run("ip link").contains("duetbr0") && !host.network_dir("duetbr0").path().exists());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn takes_external_interfaces_in_and_lets_them_go() {
    isolated(|host| async move {
        let manager = host.manager();
        run(
            "ip link add ext0 type veth peer name pext0; ip link add ext1 type veth peer name pext1; ip addr add 192.0.2.1/24 dev ext1",
        );
        let mut net = network("duetbr0");
        net.config.external_interfaces = vec!["ext0".to_owned()];
        manager.bridge_up(&net).await.unwrap();
        manager.bridge_up(&net).await.unwrap();
        assert!(run("ip link show ext0").contains("master duetbr0"));
        assert!(run("ip -d link show duetbr0").contains("mcast_querier 0"));

        net.config.external_interfaces = vec!["ext1".to_owned()];
        let error = manager.bridge_up(&net).await.unwrap_err().to_string();
        assert!(error.contains("ext1 has addresses"), "{error}");
        net.config.external_interfaces = vec!["ext9".to_owned()];
        assert!(matches!(manager.bridge_up(&net).await, Err(Error::NoSuchLink { .. })));

        net.config.external_interfaces = Vec::new();
        manager.bridge_up(&net).await.unwrap();
        assert!(!run("ip link show ext0").contains("master"));
        assert!(run("ip -d link show duetbr0").contains("mcast_querier 1"));
    });
}

#[test]
fn keeps_the_hosts_own_route_when_it_becomes_a_router() {
    isolated(|host| async move {
        run("ip link add up0 type veth peer name pup0; ip link add up1 type veth peer name pup1");
        run("echo 1 > /proc/sys/net/ipv6/conf/up0/accept_ra; echo 0 > /proc/sys/net/ipv6/conf/up1/accept_ra");
        host.manager().bridge_up(&network("duetbr0")).await.unwrap();
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/all/forwarding").trim(), "1");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/up0/accept_ra").trim(), "2");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/up1/accept_ra").trim(), "0");
    });
}

#[test]
fn shows_its_state_as_the_api_does() {
    isolated(|host| async move {
        let manager = host.manager();
        manager.bridge_up(&network("duetbr0")).await.unwrap();
        let space = Space::new();
        let nic = plug(&manager, "duetbr0", &super::host("c1", "10:66:6a:00:00:01"), &space).await;
        let state = manager.network_state("duetbr0").await.unwrap();
        let first = &state.addresses[0];
        assert_eq!(
            (first.family.as_str(), first.address.as_str(), first.netmask.as_str(), first.scope.as_str()),
            ("inet", "10.123.7.1", "24", "global")
        );
        assert_eq!((state.mtu, state.state.as_str(), state.kind.as_str()), (1500, "up", "broadcast"));
        let bridge = state.bridge.unwrap();
        assert_eq!(bridge.id, format!("8000.{}", state.hwaddr.replace(':', "")));
        assert_eq!((bridge.stp, bridge.forward_delay, bridge.vlan_filtering), (false, 1500, false));
        assert_eq!(bridge.upper_devices, [nic]);
        assert!(matches!(manager.network_state("nothing").await, Err(Error::NoSuchLink { .. })));

        run("ip link add br9 type bridge; ip link add link br9 name mv9 type macvlan");
        assert!(manager.network_state("mv9").await.unwrap().bridge.is_none());
        let listed = manager.host_interfaces().await.unwrap();
        let names: Vec<_> = listed.iter().map(|i| (i.name.as_str(), i.kind)).collect();
        assert_eq!(names, [("br9", "bridge"), ("duetbr0", "bridge"), ("lo", "loopback"), ("mv9", "unknown")]);
    });
}

#[test]
fn sweeps_what_nobody_knows() {
    isolated(|host| async move {
        let manager = host.manager();
        let (kept, gone) =
            (network("duetbr0"), Network { config: config(&[("ipv4.address", "10.8.8.1/24")]), ..network("duetbr1") });
        manager.bridge_up(&kept).await.unwrap();
        manager.bridge_up(&gone).await.unwrap();
        run(
            "ip link add br7 type bridge; ip link add duet00000001 type veth peer name a1; ip link set duet00000001 master br7",
        );
        run("ip link add duet00000002 type veth peer name a2; ip link add duet00000003 type bridge");
        let space = Space::new();
        let known = plug(&manager, "duetbr0", &super::host("c1", "10:66:6a:00:00:01"), &space).await;
        let other = Space::new();
        let stray = plug(&manager, "duetbr0", &super::host("c2", "10:66:6a:00:00:02"), &other).await;

        let swept =
            host.manager().sweep(&HashSet::from([known.clone()]), &BTreeSet::from([kept.name.as_str()])).await.unwrap();
        assert!(swept.failures.is_empty(), "{:?}", swept.failures);
        let mut expected = vec!["duet00000002".to_owned(), stray];
        expected.sort();
        let mut links = swept.links;
        links.sort();
        assert_eq!(links, expected);
        assert_eq!(swept.networks, ["duetbr1"]);
        let left = run("ip link");
        assert!(left.contains(&known) && left.contains("duet00000001") && left.contains("duet00000003"), "{left}");
        assert!(!left.contains("duetbr1"), "{left}");
        assert!(host.dnsmasq("duetbr0").is_some() && host.dnsmasq("duetbr1").is_none());
    });
}

#[test]
fn chooses_a_subnet_beside_what_the_host_uses() {
    isolated(|host| async move {
        // All of 10/8 but one /24 is taken: by an address, by routes of the main table and of another.
        run("ip link add up0 type veth peer name pup0; ip link set up0 up; ip addr add 10.0.0.1/9 dev up0");
        run(
            "ip route add 10.192.0.0/10 dev up0 table 77; ip route add 10.128.0.0/11 dev up0; ip route add blackhole 10.160.0.0/12",
        );
        run(
            "ip route add 10.184.0.0/13 dev up0; ip route add 10.180.0.0/14 dev up0; ip route add 10.178.0.0/15 dev up0",
        );
        run("ip route add 10.177.0.0/16 dev up0; ip route add default dev up0; ip route add 128.0.0.0/1 dev up0");
        let manager = host.manager();
        let other = config(&[("ipv4.address", "10.176.128.1/17")]);
        let mut map = ConfigMap::new();
        manager.fill_defaults(&mut map, std::slice::from_ref(&other)).await.unwrap();
        let chosen = BridgeConfig::parse(&map).unwrap();
        let v4 = chosen.ipv4.as_ref().unwrap().address;
        assert_eq!(v4.addr().octets()[..2], [10, 176], "{v4}");
        assert!(v4.addr().octets()[2] < 128, "{v4}");
        assert_eq!(map["ipv6.nat"], "true");

        manager.check_free("duetbr0", &chosen, std::slice::from_ref(&other)).await.unwrap();
        let taken = config(&[("ipv4.address", "10.200.1.1/24")]);
        let error = manager.check_free("duetbr0", &taken, &[]).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "ipv4.address 10.200.1.0/24 overlaps the host's route to 10.192.0.0/10; choose another subnet"
        );
        // A network's own bridge is no obstacle to itself.
        let net = Network { name: "duetbr0".to_owned(), config: chosen.clone(), hosts: Vec::new() };
        manager.bridge_up(&net).await.unwrap();
        manager.check_free("duetbr0", &chosen, &[]).await.unwrap();
        assert!(manager.check_free("duetbr1", &chosen, &[]).await.is_err());
    });
}

#[test]
fn a_subnet_where_somebody_answers_is_taken() {
    isolated(|host| async move {
        assert!(subnet::answers_ping(Ipv4Addr::LOCALHOST).await);
        // No route, and then a route to nobody.
        assert!(!subnet::answers_ping(Ipv4Addr::new(192, 0, 2, 1)).await);
        run("ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up");
        run("ip addr add 192.0.2.2/24 dev up0");
        let begun = Instant::now();
        assert!(!subnet::answers_ping(Ipv4Addr::new(192, 0, 2, 1)).await);
        assert!(begun.elapsed() < Duration::from_secs(1));
        // Where all of 10/8 answers, answers mean nothing.
        let portal = Space::new();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), portal.fd.as_raw_fd());
        run(&format!("ip link set far0 netns {netns}"));
        portal.run("ip link set far0 up; ip addr add 192.0.2.1/24 dev far0; ip route add local 10.0.0.0/8 dev lo");
        run("ip route add default via 192.0.2.1");
        assert!(subnet::answers_ping(Ipv4Addr::new(10, 1, 2, 1)).await);
        let mut map = ConfigMap::new();
        host.manager().fill_defaults(&mut map, &[]).await.unwrap();
        BridgeConfig::parse(&map).unwrap();
    });
}

#[test]
fn puts_back_what_is_lost_while_it_runs() {
    isolated(|host| async move {
        let manager = host.manager();
        let net = network("duetbr0");
        assert!(manager.bridges_up(std::slice::from_ref(&net)).await.is_empty());
        let first = host.dnsmasq("duetbr0").unwrap();
        run(&format!("nft flush ruleset; kill -9 {first}"));
        eventually("dnsmasq runs again", || host.dnsmasq("duetbr0").is_some_and(|pid| pid != first)).await;
        eventually("the table is back", || run("nft list ruleset").contains("masquerade")).await;

        // What is taken down stays down, and a new network is watched as well.
        let other = Network { config: config(&[("ipv4.address", "10.8.8.1/24")]), ..network("duetbr1") };
        manager.bridge_up(&other).await.unwrap();
        manager.remove("duetbr0").await.unwrap();
        let second = host.dnsmasq("duetbr1").unwrap();
        run(&format!("kill -9 {second}"));
        eventually("dnsmasq runs again", || host.dnsmasq("duetbr1").is_some_and(|pid| pid != second)).await;
        assert_eq!(host.dnsmasq("duetbr0"), None);
        manager.remove("duetbr1").await.unwrap();
        assert_eq!(run("nft list ruleset"), "");
    });
}
