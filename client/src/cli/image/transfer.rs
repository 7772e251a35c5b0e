//! `duet image import` and `duet image export`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::alias;
use crate::cli::context::Context;
use crate::cli::output::{bytes_iec, print_line};
use crate::cli::parse::{key_value, local_name};
use crate::http::ImageUpload;

/// Import an image from its file, or its two files
///
/// A unified image is one tarball; a split one is a tarball of the metadata and a tarball or squashfs of the root.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The image, or the metadata of a split one
    metadata: PathBuf,
    /// The root of a split image, "local:", or a property as KEY=VALUE
    #[arg(value_name = "ROOTFS | KEY=VALUE")]
    rest: Vec<String>,
    /// An alias for the image (may be repeated)
    #[arg(long = "alias", value_name = "ALIAS")]
    aliases: Vec<String>,
    /// Let untrusted clients have it
    #[arg(long)]
    public: bool,
    /// Take the aliases from images that have them
    #[arg(long)]
    reuse: bool,
}

impl Import {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut upload = ImageUpload { metadata: self.metadata.clone(), public: self.public, ..ImageUpload::default() };
        for word in &self.rest {
            if let Ok(pair) = key_value(word)
                && !Path::new(word).exists()
            {
                upload.properties.push(pair);
            } else if word.ends_with(':') {
                local_name(word)?;
            } else if upload.rootfs.is_none() {
                upload.rootfs = Some(word.into());
            } else {
                bail!("{word:?} is one file too many: an image has at most two");
            }
        }
        for alias in &self.aliases {
            alias::check_free(context, alias, self.reuse).await?;
        }
        let total = [Some(&upload.metadata), upload.rootfs.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|metadata| metadata.len())
            .sum::<u64>();
        let sent = Arc::new(AtomicU64::new(0));
        let outcome = with_progress(context, "Importing", Some(total), &sent, {
            context.client.image_import(&upload, Arc::clone(&sent))
        })
        .await?;
        let operation = context.finish("Importing the image", outcome).await?;
        let operation = operation.context("the daemon took the image without an operation; it speaks another API")?;
        let fingerprint = operation.metadata_text("fingerprint").unwrap_or_default().to_owned();
        for name in &self.aliases {
            alias::point(context, name, &fingerprint, self.reuse).await?;
        }
        print_line(&format!("Image imported with fingerprint: {fingerprint}"))
    }
}

/// Export an image to its file, or its two files
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The image: alias or fingerprint
    #[arg(add = crate::cli::complete::images())]
    image: String,
    /// A directory, or the files' name without extension
    #[arg(default_value = ".")]
    target: PathBuf,
}

impl Export {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let fingerprint = super::resolve(context, &self.image).await?;
        let received = Arc::new(AtomicU64::new(0));
        let files = with_progress(context, "Exporting", None, &received, {
            context.client.image_export(&fingerprint, &self.target, Arc::clone(&received))
        })
        .await?;
        for file in &files {
            context.remark(&format!("{} ({})", file.path.display(), bytes_iec(file.size)));
        }
        print_line("Image exported successfully!")
    }
}

/// Runs a transfer and shows how far it is.
async fn with_progress<T, E>(
    context: &Context,
    label: &str,
    total: Option<u64>,
    moved: &AtomicU64,
    transfer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut transfer = std::pin::pin!(transfer);
    let bar = context.spinner(label);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let result = loop {
        tokio::select! {
            biased;
            result = &mut transfer => break result,
            _ = tick.tick(), if !bar.is_hidden() => {
                let moved = moved.load(Ordering::Relaxed);
                bar.set_message(match total {
                    Some(total) if total > 0 => {
                        format!(": {}% of {}", moved.min(total) * 100 / total, bytes_iec(total))
                    }
                    _ => format!(": {}", bytes_iec(moved)),
                });
            }
        }
    };
    bar.finish_and_clear();
    result
}
