//! The front door: make, quickstart, install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use duet_tests::{Host, images};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn make(host: &Host, arguments: &[&str]) -> Output {
    // The programs under test stand where make looks for what was built.
    let target = host.tmp().join("target");
    if !target.exists() {
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(host.binaries(), target.join("release")).unwrap();
    }
    Command::new("make")
        .arg("-C")
        .arg(top())
        .args(arguments)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap()
}

#[test]
fn make_help_names_every_target() {
    let host = Host::bare();
    let help = String::from_utf8(make(&host, &["-s", "help"]).stdout).unwrap();
    for target in ["quickstart", "build", "deb", "test", "lint", "bench", "install", "uninstall", "clean"] {
        assert!(help.contains(&format!("make {target}")), "{target}: {help}");
    }
}

#[test]
fn install_puts_everything_in_its_place_and_uninstall_takes_it_away() {
    let host = Host::bare();
    let root = host.tmp().join("root");
    let destination = format!("DESTDIR={}", root.display());
    let output = make(&host, &["install", &destination, "PREFIX=/usr"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in [
        "usr/bin/duet",
        "usr/bin/duetd",
        "usr/bin/duet-monitor",
        "usr/bin/duet-vm-monitor",
        "usr/bin/duet-vmm",
        "usr/bin/duet-agent",
        "usr/lib/systemd/system/duetd.service",
        "usr/lib/systemd/system/duetd.socket",
        "usr/lib/sysctl.d/duet.conf",
        "usr/lib/sysusers.d/duet.conf",
        "usr/lib/tmpfiles.d/duet.conf",
        "usr/share/bash-completion/completions/duet",
        "usr/share/zsh/site-functions/_duet",
        "usr/share/fish/vendor_completions.d/duet.fish",
        "usr/share/man/man1/duet.1",
    ] {
        assert!(root.join(file).metadata().is_ok_and(|file| file.len() > 0), "{file} is missing");
    }
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/duetd.service")).unwrap();
    for line in ["ExecStart=/usr/bin/duetd", "KillMode=process", "Delegate=yes"] {
        assert!(unit.contains(line), "{line} is missing:\n{unit}");
    }
    assert!(!unit.contains('@'), "{unit}");
    // What was installed works: the daemon finds its monitor beside itself.
    let duet = root.join("usr/bin/duet");
    host.command(duet.to_str().unwrap(), &["--version"]).run().succeeded();
    let output = make(&host, &["uninstall", &destination, "PREFIX=/usr"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left = host.sh(&format!("find {} -type f", root.display()));
    assert_eq!(left, "");
}

#[test]
fn install_before_build_says_so() {
    let host = Host::bare();
    let empty = host.tmp().join("empty");
    fs::create_dir(&empty).unwrap();
    let output = Command::new("make")
        .args(["-s", "-C"])
        .arg(top())
        .arg("install")
        .env("CARGO_TARGET_DIR", &empty)
        .env("DESTDIR", host.tmp().join("root"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("make build"), "{output:?}");
    assert!(!host.tmp().join("root").exists());
}

#[test]
fn heavy_quickstart_ends_with_a_running_container_and_may_be_repeated() {
    let host = Host::bare();
    let script = top().join("daemon/packaging/quickstart.sh");
    let binaries = host.binaries().to_str().unwrap().to_owned();
    let quickstart = || {
        host.command(script.to_str().unwrap(), &["--prebuilt", &binaries])
            .within(std::time::Duration::from_secs(600))
            .run()
            .succeeded()
            .text()
    };
    // The image comes from the cache instead of from a mirror; building it is tested elsewhere.
    // Away from the harness' pipes, which would stay open as long as the daemon runs.
    host.sh(&format!("setsid --fork {binaries}/duetd </dev/null >/dev/null 2>&1"));
    host.ok("admin waitready --timeout 30");
    // Nor is a kernel fetched.
    host.use_kernel();
    images::import(&host, images::DEBIAN_13);
    let said = quickstart();
    assert!(said.contains("c1") && said.contains("RUNNING"), "{said}");
    assert!(said.contains("duet exec c1 -- bash"), "{said}");
    let pid = host.init_pid("c1");
    assert!(quickstart().contains("RUNNING"));
    assert_eq!(host.init_pid("c1"), pid, "the second run restarted what ran");
    host.ok("stop c1 --force");
    assert!(quickstart().contains("RUNNING"));
    // A daemon that is gone is started.
    let server = host.get("/1.0")["environment"]["server_pid"].as_i64().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(server).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    duet_tests::eventually("the daemon's end", || (!host.socket_answers()).then_some(()));
    assert!(quickstart().contains("RUNNING"));
    // This daemon is not the harness' own, so it is cleaned up here.
    duet_tests::leaks::remove_everything(&host);
    let server = host.get("/1.0")["environment"]["server_pid"].as_i64().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(server).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    duet_tests::eventually("the daemon's end", || (!host.socket_answers()).then_some(()));
}

#[test]
fn quickstart_without_root_says_what_to_do() {
    let host = Host::bare();
    let script = top().join("daemon/packaging/quickstart.sh");
    let readable = host.tmp().join("packaging/deep");
    fs::create_dir_all(&readable).unwrap();
    host.sh(&format!(
        "cp -r {}/* {}; chmod -R a+rX {}",
        script.parent().unwrap().display(),
        readable.display(),
        host.tmp().display()
    ));
    let output = host
        .command(
            "setpriv",
            &["--reuid", "65534", "--clear-groups", "bash", readable.join("quickstart.sh").to_str().unwrap()],
        )
        .run();
    let said = output.errors();
    assert!(output.code().is_some_and(|code| code != 0));
    assert!(said.contains("sudo make quickstart"), "{output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
