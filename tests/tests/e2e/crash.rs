//! The daemon, containers' monitors and dnsmasq are killed at random instants of everything that the daemon does: 40
//! times, or as often as `DUET_KILLS` says.
//!
//! After each kill the daemon has nothing half-made and nothing that nobody owns, has lost nothing that it had
//! acknowledged, and an instance that ran meanwhile never noticed.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Child;
use std::time::{Duration, Instant};

use duet_tests::command::wait;
use duet_tests::wait::{poll, within};
use duet_tests::{Host, eventually, processes};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::tidy::{BYSTANDER, assert_tidy, chance, names, until_at_rest};

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
    let choice = chance.random_range(0..13);
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
        (10, _, Some(name), _) => (format!("restart --force {name}"), status_is(&name, "Running")),
        (11, _, Some(name), _) => (format!("exec {name} -- sleep 0.02"), status_is(&name, "Running")),
        (12, .., Some(name)) => (format!("file push /etc/passwd {name}/root/{new}"), is_there(instance(&name), true)),
        (9, ..) => (format!("launch busybox {new}"), status_is(&new, "Running")),
        _ => (format!("create busybox {new}"), is_there(instance(&new), true)),
    }
}

/// How often something is killed.
fn kills() -> u64 {
    std::env::var("DUET_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(40)
}

/// Starts the instance that is left alone, and one to work with.
fn begin(host: &Host) -> i32 {
    host.ok(&format!("launch busybox {BYSTANDER}"));
    host.inside(BYSTANDER, "(i=0; while true; do i=$((i+1)); echo $i >/tick; done) </dev/null >/dev/null 2>&1 &");
    host.ok("create busybox seed");
    host.ok("snapshot create seed first");
    host.init_pid(BYSTANDER)
}

/// Lets a command run for a random while, or to its end if that is sooner.
fn random_while(chance: &mut StdRng, child: &mut Child) {
    let until = Instant::now() + Duration::from_micros(chance.random_range(0..45_000));
    while Instant::now() < until && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
}

/// The instance that is left alone never noticed anything.
fn assert_unmoved(host: &Host, bystander: i32, after: &str) {
    assert_eq!(host.init_pid(BYSTANDER), bystander, "{after}");
    assert_eq!(host.inside(BYSTANDER, "echo fine"), "fine", "{after}");
    let tick = format!("/proc/{bystander}/root/tick");
    let before = std::fs::read(&tick).unwrap();
    eventually("the bystander going on", || (std::fs::read(&tick).ok()? != before).then_some(()));
}

/// Keeps the number of instances small.
fn thin_out(host: &Host) {
    if names(host).len() > 6 {
        for name in names(host).iter().skip(2) {
            host.ok(&format!("delete --force {name}"));
        }
    }
}

fn kill(pid: i32) {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("killing {pid}: {error}"),
    }
}

#[test]
fn heavy_the_daemon_may_be_killed_at_any_instant() {
    let mut host = Host::new();
    let mut chance = chance();
    let bystander = begin(&host);
    for round in 0..kills() {
        let (line, check) = command(&host, &mut chance, round);
        let after = format!("round {round}: {line}");
        let mut child = host.duet(&line).spawn();
        random_while(&mut chance, &mut child);
        host.kill_daemon();
        let status = wait(&mut child, Duration::from_secs(30)).expect("the client ends with the daemon");
        host.start_daemon();
        if status.success() {
            assert!(check(&host), "{after}: it had succeeded, and is undone");
        }
        // What should run is started again in the background.
        until_at_rest(&host);
        assert_unmoved(&host, bystander, &after);
        assert_tidy(&host, &after);
        thin_out(&host);
    }
}

/// A process' parent.
fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The inits of all that runs, by name.
fn inits(host: &Host) -> BTreeMap<String, i32> {
    let instances = host.get("/1.0/instances?recursion=2");
    let running = instances.as_array().unwrap().iter().filter(|instance| instance["status"] == "Running");
    let inits = running.map(|instance| {
        let pid = i32::try_from(instance["state"]["pid"].as_i64().unwrap()).unwrap();
        (instance["name"].as_str().unwrap().to_owned(), pid)
    });
    inits.filter(|(name, pid)| name != BYSTANDER && *pid > 0).collect()
}

