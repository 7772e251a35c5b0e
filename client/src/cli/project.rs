//! `duet project`, as far as there are any, and `duet cluster list`.

use anyhow::bail;
use clap::Subcommand;

use super::context::Context;
use super::output::{Format, Table, print, print_list, to_yaml, yes_no};
use super::parse::required_name;
use crate::Url;
use crate::api::{Cluster as ClusterObject, Project as ProjectObject};

/// Projects: there is one, "default"
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Project {
    /// List projects
    #[command(visible_alias = "ls")]
    List {
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Show a project as YAML
    Show {
        /// The project
        #[arg(value_name = "PROJECT")]
        name: String,
    },
}

impl Project {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let url = Url::new(&["1.0", "projects"]).query("recursion", "1");
        let projects: Vec<ProjectObject> = context.client.get(&url).await?;
        match self {
            Self::List { format } => print_list(&format, &projects, || table(&projects)),
            Self::Show { name } => {
                let name = required_name(&name, "project")?;
                match projects.iter().find(|project| project.name == name) {
                    Some(project) => print(&to_yaml(project)?),
                    None => bail!("there is no project {name:?}"),
                }
            }
        }
    }
}

fn table(projects: &[ProjectObject]) -> Table {
    let features = [
        ("IMAGES", "features.images"),
        ("PROFILES", "features.profiles"),
        ("STORAGE VOLUMES", "features.storage.volumes"),
        ("STORAGE BUCKETS", "features.storage.buckets"),
        ("NETWORKS", "features.networks"),
        ("NETWORK ZONES", "features.networks.zones"),
    ];
    let headers = features.iter().map(|(header, _)| *header);
    let mut table = Table::new(["NAME"].into_iter().chain(headers).chain(["DESCRIPTION", "USED BY"]));
    for project in projects {
        let current = if project.name == "default" { " (current)" } else { "" };
        let mut row = vec![format!("{}{current}", project.name)];
        let has = |key: &str| yes_no(project.config.get(key).is_some_and(|value| value == "true"));
        row.extend(features.iter().map(|(_, key)| has(key)));
        row.push(project.description.clone());
        row.push(project.used_by.len().to_string());
        table.row(row);
    }
    table.sort();
    table
}

/// Clusters: not yet
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Cluster {
    /// List members
    #[command(visible_alias = "ls")]
    List,
}

impl Cluster {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::List = self;
        let cluster: ClusterObject = context.client.get(&Url::new(&["1.0", "cluster"])).await?;
        if !cluster.enabled {
            bail!("this server is not part of a cluster");
        }
        bail!("this server is part of a cluster, which this version of duet cannot show")
    }
}
