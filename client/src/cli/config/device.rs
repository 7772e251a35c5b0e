//! Devices of instances and profiles: the same commands for both.

use anyhow::bail;
use clap::Subcommand;

use super::{read_instance, write_instance};
use crate::Url;
use crate::api::{DevicesMap, InstancePut, Profile, ProfilePut};
use crate::cli::context::{Context, Named as _};
use crate::cli::output::{print, print_line, to_yaml};
use crate::cli::parse::{assignments, key_value, required_name};

/// What has the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// An instance.
    Instance,
    /// A profile.
    Profile,
}

/// Devices
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum DeviceCommand {
    /// Add a device
    Add {
        /// The instance or profile
        holder: String,
        /// The device's name
        device: String,
        /// Its type: disk, nic, unix-char, ...
        #[arg(value_name = "TYPE")]
        kind: String,
        /// Its options
        #[arg(value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
    /// Show a device's option
    Get {
        /// The instance or profile
        holder: String,
        /// The device's name
        device: String,
        /// The option
        key: String,
    },
    /// List devices
    #[command(alias = "ls")]
    List {
        /// The instance or profile
        holder: String,
    },
    /// Copy a profile's device to the instance and change options of it
    Override {
        /// The instance
        holder: String,
        /// The device's name
        device: String,
        /// The options to change
        #[arg(value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
    /// Remove devices
    #[command(alias = "rm")]
    Remove {
        /// The instance or profile
        holder: String,
        /// The devices' names
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<String>,
    },
    /// Set a device's options
    Set {
        /// The instance or profile
        holder: String,
        /// The device's name
        device: String,
        /// The options
        #[arg(required = true, value_name = "KEY=VALUE")]
        options: Vec<String>,
    },
    /// Show devices as YAML
    Show {
        /// The instance or profile
        holder: String,
    },
    /// Remove a device's option
    Unset {
        /// The instance or profile
        holder: String,
        /// The device's name
        device: String,
        /// The option
        key: String,
    },
}

/// An instance or profile that was read, to be written back.
enum Held {
    Instance { name: String, put: InstancePut, expanded: DevicesMap, etag: Option<String> },
    Profile { name: String, put: ProfilePut, etag: Option<String> },
}

impl Held {
    async fn read(context: &Context, holder: Holder, name: &str) -> anyhow::Result<Self> {
        match holder {
            Holder::Instance => {
                let name = required_name(name, "instance")?.to_owned();
                let (instance, etag) = read_instance(context, &name).await?;
                let put = instance.writable();
                Ok(Self::Instance { name, put, expanded: instance.expanded_devices, etag })
            }
            Holder::Profile => {
                let name = required_name(name, "profile")?.to_owned();
                let url = Url::new(&["1.0", "profiles", &name]);
                let (profile, etag) = context.client.get_with_etag::<Profile>(&url).await.named(&name)?;
                Ok(Self::Profile { name, put: profile.writable(), etag })
            }
        }
    }

    async fn write(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Instance { name, put, etag, .. } => write_instance(context, &name, &put, etag.as_deref()).await,
            Self::Profile { name, put, etag } => {
                let url = Url::new(&["1.0", "profiles", &name]);
                let outcome = context.client.put(&url, &put, etag.as_deref()).await?;
                context.finish(&format!("Changing {name}"), outcome).await?;
                Ok(())
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Instance { name, .. } | Self::Profile { name, .. } => name,
        }
    }

    fn devices(&mut self) -> &mut DevicesMap {
        match self {
            Self::Instance { put, .. } => &mut put.devices,
            Self::Profile { put, .. } => &mut put.devices,
        }
    }

    /// A device of its own; one that a profile brings is told apart from none at all.
    fn device(&mut self, device: &str) -> anyhow::Result<&mut std::collections::BTreeMap<String, String>> {
        let name = self.name().to_owned();
        if !self.devices().contains_key(device) {
            if let Self::Instance { expanded, .. } = self
                && expanded.contains_key(device)
            {
                bail!(
                    "the device {device:?} of {name} comes from a profile; change it there, or copy it with \
                     \"duet config device override {name} {device}\""
                );
            }
            bail!("{name} has no device {device:?}");
        }
        Ok(self.devices().entry(device.to_owned()).or_default())
    }
}

impl DeviceCommand {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context, holder: Holder) -> anyhow::Result<()> {
        match self {
            Self::Add { holder: name, device, kind, options } => {
                let mut held = Held::read(context, holder, &name).await?;
                if held.devices().contains_key(&device) {
                    bail!("{name} already has a device {device:?}; change it with \"device set\"");
                }
                let mut options = pairs(&options)?;
                options.push(("type".into(), kind));
                held.devices().insert(device.clone(), options.into_iter().collect());
                held.write(context).await?;
                context.remark(&format!("Device {device} added to {name}"));
                Ok(())
            }
            Self::Get { holder: name, device, key } => {
                let mut held = Held::read(context, holder, &name).await?;
                print_line(held.device(&device)?.get(&key).map_or("", String::as_str))
            }
            Self::List { holder: name } => {
                let mut held = Held::read(context, holder, &name).await?;
                held.devices().keys().try_for_each(|device| print_line(device))
            }
            Self::Override { holder: name, device, options } => {
                override_device(context, holder, &name, &device, &options).await
            }
            Self::Remove { holder: name, devices } => {
                let mut held = Held::read(context, holder, &name).await?;
                for device in &devices {
                    held.device(device)?;
                    held.devices().remove(device);
                }
                held.write(context).await?;
                for device in &devices {
                    context.remark(&format!("Device {device} removed from {name}"));
                }
                Ok(())
            }
            Self::Set { holder: name, device, options } => {
                let mut held = Held::read(context, holder, &name).await?;
                held.device(&device)?.extend(assignments(&options)?);
                held.write(context).await
            }
            Self::Show { holder: name } => {
                let mut held = Held::read(context, holder, &name).await?;
                print(&to_yaml(held.devices())?)
            }
            Self::Unset { holder: name, device, key } => {
                let mut held = Held::read(context, holder, &name).await?;
                if held.device(&device)?.remove(&key).is_none() {
                    bail!("the device {device:?} of {name} has no option {key:?}");
                }
                held.write(context).await
            }
        }
    }
}

fn pairs(options: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    options.iter().map(|option| key_value(option).map_err(anyhow::Error::msg)).collect()
}

async fn override_device(
    context: &Context,
    holder: Holder,
    name: &str,
    device: &str,
    options: &[String],
) -> anyhow::Result<()> {
    let mut held = Held::read(context, holder, name).await?;
    let Held::Instance { put, expanded, .. } = &mut held else {
        bail!("only an instance can override a profile's device");
    };
    if put.devices.contains_key(device) {
        bail!("{name} already has its own device {device:?}; change it with \"device set\"");
    }
    let Some(mut copy) = expanded.get(device).cloned() else {
        bail!("no profile of {name} has a device {device:?}");
    };
    copy.extend(pairs(options)?);
    put.devices.insert(device.to_owned(), copy);
    held.write(context).await?;
    context.remark(&format!("Device {device} overridden for {name}"));
    Ok(())
}
