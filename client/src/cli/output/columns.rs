//! Columns chosen by letters (`-c ns4`).

use anyhow::bail;

use super::Table;

/// A column of a list of `T`.
pub(crate) struct Column<T> {
    /// Its letter.
    pub(crate) letter: char,
    /// Its name over the table.
    pub(crate) header: &'static str,
    /// What it shows of one object.
    pub(crate) cell: fn(&T) -> String,
}

/// The columns that a specification such as `nsd` or `n,s,d` names, in its order.
pub(crate) fn select_columns<'a, T>(spec: &str, all: &'a [Column<T>]) -> anyhow::Result<Vec<&'a Column<T>>> {
    let mut chosen = Vec::new();
    for letter in spec.chars().filter(|&c| c != ',') {
        match all.iter().find(|column| column.letter == letter) {
            Some(column) => chosen.push(column),
            None => {
                let known: Vec<String> =
                    all.iter().map(|c| format!("{} ({})", c.letter, c.header.to_lowercase())).collect();
                bail!("unknown column {letter:?} in {spec:?}; the columns are {}", known.join(", "));
            }
        }
    }
    if chosen.is_empty() {
        bail!("--columns needs at least one letter");
    }
    Ok(chosen)
}

/// A table of the columns that a specification names, the rows sorted.
pub(crate) fn column_table<T>(columns: &[&Column<T>], items: &[T]) -> Table {
    let mut table = Table::new(columns.iter().map(|column| column.header));
    for item in items {
        table.row(columns.iter().map(|column| (column.cell)(item)).collect());
    }
    table.sort();
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Column<u32>] = &[
        Column { letter: 'n', header: "NAME", cell: |n| n.to_string() },
        Column { letter: 'd', header: "DOUBLE", cell: |n| (n * 2).to_string() },
    ];

    #[test]
    fn letters_choose_in_order() {
        let chosen = select_columns("d,n", ALL).unwrap();
        assert_eq!(chosen.iter().map(|c| (c.cell)(&4)).collect::<Vec<_>>(), ["8", "4"]);
        assert!(select_columns("nx", ALL).is_err());
        assert!(select_columns(",", ALL).is_err());
    }
}
