//! `duet config metadata`: what an instance keeps of its image's metadata.

use clap::{Args, Subcommand};

use crate::Url;
use crate::api::ImageMetadata;
use crate::cli::context::Context;
use crate::cli::editor::edit_object;
use crate::cli::output::{print, to_yaml};
use crate::cli::parse::required_name;

/// Image metadata of an instance
#[derive(Debug, Args)]
pub(crate) struct Metadata {
    #[command(subcommand)]
    command: MetadataCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum MetadataCommand {
    /// Show it as YAML
    Show {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
    },
    /// Edit it as YAML
    Edit {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
    },
}

impl Metadata {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (MetadataCommand::Show { instance } | MetadataCommand::Edit { instance }) = &self.command;
        let name = required_name(instance, "instance")?;
        let url = Url::new(&["1.0", "instances", name, "metadata"]);
        let (metadata, etag) = context.client.get_with_etag::<ImageMetadata>(&url).await?;
        match self.command {
            MetadataCommand::Show { .. } => print(&to_yaml(&metadata)?),
            MetadataCommand::Edit { .. } => {
                let edited = edit_object(&format!("The image metadata of {name}."), &metadata)?;
                let outcome = context.client.put(&url, &edited, etag.as_deref()).await?;
                context.finish(&format!("Changing {name}"), outcome).await?;
                Ok(())
            }
        }
    }
}
