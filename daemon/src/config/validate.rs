//! The checks that a configuration passes before it is stored.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::table::{Scope, foreign_key, nearest};
use super::{ConfigError, ConfigMap, InstanceKind, ValueError, value, values};

/// Checks an instance's own or expanded configuration.
///
/// # Errors
/// [`ConfigError`] for the first key, in alphabetical order, that is unknown or has a value that does not fit.
pub fn validate_instance_config(config: &ConfigMap, kind: InstanceKind) -> Result<(), ConfigError> {
    validate_instance_keys(config, Some(kind))
}

/// Checks a profile's configuration. A profile may serve both kinds of instance, so it may hold keys of either,
/// but none that tell of one instance (`volatile.*`, `image.*`).
///
/// # Errors
/// As [`validate_instance_config`].
pub fn validate_profile_config(config: &ConfigMap) -> Result<(), ConfigError> {
    for key in config.keys() {
        if key.starts_with("volatile.") || key.starts_with("image.") {
            return Err(ConfigError::InstanceOnly { key: key.clone() });
        }
    }
    validate_instance_keys(config, None)
}

fn validate_instance_keys(config: &ConfigMap, kind: Option<InstanceKind>) -> Result<(), ConfigError> {
    check_keys(Scope::Instance, config, kind)?;
    for key in config.keys() {
        // environ(7): a variable's name ends at the first equals sign, so it cannot contain one.
        if let Some(name) = key.strip_prefix("environment.")
            && name.contains(['=', '\0', '\n'])
        {
            let problem = ValueError::senseless(name, "a variable's name has no equals sign and is on one line");
            return Err(ConfigError::BadValue { key: key.clone(), problem });
        }
    }
    Ok(())
}

/// Checks a managed bridge's configuration.
///
/// # Errors
/// [`ConfigError`] for a key that is unknown, a value that does not fit, or keys that contradict each other.
pub fn validate_network_config(config: &ConfigMap) -> Result<(), ConfigError> {
    check_keys(Scope::Network, config, None)?;
    let subnet4 = value(config, "ipv4.address").and_then(|text| values::parse_cidr4(text).ok());
    let subnet6 = value(config, "ipv6.address").and_then(|text| values::parse_cidr6(text).ok());
    if let (Some(text), Some(subnet)) = (value(config, "ipv4.dhcp.ranges"), subnet4) {
        for range in values::parse_ranges4(text).unwrap_or_default() {
            range_in_subnet("ipv4", range.first.into(), range.last.into(), subnet.into())?;
        }
    }
    if let (Some(text), Some(subnet)) = (value(config, "ipv6.dhcp.ranges"), subnet6) {
        for range in values::parse_ranges6(text).unwrap_or_default() {
            range_in_subnet("ipv6", range.first.into(), range.last.into(), subnet.into())?;
        }
    }
    // RFC 8200 section 5: no link below 1280 bytes carries IPv6.
    let mtu = value(config, "bridge.mtu").and_then(|text| text.parse::<u32>().ok());
    if subnet6.is_some() && mtu.is_some_and(|mtu| mtu < 1280) {
        return Err(conflict(
            "bridge.mtu",
            "ipv6.address",
            "IPv6 needs an MTU of at least 1280; raise it or set ipv6.address=none",
        ));
    }
    Ok(())
}

