//! A real client gets its address and its name from a real dnsmasq.

use super::*;

#[test]
fn a_client_gets_its_address_and_its_name() {
    isolated(|host| async move {
        let manager = host.manager();
        let net = network("duetbr0");
        manager.bridge_up(&net).await.unwrap();
        let c1 = super::host("c1", "10:66:6a:00:00:01");
        manager.set_host("duetbr0", &c1).await.unwrap();

        let space = Space::new();
        plug(&manager, "duetbr0", &c1, &space).await;
        assert!(space.run("ip link show eth0").contains("state DOWN"), "the guest raises it");
        let watcher = space.watcher();
        let mut changes = watcher.subscribe();
        let script = dhcp_script(&host.dir);
        let begun = Instant::now();
        // The name that the client claims is not the one it has.
        let mut client = space.command(&format!(
            "ip link set eth0 up && exec busybox udhcpc -f -q -n -i eth0 -x hostname:impostor -s {}",
            script.display()
        ));
        let client = tokio::task::spawn_blocking(move || client.output());
        tokio::time::timeout(DEADLINE, changes.wait_for(|state| state.has_ipv4())).await.unwrap().unwrap();
        println!("address after {:?}", begun.elapsed());
        check("udhcpc", client.await.unwrap().unwrap());
        // IPv6 comes by router advertisement; the guest's own duplicate address detection takes its second.
        tokio::time::timeout(DEADLINE, changes.wait_for(|state| state.has_ipv6())).await.unwrap().unwrap();
        println!("IPv6 address after {:?}", begun.elapsed());

        let state = watcher.snapshot().await.unwrap();
        let address = state.global_addresses().find(|a| a.address.is_ipv4()).unwrap().address;
        let api = &state.to_api()["eth0"];
        assert!(is_host_name(&api.host_name) && api.counters.packets_received > 0 && api.hwaddr == "10:66:6a:00:00:01");

        let leases = manager.leases("duetbr0", std::slice::from_ref(&c1)).await.unwrap();
        let lease = leases.iter().find(|lease| lease.address == address).unwrap();
        assert_eq!((lease.hostname.as_str(), lease.hwaddr, lease.kind), ("c1", Some(c1.hwaddr), LeaseKind::Dynamic));
        let slaac = c1.hwaddr.eui64("fd42:1:2:3::1/64".parse().unwrap());
        assert!(leases.iter().any(|lease| lease.address == slaac), "{leases:?}");
        assert!(state.global_addresses().any(|a| a.address == slaac), "{state:?}");

        assert!(space.run("busybox nslookup c1.duet 10.123.7.1").contains(&address.to_string()));
        assert!(space.run(&format!("busybox nslookup {address} 10.123.7.1")).contains("c1.duet"));
        assert!(space.run("busybox nslookup c1.duet fd42:1:2:3::1").contains(&address.to_string()));
        assert!(!space.command("busybox nslookup impostor.duet 10.123.7.1").output().unwrap().status.success());

        // Forgotten, it is out of the leases and of the DNS.
        manager.remove_host("duetbr0", &c1).await.unwrap();
        eventually("the lease is released", || {
            !fs::read_to_string(host.network_dir("duetbr0").leases()).unwrap().contains("10:66:6a:00:00:01")
        })
        .await;
        assert!(!space.command("busybox nslookup c1.duet 10.123.7.1").output().unwrap().status.success());
    });
}

#[test]
fn static_addresses_are_given_and_changed() {
    isolated(|host| async move {
        let manager = host.manager();
        let mut net = network("duetbr0");
        let mut c1 = super::host("c1", "10:66:6a:00:00:01");
        c1.ipv4 = Some(Ipv4Addr::new(10, 123, 7, 77));
        // Known when the network comes up, and stale ones with it.
        let stale = super::host("old", "10:66:6a:00:00:02");
        net.hosts = vec![c1.clone(), stale];
        manager.bridge_up(&net).await.unwrap();
        net.hosts.pop();
        assert!(manager.bridges_up(std::slice::from_ref(&net)).await.is_empty());
        assert!(!host.network_dir("duetbr0").hosts().join("old.eth0").exists());

        let space = Space::new();
        plug(&manager, "duetbr0", &c1, &space).await;
        let script = dhcp_script(&host.dir);
        let lease = format!(
            "ip link set eth0 up; ip addr flush dev eth0; busybox udhcpc -f -q -n -i eth0 -s {}",
            script.display()
        );
        let (space, said) = in_background(space, lease.clone()).await;
        assert!(said.contains("dns=10.123.7.1 domain=duet"), "{said}");
        assert!(space.run("ip addr show eth0").contains("10.123.7.77/24"));
        let leases = manager.leases("duetbr0", &net.hosts).await.unwrap();
        assert!(leases.iter().any(|l| l.address == c1.ipv4.unwrap() && l.kind == LeaseKind::Static), "{leases:?}");

        c1.ipv4 = Some(Ipv4Addr::new(10, 123, 7, 88));
        manager.set_host("duetbr0", &c1).await.unwrap();
        let (space, _) = in_background(space, lease).await;
        assert!(space.run("ip addr show eth0").contains("10.123.7.88/24"));
    });
}

#[test]
fn stateful_dhcpv6_and_odd_subnets_are_understood_by_dnsmasq() {
    isolated(|host| async move {
        let manager = host.manager();
        let tables: [&[(&str, &str)]; 4] = [
            &[
                ("ipv4.address", "10.1.0.77/20"),
                ("ipv4.dhcp.ranges", "10.1.0.2-10.1.0.9,10.1.1.0-10.1.1.9"),
                ("ipv4.dhcp.expiry", "infinite"),
            ],
            &[
                ("ipv6.address", "fd42:9::1/96"),
                ("ipv6.dhcp.stateful", "true"),
                ("dns.search", "a.test,b.test"),
                ("bridge.mtu", "9000"),
            ],
            &[("ipv4.address", "10.1.0.1/30"), ("ipv4.dhcp", "false"), ("dns.mode", "none")],
            &[
                ("ipv4.address", "10.1.0.1/8"),
                ("ipv6.address", "fd42::5:1/64"),
                ("ipv6.dhcp.stateful", "true"),
                ("ipv6.dhcp.ranges", "fd42::100-fd42::1ff"),
                ("dns.mode", "dynamic"),
            ],
        ];
        for pairs in tables {
            let net = Network { config: config(pairs), ..network("duetbr0") };
            manager.bridge_up(&net).await.unwrap_or_else(|e| panic!("{pairs:?}: {e}"));
            assert!(host.dnsmasq("duetbr0").is_some(), "{pairs:?}");
        }
    });
}

#[test]
fn dnsmasq_drops_root_where_it_still_reaches_its_files() {
    isolated(|host| async move {
        let manager = host.manager();
        manager.bridge_up(&network("duetbr0")).await.unwrap();
        let user = |pid: i32| run(&format!("awk '/^Uid:/{{print $2}}' /proc/{pid}/status")).trim().to_owned();
        assert_ne!(user(host.dnsmasq("duetbr0").unwrap()), "0");
        fs::set_permissions(host.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        manager.bridge_up(&network("duetbr0")).await.unwrap();
        assert_eq!(user(host.dnsmasq("duetbr0").unwrap()), "0");
    });
}

/// Runs a command of a guest while the runtime goes on.
async fn in_background(space: Space, command: String) -> (Space, String) {
    tokio::task::spawn_blocking(move || {
        let said = space.run(&command);
        (space, said)
    })
    .await
    .unwrap()
}
