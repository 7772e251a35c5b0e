//! Tables: boxed, compact or comma separated.

use comfy_table::{ContentArrangement, ContentLineStyle, LineStyle, TableStyle};

/// A line under every row, the names centred: what Incus draws.
const BOXED: TableStyle = TableStyle::new()
    .top_border(LineStyle::new('+', '-', '+', '+'))
    .header_lines(ContentLineStyle::new('|', '|', '|'))
    .header_separator(LineStyle::new('+', '-', '+', '+'))
    .content_lines(ContentLineStyle::new('|', '|', '|'))
    .row_separator(LineStyle::new('+', '-', '+', '+'))
    .bottom_border(LineStyle::new('+', '-', '+', '+'));

/// Rows under named columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Self {
        Self { headers: headers.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row; it has a cell for every column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headers.len());
        self.rows.push(cells);
    }

    /// Sorts the rows by their first cell, then the following ones.
    pub(crate) fn sort(&mut self) {
        self.rows.sort();
    }

    fn drawn(&self, header: bool, style: TableStyle) -> comfy_table::Table {
        let mut table = comfy_table::Table::new();
        table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
        if header {
            table.set_header(self.centred_headers());
        }
        for row in &self.rows {
            table.add_row(row);
        }
        table
    }

    /// The names with so many spaces before them that they stand in the middle, rather to the left.
    fn centred_headers(&self) -> Vec<String> {
        let width = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let centred = |(column, header): (usize, &String)| {
            let cells = self.rows.iter().map(|row| width(&row[column]));
            let widest = cells.max().unwrap_or(0);
            format!("{:indent$}{header}", "", indent = widest.saturating_sub(width(header)) / 2)
        };
        self.headers.iter().enumerate().map(centred).collect()
    }

    /// With lines.
    pub(crate) fn boxed(&self, header: bool) -> String {
        let mut table = self.drawn(header, BOXED);
        if self.rows.is_empty() {
            // The line under the names is the last one already.
            table.style_mut().bottom_border = LineStyle::default();
        }
        format!("{table}\n")
    }

    /// Without lines, two spaces between columns.
    pub(crate) fn compact(&self, header: bool) -> String {
        let table = self.drawn(header, TableStyle::new());
        let mut out = String::new();
        for line in table.lines() {
            out.push(' ');
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// Comma separated, quoted as RFC 4180 and Go's encoding/csv do.
    pub(crate) fn csv(&self, header: bool) -> String {
        let mut out = String::new();
        for row in header.then_some(&self.headers).into_iter().chain(&self.rows) {
            for (index, cell) in row.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                quote(&mut out, cell);
            }
            out.push('\n');
        }
        out
    }
}

/// Appends a field, quoted if it must be.
fn quote(out: &mut String, field: &str) {
    let must = field == "\\." || field.starts_with([' ', '\t']) || field.contains([',', '"', '\n', '\r']);
    if must {
        out.push('"');
        out.push_str(&field.replace('"', "\"\""));
        out.push('"');
    } else {
        out.push_str(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(vec!["c1".into(), "RUNNING".into()]);
        table.row(vec!["c2".into(), "a\nb".into()]);
        table
    }

    #[test]
    fn boxed_as_incus_draws() {
        let expected = "\
+------+---------+
| NAME |  STATE  |
+------+---------+
| c1   | RUNNING |
+------+---------+
| c2   | a       |
|      | b       |
+------+---------+
";
        assert_eq!(sample().boxed(true), expected);
        let empty = Table::new(["NAME", "STATE"]);
        assert_eq!(empty.boxed(true), "+------+-------+\n| NAME | STATE |\n+------+-------+\n");
    }

    #[test]
    fn compact_has_no_lines() {
        assert_eq!(sample().compact(false), "  c1  RUNNING\n  c2  a\n      b\n");
    }

    #[test]
    fn csv_is_quoted_when_needed() {
        let mut table = Table::new(["A", "B"]);
        table.row(vec!["x,y".into(), "say \"hi\"".into()]);
        table.row(vec![" lead".into(), String::new()]);
        assert_eq!(table.csv(true), "A,B\n\"x,y\",\"say \"\"hi\"\"\"\n\" lead\",\n");
    }
}
