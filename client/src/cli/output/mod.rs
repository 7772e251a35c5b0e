//! How results are printed: formats, tables, sizes and dates, all as Incus prints them.

mod columns;
mod format;
mod table;
mod units;
mod yaml;

pub(crate) use columns::{Column, column_table, select_columns};
pub(crate) use format::Format;
pub(crate) use table::Table;
pub(crate) use units::{bytes_iec, bytes_si, date, yes_no};
pub(crate) use yaml::{from_yaml, to_yaml};

use std::io::Write as _;

use serde::Serialize;

/// Writes to standard output. A closed pipe is an error like any other; `main` keeps quiet about it.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Writes text.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes text and a line end.
pub(crate) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Prints a list: as a table made by `table`, or the objects themselves as JSON or YAML.
pub(crate) fn print_list<T: Serialize>(
    format: &Format,
    objects: &T,
    table: impl FnOnce() -> Table,
) -> anyhow::Result<()> {
    print(&match format {
        Format::Json => format!("{}\n", serde_json::to_string(objects)?),
        Format::Yaml => to_yaml(objects)?,
        Format::Table { header } => table().boxed(*header),
        Format::Compact { header } => table().compact(*header),
        Format::Csv { header } => table().csv(*header),
    })
}
