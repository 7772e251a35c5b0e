//! What an instance is, once its profiles are laid under its own configuration.

use super::{ConfigMap, DeviceMap};

/// Lays the profiles over each other in their order, and the instance's own part over them.
///
/// For keys the last value wins. Devices win as a whole, never option by option: an instance that overrides
/// `eth0` states all of it. A device of type `none` takes away what lies below it and is itself not part of
/// the result.
#[must_use]
pub fn expand(
    profiles: &[(&ConfigMap, &DeviceMap)],
    config: &ConfigMap,
    devices: &DeviceMap,
) -> (ConfigMap, DeviceMap) {
    let (mut all_config, mut all_devices) = (ConfigMap::new(), DeviceMap::new());
    for (config, devices) in profiles.iter().chain([&(config, devices)]) {
        all_config.extend(config.iter().map(|(key, value)| (key.clone(), value.clone())));
        all_devices.extend(devices.iter().map(|(name, device)| (name.clone(), device.clone())));
    }
    all_devices.retain(|_, device| device.get("type").is_none_or(|kind| kind != "none"));
    (all_config, all_devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn later_profiles_win_and_the_instance_wins_over_all() {
        let (a, b, own) = (
            device(&[("limits.cpu", "1"), ("user.a", "a")]),
            device(&[("limits.cpu", "2"), ("user.b", "b")]),
            device(&[("user.b", "own")]),
        );
        let none = DeviceMap::new();
        let layers = [(&a, &none), (&b, &none)];
        let (config, _) = expand(&layers, &own, &none);
        assert_eq!(config, device(&[("limits.cpu", "2"), ("user.a", "a"), ("user.b", "own")]));
    }

    #[test]
    fn devices_win_whole_and_none_takes_away() {
        let profile = DeviceMap::from([
            ("eth0".to_owned(), device(&[("type", "nic"), ("network", "duetbr0"), ("mtu", "1400")])),
            ("root".to_owned(), device(&[("type", "disk"), ("path", "/"), ("pool", "default")])),
            ("work".to_owned(), device(&[("type", "disk"), ("path", "/w"), ("source", "/w")])),
        ]);
        let own = DeviceMap::from([
            ("eth0".to_owned(), device(&[("type", "nic"), ("network", "other")])),
            ("work".to_owned(), device(&[("type", "none")])),
        ]);
        let empty = ConfigMap::new();
        let (_, devices) = expand(&[(&empty, &profile)], &empty, &own);
        assert_eq!(devices.keys().collect::<Vec<_>>(), ["eth0", "root"]);
        assert_eq!(devices["eth0"], own["eth0"]);
    }

    proptest! {
        #[test]
        fn the_last_layer_that_has_a_key_decides(layers in proptest::collection::vec(proptest::collection::btree_map("[a-d]", "[0-9]", 0..4), 1..5)) {
            let none = DeviceMap::new();
            let (own, profiles) = layers.split_last().unwrap();
            let profiles: Vec<_> = profiles.iter().map(|config| (config, &none)).collect();
            let (config, _) = expand(&profiles, own, &none);
            for (key, value) in &config {
                prop_assert_eq!(layers.iter().rev().find_map(|layer| layer.get(key)), Some(value));
            }
            prop_assert!(layers.iter().flatten().all(|(key, _)| config.contains_key(key)));
        }
    }
}
