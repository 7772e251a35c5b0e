//! `duet image alias`.

use anyhow::bail;
use clap::{Args, Subcommand};

use super::resolve;
use crate::Url;
use crate::api::{ImageAliasesEntry, ImageAliasesEntryPost, ImageAliasesEntryPut, ImageAliasesPost};
use crate::cli::context::{Context, Named as _, found};
use crate::cli::output::{Column, Format, column_table, print_list, select_columns};
use crate::cli::parse::required_name;

const COLUMNS: &[Column<ImageAliasesEntry>] = &[
    Column { letter: 'a', header: "ALIAS", cell: |a| a.name.clone() },
    Column { letter: 'f', header: "FINGERPRINT", cell: |a| a.target.chars().take(12).collect() },
    Column { letter: 'F', header: "FINGERPRINT", cell: |a| a.target.clone() },
    Column { letter: 't', header: "TYPE", cell: |a| a.kind.to_uppercase() },
    Column { letter: 'd', header: "DESCRIPTION", cell: |a| a.description.clone() },
];

/// Images' names
#[derive(Debug, Args)]
pub(crate) struct AliasGroup {
    #[command(subcommand)]
    command: Alias,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Alias {
    /// Give an image a name
    Create {
        /// The name
        alias: String,
        /// The image: its fingerprint, or another alias of it
        #[arg(add = crate::cli::complete::images())]
        image: String,
        /// Words for people
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Delete names; the images stay
    #[command(visible_alias = "rm")]
    Delete {
        /// The names
        #[arg(required = true, value_name = "ALIAS", add = crate::cli::complete::images())]
        aliases: Vec<String>,
    },
    /// List names
    #[command(visible_alias = "ls")]
    List {
        /// Names, or beginnings of them
        filters: Vec<String>,
        /// Columns: a (alias), f (fingerprint), F (whole fingerprint), t (type), d (description)
        #[arg(short, long, default_value = "aftd")]
        columns: String,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Change a name
    #[command(visible_alias = "mv")]
    Rename {
        /// The name
        #[arg(add = crate::cli::complete::images())]
        alias: String,
        /// The new name
        new_name: String,
    },
}

fn url(alias: &str) -> anyhow::Result<Url> {
    Ok(Url::new(&["1.0", "images", "aliases", required_name(alias, "alias")?]))
}

/// Points an alias at an image.
pub(super) async fn create(context: &Context, alias: &str, target: &str, description: &str) -> anyhow::Result<()> {
    let post = ImageAliasesPost {
        description: description.to_owned(),
        target: target.to_owned(),
        name: required_name(alias, "alias")?.to_owned(),
        kind: String::new(),
    };
    let outcome = context.client.post(&Url::new(&["1.0", "images", "aliases"]), &post).await?;
    context.finish("Creating the alias", outcome).await?;
    Ok(())
}

impl AliasGroup {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Alias::Create { alias, image, description } => {
                let target = resolve(context, &image).await?;
                create(context, &alias, &target, &description).await
            }
            Alias::Delete { aliases } => {
                for alias in &aliases {
                    let outcome = context.client.delete(&url(alias)?).await.named(alias)?;
                    context.finish("Deleting the alias", outcome).await?;
                }
                Ok(())
            }
            Alias::List { filters, columns, format } => {
                let columns = select_columns(&columns, COLUMNS)?;
                let url = Url::new(&["1.0", "images", "aliases"]).query("recursion", "1");
                let mut aliases: Vec<ImageAliasesEntry> = context.client.get(&url).await?;
                aliases.retain(|alias| filters.is_empty() || filters.iter().any(|f| alias.name.starts_with(f)));
                print_list(&format, &aliases, || column_table(&columns, &aliases))
            }
            Alias::Rename { alias, new_name } => {
                let post = ImageAliasesEntryPost { name: required_name(&new_name, "alias")?.to_owned() };
                let outcome = context.client.post(&url(&alias)?, &post).await.named(&alias)?;
                context.finish("Renaming the alias", outcome).await?;
                Ok(())
            }
        }
    }
}

async fn lookup(context: &Context, alias: &str) -> anyhow::Result<Option<ImageAliasesEntry>> {
    Ok(found(context.client.get(&url(alias)?).await)?)
}

/// Fails early if an alias is taken and may not be.
pub(super) async fn check_free(context: &Context, alias: &str, reuse: bool) -> anyhow::Result<()> {
    match lookup(context, alias).await? {
        Some(taken) if !reuse => {
            let short: String = taken.target.chars().take(12).collect();
            bail!("the alias {alias:?} belongs to the image {short} (--reuse takes it from there)")
        }
        _ => Ok(()),
    }
}

/// Points an alias at a new image, whether it exists or not.
pub(super) async fn point(context: &Context, alias: &str, target: &str, reuse: bool) -> anyhow::Result<()> {
    match lookup(context, alias).await? {
        Some(current) if current.target == target => Ok(()),
        Some(current) if reuse => {
            let put = ImageAliasesEntryPut { description: current.description, target: target.to_owned() };
            let outcome = context.client.put(&url(alias)?, &put, None).await?;
            context.finish("Changing the alias", outcome).await?;
            Ok(())
        }
        _ => create(context, alias, target, "").await,
    }
}