/// Where the daemon is when a monitor is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Lives,
    KilledBefore,
    KilledAfter,
}

#[test]
fn heavy_monitors_may_be_killed_at_any_instant() {
    let mut host = Host::new();
    let mut chance = chance();
    let bystander = begin(&host);
    let spared = parent(bystander).unwrap();
    let mut killed = 0;
    for round in 0.. {
        if killed >= kills() {
            break;
        }
        if inits(&host).is_empty() {
            host.ok(&format!("launch busybox r{round}"));
        }
        let before = inits(&host);
        let (line, _) = command(&host, &mut chance, round);
        let mut child = host.duet(&line).spawn();
        random_while(&mut chance, &mut child);
        let daemon =
            *[Daemon::Lives, Daemon::Lives, Daemon::KilledBefore, Daemon::KilledAfter].choose(&mut chance).unwrap();
        let monitors: Vec<i32> = host.running("duet-monitor").into_iter().filter(|pid| *pid != spared).collect();
        let Some(&monitor) = monitors.choose(&mut chance) else {
            wait(&mut child, Duration::from_secs(60)).unwrap_or_else(|| panic!("round {round}: {line}: no answer"));
            continue;
        };
        if daemon == Daemon::KilledBefore {
            host.kill_daemon();
        }
        let victim = before.iter().find(|(_, init)| parent(**init) == Some(monitor)).map(|(name, _)| name.clone());
        kill(monitor);
        killed += 1;
        if daemon == Daemon::KilledAfter {
            host.kill_daemon();
        }
        let after = format!("round {round}: {line}, {victim:?} killed, the daemon {daemon:?}");
        let status = wait(&mut child, Duration::from_secs(60)).unwrap_or_else(|| panic!("{after}: no answer"));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        // A program that is killed with its container has the status of one that was killed.
        let was_killed = line.starts_with("exec") && status.code() == Some(137);
        if !status.success() && !was_killed {
            assert!(said.starts_with("Error: ") && said.trim_end().lines().count() == 1, "{after}: {status}: {said}");
        }
        if daemon != Daemon::Lives {
            host.start_daemon();
        }
        // The daemon that lives learns of it a moment later.
        if let Some(victim) = &victim {
            let init = before[victim];
            eventually(&format!("{after}: its processes being gone"), || (!processes::alive(init)).then_some(()));
        }
        eventually(&format!("{after}: a monitor for each that runs"), || {
            let running = inits(&host).len() + 1;
            (host.running("duet-monitor").len() == running).then_some(())
        });
        until_at_rest(&host);
        assert_unmoved(&host, bystander, &after);
        assert_tidy(&host, &after);
        // What nobody touched: the victim has stopped, or was brought back with the daemon; the others run on.
        let touched: Vec<&str> = line.split(' ').collect();
        for (name, init) in before.iter().filter(|(name, _)| !touched.contains(&name.as_str())) {
            let is_victim = victim.as_ref() == Some(name);
            match (is_victim, daemon) {
                (true, Daemon::Lives) => assert_eq!(host.status(name), "Stopped", "{after}: {name}"),
                (true, _) => assert_eq!(host.inside(name, "echo fine"), "fine", "{after}: {name}"),
                (false, _) => assert_eq!(host.init_pid(name), *init, "{after}: {name}"),
            }
        }
        if let Some(victim) = victim.filter(|victim| names(&host).contains(victim)) {
            if host.status(&victim) == "Stopped" {
                host.ok(&format!("start {victim}"));
            }
            assert_eq!(host.inside(&victim, "echo fine"), "fine", "{after}");
        }
        thin_out(&host);
    }
    assert!(!host.daemon_log().contains("panicked"));
}

#[test]
fn what_waits_for_a_killed_monitor_is_told() {
    let host = Host::new();
    for paused in [false, true] {
        host.ok("launch busybox c1");
        let init = host.init_pid("c1");
        let monitor = parent(init).unwrap();
        let mut exec = host.duet("exec c1 -- sh -c 'echo ready; sleep 4713'").spawn();
        let mut said = [0; 6];
        exec.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        let mut waiting = vec![exec];
        if paused {
            host.ok("pause c1");
        } else {
            waiting.push(host.duet("console c1").spawn());
            waiting.push(host.duet("stop c1 --timeout 60").spawn());
        }
        kill(monitor);
        for child in &mut waiting {
            assert!(wait(child, Duration::from_secs(30)).is_some(), "a client waits on (paused: {paused})");
        }
        host.until_status("c1", "Stopped");
        eventually("its processes being gone", || (!processes::alive(init)).then_some(()));
        host.ok("start c1");
        host.ok("delete -f c1");
    }
}

