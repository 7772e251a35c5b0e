//! Naming the network interfaces.

use std::fs;
use std::path::Path;

use super::warn;
use crate::setup::Nic;

/// An interface that the kernel has: its name and hardware address.
type Present = (String, [u8; 6]);

/// Gives them the names that the host wants.
pub(super) fn name(wanted: &[Nic]) {
    if wanted.is_empty() {
        return;
    }
    let present = present();
    for nic in wanted.iter().filter(|nic| !present.iter().any(|(_, mac)| *mac == nic.mac)) {
        warn(&format!("there is no network interface {} to be named {}", text(nic.mac), nic.name));
    }
    for (from, to) in plan(&present, wanted) {
        if let Err(error) = duet_sys::link::rename(&from, &to) {
            warn(&format!("the network interface {from} cannot be named {to}: {error}"));
        }
    }
}

/// The renames to do, in order. All interfaces that are named first leave the name that they have, so that no two
/// collide; and the kernel has then been told a name for each, also for one that had the right name, which udev keeps.
/// One that is not named gives way to one that is.
fn plan(present: &[Present], wanted: &[Nic]) -> Vec<(String, String)> {
    let (mut away, mut home) = (Vec::new(), Vec::new());
    for (number, nic) in wanted.iter().enumerate() {
        if let Some((name, _)) = present.iter().find(|(_, mac)| *mac == nic.mac) {
            let between = format!("duet-nic{number}");
            away.push((name.clone(), between.clone()));
            home.push((between, nic.name.clone()));
        }
    }
    let others = present.iter().map(|(name, _)| name).filter(|name| !away.iter().any(|(from, _)| from == *name));
    let (in_the_way, staying): (Vec<_>, Vec<_>) = others.partition(|name| home.iter().any(|(_, to)| to == *name));
    let taken = |name: &String| home.iter().any(|(_, to)| to == name) || staying.contains(&name);
    let free = (0..=u16::MAX).map(|number| format!("eth{number}")).filter(|name| !taken(name));
    let aside: Vec<_> = in_the_way.into_iter().cloned().zip(free).collect();
    away.into_iter().chain(aside).chain(home).collect()
}

fn present() -> Vec<Present> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let mac = mac(&fs::read_to_string(entry.path().join("address")).ok()?)?;
            // A loopback's address, which is no card's.
            let card = mac != [0; 6] && Path::new(&entry.path()).join("device").exists();
            card.then_some((entry.file_name().into_string().ok()?, mac))
        })
        .collect()
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names after all renames, of interfaces whose last byte of the address is their position; fails where the kernel
    /// would.
    fn named(present: &[&str], wanted: &[(u8, &str)]) -> Vec<String> {
        let mut links: Vec<Present> =
            (0..).zip(present).map(|(number, name)| ((*name).to_owned(), [2, 0, 0, 0, 0, number])).collect();
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(number, name)| Nic { mac: [2, 0, 0, 0, 0, *number], name: (*name).to_owned() })
            .collect();
        for (from, to) in plan(&links, &wanted) {
            assert!(!links.iter().any(|(name, _)| *name == to), "{to} is taken");
            links.iter_mut().find(|(name, _)| *name == from).unwrap().0 = to;
        }
        links.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_interface_comes_to_its_name() {
        assert_eq!(named(&["eth0", "eth1"], &[(0, "eth1"), (1, "eth0")]), ["eth1", "eth0"]);
        assert_eq!(named(&["eth0", "eth1", "eth2"], &[(1, "eth0"), (2, "lan")]), ["eth1", "eth0", "lan"]);
        assert_eq!(named(&["eth0", "eth1"], &[(0, "eth0"), (9, "eth1")]), ["eth0", "eth1"]);
        assert_eq!(named(&["a", "eth0", "b"], &[(0, "b"), (1, "a")]), ["b", "a", "eth0"]);
        assert!(plan(&[("eth0".into(), [1; 6])], &[]).is_empty());
    }

    #[test]
    fn addresses_are_understood() {
        assert_eq!(mac("52:54:00:0a:Bc:ff\n"), Some([0x52, 0x54, 0, 0x0a, 0xbc, 0xff]));
        assert_eq!(text([0x52, 0x54, 0, 0x0a, 0xbc, 0xff]), "52:54:00:0a:bc:ff");
        for bad in ["", "52:54:00:0a:bc", "52:54:00:0a:bc:ff:00", "x:y"] {
            assert_eq!(mac(bad), None);
        }
    }
}
