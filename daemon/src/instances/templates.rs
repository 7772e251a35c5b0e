//! An instance's `metadata.yaml` and templates: the image's, until somebody edits the instance's own.
//!
//! Templates are rendered just before a start, for the occasions that are due (`create`, `copy` or `rename` once, `start`
//! each time), and written by the container's init before it is one.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use duet_images::{
    ImageError, Limits, Metadata, RenderedFile, TemplateContext, TemplateTrigger, apply_templates, read_templates,
};

use duet_container::files::{FileError, FileSession, Owner, WriteOptions};
use duet_container::spec::FileSpec;

use super::expand::Expanded;
use crate::app::App;
use crate::config::InstanceSettings;
use crate::error::{Context, Error, Result, blocking};
use crate::images;

/// Key that says which occasion is due at the next start.
pub const DUE: &str = "volatile.apply_template";

/// Where an instance's own metadata is, once it has been edited.
fn own_dir(app: &App, id: i64) -> PathBuf {
    app.paths.metadata(id)
}

fn image_dir(app: &App, expanded: &Expanded) -> Result<Option<PathBuf>> {
    let Some(image) = &expanded.row.volume.image else { return Ok(None) };
    Ok(Some(app.pools.get(&expanded.row.pool)?.image_dir(image)))
}

/// The directory that holds what counts: the instance's own, else its image's. None: an instance that began empty.
fn dir(app: &App, expanded: &Expanded) -> Result<Option<PathBuf>> {
    let own = own_dir(app, expanded.row.id);
    if own.is_dir() { Ok(Some(own)) } else { image_dir(app, expanded) }
}

/// The metadata that counts.
///
/// # Errors
/// Where it cannot be read.
pub fn metadata(app: &App, expanded: &Expanded) -> Result<Metadata> {
    let Some(dir) = dir(app, expanded)? else {
        return Ok(Metadata { architecture: expanded.row.architecture.clone(), ..Metadata::default() });
    };
    let bytes = std::fs::read(dir.join("metadata.yaml")).doing("cannot read the instance's metadata")?;
    Metadata::from_yaml(&bytes).map_err(|e| images::failure(&e))
}

/// The templates that count, by file name.
///
/// # Errors
/// Where they cannot be read.
pub fn templates(app: &App, expanded: &Expanded) -> Result<BTreeMap<String, Vec<u8>>> {
    let Some(dir) = dir(app, expanded)? else { return Ok(BTreeMap::new()) };
    read_templates(&dir.join("templates"), &Limits::default()).map_err(|e| images::failure(&e))
}

/// Replaces the instance's metadata.
///
/// # Errors
/// Where it is not valid.
pub fn set_metadata(app: &App, expanded: &Expanded, metadata: &Metadata) -> Result<()> {
    metadata.validate().map_err(|e| images::failure(&e))?;
    let text = metadata.to_yaml().map_err(|e| images::failure(&e))?;
    let own = make_own(app, expanded)?;
    write_atomically(&own, "metadata.yaml", text.as_bytes())
}

/// Writes (Some) or removes (None) one template.
///
/// # Errors
/// A bad name; one to remove that is not there.
pub fn set_template(app: &App, expanded: &Expanded, name: &str, content: Option<&[u8]>) -> Result<()> {
    if !duet_images::metadata::is_template_name(name) {
        return Err(Error::invalid(format!("\"{name}\" is no template name: use a plain file name that ends in .tpl")));
    }
    if content.is_none() && !templates(app, expanded)?.contains_key(name) {
        return Err(Error::not_found(format!("there is no template \"{name}\"")));
    }
    let dir = make_own(app, expanded)?.join("templates");
    match content {
        Some(content) => write_atomically(&dir, name, content),
        None => std::fs::remove_file(dir.join(name)).doing("cannot remove the template"),
    }
}

/// Gives the instance its own copy of its image's metadata and templates.
fn make_own(app: &App, expanded: &Expanded) -> Result<PathBuf> {
    let own = own_dir(app, expanded.row.id);
    if own.is_dir() {
        return Ok(own);
    }
    let text = metadata(app, expanded)?.to_yaml().map_err(|e| images::failure(&e))?;
    let templates = templates(app, expanded)?;
    let make = || -> io::Result<()> {
        // Gone with this value unless it got its name.
        let staged = tempfile::Builder::new().prefix("metadata-").tempdir_in(app.paths.work())?;
        std::fs::create_dir(staged.path().join("templates"))?;
        std::fs::write(staged.path().join("metadata.yaml"), text)?;
        for (name, content) in templates {
            std::fs::write(staged.path().join("templates").join(name), content)?;
        }
        std::fs::rename(staged.path(), &own)?;
        drop(staged.keep());
        Ok(())
    };
    make().doing(format_args!("cannot make {}", own.display()))?;
    Ok(own)
}

