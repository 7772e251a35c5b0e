//! `duet operation`.

use clap::Subcommand;

use super::context::{Context, Named as _};
use super::output::{Format, Table, date, print, print_list, to_yaml, yes_no};
use crate::Url;
use crate::api::{Operation as OperationObject, OperationClass, OperationMap};

/// Background operations
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Operation {
    /// Cancel operations
    #[command(visible_alias = "cancel")]
    Delete {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// List operations
    #[command(visible_alias = "ls")]
    List {
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Show an operation as YAML
    Show {
        /// Its id
        id: String,
    },
}

impl Operation {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Delete { ids } => {
                for id in &ids {
                    context.client.delete(&Url::new(&["1.0", "operations", id])).await.named(id)?;
                    context.remark(&format!("Operation {id} cancelled"));
                }
                Ok(())
            }
            Self::List { format } => list(context, &format).await,
            Self::Show { id } => {
                let operation: OperationObject =
                    context.client.get(&Url::new(&["1.0", "operations", &id])).await.named(&id)?;
                print(&to_yaml(&operation)?)
            }
        }
    }
}

async fn list(context: &Context, format: &Format) -> anyhow::Result<()> {
    let url = Url::new(&["1.0", "operations"]).query("recursion", "1");
    let by_status: Option<OperationMap> = context.client.get(&url).await?;
    let mut operations: Vec<OperationObject> = by_status.unwrap_or_default().into_values().flatten().collect();
    operations.sort_by_key(|operation| operation.created_at);
    print_list(format, &operations, || {
        let mut table = Table::new(["ID", "TYPE", "DESCRIPTION", "STATE", "CANCELABLE", "CREATED"]);
        for operation in &operations {
            let class = match operation.class {
                OperationClass::Task => "TASK",
                OperationClass::Websocket => "WEBSOCKET",
                OperationClass::Token => "TOKEN",
            };
            table.row(vec![
                operation.id.clone(),
                class.to_owned(),
                operation.description.clone(),
                operation.status.to_uppercase(),
                yes_no(operation.may_cancel),
                date(operation.created_at),
            ]);
        }
        table
    })
}
