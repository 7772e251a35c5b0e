//! An instance's expanded configuration, read into types.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::values::{self, CpuAllowance, CpuLimit, Expiry, MemoryLimit, Schedule, SnapshotPattern, SwapLimit};
use super::{ConfigError, ConfigMap, ValueError, value};

/// What `limits.memory` does when it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryEnforce {
    /// Nothing is given beyond it.
    #[default]
    Hard,
    /// It holds only when the host is short of memory.
    Soft,
}

/// Everything in an instance's configuration that the daemon acts on.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceSettings {
    /// `limits.cpu`; `None` for all CPUs.
    pub cpu: Option<CpuLimit>,
    /// `limits.cpu.allowance`; `None` for no limit.
    pub cpu_allowance: Option<CpuAllowance>,
    /// `limits.cpu.priority`, 0 to 10.
    pub cpu_priority: u8,
    /// `limits.memory`; `None` for no limit.
    pub memory: Option<MemoryLimit>,
    /// `limits.memory.enforce`.
    pub memory_enforce: MemoryEnforce,
    /// `limits.memory.swap`.
    pub memory_swap: SwapLimit,
    /// `limits.disk.priority`, 0 to 10; `None` where nobody chose.
    pub disk_priority: Option<u8>,
    /// `limits.processes`; `None` for no limit.
    pub processes: Option<u64>,
    /// `security.privileged`.
    pub privileged: bool,
    /// `security.nesting`.
    pub nesting: bool,
    /// `security.idmap.isolated`.
    pub idmap_isolated: bool,
    /// `security.protection.delete`.
    pub protection_delete: bool,
    /// `environment.*`, without the prefix.
    pub environment: BTreeMap<String, String>,
    /// `boot.autostart`; `None` means: as it was before.
    pub autostart: Option<bool>,
    /// `boot.autostart.delay`: how long to wait after this instance before starting the next.
    pub autostart_delay: Duration,
    /// `boot.autostart.priority`: higher starts earlier.
    pub autostart_priority: i64,
    /// `boot.stop.priority`: higher stops earlier.
    pub stop_priority: i64,
    /// `boot.host_shutdown_timeout`: how long a clean stop may take.
    pub host_shutdown_timeout: Duration,
    /// `snapshots.*`.
    pub snapshots: SnapshotSettings,
}

/// When snapshots are taken, what they are called and how long they live.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotSettings {
    /// `snapshots.schedule`; `None` for never.
    pub schedule: Option<Schedule>,
    /// `snapshots.schedule.stopped`.
    pub while_stopped: bool,
    /// `snapshots.pattern`.
    pub pattern: SnapshotPattern,
    /// `snapshots.expiry`; `None` for ever.
    pub expiry: Option<Expiry>,
}

impl InstanceSettings {
    /// Reads an expanded configuration. Keys that are not the daemon's to act on are passed over, whatever they
    /// are: what was once stored must be readable by every later version.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] for the first value that does not parse; validation lets none through.
    pub fn from_config(config: &ConfigMap) -> Result<Self, ConfigError> {
        let boolean = |key, default: bool| read(config, key, values::parse_bool).map(|v| v.unwrap_or(default));
        let integer = |key, default: i64| {
            read(config, key, |v| values::parse_int(v, i64::MIN, i64::MAX)).map(|v| v.unwrap_or(default))
        };
        let seconds = |key, default| {
            read(config, key, |v| values::parse_int(v, 0, 86_400))
                .map(|v| Duration::from_secs(v.unwrap_or(default).unsigned_abs()))
        };
        Ok(Self {
            cpu: parse(config, "limits.cpu")?,
            cpu_allowance: parse(config, "limits.cpu.allowance")?,
            cpu_priority: read(config, "limits.cpu.priority", |v| values::parse_int(v, 0, 10))?
                .map_or(10, |v| u8::try_from(v).unwrap_or(10)),
            memory: parse(config, "limits.memory")?,
            memory_enforce: match value(config, "limits.memory.enforce") {
                Some("soft") => MemoryEnforce::Soft,
                _ => MemoryEnforce::Hard,
            },
            memory_swap: parse(config, "limits.memory.swap")?.unwrap_or_default(),
            disk_priority: read(config, "limits.disk.priority", |v| values::parse_int(v, 0, 10))?
                .and_then(|v| u8::try_from(v).ok()),
            processes: read(config, "limits.processes", |v| values::parse_int(v, 1, i64::MAX))?.map(i64::unsigned_abs),
            privileged: boolean("security.privileged", false)?,
            nesting: boolean("security.nesting", false)?,
            idmap_isolated: boolean("security.idmap.isolated", false)?,
            protection_delete: boolean("security.protection.delete", false)?,
            environment: config
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix("environment.")?.to_owned(), value.clone())))
                .collect(),
            autostart: read(config, "boot.autostart", values::parse_bool)?,
            autostart_delay: seconds("boot.autostart.delay", 0)?,
            autostart_priority: integer("boot.autostart.priority", 0)?,
            stop_priority: integer("boot.stop.priority", 0)?,
            host_shutdown_timeout: seconds("boot.host_shutdown_timeout", 30)?,
            snapshots: SnapshotSettings {
                schedule: parse(config, "snapshots.schedule")?,
                while_stopped: boolean("snapshots.schedule.stopped", false)?,
                pattern: parse(config, "snapshots.pattern")?.unwrap_or_default(),
                expiry: parse(config, "snapshots.expiry")?,
            },
        })
    }
}

