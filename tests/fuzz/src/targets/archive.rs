//! A whole image, unpacked into a root: nothing outside is touched, and nothing is left where it is refused.

use std::path::Path;

use duet_images::{ImageError, ImageFiles, Limits, Observer, UnpackOptions, unpack};

use super::tar::{archive, file, folder, link};
use crate::assert_sentence;

pub(super) const METADATA: &str = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Test\n";

/// Takes the bytes of a unified image.
pub fn run(data: &[u8]) {
    let dir = scratch();
    let meta = dir.path().join("image");
    std::fs::write(&meta, data).expect("the image's file");
    unpack_in(dir.path(), &ImageFiles { meta, rootfs: None });
}

/// A folder in memory where there is one.
pub(super) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

pub(super) fn limits() -> Limits {
    Limits {
        max_bytes: 1 << 20,
        max_file_size: 16 << 20,
        max_entries: 256,
        max_ratio: 400,
        ratio_free_bytes: 4 << 20,
        max_path: 4096,
        max_depth: 32,
        max_metadata: 64 << 10,
        max_templates: 64 << 10,
        max_header: 64 << 10,
        max_xattr: 4096,
    }
}

/// Unpacks in a folder that holds nothing but the image's files.
pub(super) fn unpack_in(dir: &Path, files: &ImageFiles) {
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir).expect("the folder").flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let dest = dir.join("dest");
    let options = UnpackOptions { limits: limits(), fingerprint: None, sync: false };
    let (mut progress, cancelled) = (|_| {}, || false);
    match unpack(files, &dest, &options, &mut Observer::new(&mut progress, &cancelled)) {
        Ok(_) => {
            assert!(dest.join("rootfs").is_dir() && dest.join("metadata.yaml").is_file());
            std::fs::remove_dir_all(&dest).expect("what was unpacked can be removed");
        }
        Err(error) => {
            assert_sentence(&error.to_string());
            // Only root may make devices and give files away.
            let hindered = !rustix::process::geteuid().is_root() && matches!(error, ImageError::Entry { .. });
            assert!(error.is_bad_image() || hindered, "not told as the image's fault: {error:?}");
        }
    }
    assert_eq!(names(), before, "something is left beside the image");
}

/// Images of every kind of entry, plain and compressed.
pub fn seeds() -> Vec<Vec<u8>> {
    let head = || vec![file("metadata.yaml", METADATA), folder("templates/"), folder("rootfs/")];
    let with = |entries: Vec<Vec<u8>>| archive(&[head(), entries].concat());
    let full = with(vec![
        folder("rootfs/etc/"),
        file("rootfs/etc/hostname", "one\n"),
        link(b'2', "rootfs/etc/link", "../etc/hostname"),
        link(b'1', "rootfs/etc/hard", "rootfs/etc/hostname"),
        file("templates/hostname.tpl", "{{ container.name }}\n"),
    ]);
    let packed = zstd::encode_all(full.as_slice(), 1).expect("compressing in memory");
    vec![
        with(vec![]),
        full,
        packed,
        with(vec![link(b'2', "rootfs/out", "/"), file("rootfs/out/x", "x")]),
        with(vec![link(b'1', "rootfs/x", "../../etc/passwd")]),
        with(vec![file("rootfs/../x", "x")]),
    ]
}
