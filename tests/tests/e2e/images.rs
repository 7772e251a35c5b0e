//! Images: building, importing, exporting, publishing; and archives that mean harm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use duet_tests::api::Request;
use duet_tests::{Host, images};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn sha256(files: &[&Path]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).unwrap());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn shell(script: &str) {
    run("/bin/sh", &["-ec", script]);
}

/// The busybox image's content, unpacked by tar: `metadata.yaml` and `rootfs`.
fn unpacked(host: &Host) -> PathBuf {
    let folder = host.tmp().join("unpacked");
    fs::create_dir(&folder).unwrap();
    run("tar", &["-xf", images::file(images::BUSYBOX).to_str().unwrap(), "-C", folder.to_str().unwrap()]);
    folder
}

/// Waits for the one image of the host and gives its fingerprint.
fn only_image(host: &Host) -> String {
    let listed = host.get("/1.0/images?recursion=1");
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed:#}");
    listed[0]["fingerprint"].as_str().unwrap().to_owned()
}

fn remove_image(host: &Host, fingerprint: &str) {
    host.done("DELETE", &format!("/1.0/images/{fingerprint}"), &json!({}));
}

#[test]
fn a_unified_image_keeps_its_fingerprint_through_import_and_export() {
    let host = Host::empty();
    let file = images::file(images::BUSYBOX);
    host.ok(&format!("image import {} --alias busybox", file.display()));
    let fingerprint = only_image(&host);
    assert_eq!(fingerprint, sha256(&[&file]));
    host.ok(&format!("image export busybox {}/out", host.tmp().display()));
    let exported = fs::read_dir(host.tmp()).unwrap().flatten().next().unwrap().path();
    assert_eq!(sha256(&[&exported]), fingerprint);
    remove_image(&host, &fingerprint);
    host.ok(&format!("image import {}", exported.display()));
    assert_eq!(only_image(&host), fingerprint);
}

#[test]
fn every_compression_is_taken() {
    let host = Host::empty();
    let content = unpacked(&host);
    for (name, filter) in [("gz", "gzip"), ("xz", "xz -0"), ("zst", "zstd -q"), ("bz2", "bzip2"), ("plain", "cat")] {
        if filter == "bzip2" && Command::new("bzip2").arg("--version").output().is_err() {
            continue;
        }
        let file = host.tmp().join(format!("image.{name}"));
        shell(&format!(
            "tar -C {} -cf - metadata.yaml templates rootfs | {filter} > {}",
            content.display(),
            file.display()
        ));
        let imported = host.duet(&format!("image import {} --alias {name}", file.display())).run();
        if name == "bz2" && imported.code() != Some(0) {
            // Not among those that are promised; refusing it has to be clear.
            imported.failed_with("bzip2");
            continue;
        }
        imported.succeeded();
        host.ok(&format!("launch {name} c-{name}"));
        assert_eq!(host.inside(&format!("c-{name}"), "echo up"), "up");
        host.ok(&format!("delete -f c-{name}"));
        remove_image(&host, &sha256(&[&file]));
    }
}

#[test]
fn split_images_as_tarball_and_as_squashfs() {
    let host = Host::empty();
    let content = unpacked(&host);
    let metadata = host.tmp().join("metadata.tar.xz");
    shell(&format!("tar -C {} -cJf {} metadata.yaml templates", content.display(), metadata.display()));
    let tarball = host.tmp().join("rootfs.tar.gz");
    shell(&format!("tar -C {}/rootfs -czf {} .", content.display(), tarball.display()));
    let squashed: Vec<PathBuf> = ["gzip", "xz", "zstd"]
        .iter()
        .map(|kind| {
            let file = host.tmp().join(format!("rootfs-{kind}.squashfs"));
            run(
                "mksquashfs",
                &[
                    &format!("{}/rootfs", content.display()),
                    file.to_str().unwrap(),
                    "-comp",
                    kind,
                    "-noappend",
                    "-quiet",
                    "-no-progress",
                ],
            );
            file
        })
        .collect();
    for rootfs in std::iter::once(&tarball).chain(&squashed) {
        host.ok(&format!("image import {} {} --alias split", metadata.display(), rootfs.display()));
        let fingerprint = only_image(&host);
        assert_eq!(fingerprint, sha256(&[&metadata, rootfs]), "{}", rootfs.display());
        host.ok("launch split c1");
        assert_eq!(host.inside("c1", "cat /proc/1/comm; stat -c %u:%g /bin/busybox"), "init\n0:0");
        let out = host.tmp().join("out");
        fs::create_dir(&out).unwrap();
        host.ok(&format!("image export split {}", out.display()));
        let mut exported: Vec<PathBuf> = fs::read_dir(&out).unwrap().flatten().map(|entry| entry.path()).collect();
        exported.sort();
        assert_eq!(exported.len(), 2, "{exported:?}");
        let both = [sha256(&[&exported[0], &exported[1]]), sha256(&[&exported[1], &exported[0]])];
        assert!(both.contains(&fingerprint), "{exported:?}");
        fs::remove_dir_all(out).unwrap();
        host.ok("delete -f c1");
        remove_image(&host, &fingerprint);
    }
}