fn write_atomically(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    };
    write().doing(format_args!("cannot write {}", path.display()))
}

/// How much may go with a container's specification, in bytes. As JSON it may grow sixfold, and has to fit into one packet
/// of the monitor's with all the rest.
const LARGEST_PASSED: usize = 16 << 10;

/// What is due at a start that is about to be: files for the container's init to write. What cannot be left to it (the
/// root is read-only for it, or there is too much) is written here.
///
/// # Errors
/// A template that cannot be rendered or written.
pub async fn apply(app: &App, expanded: &Expanded, read_only: bool) -> Result<Vec<FileSpec>> {
    let files = render(app, expanded)?;
    let size: usize = files.iter().map(|file| file.content.len()).sum();
    let fits = files.is_empty() || (!read_only && size <= LARGEST_PASSED);
    if let Some(passed) = fits.then(|| files.iter().map(passed).collect()).flatten() {
        return Ok(passed);
    }
    let mut session = super::files::of_stopped(app, expanded, super::files::Access::Write).await?;
    blocking(move || {
        files.iter().try_for_each(|file| write(&mut session, file)).map_err(|e| super::files::failure(&e))
    })
    .await?;
    Ok(Vec::new())
}

/// What is due at a start of a virtual machine, whose init writes all of it.
///
/// # Errors
/// A template that cannot be rendered, or does not render as text.
pub fn due(app: &App, expanded: &Expanded) -> Result<Vec<FileSpec>> {
    let told = |file: &RenderedFile| {
        passed(file).ok_or_else(|| Error::invalid(format!("the template of {} does not render as text", file.path)))
    };
    render(app, expanded)?.iter().map(told).collect()
}

/// A file as init is told of it. None: it is not text.
fn passed(file: &RenderedFile) -> Option<FileSpec> {
    Some(FileSpec {
        path: file.path.clone().into(),
        content: std::str::from_utf8(&file.content).ok()?.to_owned(),
        create_only: file.create_only,
    })
}

/// Renders the templates that are due.
fn render(app: &App, expanded: &Expanded) -> Result<Vec<RenderedFile>> {
    let metadata = metadata(app, expanded)?;
    let once = match expanded.row.config.get(DUE).map(String::as_str) {
        Some("create") => Some(TemplateTrigger::Create),
        Some("copy") => Some(TemplateTrigger::Copy),
        Some("rename") => Some(TemplateTrigger::Rename),
        _ => None,
    };
    let triggers: Vec<TemplateTrigger> = once.into_iter().chain([TemplateTrigger::Start]).collect();
    let due = |spec: &duet_images::TemplateSpec| triggers.iter().any(|trigger| spec.when.contains(trigger));
    if !metadata.templates.values().any(due) {
        return Ok(Vec::new());
    }
    let templates = templates(app, expanded)?;
    let context = TemplateContext {
        name: expanded.row.name.clone(),
        architecture: expanded.row.architecture.clone(),
        privileged: InstanceSettings::from_config(&expanded.config).is_ok_and(|s| s.privileged),
        ephemeral: expanded.row.ephemeral,
        config: expanded.config.clone(),
        devices: expanded.devices.clone(),
    };
    let mut files = Vec::new();
    for trigger in triggers {
        apply_templates(&metadata, &templates, trigger, &context, &mut |file| {
            files.push(file);
            Ok::<_, ImageError>(())
        })
        .map_err(|error| images::failure(&error))?;
    }
    Ok(files)
}

fn write(session: &mut FileSession, file: &RenderedFile) -> std::result::Result<(), FileError> {
    let exists = match session.stat(&file.path) {
        Ok(_) => true,
        Err(FileError::NotFound { .. }) => false,
        Err(error) => return Err(error),
    };
    if exists && file.create_only {
        return Ok(());
    }
    let root = Owner { uid: Some(0), gid: Some(0) };
    if let Some(parent) = Path::new(&file.path).parent() {
        session.mkdir_all(parent, 0o755, root)?;
    }
    let options = WriteOptions {
        mode: (!exists).then_some(0o644),
        owner: if exists { Owner::default() } else { root },
        ..WriteOptions::default()
    };
    session.write_from(&file.path, &mut file.content.as_slice(), &options)?;
    Ok(())
}
