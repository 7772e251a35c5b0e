//! An instance's `metadata.yaml` and templates: the image's, until somebody edits the instance's own.
//!
//! Templates are rendered into the stopped root just before a start, for the occasions that are due: `create`, `copy` or
//! `rename` once, `start` each time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use duet_images::{
    ImageError, Limits, Metadata, RenderedFile, TemplateContext, TemplateTrigger, apply_templates, read_templates,
};

use duet_container::files::{FileError, FileSession, Owner, Target, WriteOptions};
use duet_container::rootfs;
use std::os::fd::AsFd;

use super::expand::Expanded;
use super::idmap::RANGE;
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
    let staged = app.paths.work().join(format!("metadata-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(staged.join("templates")).doing("cannot keep the instance's metadata")?;
    std::fs::write(staged.join("metadata.yaml"), text).doing("cannot keep the instance's metadata")?;
    for (name, content) in templates(app, expanded)? {
        std::fs::write(staged.join("templates").join(name), content).doing("cannot keep the instance's templates")?;
    }
    std::fs::rename(&staged, &own).doing("cannot keep the instance's metadata")?;
    Ok(own)
}

fn write_atomically(dir: &std::path::Path, name: &str, content: &[u8]) -> Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    std::fs::write(&temporary, content).doing("cannot keep the instance's metadata")?;
    std::fs::rename(&temporary, dir.join(name)).doing("cannot keep the instance's metadata")
}

/// Renders what is due into the stopped root of an instance that is about to start.
///
/// # Errors
/// A template that cannot be rendered or written.
pub async fn apply(app: &App, expanded: &Expanded) -> Result<()> {
    let metadata = metadata(app, expanded)?;
    if metadata.templates.is_empty() {
        return Ok(());
    }
    let once = match expanded.row.config.get(DUE).map(String::as_str) {
        Some("create") => Some(TemplateTrigger::Create),
        Some("copy") => Some(TemplateTrigger::Copy),
        Some("rename") => Some(TemplateTrigger::Rename),
        _ => None,
    };
    let triggers: Vec<TemplateTrigger> = once.into_iter().chain([TemplateTrigger::Start]).collect();
    let due = |spec: &duet_images::TemplateSpec| triggers.iter().any(|trigger| spec.when.contains(trigger));
    if !metadata.templates.values().any(due) {
        return Ok(());
    }
    let templates = templates(app, expanded)?;
    let privileged = InstanceSettings::from_config(&expanded.config).is_ok_and(|s| s.privileged);
    let context = TemplateContext {
        name: expanded.row.name.clone(),
        architecture: expanded.row.architecture.clone(),
        privileged,
        ephemeral: expanded.row.ephemeral,
        config: expanded.config.clone(),
        devices: expanded.devices.clone(),
    };
    let pool = app.pools.get(&expanded.row.pool)?;
    let program = app.instances.monitor_path().to_owned();
    let volume = expanded.row.volume.clone();
    blocking(move || -> Result<()> {
        let source = pool.volume_root(&volume)?;
        let root = rootfs::open_detached(&source, None, false, true).doing("cannot mount the instance's root")?;
        let target = Target::Root { root: root.as_fd(), id_limit: (!privileged).then_some(RANGE) };
        let mut session = FileSession::spawn(&program, &target).map_err(|e| super::files::failure(&e))?;
        for trigger in triggers {
            apply_templates(&metadata, &templates, trigger, &context, &mut |file| write(&mut session, &file))
                .map_err(|Failed(error)| error)?;
        }
        Ok(())
    })
    .await
}

/// A failure of either side.
struct Failed(Error);

impl From<ImageError> for Failed {
    fn from(error: ImageError) -> Self {
        Self(images::failure(&error))
    }
}

impl From<FileError> for Failed {
    fn from(error: FileError) -> Self {
        Self(super::files::failure(&error))
    }
}

fn write(session: &mut FileSession, file: &RenderedFile) -> std::result::Result<(), Failed> {
    let exists = match session.stat(&file.path) {
        Ok(_) => true,
        Err(FileError::NotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    if exists && file.create_only {
        return Ok(());
    }
    let root = Owner { uid: Some(0), gid: Some(0) };
    if let Some(parent) = std::path::Path::new(&file.path).parent() {
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
