//! `duet image build`: an image from a recipe and the distribution's own packages.

use anyhow::Context as _;
use clap::Args;

use crate::Url;
use crate::api::{ImageAlias, ImagesPost, ImagesPostSource};
use crate::cli::context::Context;
use crate::cli::output::print_line;
use crate::cli::parse::{key_value, local_name};

/// Build an image from a distribution's packages
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// What to build: debian/13, debian/12, ubuntu/24.04, ubuntu/22.04 or busybox
    #[arg(add = crate::cli::complete::recipes())]
    recipe: String,
    /// An alias for the image (may be repeated; without it the recipe's name is the alias)
    #[arg(long = "alias", value_name = "ALIAS")]
    aliases: Vec<String>,
    /// The package mirror, as a URL; without it the host's own
    #[arg(long, default_value = "")]
    mirror: String,
    /// Let untrusted clients have it
    #[arg(long)]
    public: bool,
    /// Properties to add
    #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
    properties: Vec<(String, String)>,
}

impl Build {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let recipe = local_name(&self.recipe)?.to_owned();
        let names = if self.aliases.is_empty() { vec![recipe.clone()] } else { self.aliases };
        let alias = |name: String| ImageAlias { name, description: String::new() };
        let post = ImagesPost {
            public: self.public,
            properties: (!self.properties.is_empty()).then(|| self.properties.into_iter().collect()),
            source: Some(ImagesPostSource {
                kind: "build".into(),
                recipe: recipe.clone(),
                mirror: self.mirror,
                ..ImagesPostSource::default()
            }),
            aliases: Some(names.into_iter().map(alias).collect()),
            ..ImagesPost::default()
        };
        let outcome = context.client.post(&Url::new(&["1.0", "images"]), &post).await?;
        let operation = context.finish(&format!("Building {recipe}"), outcome).await?;
        let operation = operation.context("the daemon built the image without an operation; it speaks another API")?;
        let fingerprint = operation.metadata_text("fingerprint").unwrap_or_default();
        print_line(&format!("Image built with fingerprint: {fingerprint}"))
    }
}
