//! Files in an instance: push, pull, list, make, delete; and what a hostile instance may try with them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use duet_tests::Host;
use duet_tests::api::{Request, Response};

/// The URL of a path in `c1`.
fn url(path: &str) -> String {
    let encoded: String = path
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => (byte as char).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    format!("/1.0/instances/c1/files?path={encoded}")
}

fn get(host: &Host, path: &str) -> Response {
    host.request("GET", &url(path), None)
}

fn post(host: &Host, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let socket = host.socket();
    let url = url(path);
    let mut request = Request::new(&socket, "POST", &url).header("Content-Type", "application/octet-stream");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(body).send()
}

#[test]
fn a_file_goes_in_and_comes_out_with_mode_and_owner() {
    let host = Host::new();
    // The same at rest and while it runs.
    host.ok("create busybox c1");
    for running in [false, true] {
        if running {
            host.ok("start c1");
        }
        let file = host.tmp().join("data");
        fs::write(&file, [0, 1, 2, 255, 10]).unwrap();
        host.ok(&format!("file push {} c1/root/data --mode 0640 --uid 1000 --gid 2000", file.display()));
        let answer = get(&host, "/root/data");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, [0, 1, 2, 255, 10]);
        for (header, value) in [("type", "file"), ("uid", "1000"), ("gid", "2000"), ("mode", "0640")] {
            let found = answer.header(&format!("x-incus-{header}"));
            assert_eq!(found, Some(value), "{header}: {:?}", answer.headers);
        }
        let back = host.tmp().join("back");
        host.ok(&format!("file pull c1/root/data {}", back.display()));
        assert_eq!(fs::read(&back).unwrap(), [0, 1, 2, 255, 10]);
        assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o7777, 0o640);
        fs::remove_file(back).unwrap();
        if running {
            assert_eq!(host.inside("c1", "stat -c '%a %u %g %s' /root/data"), "640 1000 2000 5");
        }
    }
}

#[test]
fn without_flags_a_file_keeps_its_mode_and_becomes_roots() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let file = host.tmp().join("script");
    fs::write(&file, "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    host.ok(&format!("file push {} c1/usr/", file.display()));
    assert_eq!(host.inside("c1", "stat -c '%a %u %g' /usr/script; /usr/script"), "755 0 0\nran");
    // An existing file's own mode and owner stay when it is written again.
    host.inside("c1", "chmod 600 /usr/script; chown 5:6 /usr/script");
    post(&host, "/usr/script", &[], b"new").metadata();
    assert_eq!(host.inside("c1", "stat -c '%a %u %g' /usr/script; cat /usr/script"), "600 5 6\nnew");
    // On the host it belongs to the shifted root, never to the host's.
    let owner = fs::metadata(format!("/proc/{}/root/usr", host.init_pid("c1"))).unwrap().uid();
    assert!(owner >= 65536, "owned by {owner} on the host");
}

#[test]
fn input_and_output_streams_can_be_used() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.duet("file push - c1/tmp/from-stdin").stdin("some text").run().succeeded();
    let output = host.duet("file pull c1/tmp/from-stdin -").run().succeeded();
    assert_eq!(output.stdout, b"some text");
    let big = vec![b'z'; 48 << 20];
    host.duet("file push - c1/big").stdin(big.clone()).run().succeeded();
    assert!(host.duet("file pull c1/big -").run().succeeded().stdout == big);
}

