//! Finding a kernel for a guest, on the host: in the root of an image or an instance, or where the host's administrator
//! says.
//!
//! A root's owner may have put anything there: paths are resolved within it by the kernel (openat2(2)), only regular
//! files are opened, and names and sizes are bounded. What is in the image is for the machine that boots it to judge.

mod version;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};

use crate::initramfs::regular_file;

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
    /// The image, a regular file that is open for reading.
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
/// there is none. One that is no regular file, or too large, is passed over.
///
/// # Errors
/// [`KernelError::Read`] when /boot is there and cannot be read.
pub fn find(root: impl AsFd) -> Result<Option<Kernel>, KernelError> {
    let root = root.as_fd();
    let mut releases = match releases(root) {
        Ok(releases) => releases,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(KernelError::Read { path: BOOT.into(), source }),
    };
    releases.sort_by(|one, other| version::compare(other, one));
    Ok(releases.into_iter().find_map(|release| {
        let modules = Path::new("lib/modules").join(&release);
        regular_file(root, &modules.join(LIST)).ok()?;
        let image = image(root, &Path::new(BOOT).join(format!("{PREFIX}{release}"))).ok()?;
        Some(Kernel { release, image, modules })
    }))
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
        let image = image(host.as_fd(), &below(&real.join("vmlinuz")))?;
        let release = told_by(&image).ok_or_else(|| KernelError::NoRelease(path.to_owned()))?;
        (image, release, below(&real))
    } else {
        // By the name that was given: /boot/vmlinuz may be a link to one with a release.
        let named = [path, &real].into_iter().find_map(|path| release_of(path.file_name()?.to_str()?));
        let release = named.ok_or_else(|| KernelError::NoRelease(path.to_owned()))?;
        let modules = Path::new("lib/modules").join(&release);
        (image(host.as_fd(), &below(&real))?, release, modules)
    };
    if regular_file(host.as_fd(), &modules.join(LIST)).is_err() {
        return Err(KernelError::NoModules { release, path: Path::new("/").join(modules).join(LIST) });
    }
    Ok(Kernel { release, image, modules })
}

/// The releases of all images in /boot.
fn releases(root: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir: OwnedFd = openat2(root, BOOT, flags, Mode::empty(), resolve)?;
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)?.take(MAX_ENTRIES) {
        found.extend(entry?.file_name().to_str().ok().and_then(release_of));
    }
    Ok(found)
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

fn image(root: BorrowedFd<'_>, path: &Path) -> Result<File, KernelError> {
    let opened = regular_file(root, path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) = opened.map_err(|source| KernelError::Read { path: path.to_owned(), source })?;
    if length > MAX_IMAGE {
        return Err(KernelError::TooLarge(path.to_owned()));
    }
    Ok(file)
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
