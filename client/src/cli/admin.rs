//! `duet admin`: setting a server up.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::context::{Context, found};
use super::output::{from_yaml, print, to_yaml};
use crate::Url;
use crate::api::{
    InitNetwork, InitPreseed, InitProfile, Network, NetworkPut, NetworksPost, Profile, ProfilePut, ProfilesPost,
    Project, ProjectsPost, Server, ServerPut, StoragePool, StoragePoolPut, StoragePoolsPost,
};

/// Set the server up
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Admin {
    Init(Init),
    Shutdown(Shutdown),
    Waitready(Waitready),
}

impl Admin {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Init(command) => command.run(context).await,
            Self::Shutdown(command) => command.run(context).await,
            Self::Waitready(command) => command.run(context).await,
        }
    }
}

/// Stop all instances, then the daemon
///
/// Instances stop by boot.stop.priority, the highest first, and each is killed after boot.host_shutdown_timeout. Those
/// that ran are started again with the daemon. To stop the daemon alone, end it: instances run on.
#[derive(Debug, Args)]
pub(crate) struct Shutdown {
    /// How long to wait for it, in seconds; 0 for as long as it takes
    #[arg(short, long, default_value_t = 0)]
    timeout: u64,
}

impl Shutdown {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let url = Url::new(&["internal", "shutdown"]);
        let ask = context.client.put(&url, &Value::Null, None);
        if self.timeout == 0 {
            ask.await?;
            return Ok(());
        }
        match tokio::time::timeout(Duration::from_secs(self.timeout), ask).await {
            Ok(outcome) => outcome.map(drop).map_err(Into::into),
            Err(_) => bail!("the daemon still stops its instances after {} seconds; it goes on", self.timeout),
        }
    }
}

/// Wait until the daemon is ready
#[derive(Debug, Args)]
pub(crate) struct Waitready {
    /// How long, in seconds; 0 for as long as it takes
    #[arg(short, long, default_value_t = 0)]
    timeout: u64,
}

/// How often a daemon that is not there yet is tried. There is nothing to be woken by before its socket exists.
const RETRY: Duration = Duration::from_millis(50);

