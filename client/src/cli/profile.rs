//! `duet profile`.

use anyhow::bail;
use clap::{Args, Subcommand};

use super::config::{DeviceCommand, Holder, read_instance, write_instance};
use super::context::{Context, Named as _};
use super::editor::edit_object;
use super::output::{Column, Format, column_table, from_yaml, print, print_line, print_list, select_columns, to_yaml};
use super::parse::{assignments, key_value, required_name};
use crate::Url;
use crate::api::{Profile as ProfileObject, ProfilePost, ProfilePut, ProfilesPost};

const COLUMNS: &[Column<ProfileObject>] = &[
    Column { letter: 'n', header: "NAME", cell: |p| p.name.clone() },
    Column { letter: 'd', header: "DESCRIPTION", cell: |p| p.description.clone() },
    Column { letter: 'u', header: "USED BY", cell: |p| p.used_by.len().to_string() },
    Column { letter: 'e', header: "PROJECT", cell: |p| p.project.clone() },
];

/// Profiles: configuration that instances share
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Profile {
    /// Add a profile to an instance
    Add {
        /// The instance
        #[arg(add = super::complete::instances())]
        instance: String,
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
    },
    /// Give an instance exactly these profiles
    #[command(visible_alias = "apply")]
    Assign {
        /// The instance
        #[arg(add = super::complete::instances())]
        instance: String,
        /// The profiles, separated by commas; "" for none
        profiles: String,
    },
    /// Copy a profile
    #[command(visible_alias = "cp")]
    Copy {
        /// The profile
        #[arg(add = super::complete::profiles())]
        source: String,
        /// The copy's name
        target: String,
    },
    /// Create a profile, from YAML on standard input if that is not a terminal
    Create {
        /// Its name
        profile: String,
        /// Its keys
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
        /// Words for people
        #[arg(long)]
        description: Option<String>,
    },
    /// Delete profiles
    #[command(visible_alias = "rm")]
    Delete {
        /// The profiles
        #[arg(required = true, value_name = "PROFILE", add = super::complete::profiles())]
        profiles: Vec<String>,
    },
    Device(DeviceGroup),
    /// Edit a profile as YAML
    Edit {
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
    },
    /// Show a profile's key
    Get {
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
        /// The key
        key: String,
    },
    /// List profiles
    #[command(visible_alias = "ls")]
    List {
        /// Columns: n (name), d (description), u (used by), e (project)
        #[arg(short, long, default_value = "ndu")]
        columns: String,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Take a profile from an instance
    Remove {
        /// The instance
        #[arg(add = super::complete::instances())]
        instance: String,
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
    },
    /// Rename a profile
    #[command(visible_alias = "mv")]
    Rename {
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
        /// Its new name
        new_name: String,
    },
    /// Set a profile's keys
    Set {
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
        /// The keys
        #[arg(required = true, value_name = "KEY=VALUE")]
        config: Vec<String>,
    },
    /// Show a profile as YAML
    Show {
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
    },
    /// Remove a profile's key
    Unset {
        /// The profile
        #[arg(add = super::complete::profiles())]
        profile: String,
        /// The key
        key: String,
    },
}

/// Devices of a profile
#[derive(Debug, Args)]
pub(crate) struct DeviceGroup {
    #[command(subcommand)]
    command: DeviceCommand,
}

fn url(name: &str) -> anyhow::Result<Url> {
    Ok(Url::new(&["1.0", "profiles", required_name(name, "profile")?]))
}

async fn read(context: &Context, name: &str) -> anyhow::Result<(ProfileObject, Option<String>)> {
    context.client.get_with_etag(&url(name)?).await.named(name)
}

async fn write(context: &Context, name: &str, put: &ProfilePut, etag: Option<&str>) -> anyhow::Result<()> {
    let outcome = context.client.put(&url(name)?, put, etag).await?;
    context.finish(&format!("Changing {name}"), outcome).await?;
    Ok(())
}

impl Profile {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add { instance, profile } => {
                let profile = required_name(&profile, "profile")?.to_owned();
                let added = format!("Profile {profile} added to {instance}");
                assign(context, &instance, |profiles| match profiles.contains(&profile) {
                    true => bail!("{instance} has the profile {profile:?} already"),
                    false => {
                        profiles.push(profile.clone());
                        Ok(())
                    }
                })
                .await?;
                context.remark(&added);
                Ok(())
            }
            Self::Remove { instance, profile } => {
                let profile = required_name(&profile, "profile")?.to_owned();
                assign(context, &instance, |profiles| match profiles.iter().position(|name| *name == profile) {
                    None => bail!("{instance} does not have the profile {profile:?}"),
                    Some(at) => {
                        profiles.remove(at);
                        Ok(())
                    }
                })
                .await?;
                context.remark(&format!("Profile {profile} removed from {instance}"));
                Ok(())
            }
            Self::Assign { instance, profiles } => {
                let names: Vec<String> =
                    profiles.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
                assign(context, &instance, |profiles| {
                    profiles.clone_from(&names);
                    Ok(())
                })
                .await?;
                context.remark(&format!("Profiles {} applied to {instance}", names.join(",")));
                Ok(())
            }
            Self::Copy { source, target } => copy(context, &source, &target).await,
            Self::Create { profile, config, description } => create(context, &profile, config, description).await,
            Self::Delete { profiles } => {
                for name in &profiles {
                    let outcome = context.client.delete(&url(name)?).await.named(name)?;
                    context.finish("Deleting", outcome).await?;
                    context.remark(&format!("Profile {name} deleted"));
                }
                Ok(())
            }
            Self::Device(group) => group.command.run(context, Holder::Profile).await,
            Self::Edit { profile } => {
                let (current, etag) = read(context, &profile).await?;
                let edited = edit_object(&format!("The profile {profile}."), &current.writable())?;
                write(context, &profile, &edited, etag.as_deref()).await
            }
            Self::Get { profile, key } => {
                let (current, _) = read(context, &profile).await?;
                print_line(current.config.get(&key).map_or("", String::as_str))
            }
            Self::List { columns, format } => list(context, &columns, &format).await,
            Self::Rename { profile, new_name } => {
                let post = ProfilePost { name: required_name(&new_name, "profile")?.to_owned() };
                let outcome = context.client.post(&url(&profile)?, &post).await.named(&profile)?;
                context.finish("Renaming", outcome).await?;
                context.remark(&format!("Profile {profile} renamed to {new_name}"));
                Ok(())
            }
            Self::Set { profile, config } => {
                let pairs = assignments(&config)?;
                let (current, etag) = read(context, &profile).await?;
                let mut put = current.writable();
                put.config.extend(pairs);
                write(context, &profile, &put, etag.as_deref()).await
            }
            Self::Show { profile } => print(&to_yaml(&read(context, &profile).await?.0)?),
            Self::Unset { profile, key } => {
                let (current, etag) = read(context, &profile).await?;
                let mut put = current.writable();
                if put.config.remove(&key).is_none() {
                    bail!("the profile {profile} has no key {key:?} set");
                }
                write(context, &profile, &put, etag.as_deref()).await
            }
        }
    }
}

