//! What a boot is told, and whether it did that.

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use duet_agent::client::Client;
use duet_agent::protocol::message::ExecStatus;
use duet_agent::setup::{File, Nic, Setup};

use crate::machine::{Machine, Parts, SOON, shell};

/// What QEMU's own network gives to a guest.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

/// The cards of the machine, by the order in which the kernel finds them.
pub const CARDS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 0x0a], [0x52, 0x54, 0, 0, 0, 0x0b]];

/// Two cards, the first of which leads nowhere, and the disk with the modules.
pub fn cards_and_modules(parts: &Parts) -> Vec<OsString> {
    let mac = |card: [u8; 6]| card.map(|byte| format!("{byte:02x}")).join(":");
    let mut modules = OsString::from("if=none,id=modules,format=raw,readonly=on,file=");
    modules.push(&parts.modules);
    let words = [
        "-netdev".into(),
        "hubport,id=nowhere,hubid=0".into(),
        "-device".into(),
        format!("virtio-net-pci,netdev=nowhere,mac={}", mac(CARDS[0])),
        "-netdev".into(),
        "user,id=net".into(),
        "-device".into(),
        format!("virtio-net-pci,netdev=net,mac={}", mac(CARDS[1])),
        "-device".into(),
        "virtio-blk-pci,drive=modules,serial=duet-modules".into(),
        "-drive".into(),
    ];
    words.into_iter().map(OsString::from).chain([modules]).collect()
}

/// What the boot is told: a name, files, and that the second card is eth0.
pub fn told() -> Setup {
    let file =
        |path: &str, content: &str, create_only| File { path: path.into(), content: content.into(), create_only };
    let nic = |card: usize, name: &str| Nic { mac: CARDS[card], name: name.into() };
    Setup {
        hostname: Some("told".into()),
        files: vec![
            file("/etc/hostname", "told\n", false),
            file("/etc/debian_version", "not this", true),
            file("/opt/told/file", "content\n", true),
            file("/proc/cmdline", "this cannot be", false),
        ],
        nics: vec![nic(0, "eth1"), nic(1, "eth0")],
    }
}

/// All of that was done, the root has grown, and the system has all that it wants without waiting.
pub fn was_told(client: &Client) {
    assert_eq!(shell(client, "systemctl is-system-running --wait; systemctl --failed --no-legend").1, "running\n");
    eprintln!("{}", shell(client, "systemd-analyze").1);
    let (_, late, _) = shell(client, "journalctl -b -q | grep -E 'Timed out waiting|Dependency failed'");
    assert_eq!(late, "");
    let state = client.state(SOON).unwrap();
    assert_eq!(state.hostname, "told");
    assert!(state.root.total > 2900 << 20, "{:?}", state.root);
    let (_, out, _) = shell(client, "cat /etc/hostname /opt/told/file; grep not /etc/debian_version; ls -A /opt/told");
    assert_eq!(out, "told\ncontent\nfile\n");
    let (_, out, _) = shell(client, "cat /sys/class/net/eth0/address /sys/class/net/eth1/address");
    assert_eq!(out, "52:54:00:00:00:0b\n52:54:00:00:00:0a\n");
    // By DHCP, from QEMU.
    let deadline = Instant::now() + SOON;
    while !client.state(SOON).unwrap().network["eth0"].addresses.iter().any(|found| found.address == ADDRESS) {
        assert!(Instant::now() < deadline, "{}", shell(client, "networkctl; networkctl status eth0").1);
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, out, err) =
        shell(client, "modprobe dummy && grep dummy /proc/modules && systemctl is-active getty.target");
    assert_eq!(status, ExecStatus::Code(0), "{out}{err}");
}

/// Somebody logs in on the console, and has a terminal there.
pub fn console(client: &Client, machine: &Machine) {
    assert_eq!(shell(client, "passwd -d root").0, ExecStatus::Code(0));
    let shows = |text: &str| {
        let deadline = Instant::now() + SOON;
        while !machine.console().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} is not shown:\n{}", machine.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut keyboard = machine.terminal();
    let mut screen = keyboard.try_clone().unwrap();
    let screen = std::thread::spawn(move || std::io::copy(&mut screen, &mut std::io::sink()));
    shows("told login: ");
    keyboard.write_all(b"root\n").unwrap();
    shows("root@told:");
    keyboard.write_all(b"tty; sh -c 'echo $((6 * 7))0; exec sleep 1000'\n").unwrap();
    shows("420");
    // A terminal's own keys reach what runs in front: that program, which has said so itself.
    keyboard.write_all(b"\x03").unwrap();
    keyboard.write_all(b"echo $((7 * 7))0; exit\n").unwrap();
    shows("490");
    keyboard.shutdown(std::net::Shutdown::Both).unwrap();
    screen.join().unwrap().unwrap();
    assert!(!machine.console().contains("no job control"), "{}", machine.console());
}
