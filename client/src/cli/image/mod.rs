//! `duet image` and `duet publish`.

mod alias;
mod build;
mod list;
mod publish;
mod transfer;

use std::fmt::Write as _;

use clap::Subcommand;

use super::context::{Context, found};
use super::editor::edit_object;
use super::info::date_or_never;
use super::output::{bytes_iec, date, print, print_line, to_yaml};
use super::parse::required_name;
use crate::Url;
use crate::api::{Image as ImageObject, ImageAliasesEntry, ImagePut};

pub(crate) use publish::Publish;

/// Images
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Image {
    Alias(alias::AliasGroup),
    Build(build::Build),
    /// Delete images
    #[command(visible_alias = "rm")]
    Delete {
        /// The images: aliases or fingerprints
        #[arg(required = true, value_name = "IMAGE", add = super::complete::images())]
        images: Vec<String>,
    },
    /// Edit an image's properties as YAML
    Edit {
        /// The image
        #[arg(add = super::complete::images())]
        image: String,
    },
    Export(transfer::Export),
    /// Show an image's property
    GetProperty {
        /// The image
        #[arg(add = super::complete::images())]
        image: String,
        /// The property
        key: String,
    },
    Import(transfer::Import),
    /// Show an image
    Info {
        /// The image
        #[arg(add = super::complete::images())]
        image: String,
    },
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Set an image's property
    SetProperty {
        /// The image
        #[arg(add = super::complete::images())]
        image: String,
        /// The property
        key: String,
        /// Its value
        value: String,
    },
    /// Show an image as YAML
    Show {
        /// The image
        #[arg(add = super::complete::images())]
        image: String,
    },
    /// Remove an image's property
    UnsetProperty {
        /// The image
        #[arg(add = super::complete::images())]
        image: String,
        /// The property
        key: String,
    },
}

/// The URL of an image by its fingerprint.
fn image_url(fingerprint: &str) -> Url {
    Url::new(&["1.0", "images", fingerprint])
}

/// What an alias points at; a name that is no alias is taken for a fingerprint or the beginning of one.
async fn resolve(context: &Context, image: &str) -> anyhow::Result<String> {
    let name = required_name(image, "image")?;
    let url = Url::new(&["1.0", "images", "aliases", name]);
    let alias = found(context.client.get::<ImageAliasesEntry>(&url).await)?;
    Ok(alias.map_or_else(|| name.to_owned(), |alias| alias.target))
}

async fn read(context: &Context, image: &str) -> anyhow::Result<(ImageObject, Option<String>)> {
    Ok(context.client.get_with_etag(&image_url(&resolve(context, image).await?)).await?)
}

async fn write(context: &Context, image: &ImageObject, put: &ImagePut, etag: Option<&str>) -> anyhow::Result<()> {
    let outcome = context.client.put(&image_url(&image.fingerprint), put, etag).await?;
    context.finish("Changing the image", outcome).await?;
    Ok(())
}

fn writable(image: &ImageObject) -> ImagePut {
    ImagePut {
        auto_update: image.auto_update,
        properties: image.properties.clone(),
        public: image.public,
        expires_at: image.expires_at,
        profiles: image.profiles.clone(),
    }
}

impl Image {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Alias(command) => command.run(context).await,
            Self::Build(command) => command.run(context).await,
            Self::Delete { images } => {
                for image in &images {
                    let url = image_url(&resolve(context, image).await?);
                    let outcome = context.client.delete(&url).await?;
                    context.finish(&format!("Deleting {image}"), outcome).await?;
                }
                Ok(())
            }
            Self::Edit { image } => {
                let (current, etag) = read(context, &image).await?;
                let edited = edit_object(&format!("The image {}.", current.fingerprint), &writable(&current))?;
                write(context, &current, &edited, etag.as_deref()).await
            }
            Self::Export(command) => command.run(context).await,
            Self::GetProperty { image, key } => {
                let (current, _) = read(context, &image).await?;
                print_line(current.properties.get(&key).map_or("", String::as_str))
            }
            Self::Import(command) => command.run(context).await,
            Self::Info { image } => print(&info_text(&read(context, &image).await?.0)?),
            Self::List(command) => command.run(context).await,
            Self::SetProperty { image, key, value } => {
                let (current, etag) = read(context, &image).await?;
                let mut put = writable(&current);
                put.properties.insert(key, value);
                write(context, &current, &put, etag.as_deref()).await
            }
            Self::Show { image } => print(&to_yaml(&writable(&read(context, &image).await?.0))?),
            Self::UnsetProperty { image, key } => {
                let (current, etag) = read(context, &image).await?;
                let mut put = writable(&current);
                if put.properties.remove(&key).is_none() {
                    anyhow::bail!("the image {image} has no property {key:?}");
                }
                write(context, &current, &put, etag.as_deref()).await
            }
        }
    }
}

fn info_text(image: &ImageObject) -> Result<String, std::fmt::Error> {
    let yes = |value: bool| if value { "yes" } else { "no" };
    let mut out = String::new();
    writeln!(out, "Fingerprint: {}\nSize: {}", image.fingerprint, bytes_iec(image.size.unsigned_abs()))?;
    writeln!(out, "Architecture: {}\nType: {}", image.architecture, image.kind)?;
    writeln!(out, "Public: {}\nTimestamps:", yes(image.public))?;
    if image.created_at.is_set() {
        writeln!(out, "    Created: {}", date(image.created_at))?;
    }
    writeln!(out, "    Uploaded: {}", date(image.uploaded_at))?;
    writeln!(out, "    Expires: {}", date_or_never(image.expires_at))?;
    writeln!(out, "    Last used: {}", date_or_never(image.last_used_at))?;
    writeln!(out, "Properties:")?;
    for (key, value) in &image.properties {
        writeln!(out, "    {key}: {value}")?;
    }
    writeln!(out, "Aliases:")?;
    for alias in &image.aliases {
        match alias.description.as_str() {
            "" => writeln!(out, "    - {}", alias.name)?,
            text => writeln!(out, "    - {} ({text})", alias.name)?,
        }
    }
    writeln!(out, "Cached: {}", yes(image.cached))?;
    writeln!(out, "Auto update: {}", if image.auto_update { "enabled" } else { "disabled" })?;
    if let Some(source) = &image.update_source {
        writeln!(out, "Source:\n    Server: {}\n    Protocol: {}", source.server, source.protocol)?;
        writeln!(out, "    Alias: {}", source.alias)?;
    }
    writeln!(out, "Profiles:")?;
    match image.profiles.as_slice() {
        [] => writeln!(out, "    []")?,
        profiles => profiles.iter().try_for_each(|profile| writeln!(out, "    - {profile}"))?,
    }
    Ok(out)
}
