//! The daemon is killed at random instants of everything that it does: 40 times, or as often as `DUET_KILLS` says.
//!
//! After each kill the daemon that follows has nothing half-made and nothing that nobody owns, has lost nothing that it
//! had acknowledged, and an instance that ran meanwhile never noticed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use duet_tests::Host;
use duet_tests::command::wait;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

/// A generator whose seed is told, so that a failure can be had again.
fn chance() -> StdRng {
    let told = std::env::var("DUET_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = told.unwrap_or_else(rand::random::<u64>);
    eprintln!("DUET_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// What a command has brought about when it says that it succeeded.
type Check = Box<dyn Fn(&Host) -> bool>;

fn exists(host: &Host, path: &str) -> bool {
    host.request("GET", path, None).status == 200
}

fn status_is(name: &str, status: &'static str) -> Check {
    let name = name.to_owned();
    Box::new(move |host| host.status(&name) == status)
}

fn is_there(path: String, there: bool) -> Check {
    Box::new(move |host| exists(host, &path) == there)
}

/// A command of those that make sense now, and what is true once it succeeded.
fn command(host: &Host, chance: &mut StdRng, round: u64) -> (String, Check) {
    let names = names(host);
    let stopped: Vec<&String> = names.iter().filter(|name| host.status(name) == "Stopped").collect();
    let running: Vec<&String> = names.iter().filter(|name| host.status(name) == "Running").collect();
    let mut pick = |from: &[&String]| from.choose(chance).map(|name| (*name).clone());
    let any: Vec<&String> = names.iter().collect();
    let (stopped, running, any) = (pick(&stopped), pick(&running), pick(&any));
    let instance = |name: &str| format!("/1.0/instances/{name}");
    let new = format!("n{round}");
    let choice = chance.random_range(0..10);
    match (choice, stopped, running, any) {
        (1, Some(name), ..) => (format!("start {name}"), status_is(&name, "Running")),
        (2, _, Some(name), _) => (format!("stop --force {name}"), status_is(&name, "Stopped")),
        (3, .., Some(name)) => {
            (format!("snapshot create {name} {new}"), is_there(format!("{}/snapshots/{new}", instance(&name)), true))
        }
        (4, Some(name), ..) if exists(host, &format!("{}/snapshots/first", instance(&name))) => {
            (format!("snapshot restore {name} first"), status_is(&name, "Stopped"))
        }
        (5, .., Some(name)) => (format!("copy {name} {new}"), is_there(instance(&new), true)),
        (6, Some(name), ..) => (format!("rename {name} {new}"), is_there(instance(&new), true)),
        (7, Some(name), ..) => (format!("delete {name}"), is_there(instance(&name), false)),
        (8, Some(name), ..) => {
            (format!("publish {name} --alias {new}"), is_there(format!("/1.0/images/aliases/{new}"), true))
        }
        (9, ..) => (format!("launch busybox {new}"), status_is(&new, "Running")),
        _ => (format!("create busybox {new}"), is_there(instance(&new), true)),
    }
}

/// The instances besides the one that is left alone.
fn names(host: &Host) -> Vec<String> {
    let instances = host.get("/1.0/instances?recursion=1");
    let names = instances.as_array().unwrap().iter().map(|instance| instance["name"].as_str().unwrap().to_owned());
    names.filter(|name| name != "bystander").collect()
}

/// What there is of the instances on the host, and nothing else.
fn assert_tidy(host: &Host, round: u64) {
    let instances: Value = host.get("/1.0/instances?recursion=2");
    let instances = instances.as_array().unwrap();
    let running = instances.iter().filter(|instance| instance["status"] == "Running").count();
    assert_eq!(host.running("duet-monitor").len(), running, "round {round}: monitors");
    let links = host.sh("ip -br link | grep -c '^duet[0-9a-f]\\{8\\}' || true");
    assert_eq!(links, running.to_string(), "round {round}: links");
    let state = host.state();
    let listed = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(state.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(listed("storage-pools/default/tmp"), BTreeSet::new(), "round {round}: half-made layers");
    assert_eq!(listed("work"), BTreeSet::new(), "round {round}: half-made images");
    assert_eq!(listed("run").len(), running, "round {round}: run folders");
    // Every layer on the disk is somebody's, and everybody's layers are on the disk.
    let database =
        rusqlite::Connection::open_with_flags(state.join("duet.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
            .unwrap();
    let mut owned = BTreeSet::new();
    for table in ["instances", "snapshots"] {
        let mut query = database.prepare(&format!("SELECT volume FROM {table}")).unwrap();
        let volumes = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
        for volume in volumes {
            let volume: Value = serde_json::from_str(&volume.unwrap()).unwrap();
            owned.extend(volume["lowers"].as_array().into_iter().flatten().map(|id| id.as_str().unwrap().to_owned()));
            owned.extend(volume["upper"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(listed("storage-pools/default/layers"), owned, "round {round}: layers");
}

#[test]
fn heavy_the_daemon_may_be_killed_at_any_instant() {
    let mut host = Host::new();
    let mut chance = chance();
    let kills = std::env::var("DUET_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(40);
    host.ok("launch busybox bystander");
    host.inside("bystander", "(i=0; while true; do i=$((i+1)); echo $i >/tick; done) </dev/null >/dev/null 2>&1 &");
    let pid = host.init_pid("bystander");
    host.ok("create busybox seed");
    host.ok("snapshot create seed first");
    for round in 0..kills {
        let (line, check) = command(&host, &mut chance, round);
        let mut child = host.duet(&line).spawn();
        let until = Instant::now() + Duration::from_micros(chance.random_range(0..45_000));
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        host.kill_daemon();
        let status = wait(&mut child, Duration::from_secs(30)).expect("the client ends with the daemon");
        host.start_daemon();
        if status.success() {
            assert!(check(&host), "round {round}: \"{line}\" had succeeded, and is undone");
        }
        assert_eq!(host.init_pid("bystander"), pid, "round {round}: {line}");
        assert_eq!(host.inside("bystander", "echo fine"), "fine");
        // What should run is started again in the background.
        duet_tests::eventually("every instance being at rest", || {
            let busy = host.get("/1.0/instances?recursion=1");
            let at_rest = |status: &Value| matches!(status.as_str(), Some("Running" | "Stopped"));
            busy.as_array()?.iter().all(|instance| at_rest(&instance["status"])).then_some(())
        });
        duet_tests::eventually("the daemon's own operations being over", || {
            let running = host.get("/1.0/operations");
            running["running"].as_array().is_none_or(Vec::is_empty).then_some(())
        });
        assert_tidy(&host, round);
        if names(&host).len() > 6 {
            for name in names(&host).iter().skip(2) {
                host.ok(&format!("delete --force {name}"));
            }
        }
    }
    let tick = format!("/proc/{pid}/root/tick");
    let before = std::fs::read(&tick).unwrap();
    duet_tests::eventually("the bystander going on", || (std::fs::read(&tick).ok()? != before).then_some(()));
}