fn range_in_subnet(family: &str, first: IpAddr, last: IpAddr, subnet: IpNet) -> Result<(), ConfigError> {
    let usable = |address: IpAddr| {
        subnet.contains(&address)
            && address != subnet.network()
            && (address.is_ipv6() || address != subnet.broadcast())
            && address != IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    match usable(first) && usable(last) {
        true => Ok(()),
        false => Err(conflict(
            &format!("{family}.dhcp.ranges"),
            &format!("{family}.address"),
            "the range must lie inside the subnet, without its first and its broadcast address",
        )),
    }
}

/// Checks a storage pool's configuration.
///
/// # Errors
/// [`ConfigError`] for a key that is unknown or a value that does not fit.
pub fn validate_pool_config(config: &ConfigMap) -> Result<(), ConfigError> {
    check_keys(Scope::Pool, config, None)
}

/// Checks the daemon's configuration.
///
/// # Errors
/// [`ConfigError`] for a key that is unknown or a value that does not fit.
pub fn validate_server_config(config: &ConfigMap) -> Result<(), ConfigError> {
    check_keys(Scope::Server, config, None)
}

fn check_keys(scope: Scope, config: &ConfigMap, kind: Option<InstanceKind>) -> Result<(), ConfigError> {
    for (key, text) in config {
        if key.contains(char::is_control) {
            let problem = ValueError::senseless(key, "a key has no control characters");
            return Err(ConfigError::BadValue { key: key.escape_default().to_string(), problem });
        }
        let Some(row) = scope.find(key) else {
            if let Some(reason) = foreign_key(scope, key) {
                return Err(ConfigError::Unsupported { scope, key: key.clone(), reason });
            }
            let nearest = nearest(key, scope.keys().iter().map(|row| row.name));
            return Err(ConfigError::UnknownKey { scope, key: key.clone(), nearest });
        };
        if let (Some(only), Some(kind)) = (row.only, kind)
            && only != kind
        {
            return Err(ConfigError::WrongKind { key: key.clone(), only });
        }
        row.kind.check(text).map_err(|problem| ConfigError::BadValue { key: key.clone(), problem })?;
    }
    Ok(())
}

fn conflict(key: &str, with: &str, reason: &'static str) -> ConfigError {
    ConfigError::Conflict { key: key.to_owned(), with: with.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(pairs: &[(&str, &str)]) -> ConfigMap {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn complaint(pairs: &[(&str, &str)]) -> String {
        validate_instance_config(&config(pairs), InstanceKind::Container).unwrap_err().to_string()
    }

    #[test]
    fn what_a_client_reads_it_can_send_back() {
        // From a recorded PUT of the incus client.
        let idmap = "[{\"Isuid\":true,\"Isgid\":false,\"Hostid\":1000000,\"Nsid\":0,\"Maprange\":1000000000}]";
        let sent = config(&[
            ("image.architecture", "amd64"),
            ("image.description", "peers tiny image"),
            ("limits.memory", "128MiB"),
            ("user.foo", "bar"),
            ("volatile.base_image", "881ae3b5912252573778e6343b00ed9762bb8140622b4c6b3ca22279ba85b596"),
            ("volatile.cloud-init.instance-id", "92e495d3-0001-48d3-b7e8-f7da6defcebe"),
            ("volatile.eth0.host_name", "veth598350d1"),
            ("volatile.eth0.hwaddr", "10:66:6a:6f:04:f9"),
            ("volatile.eth0.name", "eth0"),
            ("volatile.idmap.base", "0"),
            ("volatile.idmap.current", idmap),
            ("volatile.idmap.next", idmap),
            ("volatile.last_state.idmap", "[]"),
            ("volatile.last_state.power", "RUNNING"),
            ("volatile.last_state.ready", "false"),
            ("volatile.apply_template", "create"),
            ("volatile.uuid", "2d8e1af4-6ffd-496a-a1bd-125ed9653452"),
            ("volatile.uuid.generation", "4004189c-cf64-4551-af8a-1565d9eb799a"),
        ]);
        assert_eq!(validate_instance_config(&sent, InstanceKind::Container), Ok(()));
        assert!(validate_profile_config(&sent).is_err(), "but a profile is not one instance");
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        assert_eq!(
            complaint(&[("limits.memroy", "1GiB")]),
            "unknown instance option \"limits.memroy\" (did you mean \"limits.memory\"?)"
        );
        assert_eq!(complaint(&[("colour", "red")]), "unknown instance option \"colour\"");
        assert_eq!(
            complaint(&[("limits.memory", "lots")]),
            "limits.memory: \"lots\" is not a size; write a number of bytes or one with a unit, such as 512MiB or 2GB"
        );
        assert_eq!(
            complaint(&[("limits.hugepages.2MB", "1GiB")]),
            "instance option \"limits.hugepages.2MB\" is not supported by Duet: huge pages are not limited apart"
        );
        assert_eq!(
            complaint(&[("environment.A=B", "c")]),
            "environment.A=B: \"A=B\" is not usable: a variable's name has no equals sign and is on one line"
        );
        let vm = validate_instance_config(&config(&[("limits.cpu.allowance", "50%")]), InstanceKind::VirtualMachine);
        assert_eq!(
            vm.unwrap_err().to_string(),
            "limits.cpu.allowance works for containers only, and this is a virtual machine"
        );
        let profile = validate_profile_config(&config(&[("volatile.uuid", "")]));
        assert_eq!(
            profile.unwrap_err().to_string(),
            "volatile.uuid tells of one instance and cannot stand in a profile"
        );
    }

    #[test]
    fn networks_are_checked_as_a_whole() {
        let check = |pairs: &[(&str, &str)]| validate_network_config(&config(pairs));
        let subnet = ("ipv4.address", "10.17.0.1/24");
        assert_eq!(check(&[subnet, ("ipv4.dhcp.ranges", "10.17.0.50-10.17.0.99"), ("ipv4.nat", "true")]), Ok(()));
        assert_eq!(check(&[("ipv4.address", "auto"), ("ipv6.address", "none")]), Ok(()));
        assert!(check(&[subnet, ("ipv4.dhcp.ranges", "10.18.0.50-10.18.0.99")]).is_err());
        assert!(check(&[subnet, ("ipv4.dhcp.ranges", "10.17.0.0-10.17.0.99")]).is_err());
        assert!(check(&[subnet, ("ipv4.dhcp.ranges", "10.17.0.5-10.17.0.255")]).is_err());
        assert!(check(&[("ipv6.address", "fd42::1/64"), ("bridge.mtu", "1000")]).is_err());
        assert!(check(&[("ipv4.adress", "auto")]).unwrap_err().to_string().contains("ipv4.address"));
        assert!(check(&[("tunnel.x.protocol", "vxlan")]).is_err());
    }

    #[test]
    fn pools_and_servers_take_little() {
        assert_eq!(validate_pool_config(&config(&[("source", "/srv/pool"), ("user.a", "b")])), Ok(()));
        assert_eq!(validate_pool_config(&config(&[("size", "10GiB"), ("volume.size", "1GiB")])), Ok(()));
        assert!(validate_pool_config(&config(&[("size", "lots")])).unwrap_err().to_string().contains("not a size"));
        for source in ["tank@x", "-r", "../x", "/a/../b", "a b"] {
            assert!(validate_pool_config(&config(&[("source", source)])).is_err(), "{source}");
        }
        assert!(validate_pool_config(&config(&[("source", "tank/duet")])).is_ok());
        assert_eq!(validate_server_config(&config(&[("images.compression_algorithm", "zstd")])), Ok(()));
        assert!(validate_server_config(&config(&[("core.https_address", ":8443")])).is_err());
    }

    proptest! {
        #[test]
        fn no_map_panics(map in proptest::collection::btree_map("[a-z0-9.<>*=-]{0,20}|\\PC{0,12}", "\\PC{0,16}", 0..6)) {
            for result in [
                validate_instance_config(&map, InstanceKind::Container),
                validate_instance_config(&map, InstanceKind::VirtualMachine),
                validate_profile_config(&map),
                validate_network_config(&map),
                validate_pool_config(&map),
                validate_server_config(&map),
            ] {
                if let Err(error) = result {
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
        }
    }
}
