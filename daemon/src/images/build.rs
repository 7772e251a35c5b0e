//! Building an image from a recipe.

use std::sync::Arc;

use duet_images::ImageFormat;
use duet_images::build::{BuildOptions, Recipe, build as build_recipe, find_recipe};

use super::{Facts, Incoming, add, failure, observed};
use crate::app::App;
use crate::error::{Context, Result};
use crate::operations::Operation;

/// Finds a recipe by its name.
///
/// # Errors
/// With the names of those that there are.
pub fn recipe(name: &str) -> Result<Recipe> {
    find_recipe(name).map_err(|e| failure(&e))
}

/// Builds and takes the result in.
///
/// # Errors
/// With the step that failed; nothing is left.
pub async fn build(
    app: &App,
    recipe: Recipe,
    mirror: &str,
    mut facts: Facts,
    operation: &Arc<Operation>,
) -> Result<()> {
    let incoming = Incoming::new(app)?;
    let target = incoming.meta();
    let mut options = BuildOptions::new(incoming.dir());
    options.mirror = (!mirror.is_empty()).then(|| mirror.to_owned());
    options.compress = super::compression(app)?;
    let extension = ImageFormat::Tar(options.compress.format()).extension();
    let built = observed(operation, "build", move |observer| {
        let file = std::fs::File::create(&target).doing("cannot keep the image")?;
        build_recipe(&recipe, &options, file, observer).map_err(|e| failure(&e))
    })
    .await?;
    for note in &built.notes {
        tracing::warn!(note, "building an image");
    }
    if facts.filename.is_empty() {
        facts.filename = format!("{}{extension}", built.packed.fingerprint);
    }
    add(app, incoming, facts, operation).await?;
    Ok(())
}
