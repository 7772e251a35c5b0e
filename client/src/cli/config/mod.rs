//! `duet config`: the keys of an instance or of the server, devices, image metadata and templates.
//!
//! The first argument of get, set, unset, show and edit is an instance, or is missing for the server. Keys always
//! contain a dot and instance names never do, so `config get core.x` needs no further word.

mod device;
mod metadata;
mod template;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::context::{Context, Named as _};
use super::editor::edit_object;
use super::output::{print, print_line, to_yaml};
use super::parse::{assignments, instance_and_snapshot, local_name};
use crate::Url;
use crate::api::{ConfigMap, Instance, InstancePut, InstanceSnapshot, InstanceSnapshotPut, Server, ServerPut};

pub(crate) use device::{DeviceCommand, Holder};

/// Read and change the configuration of instances and of the server
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Config {
    Device(DeviceGroup),
    Edit(Edit),
    Get(Get),
    Metadata(metadata::Metadata),
    Set(Set),
    Show(Show),
    Template(template::Template),
    Unset(Unset),
}

impl Config {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Device(group) => group.command.run(context, Holder::Instance).await,
            Self::Edit(command) => command.run(context).await,
            Self::Get(command) => command.run(context).await,
            Self::Metadata(command) => command.run(context).await,
            Self::Set(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Template(command) => command.run(context).await,
            Self::Unset(command) => command.run(context).await,
        }
    }
}

/// Devices of an instance
#[derive(Debug, Args)]
pub(crate) struct DeviceGroup {
    #[command(subcommand)]
    command: DeviceCommand,
}

/// Reads an instance for a change that follows.
pub(super) async fn read_instance(context: &Context, name: &str) -> anyhow::Result<(Instance, Option<String>)> {
    Ok(context.client.get_with_etag(&Url::new(&["1.0", "instances", name])).await?)
}

/// Writes an instance's configuration back.
pub(super) async fn write_instance(
    context: &Context,
    name: &str,
    put: &InstancePut,
    etag: Option<&str>,
) -> anyhow::Result<()> {
    let outcome = context.client.put(&Url::new(&["1.0", "instances", name]), put, etag).await?;
    context.finish(&format!("Changing {name}"), outcome).await?;
    Ok(())
}

async fn read_server(context: &Context) -> anyhow::Result<(Server, Option<String>)> {
    Ok(context.client.get_with_etag(&Url::new(&["1.0"])).await?)
}

async fn write_server(context: &Context, config: ConfigMap, etag: Option<&str>) -> anyhow::Result<()> {
    let outcome = context.client.put(&Url::new(&["1.0"]), &ServerPut { config }, etag).await?;
    context.finish("Changing the server", outcome).await?;
    Ok(())
}

/// Splits "instance key..." from "key...": the instance, if there is one, and the rest.
fn split_target(args: &[String]) -> anyhow::Result<(Option<&str>, &[String])> {
    match args {
        [first, rest @ ..] if !first.contains(['.', '=']) => match local_name(first)? {
            "" => Ok((None, rest)),
            name => Ok((Some(name), rest)),
        },
        all => Ok((None, all)),
    }
}

/// Show a configuration key
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// [INSTANCE] KEY
    #[arg(required = true, num_args = 1..=2, value_name = "[INSTANCE] KEY", add = super::complete::instances())]
    args: Vec<String>,
    /// With the profiles applied
    #[arg(short, long)]
    expanded: bool,
    /// KEY is a property, such as description or ephemeral
    #[arg(short, long)]
    property: bool,
}

impl Get {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (target, rest) = match (self.property, self.args.as_slice()) {
            (true, [name, key]) => (Some(local_name(name)?), std::slice::from_ref(key)),
            (true, _) => bail!("a property is read as: duet config get INSTANCE -p PROPERTY"),
            (false, args) => split_target(args)?,
        };
        let [key] = rest else { bail!("name one key, such as limits.memory") };
        let Some(name) = target else {
            let (server, _) = read_server(context).await?;
            return print_line(server.config.get(key).map_or("", String::as_str));
        };
        let (instance, _) = read_instance(context, name).await?;
        if self.property {
            return print_line(&property(&instance, key)?);
        }
        let config = if self.expanded { &instance.expanded_config } else { &instance.config };
        print_line(config.get(key).map_or("", String::as_str))
    }
}

fn property(instance: &Instance, key: &str) -> anyhow::Result<String> {
    Ok(match key {
        "name" => instance.name.clone(),
        "description" => instance.description.clone(),
        "architecture" => instance.architecture.clone(),
        "ephemeral" => instance.ephemeral.to_string(),
        "stateful" => instance.stateful.to_string(),
        "profiles" => instance.profiles.join(","),
        "status" => instance.status.clone(),
        "type" => instance.kind.to_string(),
        "created_at" => instance.created_at.to_string(),
        "last_used_at" => instance.last_used_at.to_string(),
        "location" => instance.location.clone(),
        "project" => instance.project.clone(),
        _ => bail!("an instance has no property {key:?}"),
    })
}

fn set_property(put: &mut InstancePut, key: &str, value: &str) -> anyhow::Result<()> {
    match key {
        "description" => put.description = value.to_owned(),
        "architecture" => put.architecture = value.to_owned(),
        "ephemeral" => {
            put.ephemeral = value.parse().with_context(|| format!("ephemeral is true or false, not {value:?}"))?;
        }
        _ => bail!("the properties that can be set are description, ephemeral and architecture, not {key:?}"),
    }
    Ok(())
}

/// Set configuration keys
///
/// KEY=VALUE may be repeated; a single key can also be written as KEY VALUE. A value of "-" is read from standard
/// input.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// [INSTANCE] KEY=VALUE...
    #[arg(
        required = true,
        value_name = "[INSTANCE] KEY=VALUE",
        add = super::complete::instances(),
        allow_negative_numbers = true
    )]
    args: Vec<String>,
    /// The keys are properties, such as description or ephemeral
    #[arg(short, long)]
    property: bool,
}

