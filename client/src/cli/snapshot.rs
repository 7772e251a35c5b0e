//! `duet snapshot`.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::context::{Context, Named as _, found};
use super::lifecycle::confirm;
use super::output::{Column, Format, Table, date, print, print_list, select_columns, to_yaml, yes_no};
use super::parse::{instance_and_snapshot, required_name};
use crate::Url;
use crate::api::{InstanceSnapshot, InstanceSnapshotPost, InstanceSnapshotsPost, Timestamp};

const COLUMNS: &[Column<InstanceSnapshot>] = &[
    Column { letter: 'n', header: "NAME", cell: |s| s.name.clone() },
    Column { letter: 'T', header: "TAKEN AT", cell: |s| date(s.created_at) },
    Column { letter: 'E', header: "EXPIRES AT", cell: |s| date(s.expires_at) },
    Column { letter: 's', header: "STATEFUL", cell: |s| yes_no(s.stateful) },
];

/// Snapshots of instances
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Snapshot {
    Create(Create),
    Delete(Delete),
    #[command(visible_alias = "ls")]
    List(List),
    Rename(Rename),
    Restore(Restore),
    Show(Show),
}

impl Snapshot {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::Delete(command) => command.run(context).await,
            Self::List(command) => command.run(context).await,
            Self::Rename(command) => command.run(context).await,
            Self::Restore(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
        }
    }
}

fn snapshot_url(instance: &str, snapshot: &str) -> Url {
    Url::new(&["1.0", "instances", instance, "snapshots", snapshot])
}

/// "c1 s0" and "c1/s0" both name a snapshot.
fn both<'a>(instance: &'a str, snapshot: Option<&'a str>) -> anyhow::Result<(&'a str, &'a str)> {
    match (instance_and_snapshot(instance)?, snapshot) {
        ((instance, None), Some(snapshot)) if !snapshot.is_empty() => Ok((instance, snapshot)),
        ((instance, Some(snapshot)), None) => Ok((instance, snapshot)),
        _ => bail!("name the instance and the snapshot, such as c1 s0"),
    }
}

/// Take a snapshot of an instance
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The snapshot's name; without it the instance's snapshots.pattern is used
    snapshot: Option<String>,
    /// Replace a snapshot of this name
    #[arg(long)]
    reuse: bool,
    /// Keep it for ever, whatever snapshots.expiry says
    #[arg(long)]
    no_expiry: bool,
    /// Save the running state
    #[arg(long)]
    stateful: bool,
}

impl Create {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let instance = required_name(&self.instance, "instance")?;
        let name = self.snapshot.unwrap_or_default();
        if self.reuse && !name.is_empty() {
            let url = snapshot_url(instance, &name);
            if let Some(outcome) = found(context.client.delete(&url).await)? {
                context.finish(&format!("Deleting {instance}/{name}"), outcome).await?;
            }
        }
        let post = InstanceSnapshotsPost {
            name,
            stateful: self.stateful,
            expires_at: self.no_expiry.then_some(Timestamp::ZERO),
        };
        let outcome = context.client.post(&Url::new(&["1.0", "instances", instance, "snapshots"]), &post).await?;
        context.finish(&format!("Taking a snapshot of {instance}"), outcome).await?;
        Ok(())
    }
}

/// Delete snapshots
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The snapshots
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Ask before each
    #[arg(short, long)]
    interactive: bool,
}

impl Delete {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let targets = match self.snapshots.as_slice() {
            [] => vec![both(&self.instance, None)?],
            names => names.iter().map(|name| both(&self.instance, Some(name))).collect::<anyhow::Result<_>>()?,
        };
        for (instance, snapshot) in targets {
            if self.interactive && !confirm(&format!("Delete {instance}/{snapshot}?"))? {
                continue;
            }
            let outcome = context.client.delete(&snapshot_url(instance, snapshot)).await.named(snapshot)?;
            context.finish(&format!("Deleting {instance}/{snapshot}"), outcome).await?;
        }
        Ok(())
    }
}

/// List an instance's snapshots
#[derive(Debug, Args)]
pub(crate) struct List {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// Columns: n (name), T (taken at), E (expires at), s (stateful)
    #[arg(short, long, default_value = "nTEs")]
    columns: String,
    /// table, compact, csv, json or yaml
    #[arg(short, long, default_value = "table")]
    format: Format,
}

impl List {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let columns = select_columns(&self.columns, COLUMNS)?;
        let instance = required_name(&self.instance, "instance")?;
        let url = Url::new(&["1.0", "instances", instance, "snapshots"]).query("recursion", "1");
        let snapshots: Vec<InstanceSnapshot> = context.client.get(&url).await.named(instance)?;
        print_list(&self.format, &snapshots, || snapshot_table(&columns, &snapshots))
    }
}

/// Snapshots in a table, in the order in which they were taken.
fn snapshot_table(columns: &[&Column<InstanceSnapshot>], snapshots: &[InstanceSnapshot]) -> Table {
    let mut table = Table::new(columns.iter().map(|column| column.header));
    for snapshot in snapshots {
        table.row(columns.iter().map(|column| (column.cell)(snapshot)).collect());
    }
    table
}

/// The table that `duet info` adds.
pub(super) fn full_table(snapshots: &[InstanceSnapshot]) -> Table {
    snapshot_table(&COLUMNS.iter().collect::<Vec<_>>(), snapshots)
}

/// Rename a snapshot
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The snapshot
    snapshot: String,
    /// Its new name
    new_name: String,
}

impl Rename {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (instance, snapshot) = both(&self.instance, Some(&self.snapshot))?;
        let post = InstanceSnapshotPost { name: self.new_name, ..InstanceSnapshotPost::default() };
        let outcome = context.client.post(&snapshot_url(instance, snapshot), &post).await.named(snapshot)?;
        context.finish(&format!("Renaming {instance}/{snapshot}"), outcome).await?;
        Ok(())
    }
}

/// Bring an instance back to a snapshot
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The snapshot
    snapshot: Option<String>,
    /// With the running state
    #[arg(long)]
    stateful: bool,
}

impl Restore {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (instance, snapshot) = both(&self.instance, self.snapshot.as_deref())?;
        let put = serde_json::json!({ "restore": snapshot, "stateful": self.stateful });
        let url = Url::new(&["1.0", "instances", instance]);
        let outcome = context.client.put(&url, &put, None).await.named(snapshot)?;
        let result = context.finish(&format!("Restoring {instance}"), outcome).await;
        result.with_context(|| format!("{instance} was not brought back to {snapshot}"))?;
        Ok(())
    }
}

/// Show a snapshot as YAML
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// The snapshot
    snapshot: Option<String>,
}

impl Show {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (instance, snapshot) = both(&self.instance, self.snapshot.as_deref())?;
        let snapshot: InstanceSnapshot = context.client.get(&snapshot_url(instance, snapshot)).await.named(snapshot)?;
        print(&to_yaml(&snapshot)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ways_to_name_a_snapshot() {
        assert_eq!(both("c1", Some("s0")).unwrap(), ("c1", "s0"));
        assert_eq!(both("c1/s0", None).unwrap(), ("c1", "s0"));
        assert!(both("c1", None).is_err());
        assert!(both("c1/s0", Some("s1")).is_err());
    }
}