#[test]
fn folders_are_listed_made_and_removed() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.inside("c1", "mkdir -p /srv");
    let made = post(&host, "/srv/new", &[("X-Incus-Type", "directory"), ("X-Incus-Mode", "0750")], b"");
    made.metadata();
    assert_eq!(host.inside("c1", "stat -c '%a %F' /srv/new"), "750 directory");
    host.inside("c1", "touch /srv/new/b /srv/new/a; mkdir /srv/new/sub; touch /srv/new/sub/deep");
    let listed = get(&host, "/srv/new");
    assert_eq!(listed.header("x-incus-type"), Some("directory"));
    let mut names: Vec<String> = serde_json::from_value(listed.metadata()).unwrap();
    names.sort();
    assert_eq!(names, ["a", "b", "sub"]);
    host.request("DELETE", &url("/srv/new/a"), None).metadata();
    get(&host, "/srv/new/a").refused(404, "");
    // A folder that is not empty is kept, unless it is asked for with everything in it.
    let kept = host.request("DELETE", &url("/srv/new"), None);
    assert!(kept.status >= 400, "{kept:?}");
    let socket = host.socket();
    Request::new(&socket, "DELETE", &url("/srv/new")).header("X-Incus-Force", "true").send().metadata();
    get(&host, "/srv/new").refused(404, "");
    host.ok("file create c1/srv/made --type directory");
    host.ok("file create c1/srv/made/file");
    assert_eq!(host.inside("c1", "stat -c %F /srv/made /srv/made/file"), "directory\nregular empty file");
    host.ok("file delete c1/srv/made/file c1/srv/made");
    assert_eq!(host.inside("c1", "ls /srv"), "");
    host.fails("file delete c1/srv/none", "not");
    host.fails("file pull c1/srv/none /tmp/", "not");
}

#[test]
fn missing_folders_are_made_when_asked_for() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let file = host.tmp().join("f");
    fs::write(&file, "x").unwrap();
    host.fails(&format!("file push {} c1/a/b/c/f", file.display()), "not");
    host.ok(&format!("file push -p {} c1/a/b/c/f", file.display()));
    assert_eq!(host.inside("c1", "cat /a/b/c/f"), "x");
}

#[test]
fn a_tree_goes_in_and_comes_out() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let tree = host.tmp().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("one"), "1").unwrap();
    fs::write(tree.join("sub/two"), "22").unwrap();
    fs::write(tree.join("sub/a name with blanks & ümlauts"), "333").unwrap();
    symlink("../one", tree.join("sub/link")).unwrap();
    fs::set_permissions(tree.join("sub/two"), fs::Permissions::from_mode(0o751)).unwrap();
    host.ok(&format!("file push -r -p {} c1/srv", tree.display()));
    assert_eq!(
        host.inside("c1", "cd /srv/tree; find . | sort; readlink sub/link; stat -c %a sub/two"),
        ".\n./one\n./sub\n./sub/a name with blanks & ümlauts\n./sub/empty\n./sub/link\n./sub/two\n../one\n751"
    );
    let back = host.tmp().join("back");
    fs::create_dir(&back).unwrap();
    host.ok(&format!("file pull -r c1/srv/tree {}", back.display()));
    let compared =
        host.sh(&format!("diff -r --no-dereference {} {}/tree && echo same", tree.display(), back.display()));
    assert_eq!(compared, "same");
}

#[test]
fn appending_and_links_work_through_the_api() {
    let host = Host::new();
    host.ok("launch busybox c1");
    post(&host, "/log", &[], b"one\n").metadata();
    post(&host, "/log", &[("X-Incus-Write", "append")], b"two\n").metadata();
    assert_eq!(get(&host, "/log").body, b"one\ntwo\n");
    post(&host, "/link", &[("X-Incus-Type", "symlink")], b"/log").metadata();
    assert_eq!(host.inside("c1", "readlink /link"), "/log");
    let link = get(&host, "/link");
    assert_eq!(link.header("x-incus-type"), Some("symlink"));
    assert_eq!(link.body, b"/log");
}

/// A secret on the host that no file request may reach, and a place that none may change.
fn secret(host: &Host) -> (String, String) {
    let folder = host.tmp().join("host-only");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("secret"), "the host's secret").unwrap();
    let path = folder.join("secret").to_str().unwrap().to_owned();
    (folder.to_str().unwrap().to_owned(), path)
}

