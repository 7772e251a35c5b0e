//! NICs and the watcher: what a container's namespace holds is known at once, whatever the container does.

use std::os::fd::AsFd;

use super::*;

#[test]
fn sees_changes_as_they_come() {
    isolated(|_host| async move {
        let space = Space::new();
        let watcher = space.watcher();
        let mut changes = watcher.subscribe();
        changes
            .wait_for(|state| state.interface("lo").is_some_and(|lo| lo.up && !lo.addresses.is_empty()))
            .await
            .unwrap();
        assert!(!watcher.current().has_ipv4());

        space.run("ip link add eth0 type veth peer name peth0; ip addr add 192.0.2.5/24 dev eth0; ip link set eth0 up");
        changes.wait_for(|state| state.has_ipv4()).await.unwrap();
        space.run("ip link set eth0 name wan0; ip link set wan0 mtu 1400");
        changes
            .wait_for(|state| state.interface("wan0").is_some_and(|i| i.mtu == 1400 && !i.addresses.is_empty()))
            .await
            .unwrap();
        space.run("ip addr del 192.0.2.5/24 dev wan0");
        changes.wait_for(|state| !state.has_ipv4()).await.unwrap();
        space.run("ip link del wan0");
        changes.wait_for(|state| state.interface("wan0").is_none()).await.unwrap();

        // A bridge of the guest's own: a port that leaves it is still there.
        space.run("ip link add br0 type bridge; ip link add p0 type veth peer name pp0; ip link set p0 master br0; ip link set p0 nomaster");
        let state = watcher.snapshot().await.unwrap();
        assert!(state.interface("p0").is_some() && state.interface("br0").is_some());
        let lo = &state.to_api()["lo"];
        let shown: Vec<_> =
            lo.addresses.iter().map(|a| (a.address.as_str(), a.netmask.as_str(), a.scope.as_str())).collect();
        assert_eq!(shown, [("127.0.0.1", "8", "local"), ("::1", "128", "local")]);
        assert_eq!((lo.hwaddr.as_str(), lo.kind.as_str(), lo.mtu, lo.state.as_str()), ("", "loopback", 65536, "up"));
    });
}

#[test]
fn a_tentative_address_is_none_yet() {
    isolated(|_host| async move {
        let space = Space::new();
        space.run("ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up");
        let watcher = space.watcher();
        let mut changes = watcher.subscribe();
        space.run("ip addr add fd42::5/64 dev eth0");
        let is_tentative =
            |state: &Arc<NetnsState>| state.interfaces.values().flat_map(|i| &i.addresses).any(|a| a.tentative);
        changes.wait_for(is_tentative).await.unwrap();
        assert!(!watcher.current().has_ipv6());
        tokio::time::timeout(DEADLINE, changes.wait_for(|state| state.has_ipv6())).await.unwrap().unwrap();
    });
}

