//! The daemon is killed at random instants of everything that it does: 40 times, or as often as `DUET_KILLS` says.
//!
//! After each kill the daemon that follows has nothing half-made and nothing that nobody owns, has lost nothing that it
//! had acknowledged, and an instance that ran meanwhile never noticed.

use std::time::{Duration, Instant};

use duet_tests::Host;
use duet_tests::command::wait;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::tidy::{assert_tidy, chance, names, until_at_rest};

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
        until_at_rest(&host);
        assert_tidy(&host, &format!("round {round}: {line}"));
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
