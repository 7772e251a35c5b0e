//! Full filesystems, other filesystems, and what many volumes cost. Filesystems are mounted in a mount namespace that
//! ends with the test's own thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

use super::super::{Activity, Backing, Error, Kind, Pool};
use super::{TestError, fingerprint, keep, list, references};

/// Runs a test in a thread with a mount namespace of its own.
fn privately(test: impl FnOnce(&Path) + Send) {
    let dir = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            super::own_mounts();
            test(dir.path());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A filesystem in a file, mounted through a loop device that goes with the mount.
fn loop_mount(dir: &Path, kind: &str, bytes: u64) -> PathBuf {
    let (image, point) = (dir.join("image"), dir.join("mounted"));
    fs::File::create(&image).unwrap().set_len(bytes).unwrap();
    fs::create_dir(&point).unwrap();
    run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", "loop", "-t", kind]).arg(&image).arg(&point));
    point
}

fn tmpfs(dir: &Path, options: &str) -> PathBuf {
    let point = dir.join("mounted");
    fs::create_dir(&point).unwrap();
    mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
    point
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn small_image(pool: &Pool) -> super::Fingerprint {
    let image = fingerprint('e');
    let added = pool.image_add(&image, |dir| {
        fs::create_dir_all(dir.join("rootfs/etc"))?;
        Ok::<_, TestError>(fs::write(dir.join("rootfs/etc/hostname"), "small")?)
    });
    added.unwrap().keep();
    image
}

/// Everything that needs room fails with the one sentence, leaves nothing, and works again when there is room.
fn survives_a_full_filesystem(point: &Path) {
    let dir = point.join("pool");
    let pool = Pool::create(Kind::Overlay, &Backing::Directory(dir.clone())).unwrap();
    let image = small_image(&pool);
    let volume = keep(pool.volume_create(Some(&image)));
    let root = super::Mounted::new(&pool.volume_root(&volume, None).unwrap());
    let total = pool.resources().unwrap().space_total;
    fs::write(root.path("big"), vec![1; usize::try_from(total).unwrap() * 6 / 10]).unwrap();
    let before = list(&dir.join("layers"));
    let full = |error: Error| assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    full(pool.snapshot_create(&volume, Activity::Running).unwrap_err());
    full(pool.volume_copy(&volume, Activity::Running).unwrap_err());
    let result = pool.image_add(&fingerprint('f'), |dir| {
        fs::create_dir(dir.join("rootfs"))?;
        Ok::<_, TestError>(fs::write(dir.join("rootfs/big"), vec![1; usize::try_from(total).unwrap() * 6 / 10])?)
    });
    assert!(result.is_err());
    assert_eq!(list(&dir.join("layers")), before);
    assert_eq!(list(&dir.join("images")), [image.as_str()]);
    assert_eq!(list(&dir.join("tmp")), Vec::<String>::new());
    assert_eq!(fs::metadata(root.path("big")).unwrap().len(), total * 6 / 10);
    fs::remove_file(root.path("big")).unwrap();
    keep(pool.snapshot_create(&volume, Activity::Running));
}

#[test]
fn a_full_tmpfs_leaves_nothing_half_made() {
    privately(|dir| survives_a_full_filesystem(&tmpfs(dir, "size=8m")));
}

#[test]
fn a_full_ext4_leaves_nothing_half_made() {
    privately(|dir| survives_a_full_filesystem(&loop_mount(dir, "ext4", 32 << 20)));
}

#[test]
fn running_out_of_inodes_leaves_nothing_half_made() {
    privately(|dir| {
        let dir = tmpfs(dir, "size=8m,nr_inodes=300").join("pool");
        let pool = Pool::create(Kind::Overlay, &Backing::Directory(dir.clone())).unwrap();
        let image = small_image(&pool);
        let mut volumes = Vec::new();
        let error = loop {
            match pool.volume_create(Some(&image)) {
                Ok(made) => volumes.push(made.keep()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert!(volumes.len() > 50);
        assert_eq!(list(&dir.join("layers")).len(), volumes.len());
        assert_eq!(list(&dir.join("tmp")), Vec::<String>::new());
        pool.survey().sweep(&references(&[], &[], &[&image])).unwrap().empty().unwrap();
        assert_eq!(list(&dir.join("layers")).len(), 0);
        keep(pool.volume_create(Some(&image)));
    });
}

#[test]
fn btrfs_shares_the_blocks_of_copied_layers() {
    privately(|dir| {
        let point = loop_mount(dir, "btrfs", 256 << 20);
        let pool = Pool::create(Kind::Overlay, &Backing::Directory(point.join("pool"))).unwrap();
        assert!(pool.capabilities().shares_blocks);
        let image = small_image(&pool);
        let volume = keep(pool.volume_create(Some(&image)));
        let root = super::Mounted::new(&pool.volume_root(&volume, None).unwrap());
        fs::write(root.path("big"), vec![1; 40 << 20]).unwrap();
        pool.sync().unwrap();
        let before = pool.resources().unwrap().space_used;
        let snapshots: Vec<_> = (0..10)
            .map(|n| {
                let taken = keep(pool.snapshot_create(&volume, Activity::Running)).taken;
                fs::write(root.path("small"), format!("{n}")).unwrap();
                taken
            })
            .collect();
        pool.sync().unwrap();
        let grown = pool.resources().unwrap().space_used - before;
        assert!(grown < 20 << 20, "ten snapshots of 40 MiB took {grown} bytes");
        let shown = super::Mounted::new(&pool.snapshot_root(&snapshots[5]).unwrap());
        assert_eq!(shown.read("small").as_deref(), Some("4"));
        assert_eq!(fs::metadata(shown.path("big")).unwrap().len(), 40 << 20);
    });
}

#[test]
fn xfs_and_ext4_hold_pools() {
    for (kind, size) in [("xfs", 320 << 20), ("ext4", 32 << 20)] {
        if !Path::new(&format!("/sbin/mkfs.{kind}")).exists() {
            eprintln!("SKIPPED on {kind}: mkfs.{kind} is not installed");
            continue;
        }
        privately(|dir| {
            let pool = Pool::create(Kind::Overlay, &Backing::Directory(loop_mount(dir, kind, size))).unwrap();
            keep(pool.volume_create(Some(&small_image(&pool))));
        });
    }
}

#[test]
fn an_unsuitable_filesystem_is_refused_with_a_reason() {
    privately(|dir| {
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let option = |name: &str| format!("{name}dir={}", dir.join(name).display());
        let options = ["lower", "upper", "work"].map(option).join(",");
        let point = dir.join("merged");
        mount(Some("overlay"), &point, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let error = Pool::create(Kind::Overlay, &Backing::Directory(point.join("pool"))).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unsuitable { .. }), "{text}");
        assert!(text.contains("the filesystem there is overlay"), "{text}");
        assert!(text.contains("place it on a local ext4, xfs or btrfs filesystem"), "{text}");
        assert_eq!(list(&point.join("pool/tmp")), Vec::<String>::new());
    });
}

/// 200 volumes cost the disk of one image, and none takes longer than a few directories take to make.
#[test]
fn many_volumes_cost_one_image() {
    let fixture = super::Fixture::new(Kind::Overlay);
    let image = fingerprint('9');
    let added = fixture.pool.image_add(&image, |dir| {
        fs::create_dir(dir.join("rootfs"))?;
        Ok::<_, TestError>(fs::write(dir.join("rootfs/big"), vec![1; 64 << 20])?)
    });
    added.unwrap().keep();
    let mut times = Vec::new();
    let volumes: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            let volume = keep(fixture.pool.volume_create(Some(&image)));
            times.push(start.elapsed());
            volume
        })
        .collect();
    times.sort();
    eprintln!("create: median {:?}, slowest {:?}", times[100], times[199]);
    assert!(times[100] < Duration::from_millis(5), "even a busy machine makes three directories faster");
    let none = references(&[], &[], &[]);
    let own: u64 = volumes.iter().map(|volume| fixture.pool.volume_usage(volume, &none).unwrap().own).sum();
    assert!(own <= 200 * 8192, "{own} bytes for 200 unchanged volumes");
    let disk =
        duet_sys::tree::tree_size(std::os::fd::AsFd::as_fd(&fs::File::open(fixture.directory()).unwrap())).unwrap();
    assert!(disk.bytes < (64 << 20) + 200 * 20_000, "{disk:?}");
}
