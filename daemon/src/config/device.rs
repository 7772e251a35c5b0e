//! Devices, read into types.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

use super::names::{NameKind, validate_name};
use super::table::{DISK, DeviceType, NIC, TYPES, UNIX_CHAR, foreign_device_option, nearest};
use super::values::{self, DiskRate, MacAddress, parse_size};
use super::{ConfigError, DeviceError, DeviceMap, InstanceKind};

/// One device of an instance or profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A directory or file, or the root filesystem.
    Disk(DiskDevice),
    /// A network interface.
    Nic(NicDevice),
    /// A character device.
    UnixChar(UnixCharDevice),
    /// Nothing: it hides a profile's device of the same name.
    None,
}

/// A device of type `disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskDevice {
    /// The instance's root filesystem.
    Root {
        /// The storage pool that holds it.
        pool: String,
        /// Whether the instance can only read it.
        readonly: bool,
        /// How much may be read and written.
        limits: DiskLimits,
        /// How many bytes it may hold.
        size: Option<u64>,
    },
    /// Something of the host's that is shown in the instance.
    Host {
        /// An absolute path on the host.
        source: PathBuf,
        /// An absolute path in the instance, below `/`.
        path: PathBuf,
        /// Whether the instance can only read it.
        readonly: bool,
        /// Whether mounts below the source come along.
        recursive: bool,
        /// Whether owners are translated into the container's id range.
        shift: bool,
        /// Whether a missing source keeps the instance from starting.
        required: bool,
        /// How much may be read and written.
        limits: DiskLimits,
    },
}

/// How much may be read from and written to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskLimits {
    /// `limits.read`.
    pub read: Option<DiskRate>,
    /// `limits.write`.
    pub write: Option<DiskRate>,
}

/// What a NIC is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicLink {
    /// A managed network, by its name.
    Network(String),
    /// A bridge of the host (`nictype=bridged`), by its link name; it may happen to be a managed one.
    Bridge(String),
}

/// A device of type `nic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicDevice {
    /// What it is plugged into.
    pub link: NicLink,
    /// The name in the instance; the next free `ethN` when `None`.
    pub name: Option<String>,
    /// The address that the configuration fixes.
    pub hwaddr: Option<MacAddress>,
    /// The largest packet in bytes; the bridge's when `None`.
    pub mtu: Option<u32>,
    /// The name of the host's end.
    pub host_name: Option<String>,
    /// The address that DHCP is to give.
    pub ipv4: Option<Ipv4Addr>,
    /// The address that DHCPv6 is to give.
    pub ipv6: Option<Ipv6Addr>,
}

/// A device of type `unix-char`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixCharDevice {
    /// The device node on the host.
    pub source: PathBuf,
    /// The node in the container.
    pub path: PathBuf,
    /// Major and minor number; those of the source when `None`.
    pub number: Option<(u32, u32)>,
    /// Owner in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether a missing source keeps the container from starting.
    pub required: bool,
}

/// Whose devices they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicesOf {
    /// A profile's, or an instance's own before they are expanded: the root disk may be elsewhere.
    Profile,
    /// All devices of an instance of that kind, expanded: the root disk must be among them.
    Instance(InstanceKind),
}

type Options = BTreeMap<String, String>;

/// Checks devices and reads them into types.
///
/// # Errors
/// [`ConfigError`] for a bad name, an unknown type or option, a value that does not fit, two devices that claim
/// the same path, link name or address, and (for a whole set) a missing root disk.
pub fn validate_devices(devices: &DeviceMap, context: DevicesOf) -> Result<BTreeMap<String, Device>, ConfigError> {
    let mut typed = BTreeMap::new();
    for (name, options) in devices {
        validate_name(NameKind::Device, name)?;
        let device = Device::parse(options)
            .and_then(|device| device.check_kind(context).map(|()| device))
            .map_err(|problem| ConfigError::Device { device: name.clone(), problem })?;
        typed.insert(name.clone(), device);
    }
    check_clashes(&typed)?;
    let has_root = typed.values().any(|device| matches!(device, Device::Disk(DiskDevice::Root { .. })));
    match context {
        DevicesOf::Instance(_) if !has_root => Err(ConfigError::NoRootDisk),
        _ => Ok(typed),
    }
}