#[test]
fn unpacking_keeps_everything() {
    let host = Host::empty();
    let content = unpacked(&host);
    let root = content.join("rootfs");
    shell(&format!(
        "cd {}; mkdir kept; cd kept; echo x > plain; ln plain hard; ln -s /etc/passwd soft; mkfifo fifo; mknod null c 1 3; \
         dd if=/dev/zero of=sparse bs=1 count=1 seek=100M 2>/dev/null; install -m 4755 /bin/true suid; \
         install -o 1234 -g 5678 -m 0604 /dev/null owned; mkdir -m 1777 sticky; touch -d '2001-02-03 04:05:06 UTC' plain; \
         cp /bin/busybox cap; setcap cap_net_raw+ep cap; setfattr -n user.note -v hello plain; \
         setfacl -m u:77:r owned; setfacl -d -m g:88:rwx sticky; printf x > \"$(printf 'odd \\303\\274 name')\"",
        root.display()
    ));
    let tarball = host.tmp().join("kept.tar.gz");
    shell(&format!(
        "tar -C {} --xattrs --xattrs-include='*' --acls --sparse -czf {} metadata.yaml templates rootfs",
        content.display(),
        tarball.display()
    ));
    let metadata = host.tmp().join("metadata.tar");
    shell(&format!("tar -C {} -cf {} metadata.yaml templates", content.display(), metadata.display()));
    let squashed = host.tmp().join("kept.squashfs");
    run("mksquashfs", &[root.to_str().unwrap(), squashed.to_str().unwrap(), "-noappend", "-quiet", "-no-progress"]);
    host.ok(&format!("image import {} --alias tarball", tarball.display()));
    host.ok(&format!("image import {} {} --alias squashfs", metadata.display(), squashed.display()));
    for alias in ["tarball", "squashfs"] {
        host.ok(&format!("launch {alias} {alias}"));
        let seen = host.inside(
            alias,
            "cd /kept; stat -c '%n %F %a %u:%g' fifo hard null owned soft sticky suid; \
             [ $(stat -c %i plain) = $(stat -c %i hard) ] && echo linked; readlink soft; stat -c %Y plain; \
             stat -c %s sparse; cat odd*",
        );
        assert_eq!(
            seen,
            "fifo fifo 644 0:0\nhard regular file 644 0:0\nnull character special file 644 0:0\n\
             owned regular empty file 644 1234:5678\nsoft symbolic link 777 0:0\nsticky directory 1777 0:0\n\
             suid regular file 4755 0:0\nlinked\n/etc/passwd\n981173106\n104857601\nx",
            "{alias}"
        );
        // What busybox cannot show is looked at from the host, through the instance's own root.
        let kept = format!("/proc/{}/root/kept", host.init_pid(alias));
        let outside = |command: &str| host.sh(&format!("cd {kept}; {command}"));
        assert!(outside("getcap cap").contains("cap_net_raw=ep"), "{alias}: {}", outside("getcap -v cap"));
        assert!(outside("getfattr --absolute-names -n user.note plain").contains("hello"), "{alias}");
        assert!(outside("stat -c %b sparse").parse::<u64>().unwrap() < 200, "{alias}: the hole was filled");
        // squashfs has no place for ACLs (mksquashfs(1)).
        let acl = outside("getfacl -n owned sticky 2>/dev/null");
        assert!(alias == "squashfs" || acl.contains(":r--") && acl.contains("default:group:"), "{alias}: {acl}");
        host.ok(&format!("delete -f {alias}"));
    }
}

/// Builds an image from the busybox one with something added by a shell script that runs in its unpacked folder, and
/// asserts that importing it fails with `needle` and leaves nothing.
fn hostile(host: &Host, what: &str, script: &str, needle: &str) {
    let folder = host.tmp().join("hostile");
    let file = host.tmp().join("hostile.tar");
    let script = script.replace("{file}", file.to_str().unwrap());
    shell(&format!("rm -rf {0} {1}; mkdir {0}", folder.display(), file.display()));
    run("tar", &["-xf", images::file(images::BUSYBOX).to_str().unwrap(), "-C", folder.to_str().unwrap()]);
    shell(&format!("cd {}; {script}", folder.display()));
    let output = host.duet(&format!("image import {} --alias hostile", file.display())).run();
    let said = output.errors();
    assert!(output.code().is_some_and(|code| code != 0), "{what} was taken: {output:?}");
    assert!(
        needle.split('|').any(|needle| said.to_lowercase().contains(needle)),
        "{what}: '{needle}' was to be said: {output:?}"
    );
    assert_nothing_left(host, what);
}

