//! `duet image list`.

use clap::Args;

use crate::Url;
use crate::api::Image;
use crate::cli::context::Context;
use crate::cli::output::{Column, Format, bytes_iec, column_table, date, print_list, select_columns};
use crate::cli::parse::{glob_matches, local_name};

const COLUMNS: &[Column<Image>] = &[
    Column { letter: 'l', header: "ALIAS", cell: first_alias },
    Column { letter: 'L', header: "ALIASES", cell: |i| names(i).join("\n") },
    Column { letter: 'f', header: "FINGERPRINT", cell: |i| i.fingerprint.chars().take(12).collect() },
    Column { letter: 'F', header: "FINGERPRINT", cell: |i| i.fingerprint.clone() },
    Column { letter: 'p', header: "PUBLIC", cell: |i| if i.public { "yes".into() } else { "no".into() } },
    Column { letter: 'd', header: "DESCRIPTION", cell: |i| property(i, "description") },
    Column { letter: 'a', header: "ARCHITECTURE", cell: |i| i.architecture.clone() },
    Column { letter: 't', header: "TYPE", cell: |i| i.kind.to_uppercase() },
    Column { letter: 's', header: "SIZE", cell: |i| bytes_iec(i.size.unsigned_abs()) },
    Column { letter: 'u', header: "UPLOAD DATE", cell: |i| date(i.uploaded_at) },
    Column { letter: 'e', header: "PROJECT", cell: |i| i.project.clone() },
];

/// List images
///
/// FILTERS are aliases, fingerprints (or beginnings of them, or patterns with * and ?) and properties, such as
/// os=debian.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Aliases, fingerprints and properties
    #[arg(value_name = "FILTERS", add = crate::cli::complete::images())]
    filters: Vec<String>,
    /// Columns: l (alias), L (aliases), f (fingerprint), F (whole fingerprint), p (public), d (description),
    /// a (architecture), t (type), s (size), u (upload date), e (project)
    #[arg(short, long, default_value = "lfpdatsu")]
    columns: String,
    /// table, compact, csv, json or yaml
    #[arg(short, long, default_value = "table")]
    format: Format,
}

impl List {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let columns = select_columns(&self.columns, COLUMNS)?;
        for filter in &self.filters {
            local_name(filter)?;
        }
        let url = Url::new(&["1.0", "images"]).query("recursion", "1");
        let mut images: Vec<Image> = context.client.get(&url).await?;
        images.retain(|image| accepts(&self.filters, image));
        print_list(&self.format, &images, || column_table(&columns, &images))
    }
}

fn names(image: &Image) -> Vec<&str> {
    image.aliases.iter().map(|alias| alias.name.as_str()).collect()
}

fn first_alias(image: &Image) -> String {
    match names(image).as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [one, rest @ ..] => format!("{one} ({} more)", rest.len()),
    }
}

fn property(image: &Image, key: &str) -> String {
    image.properties.get(key).cloned().unwrap_or_default()
}

/// Whether an image has one of the names (if any are given) and all the properties.
fn accepts(filters: &[String], image: &Image) -> bool {
    let mut wanted = filters.iter().filter(|filter| !filter.contains('=')).peekable();
    let named = wanted.peek().is_none()
        || wanted.any(|filter| {
            let filter = local_name(filter).unwrap_or_default();
            image.fingerprint.starts_with(filter)
                || names(image).iter().any(|name| name.starts_with(filter) || glob_matches(filter, name))
        });
    named
        && filters.iter().filter_map(|filter| filter.split_once('=')).all(|(key, value)| match key {
            "architecture" if image.architecture == value => true,
            "type" => image.kind == value,
            "public" => image.public.to_string() == value,
            _ => image.properties.get(key).is_some_and(|actual| glob_matches(value, actual)),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ImageAlias;

    #[test]
    fn filters() {
        let alias = |name: &str| ImageAlias { name: name.into(), description: String::new() };
        let image = Image {
            fingerprint: "abcdef".into(),
            architecture: "x86_64".into(),
            kind: "container".into(),
            aliases: vec![alias("debian/13"), alias("trixie")],
            properties: [("os".to_owned(), "debian".to_owned())].into(),
            ..Image::default()
        };
        let shown = |filters: &[&str]| accepts(&filters.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>(), &image);
        assert!(shown(&[]));
        assert!(shown(&["debian"]));
        assert!(shown(&["tri*", "os=debian"]));
        assert!(shown(&["local:abc", "type=container", "architecture=x86_64"]));
        assert!(!shown(&["ubuntu"]));
        assert!(!shown(&["debian", "os=ubuntu"]));
        assert_eq!(first_alias(&image), "debian/13 (1 more)");
    }
}
