//! `duet storage`.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Subcommand;
use serde::Serialize;

use super::context::{Context, Named as _};
use super::editor::edit_object;
use super::output::{
    Column, Format, bytes_iec, column_table, from_yaml, print, print_line, print_list, select_columns, to_yaml,
};
use super::parse::{assignments, key_value, required_name};
use crate::Url;
use crate::api::{StoragePool, StoragePoolPut, StoragePoolResources, StoragePoolsPost};

const COLUMNS: &[Column<StoragePool>] = &[
    Column { letter: 'n', header: "NAME", cell: |p| p.name.clone() },
    Column { letter: 'D', header: "DRIVER", cell: |p| p.driver.clone() },
    Column { letter: 'd', header: "DESCRIPTION", cell: |p| p.description.clone() },
    Column { letter: 'u', header: "USED BY", cell: |p| p.used_by.len().to_string() },
    Column { letter: 's', header: "STATE", cell: |p| p.status.to_uppercase() },
    Column { letter: 'S', header: "SOURCE", cell: |p| p.config.get("source").cloned().unwrap_or_default() },
];

/// Storage pools
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Storage {
    /// Create a pool, from YAML on standard input if that is not a terminal
    Create {
        /// Its name
        pool: String,
        /// Its driver, such as overlay
        driver: String,
        /// Its keys
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
        /// Words for people
        #[arg(long)]
        description: Option<String>,
    },
    /// Delete pools
    #[command(visible_alias = "rm")]
    Delete {
        /// The pools
        #[arg(required = true, value_name = "POOL", add = super::complete::pools())]
        pools: Vec<String>,
    },
    /// Edit a pool as YAML
    Edit {
        /// The pool
        #[arg(add = super::complete::pools())]
        pool: String,
    },
    /// Show a pool's key
    Get {
        /// The pool
        #[arg(add = super::complete::pools())]
        pool: String,
        /// The key
        key: String,
    },
    /// Show how full a pool is and who uses it
    Info {
        /// The pool
        #[arg(add = super::complete::pools())]
        pool: String,
        /// Exact bytes
        #[arg(long)]
        bytes: bool,
    },
    /// List pools
    #[command(visible_alias = "ls")]
    List {
        /// Columns: n (name), D (driver), d (description), u (used by), s (state), S (source)
        #[arg(short, long, default_value = "nDdus")]
        columns: String,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Set a pool's keys
    Set {
        /// The pool
        #[arg(add = super::complete::pools())]
        pool: String,
        /// The keys
        #[arg(required = true, value_name = "KEY=VALUE")]
        config: Vec<String>,
    },
    /// Show a pool as YAML
    Show {
        /// The pool
        #[arg(add = super::complete::pools())]
        pool: String,
    },
    /// Remove a pool's key
    Unset {
        /// The pool
        #[arg(add = super::complete::pools())]
        pool: String,
        /// The key
        key: String,
    },
}

fn url(name: &str) -> anyhow::Result<Url> {
    Ok(Url::new(&["1.0", "storage-pools", required_name(name, "pool")?]))
}

async fn read(context: &Context, name: &str) -> anyhow::Result<(StoragePool, Option<String>)> {
    context.client.get_with_etag(&url(name)?).await.named(name)
}

async fn write(context: &Context, name: &str, put: &StoragePoolPut, etag: Option<&str>) -> anyhow::Result<()> {
    let outcome = context.client.put(&url(name)?, put, etag).await?;
    context.finish(&format!("Changing {name}"), outcome).await?;
    Ok(())
}

impl Storage {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Create { pool, driver, config, description } => {
                let mut post: StoragePoolsPost = match super::launch::piped_input()? {
                    Some(text) => from_yaml(&text)?,
                    None => StoragePoolsPost::default(),
                };
                post.name = required_name(&pool, "pool")?.to_owned();
                post.driver = driver;
                post.config.extend(config);
                if let Some(description) = description {
                    post.description = description;
                }
                let outcome = context.client.post(&Url::new(&["1.0", "storage-pools"]), &post).await?;
                context.finish(&format!("Creating {pool}"), outcome).await?;
                context.remark(&format!("Storage pool {pool} created"));
                Ok(())
            }
            Self::Delete { pools } => {
                for name in &pools {
                    let outcome = context.client.delete(&url(name)?).await.named(name)?;
                    context.finish(&format!("Deleting {name}"), outcome).await?;
                    context.remark(&format!("Storage pool {name} deleted"));
                }
                Ok(())
            }
            Self::Edit { pool } => {
                let (current, etag) = read(context, &pool).await?;
                let put = StoragePoolPut { config: current.config, description: current.description };
                let edited = edit_object(&format!("The storage pool {pool}."), &put)?;
                write(context, &pool, &edited, etag.as_deref()).await
            }
            Self::Get { pool, key } => {
                let (current, _) = read(context, &pool).await?;
                print_line(current.config.get(&key).map_or("", String::as_str))
            }
            Self::Info { pool, bytes } => info(context, &pool, bytes).await,
            Self::List { columns, format } => list(context, &columns, &format).await,
            Self::Set { pool, config } => {
                let pairs = assignments(&config)?;
                let (mut current, etag) = read(context, &pool).await?;
                current.config.extend(pairs);
                let put = StoragePoolPut { config: current.config, description: current.description };
                write(context, &pool, &put, etag.as_deref()).await
            }
            Self::Show { pool } => print(&to_yaml(&read(context, &pool).await?.0)?),
            Self::Unset { pool, key } => {
                let (mut current, etag) = read(context, &pool).await?;
                if current.config.remove(&key).is_none() {
                    bail!("the storage pool {pool} has no key {key:?} set");
                }
                let put = StoragePoolPut { config: current.config, description: current.description };
                write(context, &pool, &put, etag.as_deref()).await
            }
        }
    }
}

async fn list(context: &Context, columns: &str, format: &Format) -> anyhow::Result<()> {
    let columns = select_columns(columns, COLUMNS)?;
    let url = Url::new(&["1.0", "storage-pools"]).query("recursion", "1");
    let pools: Vec<StoragePool> = context.client.get(&url).await?;
    print_list(format, &pools, || column_table(&columns, &pools))
}

/// What `storage info` prints.
#[derive(Serialize)]
struct Info {
    info: BTreeMap<&'static str, String>,
    #[serde(rename = "used by")]
    used_by: BTreeMap<String, Vec<String>>,
}

async fn info(context: &Context, name: &str, bytes: bool) -> anyhow::Result<()> {
    let (pool, _) = read(context, name).await?;
    let url = Url::new(&["1.0", "storage-pools", &pool.name, "resources"]);
    let resources: StoragePoolResources = context.client.get(&url).await?;
    let size = |value: u64| if bytes { value.to_string() } else { bytes_iec(value) };
    let info = BTreeMap::from([
        ("description", pool.description),
        ("driver", pool.driver),
        ("name", pool.name),
        ("space used", size(resources.space.used)),
        ("total space", size(resources.space.total)),
    ]);
    let mut used_by: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for url in &pool.used_by {
        // "/1.0/instances/c1"
        let mut parts = url.trim_start_matches("/1.0/").splitn(2, '/');
        if let (Some(kind), Some(name)) = (parts.next(), parts.next()) {
            used_by.entry(kind.to_owned()).or_default().push(name.to_owned());
        }
    }
    used_by.values_mut().for_each(|names| names.sort());
    print(&to_yaml(&Info { info, used_by })?)
}