/// Refuses two devices that lay claim to one thing.
fn check_clashes(devices: &BTreeMap<String, Device>) -> Result<(), ConfigError> {
    let mut claims: BTreeMap<(&'static str, String), &str> = BTreeMap::new();
    for (name, device) in devices {
        for (what, value) in device.claims() {
            match claims.entry((what, value)) {
                Entry::Vacant(free) => {
                    free.insert(name);
                }
                Entry::Occupied(taken) => {
                    return Err(ConfigError::DeviceClash {
                        first: (*taken.get()).to_owned(),
                        second: name.clone(),
                        what,
                        value: taken.key().1.clone(),
                    });
                }
            }
        }
    }
    Ok(())
}

impl Device {
    /// Reads one device's options, `type` among them.
    ///
    /// # Errors
    /// [`DeviceError`] for the first thing that is wrong.
    pub fn parse(options: &Options) -> Result<Self, DeviceError> {
        let kind = get(options, "type").ok_or(DeviceError::NoType)?;
        let Some(row) = TYPES.iter().find(|row| row.name == kind) else {
            let nearest = nearest(kind, TYPES.iter().map(|row| row.name));
            return Err(DeviceError::UnknownType { kind: kind.to_owned(), nearest });
        };
        check_options(row, options)?;
        match row.name {
            name if name == DISK.name => DiskDevice::parse(options).map(Self::Disk),
            name if name == NIC.name => NicDevice::parse(options).map(Self::Nic),
            name if name == UNIX_CHAR.name => UnixCharDevice::parse(options).map(Self::UnixChar),
            _ => Ok(Self::None),
        }
    }

    fn check_kind(&self, context: DevicesOf) -> Result<(), DeviceError> {
        match (self, context) {
            (Self::UnixChar(_), DevicesOf::Instance(InstanceKind::VirtualMachine)) => Err(DeviceError::Contradiction {
                option: "type=unix-char",
                with: "a virtual machine",
                hint: "character devices can be given to containers only",
            }),
            _ => Ok(()),
        }
    }

    /// What only one device of an instance can have.
    fn claims(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Disk(DiskDevice::Root { .. }) => vec![("path", "/".to_owned())],
            Self::Disk(DiskDevice::Host { path, .. }) => vec![("path", path.display().to_string())],
            Self::UnixChar(device) => vec![("path", device.path.display().to_string())],
            Self::Nic(nic) => {
                let fixed = [
                    ("name", nic.name.clone()),
                    ("host_name", nic.host_name.clone()),
                    ("hwaddr", nic.hwaddr.map(|mac| mac.to_string())),
                    ("ipv4.address", nic.ipv4.map(|address| address.to_string())),
                    ("ipv6.address", nic.ipv6.map(|address| address.to_string())),
                ];
                fixed.into_iter().filter_map(|(what, value)| Some((what, value?))).collect()
            }
            Self::None => Vec::new(),
        }
    }
}

/// Checks every option against its row.
fn check_options(kind: &'static DeviceType, options: &Options) -> Result<(), DeviceError> {
    for (option, value) in options.iter().filter(|(option, _)| *option != "type") {
        let Some(row) = kind.find(option) else {
            if let Some(reason) = foreign_device_option(kind.name, option) {
                return Err(DeviceError::UnsupportedOption { option: option.clone(), reason });
            }
            let nearest = nearest(option, kind.options.iter().map(|row| row.name));
            return Err(DeviceError::UnknownOption { kind: kind.name, option: option.clone(), nearest });
        };
        row.kind.check(value).map_err(|problem| DeviceError::BadOption { option: option.clone(), problem })?;
    }
    Ok(())
}