fn assert_nothing_left(host: &Host, what: &str) {
    assert_eq!(host.get("/1.0/images"), json!([]), "{what}");
    assert_eq!(host.get("/1.0/images/aliases"), json!([]), "{what}");
    let left = duet_tests::wait::poll(Duration::from_secs(10), || {
        let left =
            host.sh(&format!("cd {}; find images work storage-pools -mindepth 1 -type f", host.state().display()));
        left.is_empty().then_some(left)
    });
    assert!(
        left.is_some(),
        "{what} left files: {}",
        host.sh(&format!("cd {}; find images work storage-pools -mindepth 1 -type f", host.state().display()))
    );
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let host = Host::empty();
    let victim = host.tmp().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let path = victim.display();
    let table = [
        ("a name that climbs", "echo x > f; tar -cf {file} metadata.yaml rootfs --transform 's|^f$|rootfs/../../f|' f".to_owned(), "..|escape|outside"),
        ("an absolute name", format!("echo x > f; tar -P -cf {{file}} metadata.yaml rootfs --transform 's|^f$|{path}|' f"), "absolute|escape|outside|name"),
        (
            "a file through a link",
            format!(
                "ln -s {} rootfs/away; tar -cf {{file}} metadata.yaml rootfs; rm rootfs/away; mkdir rootfs/away; \
                 echo x > rootfs/away/victim; tar -rf {{file}} rootfs/away/victim",
                host.tmp().display()
            ),
            "link|escape|outside|folder|directory",
        ),
        (
            "a hard link out of the root",
            format!("echo x > rootfs/f; ln rootfs/f rootfs/g; tar -P -cf {{file}} metadata.yaml --transform 'flags=h;s|^rootfs/[fg]$|{path}|' rootfs"),
            "link|escape|outside|absolute|name",
        ),
        ("no metadata", "tar -cf {file} rootfs".to_owned(), "metadata"),
        ("no root filesystem", "tar -cf {file} metadata.yaml".to_owned(), "rootfs|root filesystem"),
        ("metadata that is no YAML", "echo '{{{' > metadata.yaml; tar -cf {file} metadata.yaml rootfs".to_owned(), "metadata"),
        ("a truncated archive", "tar -cf all metadata.yaml rootfs; head -c 600000 all > {file}".to_owned(), "truncated|end|short|incomplete"),
        ("a truncated gzip stream", "tar -czf all metadata.yaml rootfs; head -c 300000 all > {file}".to_owned(), "truncated|end|short|incomplete|corrupt|gzip"),
        ("damage in an xz stream", "tar -cf - metadata.yaml rootfs | xz -0 > all; printf XXXXXXXX | dd of=all bs=1 seek=5000 conv=notrunc 2>/dev/null; cp all {file}".to_owned(), "corrupt|damaged|xz|lzma"),
        ("no archive at all", "echo 'this is not an image' > {file}".to_owned(), "not|unknown|format"),
        ("nothing", ": > {file}".to_owned(), "empty|not|format"),
        ("metadata without end", "head -c 50000000 /dev/zero | tr '\\0' a > metadata.yaml; tar -cf {file} metadata.yaml rootfs".to_owned(), "metadata|large|big"),
    ];
    for (what, script, needle) in &table {
        hostile(&host, what, script, needle);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched", "{what}");
    }
    assert_eq!(host.get("/1.0")["api_version"], "1.0");
}

#[test]
fn a_wrong_hash_is_refused() {
    let host = Host::empty();
    let bytes = fs::read(images::file(images::BUSYBOX)).unwrap();
    let socket = host.socket();
    let answer = Request::new(&socket, "POST", "/1.0/images")
        .header("Content-Type", "application/octet-stream")
        .header("X-Incus-fingerprint", &"0".repeat(64))
        .body(bytes)
        .send();
    if answer.status == 202 {
        let operation = answer.json()["operation"].as_str().unwrap().to_owned();
        let ended = host.get(&format!("{operation}/wait?timeout=60"));
        assert_eq!(ended["status"], "Failure", "{ended:#}");
        assert!(ended["err"].as_str().unwrap().to_lowercase().contains("fingerprint"), "{ended:#}");
    } else {
        answer.refused(400, "fingerprint");
    }
    assert_nothing_left(&host, "a wrong hash");
}