impl Waitready {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let deadline = (self.timeout > 0).then(|| Instant::now() + Duration::from_secs(self.timeout));
        loop {
            let error = match context.client.get::<Value>(&Url::new(&["internal", "ready"])).await {
                Ok(_) => return Ok(()),
                // It answers, which is all that an older daemon without this path can say.
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => error,
            };
            let starting = error.is_unreachable() || error.code().is_some_and(|code| code.as_u16() == 503);
            if !starting {
                return Err(error.into());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(error).with_context(|| format!("the daemon was not ready within {} seconds", self.timeout));
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Show or apply a server's whole configuration
///
/// The daemon sets itself up when it first starts: a storage pool, a network and the default profile. Nothing has to
/// be asked.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Init {
    /// Show the configuration as YAML
    #[arg(long)]
    dump: bool,
    /// Apply a configuration in YAML from standard input
    #[arg(long)]
    preseed: bool,
    /// Check that the defaults are there
    #[arg(long, visible_alias = "auto")]
    minimal: bool,
}

impl Init {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        if self.dump {
            return print(&to_yaml(&dump(context).await?)?);
        }
        if self.preseed {
            let text = std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?;
            return apply(context, from_yaml(&text)?).await;
        }
        check(context).await
    }
}

async fn list<T: serde::de::DeserializeOwned>(context: &Context, collection: &str) -> anyhow::Result<Vec<T>> {
    Ok(context.client.get(&Url::new(&["1.0", collection]).query("recursion", "1")).await?)
}

async fn dump(context: &Context) -> anyhow::Result<InitPreseed> {
    let server: Server = context.client.get(&Url::new(&["1.0"])).await?;
    let networks = list::<Network>(context, "networks").await?.into_iter().filter(|network| network.managed);
    let pools = list::<StoragePool>(context, "storage-pools").await?.into_iter();
    let profiles = list::<Profile>(context, "profiles").await?.into_iter();
    let projects = list::<Project>(context, "projects").await?.into_iter();
    Ok(InitPreseed {
        config: server.config,
        networks: networks
            .map(|n| InitNetwork {
                config: n.config,
                description: n.description,
                name: n.name,
                kind: n.kind,
                project: n.project,
            })
            .collect(),
        storage_pools: pools
            .map(|p| StoragePoolsPost { config: p.config, description: p.description, name: p.name, driver: p.driver })
            .collect(),
        profiles: profiles
            .map(|p| InitProfile {
                config: p.config,
                description: p.description,
                devices: p.devices,
                name: p.name,
                project: String::new(),
            })
            .collect(),
        projects: projects
            .map(|p| ProjectsPost { config: p.config, description: p.description, name: p.name })
            .collect(),
    })
}

/// Creates what is missing and changes what exists; nothing is deleted.
async fn apply(context: &Context, preseed: InitPreseed) -> anyhow::Result<()> {
    if preseed.projects.iter().any(|project| project.name != "default") {
        bail!("there is one project, \"default\"; remove the others from the configuration");
    }
    if !preseed.config.is_empty() {
        let outcome = context.client.patch(&Url::new(&["1.0"]), &ServerPut { config: preseed.config }).await?;
        context.finish("Changing the server", outcome).await?;
    }
    // Networks and pools come first: profiles refer to them.
    for network in preseed.networks {
        let put = NetworkPut { config: network.config.clone(), description: network.description.clone() };
        let name = network.name.clone();
        create_or_change::<Network>(context, "networks", &name, &NetworksPost::from(network), &put).await?;
    }
    for pool in preseed.storage_pools {
        let put = StoragePoolPut { config: pool.config.clone(), description: pool.description.clone() };
        create_or_change::<StoragePool>(context, "storage-pools", &pool.name, &pool, &put).await?;
    }
    for profile in preseed.profiles {
        let post = ProfilesPost::from(profile);
        let put = ProfilePut {
            config: post.config.clone(),
            description: post.description.clone(),
            devices: post.devices.clone(),
        };
        create_or_change::<Profile>(context, "profiles", &post.name, &post, &put).await?;
    }
    Ok(())
}

async fn create_or_change<T: serde::de::DeserializeOwned>(
    context: &Context,
    collection: &str,
    name: &str,
    post: &impl serde::Serialize,
    put: &impl serde::Serialize,
) -> anyhow::Result<()> {
    let url = Url::new(&["1.0", collection, name]);
    let exists = found(context.client.get::<T>(&url).await)?.is_some();
    let result = match exists {
        true => context.client.put(&url, put, None).await,
        false => context.client.post(&Url::new(&["1.0", collection]), post).await,
    };
    let outcome = result.with_context(|| format!("cannot apply {collection}/{name}"))?;
    context.finish(&format!("Applying {name}"), outcome).await?;
    Ok(())
}

async fn check(context: &Context) -> anyhow::Result<()> {
    let pools = list::<StoragePool>(context, "storage-pools").await?;
    let networks = list::<Network>(context, "networks").await?;
    let profile: Profile = context.client.get(&Url::new(&["1.0", "profiles", "default"])).await?;
    let network = networks.iter().find(|network| network.managed);
    for (what, name) in [("storage pool", pools.first().map(|p| &p.name)), ("network", network.map(|n| &n.name))] {
        match name {
            Some(name) => context.remark(&format!("{what}: {name}")),
            None => {
                bail!("there is no {what}; create one with \"duet {} create\"", what.split(' ').next().unwrap_or(what))
            }
        }
    }
    let devices: Vec<&str> = profile.devices.keys().map(String::as_str).collect();
    context.remark(&format!("default profile: {}", devices.join(", ")));
    Ok(())
}