impl DiskDevice {
    fn parse(options: &Options) -> Result<Self, DeviceError> {
        let path = get(options, "path").ok_or(DeviceError::Missing {
            option: "path",
            hint: "write where in the instance the disk appears, such as path=/srv",
        })?;
        let path = clean(path);
        let (pool, source) = (get(options, "pool"), get(options, "source"));
        let readonly = flag(options, "readonly", false)?;
        let limits = match read(options, "limits.max", str::parse)? {
            Some(rate) => DiskLimits { read: Some(rate), write: Some(rate) },
            None => DiskLimits {
                read: read(options, "limits.read", str::parse)?,
                write: read(options, "limits.write", str::parse)?,
            },
        };
        if path == Path::new("/") {
            if source.is_some() {
                return Err(DeviceError::Contradiction {
                    option: "source",
                    with: "path=/",
                    hint: "the root filesystem comes from a pool; leave source out",
                });
            }
            let pool = pool.ok_or(DeviceError::Missing {
                option: "pool",
                hint: "name the storage pool that holds the root filesystem, such as pool=default",
            })?;
            let size = get(options, "size").map(parse_size).transpose();
            let size = size.map_err(|problem| DeviceError::BadOption { option: "size".into(), problem })?;
            return Ok(Self::Root { pool: pool.to_owned(), readonly, size, limits });
        }
        if get(options, "size").is_some() {
            return Err(DeviceError::Contradiction {
                option: "size",
                with: "a path other than /",
                hint: "only the root filesystem has a size of its own",
            });
        }
        if pool.is_some() {
            return Err(DeviceError::Contradiction {
                option: "pool",
                with: "a path other than /",
                hint: "there are no custom volumes; name a directory of the host with source",
            });
        }
        let source = source.ok_or(DeviceError::Missing {
            option: "source",
            hint: "name a directory or file of the host, such as source=/srv/data",
        })?;
        Ok(Self::Host {
            source: clean(source),
            path,
            readonly,
            recursive: flag(options, "recursive", false)?,
            shift: flag(options, "shift", false)?,
            required: flag(options, "required", true)?,
            limits,
        })
    }

    /// How much may be read and written.
    #[must_use]
    pub fn limits(&self) -> DiskLimits {
        let (Self::Root { limits, .. } | Self::Host { limits, .. }) = self;
        *limits
    }
}

impl NicDevice {
    fn parse(options: &Options) -> Result<Self, DeviceError> {
        const BOTH: &str = "a managed network already says how and where; leave one of them out";
        let link = match (get(options, "network"), get(options, "nictype"), get(options, "parent")) {
            (Some(_), Some(_), _) => {
                return Err(DeviceError::Contradiction { option: "nictype", with: "network", hint: BOTH });
            }
            (Some(_), _, Some(_)) => {
                return Err(DeviceError::Contradiction { option: "parent", with: "network", hint: BOTH });
            }
            (Some(network), None, None) => NicLink::Network(network.to_owned()),
            (None, _, Some(parent)) => NicLink::Bridge(parent.to_owned()),
            (None, Some(_), None) => {
                return Err(DeviceError::Missing {
                    option: "parent",
                    hint: "name the bridge to join, such as parent=br0",
                });
            }
            (None, None, None) => {
                return Err(DeviceError::Missing {
                    option: "network",
                    hint: "name the network to join, such as network=duetbr0",
                });
            }
        };
        Ok(Self {
            link,
            name: get(options, "name").map(str::to_owned),
            hwaddr: read(options, "hwaddr", str::parse)?,
            mtu: number(options, "mtu")?,
            host_name: get(options, "host_name").map(str::to_owned),
            // The table has checked their form.
            ipv4: get(options, "ipv4.address").and_then(|text| text.parse().ok()),
            ipv6: get(options, "ipv6.address").and_then(|text| text.parse().ok()),
        })
    }
}

impl UnixCharDevice {
    fn parse(options: &Options) -> Result<Self, DeviceError> {
        let (source, path) = match (get(options, "source"), get(options, "path")) {
            (Some(source), path) => (source, path.unwrap_or(source)),
            (None, Some(path)) => (path, path),
            (None, None) => {
                return Err(DeviceError::Missing {
                    option: "source",
                    hint: "name the device on the host, such as source=/dev/ttyUSB0",
                });
            }
        };
        let path = clean(path);
        if path == Path::new("/") {
            return Err(DeviceError::Contradiction {
                option: "path",
                with: "type=unix-char",
                hint: "/ cannot be a device; write a path such as /dev/ttyUSB0",
            });
        }
        let number_of = match (number(options, "major")?, number(options, "minor")?) {
            (Some(major), Some(minor)) => Some((major, minor)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(DeviceError::Missing { option: "minor", hint: "give both numbers or neither" });
            }
            (None, Some(_)) => {
                return Err(DeviceError::Missing { option: "major", hint: "give both numbers or neither" });
            }
        };
        Ok(Self {
            source: clean(source),
            path,
            number: number_of,
            uid: number(options, "uid")?.unwrap_or(0),
            gid: number(options, "gid")?.unwrap_or(0),
            mode: read(options, "mode", values::parse_mode)?.unwrap_or(0o660),
            required: flag(options, "required", true)?,
        })
    }
}

