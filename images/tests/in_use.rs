//! A tree that changes while it is packed.

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::*;
use duet_images::{Observer, TreeOptions, pack_tree};
use rustix::fs::{FileType, Mode, mknodat};

/// What to do when a name goes by.
type Act<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// Takes an archive's bytes, and does something to the tree when a name goes by for the first time.
struct Meddler<'a> {
    archive: Vec<u8>,
    acts: Vec<Act<'a>>,
}

impl std::io::Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.archive.extend_from_slice(bytes);
        self.acts.retain(|(name, act)| {
            let seen = bytes.starts_with(name.as_bytes());
            if seen {
                act();
            }
            !seen
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A tree that loses files and parts of files while it is packed.
fn meddled(top: &Path, in_use: bool) -> (Vec<u8>, duet_images::Result<duet_images::PackedTree>) {
    let path = |name: &str| top.join(name);
    for name in ["a", "b-gone", "d-shrinks", "e-linked", "proc/1", "usr/proc/1"] {
        fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        fs::write(path(name), name.repeat(1000)).unwrap();
    }
    fs::create_dir(path("c-gone")).unwrap();
    fs::write(path("c-gone/file"), "").unwrap();
    fs::hard_link(path("e-linked"), path("f-linked")).unwrap();
    symlink("nowhere", path("g-gone")).unwrap();
    mknodat(rustix::fs::CWD, path("h-gone"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let vanish = || {
        fs::remove_file(path("b-gone")).unwrap();
        fs::remove_dir_all(path("c-gone")).unwrap();
        fs::write(path("c-gone"), "a file instead").unwrap();
        fs::remove_file(path("e-linked")).unwrap();
        fs::remove_file(path("g-gone")).unwrap();
        fs::remove_file(path("h-gone")).unwrap();
    };
    let shrink = || File::options().write(true).open(path("d-shrinks")).unwrap().set_len(10).unwrap();
    let acts: Vec<Act<'_>> = vec![("x/a\0", Box::new(vanish)), ("x/d-shrinks\0", Box::new(shrink))];
    let mut out = Meddler { archive: Vec::new(), acts };
    let options = TreeOptions { prefix: "x", in_use, left_empty: &["proc"] };
    let packed = pack_tree(File::open(top).unwrap().as_fd(), &options, &mut out, &mut Observer::none());
    (out.archive, packed)
}

#[test]
fn a_tree_in_use_is_packed_as_it_is_met() {
    let (top, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (archive, packed) = meddled(top.path(), true);
    packed.unwrap();
    assert!(archive.ends_with(&[0; 1024]));
    let file = copy.path().join("archive");
    fs::write(&file, archive).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(copy.path()).status().unwrap().success());
    let mut found: Vec<_> = tree(&copy.path().join("x"), true).into_keys().map(|path| lossy(&path)).collect();
    found.retain(|path| !path.is_empty());
    // What had another name is whole under that one.
    let expected = ["a", "c-gone", "d-shrinks", "f-linked", "proc", "usr", "usr/proc", "usr/proc/1"].map(str::to_owned);
    assert_eq!(found, expected);
    let shrunk = fs::read(copy.path().join("x/d-shrinks")).unwrap();
    assert_eq!((shrunk.len(), &shrunk[..12]), (9000, &b"d-shrinksd\0\0"[..]));
    assert_eq!(fs::read(copy.path().join("x/f-linked")).unwrap().len(), 8000);
}

#[test]
fn a_tree_at_rest_may_not_change() {
    let top = tempfile::tempdir().unwrap();
    let (archive, packed) = meddled(top.path(), false);
    let error = packed.unwrap_err().to_string();
    assert_eq!(error, "cannot examine \"x/b-gone\" of the image: No such file or directory (os error 2)");
    assert!(!archive.ends_with(&[0; 1024]), "no end mark");
}
