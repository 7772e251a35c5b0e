//! What can be configured, and what a configuration means.
//!
//! Everything here is pure: text in, types or one sentence out. No file is read and no system call made, so a
//! configuration means the same wherever and whenever it is looked at, and property tests can walk all of it.
//!
//! - [`table`] has one row per key and device option; it is the only place that lists them.
//! - `validate` checks maps of strings on their way in ([`validate_instance_config`] and its siblings).
//! - [`values`] are the types that strings become: sizes, CPU sets, schedules, spans of time.
//! - [`InstanceSettings`] and [`Device`] are what the rest of the daemon works with; nobody else parses strings.
//! - [`expand`] lays profiles and an instance's own configuration over one another.
//! - [`config_changes`] and [`device_changes`] say what of an update a running instance can feel.
//! - [`metadata_configuration`] is the table as clients read it.
//!
//! An empty value always means "unset", as it does for Incus' clients: it passes every check, and every reader
//! treats it as absent. [`drop_unset`] keeps it out of the inventory.

mod changes;
mod device;
mod error;
mod expand;
mod metadata;
mod names;
mod settings;
pub mod table;
mod validate;
pub mod values;

use std::collections::BTreeMap;
use std::fmt;

use duet_client::api::InstanceType;

pub use changes::{ConfigChanges, DeviceChanges, config_changes, device_changes, keep_server_owned};
pub use device::{Device, DevicesOf, DiskDevice, DiskLimits, NicDevice, NicLink, UnixCharDevice, validate_devices};
pub use error::{ConfigError, DeviceError, ValueError};
pub use expand::expand;
pub use metadata::metadata_configuration;
pub use names::{
    NameKind, validate_alias_name, validate_instance_name, validate_name, validate_network_name, validate_pool_name,
    validate_profile_name, validate_snapshot_name,
};
pub use settings::{InstanceSettings, MemoryEnforce, SnapshotSettings};
pub use validate::{
    validate_instance_config, validate_network_config, validate_pool_config, validate_profile_config,
    validate_server_config,
};

/// A configuration as it travels over the API: key to value.
pub type ConfigMap = BTreeMap<String, String>;

/// Devices as they travel over the API: name to options, `type` among them.
pub type DeviceMap = BTreeMap<String, BTreeMap<String, String>>;

/// Removes the keys that are set to nothing, which is how clients unset them.
pub fn drop_unset(config: &mut ConfigMap) {
    config.retain(|_, value| !value.is_empty());
}

/// As [`drop_unset`], of the options of every device.
pub fn drop_unset_options(devices: &mut DeviceMap) {
    devices.values_mut().for_each(drop_unset);
}

/// The two kinds of instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceKind {
    /// A system container.
    Container,
    /// A KVM guest.
    VirtualMachine,
}

impl InstanceKind {
    fn plural(self) -> &'static str {
        match self {
            Self::Container => "containers",
            Self::VirtualMachine => "virtual machines",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Container => Self::VirtualMachine,
            Self::VirtualMachine => Self::Container,
        }
    }
}

impl From<InstanceKind> for InstanceType {
    fn from(kind: InstanceKind) -> Self {
        match kind {
            InstanceKind::Container => Self::Container,
            InstanceKind::VirtualMachine => Self::VirtualMachine,
        }
    }
}

impl From<InstanceType> for InstanceKind {
    fn from(kind: InstanceType) -> Self {
        match kind {
            InstanceType::Container => Self::Container,
            InstanceType::VirtualMachine => Self::VirtualMachine,
        }
    }
}

impl fmt::Display for InstanceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::VirtualMachine => "virtual machine",
        })
    }
}

/// A key's value, absent when it is empty.
fn value<'a>(config: &'a ConfigMap, key: &str) -> Option<&'a str> {
    config.get(key).map(String::as_str).filter(|value| !value.is_empty())
}