fn get<'a>(options: &'a Options, option: &str) -> Option<&'a str> {
    options.get(option).map(String::as_str).filter(|value| !value.is_empty())
}

fn read<T>(
    options: &Options,
    option: &str,
    parse: impl FnOnce(&str) -> Result<T, super::ValueError>,
) -> Result<Option<T>, DeviceError> {
    get(options, option)
        .map(|text| parse(text).map_err(|problem| DeviceError::BadOption { option: option.to_owned(), problem }))
        .transpose()
}

fn flag(options: &Options, option: &str, default: bool) -> Result<bool, DeviceError> {
    Ok(read(options, option, values::parse_bool)?.unwrap_or(default))
}

fn number(options: &Options, option: &str) -> Result<Option<u32>, DeviceError> {
    let parsed = read(options, option, |text| values::parse_int(text, 0, i64::from(u32::MAX)))?;
    Ok(parsed.and_then(|number| u32::try_from(number).ok()))
}

/// The path without doubled or trailing slashes and without `.`; `..` was refused before.
fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(text: &str) -> Options {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap())
            .collect()
    }

    fn parse(text: &str) -> Device {
        Device::parse(&options(text)).unwrap()
    }

    fn complaint(text: &str) -> String {
        Device::parse(&options(text)).unwrap_err().to_string()
    }

    fn set(devices: &[(&str, &str)]) -> DeviceMap {
        devices.iter().map(|(name, text)| ((*name).to_owned(), options(text))).collect()
    }

    #[test]
    fn the_default_profile_is_understood() {
        let typed = validate_devices(
            &set(&[("root", "type=disk path=/ pool=default"), ("eth0", "type=nic network=duetbr0 name=eth0")]),
            DevicesOf::Instance(InstanceKind::Container),
        )
        .unwrap();
        assert_eq!(
            typed["root"],
            Device::Disk(DiskDevice::Root {
                pool: "default".into(),
                readonly: false,
                limits: DiskLimits::default(),
                size: None
            })
        );
        assert!(matches!(&typed["eth0"], Device::Nic(nic) if nic.link == NicLink::Network("duetbr0".into())));
    }

    #[test]
    fn options_become_types() {
        let Device::Disk(DiskDevice::Host { source, path, readonly, recursive, shift, required, .. }) =
            parse("type=disk source=/srv//data/ path=/mnt/./x/ readonly=yes shift=1 required=false")
        else {
            panic!("a host disk")
        };
        assert_eq!((source.as_path(), path.as_path()), (Path::new("/srv/data"), Path::new("/mnt/x")));
        assert!(readonly && shift && !recursive && !required);

        let Device::UnixChar(device) = parse("type=unix-char path=/dev/fuse mode=666 uid=5") else {
            panic!("a device")
        };
        assert_eq!(device.source, device.path);
        assert_eq!((device.mode, device.uid, device.number), (0o666, 5, None));

        let Device::Nic(nic) =
            parse("type=nic nictype=bridged parent=br0 hwaddr=10:66:6a:00:00:01 mtu=1400 ipv4.address=10.0.0.2")
        else {
            panic!("a NIC")
        };
        assert_eq!(
            (nic.link, nic.mtu, nic.ipv4),
            (NicLink::Bridge("br0".into()), Some(1400), Some(Ipv4Addr::new(10, 0, 0, 2)))
        );
        assert_eq!(parse("type=none"), Device::None);
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        for (device, sentence) in [
            ("path=/", "the type is missing; write type=disk, type=nic, type=unix-char or type=none"),
            ("type=gpu", "type \"gpu\" is not supported; Duet has disk, nic, unix-char and none"),
            (
                "type=unix-chr path=/dev/x",
                "type \"unix-chr\" is not supported (did you mean \"unix-char\"?); Duet has disk, nic, unix-char and none",
            ),
            ("type=disk", "path is missing; write where in the instance the disk appears, such as path=/srv"),
            (
                "type=disk path=/",
                "pool is missing; name the storage pool that holds the root filesystem, such as pool=default",
            ),
            ("type=disk path=/x", "source is missing; name a directory or file of the host, such as source=/srv/data"),
            ("type=disk path=/x sauce=/y", "disk devices have no option \"sauce\" (did you mean \"source\"?)"),
            (
                "type=disk path=/ pool=default size=lots",
                "size: \"lots\" is not a size; write a number of bytes or one with a unit, such as 512MiB or 2GB",
            ),
            ("type=disk path=/../etc source=/x", "path: \"/../etc\" is not usable: write the path without \"..\""),
            (
                "type=disk path=/x source=y",
                "source: \"y\" is not an absolute path; write one that begins with a slash, such as /srv/data",
            ),
            ("type=nic", "network is missing; name the network to join, such as network=duetbr0"),
            ("type=nic nictype=macvlan parent=eth0", "nictype: \"macvlan\" is not known here; write \"bridged\""),
            ("type=nic nictype=bridged", "parent is missing; name the bridge to join, such as parent=br0"),
            (
                "type=nic network=a parent=b",
                "parent does not go with network; a managed network already says how and where; leave one of them out",
            ),
            ("type=unix-char", "source is missing; name the device on the host, such as source=/dev/ttyUSB0"),
            ("type=unix-char path=/dev/x major=1", "minor is missing; give both numbers or neither"),
            ("type=none path=/", "none devices have no option \"path\""),
        ] {
            assert_eq!(complaint(device), sentence);
        }
    }

    #[test]
    fn a_whole_set_has_one_root_and_no_clashes() {
        let whole = DevicesOf::Instance(InstanceKind::Container);
        let root = ("root", "type=disk path=/ pool=default");
        assert_eq!(validate_devices(&DeviceMap::new(), whole), Err(ConfigError::NoRootDisk));
        assert!(validate_devices(&DeviceMap::new(), DevicesOf::Profile).is_ok());
        let clash = |a, b| validate_devices(&set(&[root, ("a", a), ("b", b)]), whole).unwrap_err().to_string();
        assert_eq!(
            clash("type=disk path=/x source=/1", "type=disk path=//x/ source=/2"),
            "devices \"a\" and \"b\" both use path \"/x\"; one of them must change"
        );
        assert!(clash("type=disk path=/// pool=p", "type=none").contains("path \"/\""));
        assert!(clash("type=nic network=n name=eth0", "type=nic network=n name=eth0").contains("name \"eth0\""));
        assert!(clash("type=disk path=/dev/x source=/1", "type=unix-char path=/dev/x").contains("path"));
        let vm = DevicesOf::Instance(InstanceKind::VirtualMachine);
        assert!(validate_devices(&set(&[root, ("c", "type=unix-char path=/dev/fuse")]), vm).is_err());
        assert!(validate_devices(&set(&[("-bad", "type=none")]), whole).is_err());
    }

    proptest! {
        #[test]
        fn no_device_panics(kind in prop_oneof![Just("disk"), Just("nic"), Just("unix-char"), Just("none")],
            pairs in proptest::collection::btree_map(
                prop_oneof![Just("path"), Just("source"), Just("pool"), Just("network"), Just("nictype"), Just("parent"), Just("major"),
                    Just("minor"), Just("mode"), Just("hwaddr"), Just("mtu"), Just("uid"), Just("size")],
                prop_oneof!["\\PC{0,12}", "/[a-z./]{0,8}", "[0-9]{1,9}", Just("bridged".to_owned()), Just("true".to_owned())], 0..6))
        {
            let mut options: Options = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            options.insert("type".to_owned(), kind.to_owned());
            match Device::parse(&options) {
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
                Ok(Device::Disk(DiskDevice::Host { source, path, .. })) => {
                    for p in [source, path] {
                        prop_assert!(p.is_absolute() && !p.components().any(|c| c == Component::ParentDir));
                    }
                }
                Ok(_) => {}
            }
        }
    }
}