fn read<T>(
    config: &ConfigMap,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Result<Option<T>, ConfigError> {
    value(config, key)
        .map(|text| parse(text).map_err(|problem| ConfigError::BadValue { key: key.to_owned(), problem }))
        .transpose()
}

fn parse<T: FromStr<Err = ValueError>>(config: &ConfigMap, key: &str) -> Result<Option<T>, ConfigError> {
    read(config, key, str::parse)
}

#[cfg(test)]
mod tests {
    use super::super::table::{Kind, Scope};
    use super::super::{InstanceKind, validate_instance_config};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn defaults_are_those_of_the_table() {
        let settings = InstanceSettings::from_config(&ConfigMap::new()).unwrap();
        assert_eq!(settings.cpu, None);
        assert_eq!(settings.cpu_priority, 10);
        assert!(settings.memory_swap == SwapLimit::Allowed && !settings.privileged && !settings.nesting);
        assert_eq!(settings.host_shutdown_timeout, Duration::from_secs(30));
        assert_eq!(settings.snapshots.pattern.to_string(), "snap%d");
    }

    #[test]
    fn values_become_types() {
        let config = [
            ("limits.cpu", "0-1"),
            ("limits.cpu.allowance", "25ms/100ms"),
            ("limits.memory", "50%"),
            ("limits.memory.enforce", "soft"),
            ("limits.processes", "500"),
            ("environment.LANG", "C.UTF-8"),
            ("environment.EMPTY", ""),
            ("boot.autostart", "true"),
            ("boot.autostart.delay", "5"),
            ("boot.autostart.priority", "-3"),
            ("snapshots.schedule", "@daily"),
            ("snapshots.expiry", "2w"),
            ("security.privileged", ""),
            ("from.a.later.version", "x"),
        ];
        let config: ConfigMap = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let settings = InstanceSettings::from_config(&config).unwrap();
        assert_eq!(settings.cpu.unwrap().to_string(), "0-1");
        assert_eq!(settings.memory, Some(MemoryLimit::Percent(50)));
        assert_eq!(settings.memory_enforce, MemoryEnforce::Soft);
        assert_eq!(settings.processes, Some(500));
        assert_eq!(settings.environment["LANG"], "C.UTF-8");
        assert_eq!(settings.environment["EMPTY"], "");
        assert_eq!(settings.autostart, Some(true));
        assert_eq!(settings.autostart_priority, -3);
        assert!(!settings.privileged, "empty is unset");
        assert!(settings.snapshots.schedule.is_some() && settings.snapshots.expiry.is_some());
    }

    fn any_value() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("true".to_owned()),
            Just("1GiB".to_owned()),
            Just("0-3".to_owned()),
            Just("50%".to_owned()),
            Just("@daily".to_owned()),
            Just("3d".to_owned()),
            Just("soft".to_owned()),
            Just(String::new()),
            "[0-9]{1,4}",
            "\\PC{0,8}",
        ]
    }

    proptest! {
        #[test]
        fn what_validates_can_be_read(values in proptest::collection::vec(any_value(), 60)) {
            // Each row of the table gets some value; rows whose value is refused are left out.
            let mut config = ConfigMap::new();
            for (row, value) in Scope::Instance.keys().iter().zip(values) {
                if !row.name.contains(['*', '<']) && row.kind != Kind::Yaml && row.kind.check(&value).is_ok() {
                    config.insert(row.name.to_owned(), value);
                }
            }
            prop_assert_eq!(validate_instance_config(&config, InstanceKind::Container), Ok(()));
            prop_assert!(InstanceSettings::from_config(&config).is_ok());
        }
    }
}
