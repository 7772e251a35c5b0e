//! `duet list`.

mod columns;
mod filter;

use clap::Args;

use super::context::Context;
use super::output::{Format, Table, print_list};
use crate::Url;
use crate::api::{Instance, InstanceFull};

use columns::Choice;
use filter::Filter;

/// The columns without --columns.
const DEFAULT_COLUMNS: &str = "ns46tS";

/// The columns with --fast, which need no look at the running instances.
const FAST_COLUMNS: &str = "nsacPt";

/// List instances
///
/// FILTERS are names (or beginnings of them, or patterns with * and ?) and conditions: a property or key and its
/// value, such as status=running, type=container, ipv4=10.1.2.3, user.owner=eva. A condition may give several values
/// separated by commas. An instance is shown if it has one of the names and meets all the conditions.
#[derive(Debug, Args)]
#[command(after_help = columns::help())]
pub(crate) struct List {
    /// Names and conditions
    #[arg(value_name = "FILTERS", add = super::complete::instances())]
    filters: Vec<String>,
    /// Columns, as letters or keys (see below)
    #[arg(short, long, default_value = DEFAULT_COLUMNS)]
    columns: String,
    /// table, compact, csv, json or yaml; the first three also with ",header" or ",noheader"
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Leave out what has to be asked of the running instances (same as --columns=nsacPt)
    #[arg(long)]
    fast: bool,
    /// All projects (there is one)
    #[arg(long)]
    all_projects: bool,
}

impl List {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let _ = self.all_projects;
        let filters = self.filters.iter().map(|text| Filter::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let spec = if self.fast { FAST_COLUMNS } else { self.columns.as_str() };
        let columns = columns::choose(spec)?;
        let objects = matches!(self.format, Format::Json | Format::Yaml);
        let full = !self.fast
            && (objects || columns.iter().any(Choice::needs_state) || filters.iter().any(Filter::needs_state));
        let url = Url::new(&["1.0", "instances"]).query("recursion", if full { "2" } else { "1" });
        if full {
            let mut instances: Vec<InstanceFull> = context.client.get(&url).await?;
            instances.retain(|instance| filter::accepts(&filters, instance));
            print_list(&self.format, &instances, || table(&columns, &instances))
        } else {
            let found: Vec<Instance> = context.client.get(&url).await?;
            let mut instances: Vec<InstanceFull> =
                found.into_iter().map(|instance| InstanceFull { instance, ..InstanceFull::default() }).collect();
            instances.retain(|instance| filter::accepts(&filters, instance));
            let plain: Vec<&Instance> = instances.iter().map(|full| &full.instance).collect();
            print_list(&self.format, &plain, || table(&columns, &instances))
        }
    }
}

fn table(columns: &[Choice], instances: &[InstanceFull]) -> Table {
    let mut table = Table::new(columns.iter().map(Choice::header));
    let mut sorted: Vec<&InstanceFull> = instances.iter().collect();
    sorted.sort_by(|a, b| a.instance.name.cmp(&b.instance.name));
    for instance in sorted {
        table.row(columns.iter().map(|column| column.cell(instance)).collect());
    }
    table
}