#[test]
fn survives_a_flood_and_is_right_afterwards() {
    isolated(|_host| async move {
        let space = Space::new();
        let watcher = space.watcher();
        let batch: String = (0..20_000)
            .map(|i| {
                format!(
                    "addr add 10.{}.{}.1/32 dev lo\naddr del 10.{}.{}.1/32 dev lo\n",
                    i / 250,
                    i % 250,
                    i / 250,
                    i % 250
                )
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("batch");
        fs::write(&file, batch).unwrap();
        let command = format!(
            "ip -batch {}; ip link add end0 type veth peer name pend0; ip addr add 192.0.2.9/24 dev end0",
            file.display()
        );
        let flood = tokio::task::spawn_blocking(move || {
            space.run(&command);
            space
        });
        let mut changes = watcher.subscribe();
        let space = flood.await.unwrap();
        tokio::time::timeout(DEADLINE, changes.wait_for(|state| state.has_ipv4())).await.unwrap().unwrap();
        // Many ask at once; all are answered.
        let asked: Vec<_> = (0..20).map(|_| watcher.snapshot()).collect();
        for state in futures_util::future::join_all(asked).await {
            let state = state.unwrap();
            assert_eq!(state.interface("lo").unwrap().addresses.len(), 2);
            assert!(state.interface("end0").is_some());
        }
        drop(space);
    });
}

#[test]
fn believes_only_the_kernel() {
    isolated(|_host| async move {
        let space = Space::new();
        let watcher = space.watcher();
        watcher.snapshot().await.unwrap();
        let port = {
            use rustix::net::netlink::SocketAddrNetlink;
            SocketAddrNetlink::try_from(rustix::net::getsockname(&space.socket).unwrap()).unwrap().pid()
        };
        // The guest's root sends the watcher what looks like the deletion of lo.
        let forger = space_socket(&space);
        let mut link = rtnetlink::packet_route::link::LinkMessage::default();
        link.header.index = 1;
        let mut message =
            rtnetlink::packet_core::NetlinkMessage::from(rtnetlink::packet_route::RouteNetlinkMessage::DelLink(link));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let to = rustix::net::netlink::SocketAddrNetlink::new(port, 0);
        rustix::net::sendto(&forger, &bytes, rustix::net::SendFlags::empty(), &to).unwrap();
        space.run("ip link add eth0 type veth peer name peth0");
        let mut changes = watcher.subscribe();
        changes.wait_for(|state| state.interface("eth0").is_some()).await.unwrap();
        assert!(watcher.current().interface("lo").is_some());
    });
}

fn space_socket(space: &Space) -> OwnedFd {
    let fd = space.fd.try_clone().unwrap();
    let made = std::thread::spawn(move || {
        nix::sched::setns(fd, CloneFlags::CLONE_NEWNET).unwrap();
        netlink_socket()
    });
    made.join().unwrap()
}

#[test]
fn a_dropped_watcher_lets_the_namespace_go() {
    isolated(|host| async move {
        let manager = host.manager();
        manager.bridge_up(&network("duetbr0")).await.unwrap();
        let space = Space::new();
        let nic = plug(&manager, "duetbr0", &super::host("c1", "10:66:6a:00:00:01"), &space).await;
        let watcher = space.watcher();
        let mut changes = watcher.subscribe();
        changes.wait_for(|state| state.interface("eth0").is_some()).await.unwrap();
        drop(space);
        drop(watcher);
        assert!(changes.changed().await.is_err(), "the channel is closed");
        eventually("the veth went with its namespace", || !run("ip link").contains(&nic)).await;
    });
}

#[test]
fn nics_are_plugged_and_unplugged() {
    isolated(|host| async move {
        let manager = host.manager();
        let mut net = network("duetbr0");
        net.config.mtu = Some(1400);
        manager.bridge_up(&net).await.unwrap();
        let mut child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let mine = fs::read_link("/proc/thread-self/ns/net").unwrap();
        eventually("it has a namespace of its own", || {
            fs::read_link(format!("/proc/{}/ns/net", child.id())).is_ok_and(|ns| ns != mine)
        })
        .await;
        let name = host_name(&mut rand::rng());
        let mac = MacAddr::random(&mut rand::rng());
        let mut spec = NicSpec {
            host_name: &name,
            peer_name: "eth0",
            parent: "duetbr0",
            hwaddr: mac,
            mtu: None,
            netns: Netns::Pid(child.id()),
        };
        manager.attach_nic(&spec).await.unwrap();
        let inside = run(&format!("nsenter -t {} -n ip -d link show eth0", child.id()));
        assert!(
            inside.contains(&mac.to_string()) && inside.contains("mtu 1400") && inside.contains("state DOWN"),
            "{inside}"
        );
        let outside = run(&format!("ip link show {name}"));
        assert!(outside.contains("master duetbr0") && outside.contains(",UP"), "{outside}");

        assert_eq!(manager.attach_nic(&spec).await.unwrap_err().raw_os_error(), Some(libc::EEXIST));
        spec.parent = "nothing";
        assert!(matches!(manager.attach_nic(&spec).await, Err(Error::NoSuchLink { .. })));
        manager.detach_nic(&name).await.unwrap();
        manager.detach_nic(&name).await.unwrap();
        assert!(!run(&format!("nsenter -t {} -n ip link", child.id())).contains("eth0"));
        child.kill().unwrap();
        child.wait().unwrap();
        spec.parent = "duetbr0";
        let error = manager.attach_nic(&spec).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot create interface duet"), "{error}");
    });
}

#[test]
fn attaching_takes_about_a_millisecond() {
    isolated(|host| async move {
        let manager = host.manager();
        manager.bridge_up(&network("duetbr0")).await.unwrap();
        let mut times = Vec::new();
        for _ in 0..50 {
            let space = Space::new();
            let name = host_name(&mut rand::rng());
            let hwaddr = MacAddr::random(&mut rand::rng());
            let netns = Netns::Fd(space.fd.as_fd());
            let spec = NicSpec { host_name: &name, peer_name: "eth0", parent: "duetbr0", hwaddr, mtu: None, netns };
            let begun = Instant::now();
            manager.attach_nic(&spec).await.unwrap();
            times.push(begun.elapsed());
            manager.detach_nic(&name).await.unwrap();
        }
        times.sort();
        println!("attach: median {:?}, slowest {:?}", times[25], times[49]);
        // Generous: the machine may be busy with other tests.
        assert!(times[25] < Duration::from_millis(20), "{times:?}");
    });
}
