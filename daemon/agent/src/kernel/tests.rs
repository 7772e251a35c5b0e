use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;

use super::*;

/// A root with kernels, as (release, whether it has modules). /lib is a link, as in all images.
fn root(kernels: &[(&str, bool)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("boot")).unwrap();
    fs::create_dir_all(root.path().join("usr/lib")).unwrap();
    symlink("/usr/lib", root.path().join("lib")).unwrap();
    for (release, modules) in kernels {
        fs::write(root.path().join("boot").join(format!("vmlinuz-{release}")), release).unwrap();
        if *modules {
            let dir = root.path().join("usr/lib/modules").join(release);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("modules.dep"), "").unwrap();
        }
    }
    root
}

fn found(root: &tempfile::TempDir) -> Option<String> {
    let kernel = find(&File::open(root.path()).unwrap()).unwrap()?;
    let mut text = String::new();
    let mut image = kernel.image;
    image.read_to_string(&mut text).unwrap();
    assert_eq!(text, kernel.release);
    assert_eq!(kernel.modules, Path::new("lib/modules").join(&kernel.release));
    Some(kernel.release)
}

#[test]
fn the_newest_kernel_with_modules_is_found() {
    let all = root(&[("6.9.7-amd64", true), ("6.12.48-amd64", true), ("6.1.0-9-amd64", true), ("6.13-amd64", false)]);
    assert_eq!(found(&all).as_deref(), Some("6.12.48-amd64"));
    assert_eq!(found(&root(&[])), None);
    assert_eq!(found(&root(&[("6.13-amd64", false)])), None);
    assert_eq!(found(&tempfile::tempdir().unwrap()), None, "no /boot");
    let file = tempfile::tempdir().unwrap();
    fs::write(file.path().join("boot"), "").unwrap();
    assert_eq!(found(&file), None, "/boot is no directory");
}

#[test]
fn what_is_no_kernel_is_passed_over() {
    let root = root(&[("6.1", true), ("6.2", true), ("6.3", true), ("6.4", true), ("6.5 x", true), ("..", false)]);
    let image = |release: &str| root.path().join(format!("boot/vmlinuz-{release}"));
    let outside = tempfile::NamedTempFile::new().unwrap();
    for release in ["6.2", "6.3", "6.4"] {
        fs::remove_file(image(release)).unwrap();
    }
    symlink(outside.path(), image("6.2")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, image("6.3"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    File::create(image("6.4")).unwrap().set_len(MAX_IMAGE + 1).unwrap();
    assert_eq!(found(&root).as_deref(), Some("6.1"));
}

#[test]
fn a_boot_that_is_a_link_leads_within_the_root() {
    let root = root(&[("6.1", true)]);
    fs::rename(root.path().join("boot"), root.path().join("usr/boot")).unwrap();
    symlink("/usr/boot", root.path().join("boot")).unwrap();
    assert_eq!(found(&root).as_deref(), Some("6.1"));
}

#[test]
fn a_kernel_in_a_directory_of_its_own_tells_its_release() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 0x400];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    bytes[0x300..0x30a].copy_from_slice(b"6.1-a (me)");
    fs::write(dir.path().join("vmlinuz"), &bytes).unwrap();
    let error = at(dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("the kernel 6.1-a has no modules: there is no"), "{error}");
    fs::write(dir.path().join("modules.dep"), "").unwrap();
    let kernel = at(dir.path()).unwrap();
    assert_eq!(kernel.release, "6.1-a");
    assert_eq!(Path::new("/").join(kernel.modules), dir.path().canonicalize().unwrap());
    fs::write(dir.path().join("vmlinuz"), "no kernel").unwrap();
    assert!(matches!(at(dir.path()), Err(KernelError::NoRelease(_))));
}

#[test]
fn a_kernel_by_its_name_has_its_modules_where_the_host_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("vmlinuz-0.0.1-nobody-has-it");
    fs::write(&image, "").unwrap();
    let error = at(&image).unwrap_err().to_string();
    assert!(error.ends_with("no modules: there is no \"/lib/modules/0.0.1-nobody-has-it/modules.dep\""), "{error}");
    assert!(matches!(at(&dir.path().join("vmlinuz-no")), Err(KernelError::Read { .. })));
    fs::rename(&image, dir.path().join("kernel")).unwrap();
    assert!(matches!(at(&dir.path().join("kernel")), Err(KernelError::NoRelease(_))));
    // The name may be a link's.
    let link = dir.path().join("vmlinuz-0.0.2-nobody");
    symlink("kernel", &link).unwrap();
    match at(&link) {
        Err(KernelError::NoModules { release, .. }) => assert_eq!(release, "0.0.2-nobody"),
        other => panic!("{other:?}"),
    }
}