/// Changes an instance's list of profiles.
async fn assign(
    context: &Context,
    instance: &str,
    change: impl FnOnce(&mut Vec<String>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = required_name(instance, "instance")?;
    let (current, etag) = read_instance(context, name).await?;
    let mut put = current.writable();
    change(put.profiles.get_or_insert_default())?;
    write_instance(context, name, &put, etag.as_deref()).await
}

async fn copy(context: &Context, source: &str, target: &str) -> anyhow::Result<()> {
    let (current, _) = read(context, source).await?;
    let post = ProfilesPost {
        config: current.config,
        description: current.description,
        devices: current.devices,
        name: required_name(target, "profile")?.to_owned(),
    };
    let outcome = context.client.post(&Url::new(&["1.0", "profiles"]), &post).await?;
    context.finish("Copying", outcome).await?;
    Ok(())
}

async fn create(
    context: &Context,
    name: &str,
    config: Vec<(String, String)>,
    description: Option<String>,
) -> anyhow::Result<()> {
    let mut post: ProfilesPost = match super::launch::piped_input()? {
        Some(text) => from_yaml(&text)?,
        None => ProfilesPost::default(),
    };
    post.name = required_name(name, "profile")?.to_owned();
    post.config.extend(config);
    if let Some(description) = description {
        post.description = description;
    }
    let outcome = context.client.post(&Url::new(&["1.0", "profiles"]), &post).await?;
    context.finish("Creating", outcome).await?;
    context.remark(&format!("Profile {name} created"));
    Ok(())
}

async fn list(context: &Context, columns: &str, format: &Format) -> anyhow::Result<()> {
    let columns = select_columns(columns, COLUMNS)?;
    let url = Url::new(&["1.0", "profiles"]).query("recursion", "1");
    let profiles: Vec<ProfileObject> = context.client.get(&url).await?;
    print_list(format, &profiles, || column_table(&columns, &profiles))
}
