//! Finding a kernel for a guest, on the host: in the root of an image or an instance, on the disk of a virtual machine, or
//! where the host's administrator says.
//!
//! A root's owner may have put anything there: it is read as [`crate::tree`] does, and names and sizes are bounded. What is
//! in the image is for the machine that boots it to judge.

mod version;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::initramfs::MAX_LIST;
use crate::tree::Tree;

/// Where distributions have kernels, and how their names begin.
const BOOT: &str = "boot";
const PREFIX: &str = "vmlinuz-";
/// The file without which modules cannot be found (modules.dep(5)).
const LIST: &str = "modules.dep";
/// The most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 1024;
/// The most bytes of an image; those of Debian have 12 MiB.
const MAX_IMAGE: u64 = 256 << 20;
/// The most bytes of a release (`__NEW_UTS_LEN`, linux/utsname.h).
const MAX_RELEASE: usize = 64;

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Kernel {
    /// Its release, as uname(2) will tell it.
    pub release: String,
    /// The image, open for reading: a regular file, or a sealed copy in memory if it was read from a disk.
    pub image: File,
    /// The directory of its modules, below the root in which it was found: what [`crate::initramfs::write`] takes. For
    /// [`at`] that root is the host's own.
    pub modules: PathBuf,
}

/// Why no kernel is to be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the path in question, and the messages say the rest")]
pub enum KernelError {
    /// A file cannot be read.
    #[error("{path:?} cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// The image is larger than any is.
    #[error("{0:?} is larger than the image of a kernel")]
    TooLarge(PathBuf),
    /// Nothing tells the release.
    #[error("{0:?} is not named vmlinuz-RELEASE, nor a directory with a vmlinuz that tells its release")]
    NoRelease(PathBuf),
    /// The modules are not there.
    #[error("the kernel {release} has no modules: there is no {path:?}")]
    NoModules { release: String, path: PathBuf },
}

/// Finds the newest kernel `boot/vmlinuz-RELEASE` of a root that has its modules in `lib/modules/RELEASE`; `None` if
/// there is none. One that is no regular file, or too large, is passed over, and so is one that cannot be read as long as
/// there is another.
///
/// # Errors
/// [`KernelError::Read`] when /boot, or each kernel in it, is there and cannot be read.
pub fn find(root: &dyn Tree) -> Result<Option<Kernel>, KernelError> {
    let mut releases = match releases(root) {
        Ok(releases) => releases,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(KernelError::Read { path: BOOT.into(), source }),
    };
    releases.sort_by(|one, other| version::compare(other, one));
    let mut unreadable = None;
    for release in releases {
        let modules = Path::new("lib/modules").join(&release);
        let list = modules.join(LIST);
        let has_modules = root.read(&list, MAX_LIST).map_err(|source| KernelError::Read { path: list, source });
        match has_modules.and_then(|_| image(root, &Path::new(BOOT).join(format!("{PREFIX}{release}")))) {
            Ok(image) => return Ok(Some(Kernel { release, image, modules })),
            Err(error) if is_none(&error) => {}
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    unreadable.map_or(Ok(None), Err)
}

/// Whether there is nothing of the kind that is looked for, as opposed to what cannot be read.
fn is_none(error: &KernelError) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidInput, NotADirectory, NotFound};
    match error {
        KernelError::Read { source, .. } => {
            matches!(source.kind(), NotFound | NotADirectory | InvalidInput | FileTooLarge)
                || source.raw_os_error() == Some(libc::ELOOP)
        }
        KernelError::TooLarge(_) => true,
        KernelError::NoRelease(_) | KernelError::NoModules { .. } => false,
    }
}

/// A kernel of the host's, by its absolute path: an image `.../vmlinuz-RELEASE`, with its modules in
/// /lib/modules/RELEASE; or a directory with both, a `vmlinuz` and the modules with their `modules.dep`.
///
/// # Errors
/// [`KernelError`].
pub fn at(path: &Path) -> Result<Kernel, KernelError> {
    let unreadable = |source| KernelError::Read { path: path.to_owned(), source };
    // Only where there is a root can anything be below it.
    let real = path.canonicalize().map_err(unreadable)?;
    let host = File::open("/").map_err(unreadable)?;
    let below = |path: &Path| path.strip_prefix("/").unwrap_or(path).to_owned();
    let (image, release, modules) = if real.is_dir() {
        let image = image(&host, &below(&real.join("vmlinuz")))?;
        let release = told_by(&image).ok_or_else(|| KernelError::NoRelease(path.to_owned()))?;
        (image, release, below(&real))
    } else {
        // By the name that was given: /boot/vmlinuz may be a link to one with a release.
        let named = [path, &real].into_iter().find_map(|path| release_of(path.file_name()?.to_str()?));
        let release = named.ok_or_else(|| KernelError::NoRelease(path.to_owned()))?;
        let modules = Path::new("lib/modules").join(&release);
        (image(&host, &below(&real))?, release, modules)
    };
    if Tree::read(&host, &modules.join(LIST), MAX_LIST).is_err() {
        return Err(KernelError::NoModules { release, path: Path::new("/").join(modules).join(LIST) });
    }
    Ok(Kernel { release, image, modules })
}

/// The releases of all images in /boot.
fn releases(root: &dyn Tree) -> io::Result<Vec<String>> {
    Ok(root.names(Path::new(BOOT), MAX_ENTRIES)?.iter().filter_map(|name| release_of(name)).collect())
}

/// The release in an image's name. It becomes a part of paths and is shown.
fn release_of(name: &str) -> Option<String> {
    name.strip_prefix(PREFIX).filter(|release| is_release(release)).map(str::to_owned)
}

fn is_release(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'+' | b'~' | b'-');
    text.len() <= MAX_RELEASE
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(plain)
}

fn image(root: &dyn Tree, path: &Path) -> Result<File, KernelError> {
    root.file(path, MAX_IMAGE).map_err(|source| match source.kind() {
        io::ErrorKind::FileTooLarge => KernelError::TooLarge(path.to_owned()),
        _ => KernelError::Read { path: path.to_owned(), source },
    })
}

/// The release that a bzImage tells: the first word of a text in its header (Linux' Documentation/arch/x86/boot.rst,
/// `kernel_version`).
fn told_by(image: &File) -> Option<String> {
    let mut header = [0; 0x10];
    image.read_exact_at(&mut header, 0x200).ok()?;
    let (magic, pointer) = (&header[0x2..0x6], u16::from_le_bytes([header[0xe], header[0xf]]));
    if magic != b"HdrS" || pointer == 0 {
        return None;
    }
    let mut text = [0; MAX_RELEASE + 1];
    image.read_exact_at(&mut text, u64::from(pointer) + 0x200).ok()?;
    let length = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    std::str::from_utf8(&text[..length]).ok().filter(|text| is_release(text)).map(str::to_owned)
}

#[cfg(test)]
mod tests;
