//! NAT to a world that knows no route back, and life beside other firewalls.

use super::*;

/// The world: a namespace behind the host's uplink that has no route to any bridge.
fn world() -> Space {
    let space = Space::new();
    let fd = space.fd.as_raw_fd();
    let pid = std::process::id();
    run("ip link add up0 type veth peer name far0");
    run("ip addr add 198.51.100.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up");
    run(&format!("ip link set far0 netns /proc/{pid}/fd/{fd}"));
    space.run("ip addr add 198.51.100.2/24 dev far0; ip addr add 2001:db8::2/64 dev far0 nodad; ip link set far0 up");
    space
}

/// A container with fixed addresses.
async fn container(manager: &Manager, mac: &str, last: u8) -> Space {
    let space = Space::new();
    plug(manager, "duetbr0", &super::host("c1", mac), &space).await;
    space.run(&format!(
        "ip addr add 10.123.7.{last}/24 dev eth0; ip addr add fd42:1:2:3::{last}/64 dev eth0 nodad; ip link set eth0 up; \
         ip route add default via 10.123.7.1; ip route add default via fd42:1:2:3::1"
    ));
    space
}

fn pings(space: &Space, target: &str) -> bool {
    let family = if target.contains(':') { "ping6" } else { "ping" };
    space.command(&format!("busybox {family} -c 1 -W 2 {target}")).output().unwrap().status.success()
}

#[test]
fn nat_leads_out() {
    isolated(|host| async move {
        let manager = host.manager();
        let mut net = network("duetbr0");
        manager.bridge_up(&net).await.unwrap();
        let _world = world();
        let c1 = container(&manager, "10:66:6a:00:00:01", 11).await;
        let c2 = container(&manager, "10:66:6a:00:00:02", 12).await;
        assert!(pings(&c1, "198.51.100.2") && pings(&c1, "2001:db8::2"));
        assert!(pings(&c1, "10.123.7.12") && pings(&c2, "fd42:1:2:3::11"));

        // Without NAT the answers find no way back; without routing not even the questions get out.
        net.config = config(&[("ipv4.address", "10.123.7.1/24"), ("ipv6.address", "fd42:1:2:3::1/64")]);
        manager.bridge_up(&net).await.unwrap();
        assert!(!pings(&c1, "198.51.100.2") && !pings(&c1, "2001:db8::2"));
        net.config = config(&[("ipv4.address", "10.123.7.1/24"), ("ipv4.nat", "true"), ("ipv4.routing", "false")]);
        manager.bridge_up(&net).await.unwrap();
        assert!(!pings(&c1, "198.51.100.2") && pings(&c1, "10.123.7.12") && pings(&c1, "10.123.7.1"));
    });
}

/// Rules as Docker, ufw and firewalld make them, by their own names.
const FOREIGN: &str = r#"
table ip filter {
	chain DOCKER-USER { return; }
	chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; oifname "docker0" accept; }
	chain ufw-before-input { ct state established,related accept; }
	chain INPUT { type filter hook input priority filter; policy accept; jump ufw-before-input; }
}
table ip nat {
	chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 oifname != "docker0" masquerade; }
}
table inet firewalld {
	chain filter_INPUT { type filter hook input priority filter + 10; policy accept; ct state invalid drop; }
}
"#;

#[test]
fn lives_beside_docker_ufw_and_firewalld() {
    isolated(|host| async move {
        let rules = host.dir.path().join("foreign.nft");
        fs::write(&rules, FOREIGN).unwrap();
        run(&format!("nft -f {}", rules.display()));
        let foreign = run("nft list ruleset");
        let manager = host.manager();
        let net = network("duetbr0");
        manager.bridge_up(&net).await.unwrap();
        let both = run("nft list ruleset");
        assert!(both.starts_with(&foreign), "{both}");
        assert!(both.contains("table inet duet"), "{both}");
        // The drop in Docker's chain holds in spite of our accept, as documented; the accept in its own place helps.
        let _world = world();
        let c1 = container(&manager, "10:66:6a:00:00:01", 11).await;
        assert!(!pings(&c1, "198.51.100.2"));
        run(
            "nft insert rule ip filter DOCKER-USER iifname duetbr0 accept; nft insert rule ip filter DOCKER-USER oifname duetbr0 accept",
        );
        assert!(pings(&c1, "198.51.100.2"));
        run("nft delete chain ip filter FORWARD");

        // A second network and its removal leave the first one's rules as they were.
        let table = run("nft list table inet duet");
        let other =
            Network { config: config(&[("ipv4.address", "10.8.8.1/24"), ("ipv4.nat", "true")]), ..network("duetbr1") };
        manager.bridge_up(&other).await.unwrap();
        assert!(run("nft list table inet duet").contains("10.8.8.0/24"));
        manager.remove("duetbr1").await.unwrap();
        assert_eq!(run("nft list table inet duet"), table);
        manager.remove("duetbr0").await.unwrap();
        assert!(!run("nft list tables").contains("duet"), "nothing of ours is left");
        assert!(run("nft list ruleset").contains("DOCKER-USER"));
    });
}

#[test]
fn multicast_among_instances_keeps_its_source() {
    isolated(|host| async move {
        let manager = host.manager();
        manager.bridge_up(&network("duetbr0")).await.unwrap();
        // Present only where br_netfilter is; it shows bridged packets to the firewall.
        let _ = fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1");
        let c1 = container(&manager, "10:66:6a:00:00:01", 11).await;
        let c2 = container(&manager, "10:66:6a:00:00:02", 12).await;
        c2.run("ip route add 239.1.2.3 dev eth0; echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts");
        c1.run("ip route add 239.1.2.3 dev eth0");
        // A host that answers a multicast ping answers its source; were that masqueraded the bridge would get it.
        c2.run("ip maddr add 01:00:5e:01:02:03 dev eth0; ip addr add 239.1.2.3/32 dev eth0 autojoin || true");
        run("nft add table ip probe; nft 'add chain ip probe post { type filter hook postrouting priority 300; }'");
        run("nft 'add rule ip probe post ip daddr 239.1.2.3 ip saddr != 10.123.7.11 counter'");
        let _ = c1.command("busybox ping -c 2 -W 1 239.1.2.3").output();
        assert!(run("nft list table ip probe").contains("counter packets 0"));
    });
}

#[test]
fn only_what_needs_rules_needs_nft() {
    let error = Error::from(crate::program::Error::Missing { program: "nft", package: "nftables" });
    assert_eq!(error.to_string(), "nft is not installed; install the package \"nftables\"");
    isolated(|_| async {
        // A ruleset that nft refuses is reported with nft's own words.
        let bad = BTreeMap::from([("x\"y".to_owned(), network("x").config)]);
        let error = nft::load(&bad).await.unwrap_err().to_string();
        assert!(error.starts_with("nft could not load the firewall rules: "), "{error}");
    });
}
