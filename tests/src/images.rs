//! The images that tests start from: built once by `duet image build`, kept in `target/e2e-cache`, imported per host.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::host::{Host, target_folder};

/// busybox as PID 1: boots in milliseconds.
pub const BUSYBOX: &str = "busybox";
/// Debian 13 with systemd.
pub const DEBIAN_13: &str = "debian/13";
/// Debian 12 with systemd.
pub const DEBIAN_12: &str = "debian/12";

/// How long a build may take, with a slow mirror.
const BUILD: Duration = Duration::from_secs(900);

/// Imports an image into a host under its usual alias.
#[track_caller]
pub fn import(host: &Host, alias: &str) {
    let file = file(alias);
    host.duet(&format!("image import {} --alias {alias}", file.display()))
        .within(Duration::from_secs(180))
        .run()
        .succeeded();
}

/// The image's file; it is built first where that has not been done since the recipes changed.
#[track_caller]
pub fn file(alias: &str) -> PathBuf {
    let cache = target_folder().join("e2e-cache");
    fs::create_dir_all(&cache).expect("the image cache");
    let stem = format!("{}-{}", alias.replace('/', "-"), recipe_hash());
    // One process builds, the others wait for it. The lock goes with the file's closing.
    let lock = fs::File::create(cache.join(format!("{stem}.lock"))).expect("the image cache's lock");
    lock.lock().expect("locking the image cache");
    let file = find(&cache, &stem).unwrap_or_else(|| build(&cache, &stem, alias));
    // The test host is given the newest: see tests/host/host.sh.
    let opened = fs::File::open(&file).expect("a cached image");
    opened.set_modified(SystemTime::now()).expect("touching a cached image");
    file
}

fn find(cache: &Path, stem: &str) -> Option<PathBuf> {
    fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(stem) && name.contains(".tar") && !name.ends_with(".part"))
    })
}

#[track_caller]
fn build(cache: &Path, stem: &str, alias: &str) -> PathBuf {
    let mut host = Host::bare();
    host.allow_mirror();
    host.start_daemon();
    host.duet(&format!("image build {alias}")).within(BUILD).run().succeeded();
    let target = host.tmp().join("image");
    host.duet(&format!("image export {alias} {}", target.display())).within(BUILD).run().succeeded();
    let exported = fs::read_dir(host.tmp())
        .expect("the host's folder")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("image")))
        .expect("an exported file");
    let name = exported.file_name().unwrap_or_default().to_string_lossy().replacen("image", stem, 1);
    let part = cache.join(format!("{name}.part"));
    fs::copy(&exported, &part).expect("copying into the image cache");
    let kept = cache.join(name);
    fs::rename(&part, &kept).expect("renaming in the image cache");
    host.abandon();
    kept
}

/// Over everything that images are built from: the crate with its recipes.
fn recipe_hash() -> String {
    let mut hash = Sha256::new();
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../images"), &mut files);
    files.sort();
    for file in files {
        hash.update(file.to_string_lossy().as_bytes());
        let mut bytes = Vec::new();
        if fs::File::open(&file).and_then(|mut file| file.read_to_end(&mut bytes)).is_ok() {
            hash.update(&bytes);
        }
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
