//! `make bench`: see `duet_tests::bench`.
//!
//! `duet-bench [--instances N]`: N (500) is how many instances the longest list has.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duet_tests::bench::trace::Tracer;
use duet_tests::bench::{Sample, breakdown, milliseconds};
use duet_tests::{Host, processes};
use serde_json::json;

/// How often each thing is done.
const ROUNDS: usize = 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut instances = 500;
    while let Some(argument) = arguments.next() {
        if argument == "--instances" {
            instances = arguments.next().context("--instances needs a number")?.parse()?;
        }
    }
    let mut host = Host::new();
    println!("  {:<44} {:>8} {:>8} {:>6}", "busybox, milliseconds of wall time", "median", "p90", "n");
    verbs(&host);
    requests(&host);
    lists(&host, instances);
    memory_and_restart(&mut host);
    start_taken_apart(&host)
}

fn report(what: &str, sample: &Sample) {
    println!(
        "  {what:<44} {:>8} {:>8} {:>6}",
        milliseconds(sample.quantile(0.5)),
        milliseconds(sample.quantile(0.9)),
        sample.count()
    );
}

/// Runs `duet` once for each round and adds how long it took.
fn measure(host: &Host, rounds: usize, line: impl Fn(usize) -> String) -> Sample {
    let mut sample = Sample::default();
    for round in 0..rounds {
        sample.add(host.duet(&line(round)).run().succeeded().took);
    }
    sample
}

fn verbs(host: &Host) {
    report("duet query /1.0 (the least a client does)", &measure(host, ROUNDS, |_| "query /1.0".to_owned()));
    report("duet launch", &measure(host, ROUNDS, |n| format!("launch busybox l{n}")));
    report("duet exec -- true", &measure(host, ROUNDS, |n| format!("exec l{n} -- true")));
    report("duet snapshot create (running)", &measure(host, ROUNDS, |n| format!("snapshot create l{n} s")));
    report("duet snapshot restore (running)", &measure(host, ROUNDS, |n| format!("snapshot restore l{n} s")));
    report("duet copy (running)", &measure(host, ROUNDS, |n| format!("copy l{n} k{n}")));
    report("duet stop --force", &measure(host, ROUNDS, |n| format!("stop l{n} --force")));
    report("duet snapshot create (stopped)", &measure(host, ROUNDS, |n| format!("snapshot create l{n} t")));
    report("duet snapshot restore (stopped)", &measure(host, ROUNDS, |n| format!("snapshot restore l{n} t")));
    report("duet start", &measure(host, ROUNDS, |n| format!("start l{n}")));
    report("duet stop (clean)", &measure(host, ROUNDS, |n| format!("stop l{n}")));
    report("duet delete", &measure(host, ROUNDS, |n| format!("delete l{n}")));
    for n in 0..ROUNDS {
        host.ok(&format!("delete k{n}"));
    }
    report("duet create", &measure(host, ROUNDS, |n| format!("create busybox l{n}")));
}

/// The same without a client: one HTTP request and the wait for its operation.
fn requests(host: &Host) {
    let mut sample = Sample::default();
    for n in 0..ROUNDS {
        let started = Instant::now();
        host.done("PUT", &format!("/1.0/instances/l{n}/state"), &json!({"action": "start"}));
        sample.add(started.elapsed());
    }
    report("PUT /1.0/instances/<name>/state: start", &sample);
    let mut sample = Sample::default();
    for n in 0..ROUNDS {
        let started = Instant::now();
        host.done("PUT", &format!("/1.0/instances/l{n}/state"), &json!({"action": "stop", "force": true}));
        sample.add(started.elapsed());
    }
    report("PUT /1.0/instances/<name>/state: stop", &sample);
    for n in 0..ROUNDS {
        host.done("DELETE", &format!("/1.0/instances/l{n}"), &json!({}));
    }
}

fn lists(host: &Host, most: usize) {
    let mut made = 0;
    for count in [1, 50, most] {
        while made < count {
            let body = json!({"name": format!("i{made}"), "source": {"type": "image", "alias": "busybox"}});
            host.done("POST", "/1.0/instances", &body);
            if made < 50 {
                host.done("PUT", &format!("/1.0/instances/i{made}/state"), &json!({"action": "start"}));
            }
            made += 1;
        }
        let running = count.min(50);
        report(
            &format!("duet list ({count}, {running} of them running)"),
            &measure(host, ROUNDS, |_| "list".to_owned()),
        );
    }
}

fn memory_and_restart(host: &mut Host) {
    let megabytes = |kilobytes: u64| format!("{}.{}", kilobytes / 1024, kilobytes % 1024 * 10 / 1024);
    let daemon = host.daemon_pid();
    if let Some(kilobytes) = processes::kilobytes(daemon, "status", "VmRSS") {
        println!("  {:<44} {:>8} MB", "duetd: resident", megabytes(kilobytes));
    }
    let mut shares: Vec<u64> = host
        .running("duet-monitor")
        .into_iter()
        .filter_map(|pid| processes::kilobytes(pid, "smaps_rollup", "Pss"))
        .collect();
    shares.sort_unstable();
    if let Some(kilobytes) = shares.get(shares.len() / 2) {
        println!("  {:<44} {kilobytes:>8} kB", "duet-monitor: proportional share, median");
    }
    let mut starts = Sample::default();
    let mut ends = Sample::default();
    for _ in 0..5 {
        ends.add(host.stop_daemon());
        starts.add(host.start_daemon());
    }
    report("duetd: start until ready, adopting 50", &starts);
    report("duetd: end", &ends);
    for name in host.get("/1.0/instances?recursion=1").as_array().into_iter().flatten() {
        let name = name["name"].as_str().unwrap_or_default();
        host.duet(&format!("delete --force {name}")).within(Duration::from_secs(120)).run().succeeded();
    }
}

/// Traces one start among several, the one of the median length.
fn start_taken_apart(host: &Host) -> Result<()> {
    host.ok("create busybox traced");
    let mut found = Vec::new();
    for _ in 0..7 {
        let tracer = match Tracer::start(host.daemon_pid()) {
            Ok(tracer) => tracer,
            Err(error) => {
                println!("\n  A start cannot be taken apart here: {error:#}");
                return Ok(());
            }
        };
        host.done("PUT", "/1.0/instances/traced/state", &json!({"action": "start"}));
        found.push(breakdown::analyse(&tracer.stop()?)?);
        host.done("PUT", "/1.0/instances/traced/state", &json!({"action": "stop", "force": true}));
    }
    found.sort_by_key(breakdown::Breakdown::total);
    println!("\n{}", found[found.len() / 2].table());
    Ok(())
}
