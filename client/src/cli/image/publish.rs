//! `duet publish`: an image from an instance or a snapshot.

use anyhow::{Context as _, bail};
use clap::Args;

use super::alias;
use crate::Url;
use crate::api::{ImagesPost, ImagesPostSource, Instance, InstanceStatePut, StatusCode, Timestamp};
use crate::cli::context::Context;
use crate::cli::lifecycle;
use crate::cli::output::print_line;
use crate::cli::parse::{instance_and_snapshot, key_value};

/// Make an image of an instance or a snapshot
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// INSTANCE or INSTANCE/SNAPSHOT
    #[arg(add = crate::cli::complete::instances())]
    source: String,
    /// Properties of the image
    #[arg(value_name = "KEY=VALUE", value_parser = property)]
    properties: Vec<Property>,
    /// An alias for the image (may be repeated)
    #[arg(long = "alias", value_name = "ALIAS")]
    aliases: Vec<String>,
    /// How to compress it: gzip, xz, zstd, none, ...
    #[arg(long, default_value = "")]
    compression: String,
    /// When it expires, such as 2027-01-31T12:00:00Z
    #[arg(long)]
    expire: Option<Timestamp>,
    /// Stop the instance for it, and start it again
    #[arg(short, long)]
    force: bool,
    /// Let untrusted clients have it
    #[arg(long)]
    public: bool,
    /// Take the aliases from images that have them
    #[arg(long)]
    reuse: bool,
}

/// A property, or the remote that there is.
#[derive(Debug, Clone)]
enum Property {
    Pair(String, String),
    Local,
}

fn property(text: &str) -> Result<Property, String> {
    match text {
        "local:" => Ok(Property::Local),
        text => key_value(text).map(|(key, value)| Property::Pair(key, value)),
    }
}

impl Publish {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (instance, snapshot) = instance_and_snapshot(&self.source)?;
        for name in &self.aliases {
            alias::check_free(context, name, self.reuse).await?;
        }
        let stopped = match snapshot {
            None => self.stop(context, instance).await?,
            Some(_) => false,
        };
        let result = self.publish(context, instance, snapshot).await;
        if stopped {
            lifecycle::start(context, instance).await?;
        }
        let fingerprint = result?;
        for name in &self.aliases {
            alias::point(context, name, &fingerprint, self.reuse).await?;
        }
        print_line(&format!("Instance published with fingerprint: {fingerprint}"))
    }

    /// Stops a running instance if that is allowed; true if it was.
    async fn stop(&self, context: &Context, name: &str) -> anyhow::Result<bool> {
        let instance: Instance = context.client.get(&Url::new(&["1.0", "instances", name])).await?;
        if instance.status_code == StatusCode::Stopped {
            return Ok(false);
        }
        if !self.force {
            bail!("{name} is running; stop it first, publish a snapshot of it, or say --force to have it stopped");
        }
        if instance.ephemeral {
            bail!("{name} is ephemeral: stopping it would delete it; publish a snapshot of it");
        }
        let put = InstanceStatePut { action: "stop".into(), timeout: -1, ..InstanceStatePut::default() };
        let outcome = context.client.put(&Url::new(&["1.0", "instances", name, "state"]), &put, None).await?;
        context.finish(&format!("Stopping {name}"), outcome).await?;
        Ok(true)
    }

    async fn publish(&self, context: &Context, instance: &str, snapshot: Option<&str>) -> anyhow::Result<String> {
        let properties: std::collections::BTreeMap<String, String> = self
            .properties
            .iter()
            .filter_map(|property| match property {
                Property::Pair(key, value) => Some((key.clone(), value.clone())),
                Property::Local => None,
            })
            .collect();
        let post = ImagesPost {
            properties: (!properties.is_empty()).then_some(properties),
            public: self.public,
            expires_at: self.expire.unwrap_or_default(),
            source: Some(ImagesPostSource {
                kind: if snapshot.is_some() { "snapshot".into() } else { "instance".into() },
                name: snapshot.map_or(instance.to_owned(), |snapshot| format!("{instance}/{snapshot}")),
                ..ImagesPostSource::default()
            }),
            compression_algorithm: self.compression.clone(),
            ..ImagesPost::default()
        };
        let outcome = context.client.post(&Url::new(&["1.0", "images"]), &post).await?;
        let operation = context.finish("Publishing instance", outcome).await?;
        let operation = operation.context("the daemon made the image without an operation; it speaks another API")?;
        Ok(operation.metadata_text("fingerprint").unwrap_or_default().to_owned())
    }
}