#[test]
fn links_never_lead_out_of_the_root() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let (folder, file) = secret(&host);
    let up = "../".repeat(12);
    host.inside(
        "c1",
        &format!(
            "mkdir -p /t; ln -s {file} /t/absolute; ln -s {up}{file} /t/relative; ln -s {folder} /t/folder; \
             ln -s / /t/root; ln -s /proc/1/root /t/proc; ln -s loop /t/loop; ln -s {up}.. /t/up"
        ),
    );
    for running in [true, false] {
        if !running {
            host.ok("stop c1 --force");
        }
        for path in [
            "/t/folder/secret".to_owned(),
            format!("/t/root{file}"),
            format!("/t/up{file}"),
            format!("/t/proc{file}"),
            format!("/t/proc/1/root{file}"),
            format!("{up}{file}"),
            format!("/t/{up}{up}{file}"),
            "/t/loop/x".to_owned(),
        ] {
            let answer = get(&host, &path);
            assert!(answer.status >= 400, "{path}: {answer:?}");
            let answer = post(&host, &path, &[], b"changed");
            assert!(answer.status >= 400, "{path}: {answer:?}");
            let _ = host.request("DELETE", &url(&path), None);
            assert_eq!(fs::read_to_string(&file).unwrap(), "the host's secret", "{path}");
        }
        for path in ["/t/absolute", "/t/relative"] {
            let answer = get(&host, path);
            assert!(!String::from_utf8_lossy(&answer.body).contains("the host's"), "{path}: {answer:?}");
            let _ = post(&host, path, &[], b"changed");
            let _ = post(&host, path, &[("X-Incus-Write", "append")], b"changed");
            assert_eq!(fs::read_to_string(&file).unwrap(), "the host's secret", "{path}");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
    // A link within the root is followed to where it leads there.
    host.ok("start c1");
    host.inside("c1", "echo inside > /inside; ln -s /../../inside /t/inside; ln -s /t /via");
    host.ok(&format!("file pull c1/via/inside {}/got", host.tmp().display()));
}

#[test]
fn a_recursive_pull_does_not_write_outside_of_its_target() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let (folder, file) = secret(&host);
    host.inside("c1", &format!("mkdir -p /t/d; ln -s {folder} /t/d/sub; ln -s {file} /t/d/file; echo fine > /t/d/ok"));
    let target = host.tmp().join("target");
    fs::create_dir(&target).unwrap();
    let _ = host.duet(&format!("file pull -r c1/t/d {}", target.display())).run();
    assert_eq!(fs::read_to_string(&file).unwrap(), "the host's secret");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    // Whatever came out is no file of the host's content.
    let found = host.sh(&format!("grep -rl --exclude-dir=host-only 'the host.s secret' {} || true", target.display()));
    for name in found.lines() {
        assert!(fs::symlink_metadata(name).unwrap().file_type().is_symlink(), "{name}");
    }
}

#[test]
fn a_root_that_changes_under_the_request_gives_nothing_away() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let (folder, file) = secret(&host);
    // /race/d is a folder with a harmless `secret` one moment and a link out of the root the next.
    host.inside(
        "c1",
        &format!(
            "mkdir -p /race/real; echo harmless > /race/real/secret; \
             (while true; do ln -sfn /race/real /race/d; ln -sfn {folder} /race/d; done) </dev/null >/dev/null 2>&1 &"
        ),
    );
    for round in 0..300 {
        let answer = get(&host, "/race/d/secret");
        assert!(!String::from_utf8_lossy(&answer.body).contains("the host's"), "round {round}: {answer:?}");
        let _ = post(&host, "/race/d/secret", &[], b"harmless");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "the host's secret");
}

#[test]
fn odd_files_do_not_block_a_request() {
    let host = Host::new();
    host.ok("launch busybox c1");
    host.inside("c1", "mkfifo /fifo; mkdir /d");
    // Nobody writes to it: opening it to read must not wait for somebody.
    let answer = get(&host, "/fifo");
    assert!(answer.status >= 400, "{answer:?}");
    let answer = post(&host, "/fifo", &[], b"x");
    assert!(answer.status >= 400, "{answer:?}");
    let answer = post(&host, "/d", &[], b"x");
    assert!(answer.status >= 400, "{answer:?}");
    for path in ["", "/", "/\u{0}", "//", "/../.."] {
        let answer = post(&host, path, &[], b"x");
        assert!((400..500).contains(&answer.status), "{path:?}: {answer:?}");
    }
    for (name, value) in
        [("X-Incus-Mode", "rwx"), ("X-Incus-Uid", "-7"), ("X-Incus-Type", "socket"), ("X-Incus-Write", "?")]
    {
        let answer = post(&host, "/f", &[(name, value)], b"x");
        assert_eq!(answer.status, 400, "{name}: {value}: {answer:?}");
    }
}