impl Set {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (target, rest) = split_target(&self.args)?;
        let pairs = assignments(rest)?;
        let Some(name) = target else {
            if self.property {
                bail!("the server has no properties");
            }
            let (mut server, etag) = read_server(context).await?;
            server.config.extend(pairs);
            return write_server(context, server.config, etag.as_deref()).await;
        };
        let (instance, etag) = read_instance(context, name).await?;
        let mut put = instance.writable();
        for (key, value) in pairs {
            if self.property {
                set_property(&mut put, &key, &value)?;
            } else {
                put.config.insert(key, value);
            }
        }
        write_instance(context, name, &put, etag.as_deref()).await
    }
}

/// Remove a configuration key
#[derive(Debug, Args)]
pub(crate) struct Unset {
    /// [INSTANCE] KEY
    #[arg(required = true, num_args = 1..=2, value_name = "[INSTANCE] KEY", add = super::complete::instances())]
    args: Vec<String>,
    /// KEY is a property
    #[arg(short, long)]
    property: bool,
}

impl Unset {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (target, rest) = split_target(&self.args)?;
        let [key] = rest else { bail!("name one key, such as limits.memory") };
        let Some(name) = target else {
            let (mut server, etag) = read_server(context).await?;
            if server.config.remove(key).is_none() {
                bail!("the server has no key {key:?} set");
            }
            return write_server(context, server.config, etag.as_deref()).await;
        };
        let (instance, etag) = read_instance(context, name).await?;
        let mut put = instance.writable();
        if self.property {
            set_property(&mut put, key, if key == "ephemeral" { "false" } else { "" })?;
        } else if put.config.remove(key).is_none() {
            bail!("{name} has no key {key:?} set");
        }
        write_instance(context, name, &put, etag.as_deref()).await
    }
}

/// Show the configuration of an instance, a snapshot or the server as YAML
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The instance, or INSTANCE/SNAPSHOT; without it the server is shown
    #[arg(add = super::complete::instances())]
    instance: Option<String>,
    /// With the profiles applied
    #[arg(short, long)]
    expanded: bool,
}

impl Show {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = local_name(self.instance.as_deref().unwrap_or_default())?;
        if name.is_empty() {
            let (server, _) = read_server(context).await?;
            return print(&to_yaml(&ServerPut { config: server.config })?);
        }
        if let (instance, Some(snapshot)) = instance_and_snapshot(name)? {
            let url = Url::new(&["1.0", "instances", instance, "snapshots", snapshot]);
            let snapshot: InstanceSnapshot = context.client.get(&url).await.named(snapshot)?;
            return print(&to_yaml(&snapshot)?);
        }
        let (instance, _) = read_instance(context, name).await?;
        let mut shown = instance.writable();
        if self.expanded {
            shown.config = instance.expanded_config;
            shown.devices = instance.expanded_devices;
        }
        print(&to_yaml(&shown)?)
    }
}

/// Edit the configuration of an instance, a snapshot or the server as YAML
#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// The instance, or INSTANCE/SNAPSHOT; without it the server is edited
    #[arg(add = super::complete::instances())]
    instance: Option<String>,
}

impl Edit {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = local_name(self.instance.as_deref().unwrap_or_default())?;
        if name.is_empty() {
            let (server, etag) = read_server(context).await?;
            let edited = edit_object("The server's configuration.", &ServerPut { config: server.config })?;
            return write_server(context, edited.config, etag.as_deref()).await;
        }
        if let (instance, Some(snapshot)) = instance_and_snapshot(name)? {
            let url = Url::new(&["1.0", "instances", instance, "snapshots", snapshot]);
            let (current, etag) = context.client.get_with_etag::<InstanceSnapshot>(&url).await.named(snapshot)?;
            let put = InstanceSnapshotPut { expires_at: current.expires_at };
            let edited = edit_object(&format!("The snapshot {name}."), &put)?;
            let outcome = context.client.put(&url, &edited, etag.as_deref()).await?;
            context.finish(&format!("Changing {name}"), outcome).await?;
            return Ok(());
        }
        let (instance, etag) = read_instance(context, name).await?;
        let help = format!("The configuration of {name}. What profiles add is not shown here.");
        let edited = edit_object(&help, &instance.writable())?;
        write_instance(context, name, &edited, etag.as_deref()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(args: &[&str]) -> (Option<String>, Vec<String>) {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (target, rest) = split_target(&args).unwrap();
        (target.map(str::to_owned), rest.to_vec())
    }

    #[test]
    fn instances_and_keys_are_told_apart() {
        assert_eq!(split(&["core.x", "1"]), (None, vec!["core.x".into(), "1".into()]));
        assert_eq!(split(&["core.x=1"]), (None, vec!["core.x=1".into()]));
        assert_eq!(split(&["c1", "user.x=1"]), (Some("c1".into()), vec!["user.x=1".into()]));
        assert_eq!(split(&["local:c1", "user.x"]), (Some("c1".into()), vec!["user.x".into()]));
        assert_eq!(split(&["local:", "user.x"]), (None, vec!["user.x".into()]));
    }

    #[test]
    fn properties() {
        let mut put = InstancePut::default();
        set_property(&mut put, "ephemeral", "true").unwrap();
        set_property(&mut put, "description", "x y").unwrap();
        assert!(put.ephemeral);
        assert_eq!(put.description, "x y");
        assert!(set_property(&mut put, "ephemeral", "maybe").is_err());
        assert!(set_property(&mut put, "name", "c2").is_err());
    }
}
