//! Configurations of instances, profiles, networks, pools and the server.

use duetd::config::table::Scope;
use duetd::config::{
    self, ConfigMap, InstanceKind, InstanceSettings, config_changes, validate_instance_config, validate_network_config,
    validate_pool_config, validate_profile_config, validate_server_config,
};
use duetd::network::BridgeConfig;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::assert_sentence;

/// Takes lines of `key=value`.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let map: ConfigMap =
        text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect();
    let checks = [
        validate_instance_config(&map, InstanceKind::VirtualMachine),
        validate_profile_config(&map),
        validate_pool_config(&map),
        validate_server_config(&map),
        validate_network_config(&map),
    ];
    checks.into_iter().filter_map(Result::err).for_each(|error| assert_sentence(&error.to_string()));
    match validate_instance_config(&map, InstanceKind::Container) {
        Ok(()) => use_it(&map),
        Err(error) => assert_sentence(&error.to_string()),
    }
    if let Err(error) = BridgeConfig::parse(&map) {
        assert_sentence(&error.to_string());
    }
    let _ = config_changes(&ConfigMap::new(), &map);
    let _ = config::keep_server_owned(&ConfigMap::new(), map);
}

/// What was checked can be read, and what was read can be used.
fn use_it(map: &ConfigMap) {
    let settings = InstanceSettings::from_config(map).expect("what is checked can be read");
    let now = Timestamp::from_second(1_700_000_000).expect("a time of this century");
    let here = now.to_zoned(TimeZone::UTC);
    if let Some(next) = settings.snapshots.schedule.as_ref().and_then(|schedule| schedule.next_after(&here)) {
        assert!(next > here, "the next time is past");
    }
    let name = settings.snapshots.pattern.next_name(&here, ["snap0"]);
    assert_ne!(name, "snap0");
    if let Some(end) = settings.snapshots.expiry.as_ref().and_then(|expiry| expiry.after(now)) {
        assert!(end >= now, "it ends before it begins");
    }
}

/// Every key there is with a few values, and values in the forms that some keys have.
pub fn seeds() -> Vec<Vec<u8>> {
    let values = ["", "true", "1", "2-3", "50%", "512MiB", "10ms/100ms", "@daily", "10.1.2.1/24", "snap%d"];
    let scopes = [Scope::Instance, Scope::Network, Scope::Pool, Scope::Server];
    let line = |value: &str| {
        let keys = scopes.iter().flat_map(|scope| scope.keys());
        keys.map(|key| format!("{}={value}\n", key.name.replace('*', "x"))).collect::<String>().into_bytes()
    };
    let mut seeds: Vec<Vec<u8>> = values.iter().map(|value| line(value)).collect();
    for text in [
        "limits.cpu=0-2,4\nlimits.memory=64MiB\nlimits.processes=50\nuser.x=y\n",
        "limits.cpu.allowance=10%\nlimits.memory=50%\nboot.autostart.delay=3\n",
        "snapshots.schedule=*/5 1 * jan-mar mon\nsnapshots.pattern={{ creation_date|date:'2006-01-02' }}\nsnapshots.expiry=1M 2w 3d 4H 5M\n",
        "snapshots.schedule=@hourly, @startup\nsnapshots.expiry=1y\nlinux.sysctl.net.ipv4.ip_forward=1\n",
        "ipv4.address=10.1.2.1/24\nipv4.dhcp.ranges=10.1.2.2-10.1.2.9\nipv4.nat=true\nipv6.address=fd42::1/64\n",
    ] {
        seeds.push(text.into());
    }
    seeds
}
