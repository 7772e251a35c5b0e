//! The value of `--format`.

use std::str::FromStr;

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Drawn with lines.
    Table {
        /// Whether column names are shown.
        header: bool,
    },
    /// The same without lines.
    Compact {
        /// Whether column names are shown.
        header: bool,
    },
    /// Comma separated.
    Csv {
        /// Whether column names are shown.
        header: bool,
    },
    /// The API's objects as JSON.
    Json,
    /// The API's objects as YAML.
    Yaml,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, modifier) = match text.split_once(',') {
            Some((kind, modifier)) => (kind, Some(modifier)),
            None => (text, None),
        };
        let header = match (kind, modifier) {
            (_, None) => kind != "csv",
            ("table" | "compact" | "csv", Some("header")) => true,
            ("table" | "compact" | "csv", Some("noheader")) => false,
            _ => return Err(format!("{text:?}: only table, compact and csv take \",header\" or \",noheader\"")),
        };
        match kind {
            "table" => Ok(Self::Table { header }),
            "compact" => Ok(Self::Compact { header }),
            "csv" => Ok(Self::Csv { header }),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            _ => Err("the formats are table, compact, csv, json and yaml".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!("table".parse(), Ok(Format::Table { header: true }));
        assert_eq!("csv".parse(), Ok(Format::Csv { header: false }));
        assert_eq!("csv,header".parse(), Ok(Format::Csv { header: true }));
        assert_eq!("compact,noheader".parse(), Ok(Format::Compact { header: false }));
        assert!("json,header".parse::<Format>().is_err());
        assert!("xml".parse::<Format>().is_err());
    }
}
