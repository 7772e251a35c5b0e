//! The harness itself: a test host stands, is cut off from the machine, and leaves nothing.

use std::path::Path;

use duet_tests::machine::{INTERNET_IPV4, INTERNET_NAME, UPLINK_IPV4};
use duet_tests::{Host, cgroups, processes};

#[test]
fn a_host_has_a_network_of_its_own_with_an_internet() {
    let host = Host::bare();
    let listener = host.internet(INTERNET_IPV4);
    let port = listener.address.port();
    host.sh(&format!("busybox nc {INTERNET_IPV4} {port} </dev/null"));
    assert_eq!(listener.caller().ip().to_string(), UPLINK_IPV4);
    let resolved = host.sh(&format!("busybox nslookup {INTERNET_NAME}"));
    assert!(resolved.contains(INTERNET_IPV4), "{resolved}");
    let links = host.sh("ls /sys/class/net");
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["lo", "uplink"]);
}

#[test]
fn a_host_sees_only_its_own_cgroups() {
    let host = Host::bare();
    let own = host.sh("cat /proc/self/cgroup");
    assert!(own.lines().all(|line| line.ends_with(":/host")), "{own}");
    for root in host.cgroup_roots() {
        let inside = root.to_string_lossy().replace(&format!("/{}", root.file_name().unwrap().to_string_lossy()), "");
        host.sh(&format!("mkdir {inside}/made-inside"));
        assert!(root.join("made-inside").is_dir(), "{} is not the root inside", root.display());
    }
}

#[test]
fn what_runs_in_a_host_ends_with_it() {
    let host = Host::bare();
    let roots = host.cgroup_roots();
    let state = host.state();
    let pid: i32 = host.sh("sleep 3600 </dev/null >/dev/null 2>&1 & echo $!").parse().unwrap();
    assert!(host.processes().contains(&pid));
    assert!(host.sh("mount -t tmpfs tmpfs /mnt; stat -f -c %T /mnt").contains("tmpfs"));
    // A test that fails drops its host like this: no questions, everything gone.
    let failed = std::thread::spawn(move || {
        let _host = host;
        std::panic::resume_unwind(Box::new("the test failed"));
    });
    assert!(failed.join().is_err());
    assert!(!processes::alive(pid));
    assert!(roots.iter().all(|root| !root.exists() && cgroups::processes(root).is_empty()));
    assert!(!Path::new(&state).exists());
}

#[test]
#[should_panic(expected = "left behind after the daemon's end")]
fn a_process_left_behind_fails_the_test() {
    let host = Host::bare();
    host.sh("setsid --fork sleep 3600 </dev/null >/dev/null 2>&1");
}
