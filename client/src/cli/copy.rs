//! copy and move, within the one host.

use anyhow::bail;
use clap::Args;

use super::context::{Context, Named as _};
use super::lifecycle::rename;
use super::output::print_line;
use super::parse::{device_option, instance_and_snapshot, key_value, local_name, required_name};
use crate::Url;
use crate::api::{ConfigMap, DevicesMap, Instance, InstanceSnapshot, InstanceSource, InstanceType, InstancesPost};

/// Copy an instance, or make one from a snapshot
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// INSTANCE or INSTANCE/SNAPSHOT
    #[arg(add = super::complete::instances())]
    source: String,
    /// The copy's name; one is made up if it is left out
    target: Option<String>,
    /// Leave its snapshots behind
    #[arg(long)]
    instance_only: bool,
    /// Delete the copy when it stops
    #[arg(short, long)]
    ephemeral: bool,
    /// The copy's profiles instead of the source's (may be repeated)
    #[arg(short, long = "profile", value_name = "PROFILE", add = super::complete::profiles())]
    profiles: Vec<String>,
    /// No profile at all
    #[arg(long, conflicts_with = "profiles")]
    no_profiles: bool,
    /// A configuration key to change in the copy (may be repeated)
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// An option of a device to change in the copy (may be repeated)
    #[arg(short, long, value_name = "DEVICE,KEY=VALUE", value_parser = device_option)]
    device: Vec<(String, String, String)>,
    /// The storage pool for its root
    #[arg(short, long, add = super::complete::pools())]
    storage: Option<String>,
    /// Copy files that may change meanwhile
    #[arg(long)]
    allow_inconsistent: bool,
    /// Start the copy (there is nothing else to keep running)
    #[arg(long, hide = true)]
    stateless: bool,
    /// Bring an existing copy up to date
    #[arg(long)]
    refresh: bool,
}

/// The parts that a copy takes over from its source.
struct Model {
    architecture: String,
    config: ConfigMap,
    devices: DevicesMap,
    expanded_devices: DevicesMap,
    profiles: Vec<String>,
    description: String,
    kind: InstanceType,
}

impl Copy {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let _ = self.stateless;
        if self.refresh {
            bail!("--refresh is not supported yet: delete the old copy and make a new one");
        }
        let (instance, snapshot) = instance_and_snapshot(&self.source)?;
        let target = local_name(self.target.as_deref().unwrap_or_default())?;
        let mut model = read(context, instance, snapshot).await?;
        let base_image = model.config.get("volatile.base_image").cloned().unwrap_or_default();
        // What belongs to the one instance only: addresses, ids, the last state.
        model.config.retain(|key, _| !key.starts_with("volatile.") || key == "volatile.base_image");
        self.overrides(&mut model)?;
        let post = InstancesPost {
            architecture: model.architecture,
            config: model.config,
            devices: model.devices,
            ephemeral: self.ephemeral,
            profiles: Some(model.profiles),
            description: model.description,
            name: target.to_owned(),
            source: InstanceSource {
                kind: "copy".into(),
                base_image,
                source: local_name(&self.source)?.to_owned(),
                instance_only: self.instance_only,
                allow_inconsistent: self.allow_inconsistent,
                ..InstanceSource::default()
            },
            kind: model.kind,
            ..InstancesPost::default()
        };
        let outcome = context.client.post(&Url::new(&["1.0", "instances"]), &post).await?;
        let operation = context.finish(&format!("Copying {}", self.source), outcome).await?;
        if target.is_empty() {
            let url = operation.as_ref().and_then(|operation| operation.resources.get("instances")?.first());
            let name = url.and_then(|url| url.rsplit('/').next()).unwrap_or_default();
            if !context.quiet {
                print_line(&format!("Instance name is: {name}"))?;
            }
        }
        Ok(())
    }

    /// Applies what the command line changes.
    fn overrides(&self, model: &mut Model) -> anyhow::Result<()> {
        model.config.extend(self.config.iter().cloned());
        if self.no_profiles {
            model.profiles.clear();
        } else if !self.profiles.is_empty() {
            model.profiles.clone_from(&self.profiles);
        }
        for (device, key, value) in &self.device {
            if !model.devices.contains_key(device) {
                let inherited = model.expanded_devices.get(device).cloned().unwrap_or_default();
                model.devices.insert(device.clone(), inherited);
            }
            model.devices.entry(device.clone()).or_default().insert(key.clone(), value.clone());
        }
        if let Some(pool) = &self.storage {
            let root = model.expanded_devices.iter().find(|(_, options)| {
                options.get("type").is_some_and(|kind| kind == "disk")
                    && options.get("path").is_some_and(|path| path == "/")
            });
            let Some((name, options)) = root else { bail!("{} has no root disk", self.source) };
            let mut options = options.clone();
            options.insert("pool".into(), pool.clone());
            model.devices.insert(name.clone(), options);
        }
        match model.devices.iter().find(|(_, options)| !options.contains_key("type")) {
            None => Ok(()),
            Some((device, _)) => bail!("{} has no device {device:?}; give its type as well", self.source),
        }
    }
}

async fn read(context: &Context, name: &str, snapshot: Option<&str>) -> anyhow::Result<Model> {
    let url = Url::new(&["1.0", "instances", name]);
    let instance: Instance = context.client.get(&url).await?;
    let Some(snapshot) = snapshot else {
        return Ok(Model {
            architecture: instance.architecture,
            config: instance.config,
            devices: instance.devices,
            expanded_devices: instance.expanded_devices,
            profiles: instance.profiles,
            description: instance.description,
            kind: instance.kind,
        });
    };
    let url = Url::new(&["1.0", "instances", name, "snapshots", snapshot]);
    let snapshot: InstanceSnapshot = context.client.get(&url).await.named(snapshot)?;
    Ok(Model {
        architecture: snapshot.architecture,
        config: snapshot.config,
        devices: snapshot.devices,
        expanded_devices: snapshot.expanded_devices,
        profiles: snapshot.profiles,
        description: instance.description,
        kind: instance.kind,
    })
}

/// Move an instance: on one host, give it another name
#[derive(Debug, Args)]
pub(crate) struct Move {
    /// Its name
    #[arg(add = super::complete::instances())]
    source: String,
    /// Its new name
    target: String,
}

impl Move {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        if self.source.contains('/') {
            bail!("snapshots are renamed with \"duet snapshot rename\"");
        }
        let target = required_name(&self.target, "instance")?;
        rename(context, required_name(&self.source, "instance")?, target).await
    }
}
