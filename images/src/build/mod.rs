//! Building images from recipes.
//!
//! A build happens in a folder of its own under the caller's work folder: the root is made there (`bootstrap` from a
//! distribution's packages, or `busybox`), configured as the recipe says, and packed. Success or not, the folder is
//! gone afterwards; the programs that a build runs live in namespaces of their own and die with it.
//!
//! - `recipe`: what to build. `sources`, `mirror`, `apt_conf`: where packages come from.
//! - `command`: running programs. `root`: writing into the root.

mod apt_conf;
mod bootstrap;
mod busybox;
mod mirror;
mod recipe;
mod root;
mod sources;

use std::io::Write;
use std::path::{Path, PathBuf};

pub use recipe::{Recipe, find_recipe, recipes};
use root::Root;
use std::os::fd::AsFd;

use crate::compress::Compress;
use crate::metadata::{Metadata, debian_architecture, host_architecture};
use crate::observe::{Observer, Phase, Progress};
use crate::pack::{PackSource, Packed, pack};
use crate::{ImageError, Result};

/// How to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// An existing folder, for files that are gone when the build ends. It needs room for the unpacked root, on a file
    /// system with device nodes and extended attributes.
    pub work: PathBuf,
    /// The package mirror; by default that of the machine's own apt sources, or else the public archive.
    pub mirror: Option<String>,
    /// How the image is compressed.
    pub compress: Compress,
}

impl BuildOptions {
    /// The usual options, with the given work folder.
    pub fn new(work: impl Into<PathBuf>) -> BuildOptions {
        BuildOptions { work: work.into(), mirror: None, compress: Compress::default() }
    }
}

/// An image that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// What the image says about itself.
    pub metadata: Metadata,
    /// Its fingerprint and sizes.
    pub packed: Packed,
    /// What the user should know, as sentences: a suite that the mirror does not carry.
    pub notes: Vec<String>,
}

/// Builds a recipe and writes the image, a unified tarball, to `out`.
///
/// Progress is in percent of the whole; [`Progress::detail`] says what is being done. Needs root.
///
/// # Errors
/// [`ImageError::Mirror`] when packages cannot be fetched, [`ImageError::MissingProgram`], [`ImageError::Build`] with
/// what the failing program said, [`ImageError::Cancelled`].
pub fn build<W: Write>(recipe: &Recipe, options: &BuildOptions, out: W, observer: &mut Observer<'_>) -> Result<Built> {
    if !rustix::process::geteuid().is_root() {
        return Err(failed(recipe, "starting", "only root can make a root file system".into()));
    }
    let folder = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(&options.work)
        .map_err(|e| ImageError::file("create a folder in", &options.work, e))?;
    let path = folder.path().to_owned();
    let outcome = build_in(recipe, options, &path, out, observer);
    match (folder.close(), outcome) {
        (Ok(()), outcome) => outcome,
        (Err(e), Ok(_)) => Err(ImageError::file("remove", path, e)),
        (Err(e), Err(failure)) => {
            Err(ImageError::Cleanup { failure: Box::new(failure), cleanup: format!("{path:?} is left over: {e}") })
        }
    }
}

fn build_in<W: Write>(
    recipe: &Recipe,
    options: &BuildOptions,
    folder: &Path,
    out: W,
    observer: &mut Observer<'_>,
) -> Result<Built> {
    let architecture = host_architecture();
    let debian = debian_architecture(architecture).ok_or_else(|| {
        failed(recipe, "starting", format!("there are no packages for the architecture {architecture}"))
    })?;
    let path = folder.join("rootfs");
    let mut notes = Vec::new();
    match &recipe.apt {
        Some(apt) => notes = bootstrap::bootstrap(recipe, apt, options, debian, folder, &path, observer)?,
        None => {
            std::fs::create_dir(&path).map_err(|e| ImageError::file("create", &path, e))?;
            rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o755))
                .map_err(|e| ImageError::file("change the mode of", &path, e))?;
            busybox::make(&path)?;
        }
    }
    observer.check()?;
    Percent(91).report(observer, Phase::Configuring, "writing the configuration");
    let root = Root::open(&path)?;
    for pattern in &recipe.content.remove {
        root.remove(pattern)?;
    }
    for file in &recipe.content.files {
        root.put(file)?;
    }
    let now = jiff::Timestamp::now();
    let serial = now.strftime("%Y%m%d").to_string();
    let metadata = recipe.metadata(architecture, debian, now.as_second(), &serial);
    let packed = pack_root(recipe, &metadata, &root, options.compress, out, observer)?;
    Percent(100).report(observer, Phase::Packing, "");
    Ok(Built { metadata, packed, notes })
}

/// Packs the root, with progress between 92 and 100 percent.
fn pack_root<W: Write>(
    recipe: &Recipe,
    metadata: &Metadata,
    root: &Root,
    compress: Compress,
    out: W,
    observer: &mut Observer<'_>,
) -> Result<Packed> {
    let total = root::content_size(root.fd()).max(1);
    let source = PackSource { rootfs: root.fd().as_fd(), metadata, templates: &recipe.templates() };
    // Both closures look at the one observer, in turns.
    let outer = std::cell::RefCell::new(observer);
    let mut report = |progress: Progress| {
        let share = (progress.done.min(total) * 8 / total) as u8; // at most 8
        Percent(92 + share).report(&mut outer.borrow_mut(), Phase::Packing, "packing the image");
    };
    let cancelled = || outer.borrow().is_cancelled();
    pack(&source, out, compress, &mut Observer::new(&mut report, &cancelled))
}

fn failed(recipe: &Recipe, step: &str, detail: String) -> ImageError {
    ImageError::Build { recipe: recipe.name.clone(), step: step.to_owned(), detail }
}

/// How far the whole build is.
#[derive(Debug, Clone, Copy)]
struct Percent(u8);

impl Percent {
    const START: Percent = Percent(0);

    fn report(self, observer: &mut Observer<'_>, phase: Phase, detail: &str) {
        observer.report(phase, self.0.into(), Some(100), detail);
    }
}
