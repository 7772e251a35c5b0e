//! Writing into a root file system that packages have made.
//!
//! Its links are resolved as they will be in the container: beneath the root (`RESOLVE_IN_ROOT`), so that an absolute
//! link never leads to the machine that builds.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::recipe::FileSpec;
use crate::{ImageError, Result};

/// An open root file system.
#[derive(Debug)]
pub(super) struct Root {
    top: OwnedFd,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| ImageError::file("open", path, e))?;
        Ok(Root { top })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.top
    }

    /// Writes a file or link in place of whatever is there.
    pub(super) fn put(&self, spec: &FileSpec) -> Result<()> {
        match &spec.link {
            Some(target) => self.link(&spec.path, target),
            None => self.write(&spec.path, spec.content.as_bytes(), spec.mode),
        }
    }

    pub(super) fn write(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        remove_entry(&parent, name).map_err(|e| ImageError::entry("replace", path, e))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| ImageError::entry("create", path, e))?;
        let mut file = File::from(fd);
        file.write_all(content).map_err(|e| ImageError::entry("write", path, e))?;
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(|e| ImageError::entry("change the mode of", path, e))
    }

    pub(super) fn link(&self, path: &str, target: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        remove_entry(&parent, name)
            .and_then(|()| symlinkat(target, &parent, name))
            .map_err(|e| ImageError::entry("create", path, e))
    }

    /// Makes a directory with its parents.
    pub(super) fn directory(&self, path: &str, mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(ImageError::entry("create", path, e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&parent, name, flags, Mode::empty()).map_err(|e| ImageError::entry("open", path, e))?;
        fchmod(&fd, Mode::from_raw_mode(mode)).map_err(|e| ImageError::entry("change the mode of", path, e))
    }

    /// Removes files; the last component of the pattern may have one `*`. What is not there is fine; directories stay,
    /// but what is right in them goes where the pattern says so.
    pub(super) fn remove(&self, pattern: &str) -> Result<()> {
        let (directory, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
        let Some(parent) = self.find_directory(directory).map_err(|e| ImageError::entry("open", directory, e))? else {
            return Ok(());
        };
        let fail = |e| ImageError::entry("remove", pattern, e);
        let Some((before, after)) = name.split_once('*') else {
            return remove_entry(&parent, name).map_err(fail);
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&parent).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let text = entry.file_name().to_string_lossy();
            let matches = text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after);
            if matches && text != "." && text != ".." && entry.file_type() != FileType::Directory {
                names.push(entry.file_name().to_owned());
            }
        }
        for name in names {
            unlinkat(&parent, &name, AtFlags::empty()).map_err(fail)?;
        }
        Ok(())
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        openat2(&self.top, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).is_ok()
    }

    /// The directory that a path is in, made if need be, and the path's last component.
    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        if let Some(fd) = self.find_directory(directory).map_err(|e| ImageError::entry("open", directory, e))? {
            return Ok((fd, name));
        }
        let mut made = String::new();
        for part in directory.split('/').filter(|p| !p.is_empty()) {
            let above = self.find_directory(&made).map_err(|e| ImageError::entry("open", &made, e))?;
            let above = above.ok_or_else(|| ImageError::entry("open", &made, Errno::NOENT))?;
            match mkdirat(&above, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(ImageError::entry("create", directory, e)),
            }
            made.push('/');
            made.push_str(part);
        }
        let fd = self.find_directory(directory).map_err(|e| ImageError::entry("open", directory, e))?;
        Ok((fd.ok_or_else(|| ImageError::entry("open", directory, Errno::NOENT))?, name))
    }

    fn find_directory(&self, path: &str) -> std::result::Result<Option<OwnedFd>, io::Error> {
        let path = if path.is_empty() { "/" } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat2(&self.top, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

fn remove_entry(parent: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Bytes of all regular files beneath an open directory, for a progress total.
pub(super) fn content_size(top: &OwnedFd) -> u64 {
    let mut total = 0;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut todo = vec![b".".to_vec()];
    while let Some(path) = todo.pop() {
        let Ok(fd) = openat(top, path.as_slice(), flags, Mode::empty()) else { continue };
        for entry in Dir::read_from(&fd).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(|stat| (FileType::from_raw_mode(stat.st_mode), stat.st_size))
            {
                Ok((FileType::RegularFile, size)) => total += u64::try_from(size).unwrap_or(0),
                Ok((FileType::Directory, _)) => todo.push([&path, b"/".as_slice(), name.to_bytes()].concat()),
                _ => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn spec(path: &str, content: &str) -> FileSpec {
        FileSpec { path: path.into(), content: content.into(), link: None, mode: 0o640 }
    }

    #[test]
    fn links_are_the_roots_own() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let top = dir.path().join("root");
        std::fs::create_dir_all(top.join("usr/lib")).unwrap();
        std::fs::write(&outside, "mine").unwrap();
        symlink("/usr/lib", top.join("lib")).unwrap();
        symlink(&outside, top.join("usr/lib/victim")).unwrap();
        let root = Root::open(&top).unwrap();
        root.put(&spec("/lib/victim", "new")).unwrap();
        root.put(&spec("/a/b/c", "deep")).unwrap();
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "mine");
        assert_eq!(std::fs::read_to_string(top.join("usr/lib/victim")).unwrap(), "new");
        assert_eq!(std::fs::metadata(top.join("a/b/c")).unwrap().permissions().mode() & 0o7777, 0o640);
        assert!(root.exists("/lib/victim") && !root.exists("/lib/none"));
    }

    #[test]
    fn removes_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("log/keep")).unwrap();
        for name in ["a.log", "b.log", "c.txt"] {
            std::fs::write(dir.path().join("log").join(name), "").unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        for pattern in ["/log/*.log", "/none/*", "/log/none", "/log/*"] {
            root.remove(pattern).unwrap();
            assert!(!dir.path().join("log/a.log").exists());
        }
        assert!(dir.path().join("log/keep").exists() && !dir.path().join("log/c.txt").exists());
    }
}
