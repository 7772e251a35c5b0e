//! A root filesystem as a disk: what a virtual machine of an image starts from.
//!
//! The disk is one ext4 without a partition table, so that it can grow with its file. It is made by `mke2fs -d`, which
//! takes owners, modes, times, links, devices and extended attributes over from a folder and mounts nothing
//! (mke2fs(8)). The folder's ids are the image's own: nothing is shifted in it.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::command::{Job, find_program};
use crate::observe::{Observer, Phase};
use crate::{ImageError, Result};

/// The features of a filesystem that each kernel since 4.4 can write. Spelt out, since what mke2fs takes by default
/// differs from one version to the next, and older kernels refuse what newer ones have (ext4(5)).
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Bytes below which there is no room for a journal, let alone a system.
const SMALLEST: u64 = 16 << 20;

/// The label of the filesystem, by which a guest may name it.
pub const LABEL: &str = "duet-root";

/// Makes `disk`, a new file of `size` bytes that takes only the room of its contents, from the folder `root`, to which
/// nobody writes meanwhile. It is flushed.
///
/// # Errors
/// [`ImageError::DiskTooSmall`], [`ImageError::MissingProgram`], [`ImageError::Cancelled`] and failures of the host.
/// Nothing is left of `disk` then.
pub fn make_disk(root: &Path, disk: &Path, size: u64, observer: &mut Observer<'_>) -> Result<()> {
    if !find_program("mke2fs") {
        return Err(ImageError::MissingProgram { program: "mke2fs", package: "e2fsprogs" });
    }
    if size < SMALLEST {
        return Err(ImageError::DiskTooSmall { size });
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(disk)
        .map_err(|error| ImageError::file("create", disk, error))?;
    let made = fill(root, disk, &file, size, observer);
    if made.is_err() {
        // What went wrong first is told.
        let _ = std::fs::remove_file(disk);
    }
    made
}

fn fill(root: &Path, disk: &Path, file: &File, size: u64, observer: &mut Observer<'_>) -> Result<()> {
    file.set_len(size).map_err(|error| ImageError::file("enlarge", disk, error))?;
    observer.report(Phase::Disk, 0, None, "");
    let mut job = Job::new("mke2fs");
    // The host's own wishes (mke2fs.conf(5)) are not the guest's.
    job.env("MKE2FS_CONFIG", "/dev/null");
    for argument in ["-q", "-F", "-b", "4096", "-I", "256", "-m", "1", "-L", LABEL, "-O", FEATURES] {
        job.arg(argument);
    }
    // What is not written now reads as zeros from a new file.
    job.arg("-E").arg("assume_storage_prezeroed=1,nodiscard").arg("-d").arg(root).arg(disk);
    match job.run(observer, &mut |_, _| Ok(()))? {
        Ok(()) => file.sync_all().map_err(|error| ImageError::file("flush", disk, error)),
        Err(failure) if is_full(&failure.output) => Err(ImageError::DiskTooSmall { size }),
        Err(failure) => Err(ImageError::Disk(failure.summary())),
    }
}

/// Whether mke2fs said that the filesystem has too few blocks or inodes. Its words tell, not its status (libext2fs'
/// `EXT2_ET_BLOCK_ALLOC_FAIL` and `EXT2_ET_INODE_ALLOC_FAIL`).
fn is_full(output: &[String]) -> bool {
    let words = ["Could not allocate block", "Could not allocate inode"];
    output.iter().any(|line| words.iter().any(|word| line.contains(word)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use ext4_view::Ext4;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn make(root: &Path, size: u64) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let made = make_disk(root, &dir.path().join("disk"), size, &mut Observer::none());
        (dir, made)
    }

    #[test]
    fn what_is_in_the_folder_is_on_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("usr/bin")).unwrap();
        std::fs::write(path("usr/bin/su"), [7; 5000]).unwrap();
        std::fs::set_permissions(path("usr/bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
        std::fs::hard_link(path("usr/bin/su"), path("usr/bin/sg")).unwrap();
        symlink("usr/bin", path("bin")).unwrap();
        symlink("/etc/elsewhere", path("dangling")).unwrap();
        let sparse = File::create(path("sparse")).unwrap();
        sparse.set_len(64 * MIB).unwrap();

        let (dir, made) = make(root.path(), 1024 * MIB);
        made.unwrap();
        let disk = dir.path().join("disk");
        let told = disk.metadata().unwrap();
        assert_eq!(told.len(), 1024 * MIB);
        // Journal and bookkeeping, but none of the room that is free.
        assert!(told.blocks() * 512 < 48 * MIB, "{} bytes on disk", told.blocks() * 512);

        let filesystem = Ext4::load_from_path(&disk).unwrap();
        assert_eq!(filesystem.label().to_str(), Ok(LABEL));
        assert_eq!(filesystem.read("/bin/su").unwrap(), [7; 5000]);
        let su = filesystem.symlink_metadata("/usr/bin/su").unwrap();
        assert_eq!(su.mode() & 0o7777, 0o4755);
        assert_eq!(filesystem.read_link("/dangling").unwrap().to_str(), Ok("/etc/elsewhere"));
        assert_eq!(filesystem.metadata("/sparse").unwrap().len(), 64 * MIB);
        let owner = root.path().metadata().unwrap();
        assert_eq!((su.uid(), su.gid()), (owner.uid(), owner.gid()));
    }

    #[test]
    fn what_does_not_fit_is_told_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("large"), vec![1; 40 * MIB as usize]).unwrap();
        for size in [0, 4096, 32 * MIB] {
            let (dir, made) = make(root.path(), size);
            assert!(matches!(made, Err(ImageError::DiskTooSmall { .. })), "{size}: {made:?}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_file_that_is_there_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk");
        std::fs::write(&disk, "mine").unwrap();
        let made = make_disk(root.path(), &disk, 64 * MIB, &mut Observer::none());
        assert!(matches!(made, Err(ImageError::File { .. })), "{made:?}");
        assert_eq!(std::fs::read(&disk).unwrap(), b"mine");
    }
}
