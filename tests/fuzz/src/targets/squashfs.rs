//! The root filesystem of a split image.

use std::process::Command;

use duet_images::ImageFiles;

use super::archive::{METADATA, scratch, unpack_in};
use super::tar::{archive, file};

/// Takes a squashfs.
pub fn run(data: &[u8]) {
    let dir = scratch();
    let (meta, rootfs) = (dir.path().join("image"), dir.path().join("root"));
    std::fs::write(&meta, archive(&[file("metadata.yaml", METADATA)])).expect("the image's file");
    std::fs::write(&rootfs, data).expect("the root's file");
    unpack_in(dir.path(), &ImageFiles { meta, rootfs: Some(rootfs) });
}

/// What mksquashfs makes of a small tree, where it is installed; else the magic number alone.
pub fn seeds() -> Vec<Vec<u8>> {
    let made = ["gzip", "xz", "zstd"].map(|compression| {
        let dir = scratch();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
        std::fs::create_dir_all(tree.join("etc/deep")).ok()?;
        std::fs::write(tree.join("etc/hostname"), "one\n").ok()?;
        std::fs::write(tree.join("etc/deep/large"), vec![b'x'; 9000]).ok()?;
        std::os::unix::fs::symlink("hostname", tree.join("etc/link")).ok()?;
        std::fs::hard_link(tree.join("etc/hostname"), tree.join("hard")).ok()?;
        let mut packing = Command::new("mksquashfs");
        packing.arg(&tree).arg(&image).args(["-comp", compression, "-b", "4096", "-no-progress", "-quiet", "-nopad"]);
        packing.output().ok()?;
        std::fs::read(&image).ok()
    });
    made.into_iter().flatten().chain([b"hsqs".to_vec()]).collect()
}
