//! The inventory: it survives, it migrates, it refuses what it does not understand.

use duet_tests::Host;
use rusqlite::Connection;
use serde_json::json;

#[test]
fn the_first_start_makes_profile_pool_and_network() {
    let host = Host::empty();
    let profile = host.get("/1.0/profiles/default");
    assert_eq!(profile["devices"]["root"]["type"], "disk");
    assert_eq!(profile["devices"]["root"]["path"], "/");
    assert_eq!(profile["devices"]["root"]["pool"], "default");
    assert_eq!(profile["devices"]["eth0"]["type"], "nic");
    assert_eq!(profile["devices"]["eth0"]["network"], "duetbr0");
    assert_eq!(host.get("/1.0/storage-pools/default")["driver"], "overlay");
    let network = host.get("/1.0/networks/duetbr0");
    assert_eq!(network["type"], "bridge");
    assert_eq!(network["managed"], true);
}

#[test]
fn everything_survives_a_restart() {
    let mut host = Host::new();
    host.ok("create busybox c1 -c user.colour=red -c limits.memory=64MiB");
    host.ok("snapshot create c1 s");
    host.ok("profile create p");
    host.ok("profile set p limits.processes=50");
    host.ok("profile add c1 p");
    host.ok("config device add c1 d disk source=/usr path=/mnt readonly=true");
    host.ok("image alias create other busybox");
    let look = |host: &Host| {
        [
            "/1.0/instances/c1",
            "/1.0/instances/c1/snapshots?recursion=1",
            "/1.0/profiles?recursion=1",
            "/1.0/images?recursion=1",
            "/1.0/images/aliases?recursion=1",
            "/1.0/networks?recursion=1",
            "/1.0/storage-pools?recursion=1",
        ]
        .map(|path| host.get(path))
    };
    let before = look(&host);
    host.restart_daemon();
    assert_eq!(look(&host), before);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(look(&host), before);
}

#[test]
fn an_emptied_profile_stays_empty() {
    let mut host = Host::empty();
    host.request("PUT", "/1.0/profiles/default", Some(&json!({"config": {}, "devices": {}, "description": "mine"})))
        .metadata();
    host.request("DELETE", "/1.0/networks/duetbr0", None).metadata();
    host.restart_daemon();
    let profile = host.get("/1.0/profiles/default");
    assert_eq!(profile["description"], "mine");
    assert_eq!(profile["devices"], json!({}));
    host.request("GET", "/1.0/networks/duetbr0", None).refused(404, "");
}

#[test]
fn the_database_is_a_plain_sqlite_file_in_wal_mode() {
    let host = Host::empty();
    let database = Connection::open(host.state().join("duet.db")).unwrap();
    let mode: String = database.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    let fine: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(fine, "ok");
}

#[test]
fn a_newer_database_is_refused_with_a_sentence() {
    let mut host = Host::empty();
    host.stop_daemon();
    let path = host.state().join("duet.db");
    let database = Connection::open(&path).unwrap();
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert!(version > 0);
    database.pragma_update(None, "user_version", 999_999).unwrap();
    drop(database);
    let (status, said) = host.daemon_refuses();
    assert!(!status.success());
    assert!(said.contains("newer"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // Nothing was changed by trying.
    let database = Connection::open(&path).unwrap();
    let kept: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 999_999);
    database.pragma_update(None, "user_version", version).unwrap();
    drop(database);
    host.start_daemon();
}

#[test]
fn an_older_database_is_migrated() {
    let mut host = Host::bare();
    // What a daemon that never got to its first migration left.
    let database = Connection::open(host.state().join("duet.db")).unwrap();
    database.pragma_update(None, "user_version", 0).unwrap();
    drop(database);
    host.start_daemon();
    assert_eq!(host.get("/1.0/profiles/default")["name"], "default");
    host.stop_daemon();
    let database = Connection::open(host.state().join("duet.db")).unwrap();
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let numbered = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations")).unwrap().count();
    assert_eq!(version, i64::try_from(numbered).unwrap());
    drop(database);
    host.start_daemon();
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let host = Host::empty();
    let daemon = host.binaries().join("duetd");
    let output = host.command(daemon.to_str().unwrap(), &[]).run();
    let said = format!("{}{}", output.text(), output.errors());
    assert!(output.code().is_some_and(|code| code != 0), "{output:?}");
    assert!(said.contains("another duetd"), "{said}");
    assert_eq!(host.get("/1.0")["api_version"], "1.0");
}

#[test]
fn the_state_folder_is_not_for_everyone() {
    let host = Host::new();
    host.ok("launch busybox c1");
    let socket = host.sh(&format!("stat -c %a {}", host.socket().display()));
    assert!(socket == "660" || socket == "600", "the socket's mode is {socket}");
    let other = host.sh(&format!(
        "setpriv --reuid 65534 --clear-groups ls {0} >/dev/null 2>&1 && echo listed; \
         setpriv --reuid 65534 --clear-groups cat {0}/duet.db >/dev/null 2>&1 && echo read; \
         setpriv --reuid 65534 --clear-groups ls {0}/storage-pools/default >/dev/null 2>&1 && echo pool; true",
        host.state().display()
    ));
    assert_eq!(other, "", "another user could look in");
}