/// What of a network has to be as before: one dnsmasq, the lease, the name, and an answer to who renews.
fn assert_served(host: &Host, lease: &str, after: &str) {
    // It is tried again after one second, then after two, and so on.
    within(Duration::from_secs(40), &format!("{after}: dnsmasq"), || {
        (host.running("dnsmasq").len() == 1).then_some(())
    });
    let leases = host.get("/1.0/networks/duetbr0/leases");
    let leased =
        leases.as_array().unwrap().iter().any(|known| known["address"] == lease && known["hostname"] == "bystander");
    assert!(leased, "{after}: {leases:#}");
    within(Duration::from_secs(20), &format!("{after}: the name"), || {
        host.try_inside(BYSTANDER, "nslookup bystander.duet | tail -n +3").text().contains(lease).then_some(())
    });
    // "expiry hwaddr address ...". dnsmasq empties the file and writes it anew: for a moment there is nothing in it.
    let expiry = || {
        let text = std::fs::read_to_string(host.state().join("networks/duetbr0/dnsmasq.leases")).unwrap();
        let line = text.lines().find(|line| line.split(' ').nth(2) == Some(lease))?;
        line.split(' ').next().map(str::to_owned)
    };
    let before = within(Duration::from_secs(20), &format!("{after}: the lease"), expiry);
    // Leases are written in whole seconds: a renewal in the next one shows. One who is asked again before it has its
    // answer gives up its address and begins anew.
    within(Duration::from_secs(20), &format!("{after}: a renewal"), || {
        host.inside(BYSTANDER, "kill -USR1 $(pidof udhcpc)");
        poll(Duration::from_secs(3), || expiry().filter(|now| *now != before).map(drop))
    });
    within(Duration::from_secs(20), &format!("{after}: the address"), || {
        host.inside(BYSTANDER, "ip -4 addr show eth0").contains(lease).then_some(())
    });
}

#[test]
fn heavy_dnsmasq_may_be_killed_at_any_instant() {
    let mut host = Host::new();
    let mut chance = chance();
    let bystander = begin(&host);
    host.ok(&format!("wait {BYSTANDER} --for ipv4"));
    let state = host.get(&format!("/1.0/instances/{BYSTANDER}/state"));
    let lease = state["network"]["eth0"]["addresses"][0]["address"].as_str().unwrap().to_owned();
    // Each kill is answered later than the one before, which keeps this few.
    for round in 0..kills().min(6) {
        let (line, check) = command(&host, &mut chance, round);
        let daemon = *[Daemon::Lives, Daemon::KilledBefore, Daemon::KilledAfter].choose(&mut chance).unwrap();
        let after = format!("round {round}: {line}, dnsmasq killed, the daemon {daemon:?}");
        let dnsmasq = host.running("dnsmasq");
        let mut child = host.duet(&line).spawn();
        random_while(&mut chance, &mut child);
        if daemon == Daemon::KilledBefore {
            host.kill_daemon();
        }
        dnsmasq.into_iter().for_each(kill);
        if daemon == Daemon::KilledAfter {
            host.kill_daemon();
        }
        let status = wait(&mut child, Duration::from_secs(60)).unwrap_or_else(|| panic!("{after}: no answer"));
        if daemon != Daemon::Lives {
            host.start_daemon();
        } else {
            // Nothing but addresses needs it.
            assert!(status.success(), "{after}: {:?}", child.wait_with_output());
            assert!(check(&host), "{after}");
        }
        until_at_rest(&host);
        assert_unmoved(&host, bystander, &after);
        assert_served(&host, &lease, &after);
        assert_tidy(&host, &after);
        thin_out(&host);
    }
    // One that is new gets an address while dnsmasq is gone and comes back.
    host.running("dnsmasq").into_iter().for_each(kill);
    host.ok("launch busybox late");
    host.ok("wait late --for ipv4");
}