#[test]
fn a_bomb_does_not_fill_the_disk() {
    let host = Host::empty();
    // 20 GB of zeros in a few MB; the pool's filesystem has as much room as this machine, so what is asserted is that
    // it is either refused or costs no more than its holes do.
    let folder = host.tmp().join("bomb");
    let content = unpacked(&host);
    fs::rename(&content, &folder).unwrap();
    shell(&format!(
        "cd {0}; truncate -s 20G rootfs/bomb; tar --sparse -cf - metadata.yaml rootfs | gzip > {1}/bomb.tar.gz",
        folder.display(),
        host.tmp().display()
    ));
    let before: u64 = host.sh(&format!("du -s -B1 {} | cut -f1", host.state().display())).parse().unwrap();
    let output = host
        .duet(&format!("image import {}/bomb.tar.gz --alias bomb", host.tmp().display()))
        .within(Duration::from_secs(120))
        .run();
    let after: u64 = host.sh(&format!("du -s -B1 {} | cut -f1", host.state().display())).parse().unwrap();
    assert!(after - before < 100 << 20, "it cost {} bytes: {output:?}", after - before);
}

#[test]
fn an_import_that_is_cut_off_leaves_nothing() {
    let host = Host::empty();
    let socket = host.socket();
    let bytes = fs::read(images::file(images::BUSYBOX)).unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let head = format!(
        "POST /1.0/images HTTP/1.1\r\nHost: duet\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    std::io::Write::write_all(&mut stream, &bytes[..bytes.len() / 2]).unwrap();
    drop(stream);
    assert_nothing_left(&host, "half an upload");
}

#[test]
fn aliases_properties_and_deletion() {
    let host = Host::new();
    let fingerprint = only_image(&host);
    host.ok("image alias create second busybox");
    host.ok("image alias rename second third");
    host.fails("image alias create third busybox", "already");
    let aliases = host.ok("image alias list -f csv");
    assert!(aliases.contains("busybox") && aliases.contains("third") && !aliases.contains("second"), "{aliases}");
    host.ok("image alias delete third");
    host.duet("image edit busybox").stdin("public: true\nproperties:\n  description: Changed\n").run().succeeded();
    let image = host.get(&format!("/1.0/images/{fingerprint}"));
    assert_eq!((&image["public"], &image["properties"]["description"]), (&json!(true), &json!("Changed")));
    assert!(host.ok("image info busybox").contains(&fingerprint));
    assert!(host.ok("image show busybox").contains("Changed"));
    assert!(host.ok("image list -f csv").contains(&fingerprint[..12]));
    // A part of the fingerprint will do, if it is only one image's.
    assert!(host.ok(&format!("image info {}", &fingerprint[..8])).contains(&fingerprint));
    host.ok(&format!("create {} c1", &fingerprint[..8]));
    host.ok("image delete busybox");
    host.fails("image info busybox", "not found");
    host.fails("launch busybox c2", "not found");
    host.ok("start c1");
}

#[test]
fn the_same_image_twice_is_refused() {
    let host = Host::new();
    let file = images::file(images::BUSYBOX);
    host.fails(&format!("image import {}", file.display()), "already");
    only_image(&host);
}

#[test]
fn what_was_published_can_be_exported_and_imported_elsewhere() {
    let fingerprint;
    let kept = tempfile::tempdir_in("/var/tmp").unwrap();
    {
        let host = Host::new();
        host.ok("create busybox c1");
        host.duet("file push - c1/mark --mode 0600 --uid 7 --gid 8").stdin("kept\n").run().succeeded();
        host.ok("publish c1 --alias mine --public description='My own' os=test");
        let image: Value = host.get("/1.0/images/aliases/mine");
        fingerprint = image["target"].as_str().unwrap().to_owned();
        let image = host.get(&format!("/1.0/images/{fingerprint}"));
        assert_eq!((&image["public"], &image["properties"]["os"]), (&json!(true), &json!("test")));
        host.ok(&format!("image export mine {}/mine", kept.path().display()));
    }
    let file = fs::read_dir(kept.path()).unwrap().flatten().next().unwrap().path();
    assert_eq!(sha256(&[&file]), fingerprint);
    let host = Host::empty();
    host.ok(&format!("image import {} --alias mine", file.display()));
    assert_eq!(only_image(&host), fingerprint);
    host.ok("launch mine c1");
    assert_eq!(host.inside("c1", "cat /mark; stat -c '%a %u %g' /mark"), "kept\n600 7 8");
}

#[test]
fn busybox_is_built_and_shows_progress() {
    let mut host = Host::bare();
    host.allow_mirror();
    host.start_daemon();
    let output = host.duet("image build busybox").within(Duration::from_secs(300)).run().succeeded();
    assert!(!output.text().is_empty() || !output.errors().is_empty());
    assert!(host.ok("image list -f csv").contains("busybox"));
    host.fails("image build no/such/recipe", "no/such/recipe");
    host.ok("launch busybox c1 --wait=ipv4");
}
