//! `duet warning`.

use anyhow::bail;
use clap::Subcommand;

use super::context::{Context, Named as _};
use super::output::{Column, Format, Table, date, print, print_list, select_columns, to_yaml};
use crate::Url;
use crate::api::{Warning as WarningObject, WarningPut};

const COLUMNS: &[Column<WarningObject>] = &[
    Column { letter: 'c', header: "COUNT", cell: |w| w.count.to_string() },
    Column { letter: 'l', header: "LAST SEEN", cell: |w| date(w.last_seen_at) },
    Column { letter: 'f', header: "FIRST SEEN", cell: |w| date(w.first_seen_at) },
    Column { letter: 'm', header: "MESSAGE", cell: |w| w.last_message.clone() },
    Column { letter: 'p', header: "PROJECT", cell: |w| w.project.clone() },
    Column { letter: 's', header: "SEVERITY", cell: |w| w.severity.to_uppercase() },
    Column { letter: 'S', header: "STATE", cell: |w| w.status.to_uppercase() },
    Column { letter: 't', header: "TYPE", cell: |w| w.kind.clone() },
    Column { letter: 'u', header: "UUID", cell: |w| w.uuid.clone() },
    Column { letter: 'L', header: "LOCATION", cell: |w| w.location.clone() },
];

/// What the daemon wants you to know
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Warning {
    /// Say that you have seen a warning
    #[command(visible_alias = "ack")]
    Acknowledge {
        /// Its UUID
        uuid: String,
    },
    /// Delete warnings
    #[command(visible_alias = "rm")]
    Delete {
        /// Their UUIDs
        #[arg(value_name = "UUID")]
        uuids: Vec<String>,
        /// All of them
        #[arg(short, long)]
        all: bool,
    },
    /// List warnings
    #[command(visible_alias = "ls")]
    List {
        /// Columns: u (UUID), t (type), S (state), s (severity), c (count), p (project), l (last seen),
        /// f (first seen), m (message), L (location)
        #[arg(short, long, default_value = "utSscpl")]
        columns: String,
        /// With those you have seen and those that are resolved
        #[arg(short, long)]
        all: bool,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Show a warning as YAML
    Show {
        /// Its UUID
        uuid: String,
    },
}

fn url(uuid: &str) -> Url {
    Url::new(&["1.0", "warnings", uuid])
}

async fn all_warnings(context: &Context) -> anyhow::Result<Vec<WarningObject>> {
    Ok(context.client.get(&Url::new(&["1.0", "warnings"]).query("recursion", "1")).await?)
}

impl Warning {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Acknowledge { uuid } => {
                let put = WarningPut { status: "acknowledged".into() };
                context.client.put(&url(&uuid), &put, None).await.named(&uuid)?;
                Ok(())
            }
            Self::Delete { uuids, all } => {
                let uuids = match (all, uuids.is_empty()) {
                    (false, false) => uuids,
                    (true, true) => all_warnings(context).await?.into_iter().map(|warning| warning.uuid).collect(),
                    _ => bail!("either name warnings or say --all"),
                };
                for uuid in &uuids {
                    context.client.delete(&url(uuid)).await.named(uuid)?;
                }
                Ok(())
            }
            Self::List { columns, all, format } => {
                let columns = select_columns(&columns, COLUMNS)?;
                let mut warnings = all_warnings(context).await?;
                warnings.retain(|warning| all || warning.status == "new");
                print_list(&format, &warnings, || {
                    let mut table = Table::new(columns.iter().map(|column| column.header));
                    for warning in &warnings {
                        table.row(columns.iter().map(|column| (column.cell)(warning)).collect());
                    }
                    table
                })
            }
            Self::Show { uuid } => {
                let warning: WarningObject = context.client.get(&url(&uuid)).await.named(&uuid)?;
                print(&to_yaml(&warning)?)
            }
        }
    }
}
