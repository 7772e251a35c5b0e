//! Giving an image's files out, as they came in.

use std::path::PathBuf;

use crate::app::App;
use crate::error::Result;
use crate::inventory::ImageRow;

/// What is sent.
pub struct Export {
    /// The unified file or the metadata file, with the name it is offered under.
    pub meta: (PathBuf, String),
    /// The root filesystem's file.
    pub rootfs: Option<(PathBuf, String)>,
}

/// Finds the files of an image and names for them.
///
/// # Errors
/// Where they cannot be read.
pub fn export(app: &App, row: &ImageRow) -> Result<Export> {
    let files = super::files(app, row);
    let extension = |path: &std::path::Path| {
        duet_images::detect_file(path).map(|format| format.extension()).map_err(|e| super::failure(&e))
    };
    let meta_extension = extension(&files.meta)?;
    match files.rootfs {
        None => Ok(Export { meta: (files.meta, format!("{}{meta_extension}", row.fingerprint)), rootfs: None }),
        Some(rootfs) => {
            let rootfs_extension = extension(&rootfs)?;
            let name = format!("{}{rootfs_extension}", row.fingerprint);
            Ok(Export {
                meta: (files.meta, format!("meta-{}{meta_extension}", row.fingerprint)),
                rootfs: Some((rootfs, name)),
            })
        }
    }
}
