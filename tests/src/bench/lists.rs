//! What it costs to ask for everything, with few instances and with many; and what the daemons hold in memory meanwhile.

use std::time::{Duration, Instant};

use super::contender::Contender;
use super::incus::Incus;
use super::sample::{Sample, milliseconds};
use super::table::{Shape, Table, Target};
use crate::api::Connection;
use crate::images::BUSYBOX;
use crate::{Host, processes};

/// Each list is asked for as often as fits into this time, at least [`LEAST`] and at most [`MOST`] times.
const TIME: Duration = Duration::from_secs(8);
const LEAST: usize = 10;
const MOST: usize = 200;
/// How often the CLIs list.
const CLI: usize = 10;
/// How many instances a peer gets at most: it takes a minute to make these.
const PEER_MOST: usize = 500;
/// How many run while the memory is looked at.
const RUNNING: usize = 20;

struct Filled {
    contender: Contender,
    count: usize,
    running: usize,
    most: usize,
}

impl Filled {
    fn new(contender: Contender, most: usize) -> Self {
        Self { contender, count: 0, running: 0, most }
    }

    /// Makes instances until there are `count`, and says whether there are.
    fn fill(&mut self, count: usize) -> bool {
        let mut connection = self.connect();
        while self.count < count.min(self.most) {
            self.contender.create(&mut connection, BUSYBOX, self.count);
            self.count += 1;
        }
        self.count >= count
    }

    /// Starts instances until so many run, each with its address.
    fn start(&mut self, running: usize) {
        let mut connection = self.connect();
        while self.running < running {
            self.contender.change(&mut connection, "start", self.running);
            self.contender.leased(&self.contender.name(self.running));
            self.running += 1;
        }
    }

    fn stop(&mut self) {
        let mut connection = self.connect();
        while self.running > 0 {
            self.running -= 1;
            self.contender.change(&mut connection, "stop", self.running);
        }
    }

    /// A new one for every stretch of work: daemons close those that have been idle for long, and end.
    fn connect(&self) -> Connection {
        Connection::open(&self.contender.socket)
    }

    fn ask(&self, recursion: u8) -> Sample {
        let mut connection = self.connect();
        let mut sample = Sample::default();
        let path = format!("/1.0/instances?recursion={recursion}");
        let begun = Instant::now();
        while sample.count() < LEAST || (sample.count() < MOST && begun.elapsed() < TIME) {
            let started = Instant::now();
            let answer = connection.send("GET", &path, None);
            sample.add(started.elapsed());
            assert!(answer.status == 200, "{path}: status {}", answer.status);
        }
        sample
    }
}

/// What [`measure`] works with.
struct Lists<'a> {
    table: &'a mut Table,
    all: Vec<Filled>,
}

impl Lists<'_> {
    /// Lists so many, in every way, where there are so many.
    fn row(&mut self, count: usize, state: &str, there: &[bool]) {
        let mut samples = vec![Sample::default(); self.all.len()];
        for _ in 0..CLI {
            for (index, filled) in self.all.iter().enumerate().filter(|(index, _)| there[*index]) {
                samples[index].add(filled.contender.timed("list"));
            }
        }
        let samples: Vec<_> = samples.into_iter().zip(there).map(|(sample, there)| there.then_some(sample)).collect();
        self.table.row(&format!("list, {count} {state}"), Shape::Spread, &samples, Target::NONE);
        for recursion in [1, 2] {
            let ask = |(filled, there): (&Filled, &bool)| there.then(|| filled.ask(recursion));
            let samples: Vec<Option<Sample>> = self.all.iter().zip(there).map(ask).collect();
            let target = if (count, recursion) == (500, 2) { Target::both(100.0) } else { Target::NONE };
            let what = format!("GET recursion={recursion}, {count} {state}");
            self.table.row(&what, Shape::Tail, &samples, target);
            if let (1000, 2, Some(own)) = (count, recursion, &samples[0]) {
                let median = own.median();
                self.table.bound(&what, &milliseconds(median), "under 15 ms", median < Duration::from_millis(15), "");
            }
        }
    }
}

/// Fills the daemons with busybox containers, step by step, and lists them; leaves Duet with `most` of them, stopped.
pub fn measure(table: &mut Table, host: &mut Host, incus: Option<&Incus>, most: usize) {
    let peer_idle = incus.and_then(|incus| {
        incus.restart();
        resident(incus.daemon())
    });
    host.restart_daemon();
    let idle = resident(host.daemon_pid());

    let mut all = vec![Filled::new(Contender::duet(host), most)];
    // btrfs makes and deletes instances faster; lists do not look at the pool's kind.
    all.extend(incus.map(|incus| Filled::new(incus.on("btrfs"), most.min(PEER_MOST))));
    let titles: Vec<String> = all.iter().map(|filled| filled.contender.title.clone()).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    table.begin("Lists, ms: CLI median (least-most), GET p50 / p99", &titles);
    let mut lists = Lists { table, all };
    for running in [1, RUNNING] {
        let there: Vec<bool> = lists.all.iter_mut().map(|filled| filled.fill(running)).collect();
        lists.all.iter_mut().for_each(|filled| filled.start(running));
        lists.row(running, "running", &there);
    }
    let memory = Memory::of(host, incus);
    lists.all.iter_mut().for_each(Filled::stop);
    for count in [50, 500, 1000] {
        if count > most {
            break;
        }
        let there: Vec<bool> = lists.all.iter_mut().map(|filled| filled.fill(count)).collect();
        lists.row(count, "stopped", &there);
        if count == 500 {
            let own = daemon_starts(host);
            let beside = incus.map_or_else(String::new, |incus| format!("Incus {} ms", milliseconds(incus.restart())));
            let met = own.answered.median() < Duration::from_millis(50);
            let title = "start of duetd, 500 instances, ms";
            lists.table.bound(title, &own.answered.to_string(), "under 50 ms", met, &beside);
            lists.table.note("  until it makes changes as well, ms", &own.ready.to_string(), "");
        }
    }
    memory.print(lists.table, idle, peer_idle);
}

/// How long daemons take from their start.
#[derive(Default)]
pub struct Starts {
    /// To their first list of instances.
    pub answered: Sample,
    /// To being ready for changes.
    pub ready: Sample,
}

/// Starts the daemon again and again.
pub fn daemon_starts(host: &mut Host) -> Starts {
    let mut starts = Starts::default();
    for _ in 0..CLI {
        host.stop_daemon();
        let started = host.start_daemon();
        starts.answered.add(started.answered);
        starts.ready.add(started.ready);
    }
    starts
}

fn resident(pid: i32) -> Option<u64> {
    processes::kilobytes(pid, "status", "VmRSS")
}

#[allow(clippy::cast_precision_loss)]
fn mega(kilobytes: u64) -> f64 {
    kilobytes as f64 / 1024.0
}

fn megabytes(table: &mut Table, what: &str, own: Option<u64>, bound: u64, peer: Option<u64>) {
    let Some(own) = own else { return };
    let beside = peer.map_or_else(String::new, |peer| format!("Incus {:.0} MB", mega(peer)));
    table.bound(what, &format!("{:.1} MB", mega(own)), &format!("under {bound} MB"), own < bound * 1024, &beside);
}

/// In kB.
#[derive(Debug, Default)]
struct Memory {
    daemon: Option<u64>,
    peer_daemon: Option<u64>,
    monitor: Option<u64>,
    peer_monitor: Option<u64>,
}

impl Memory {
    fn of(host: &Host, incus: Option<&Incus>) -> Self {
        Self {
            daemon: resident(host.daemon_pid()),
            peer_daemon: incus.and_then(|incus| resident(incus.daemon())),
            monitor: share(&host.running("duet-monitor")),
            peer_monitor: incus.and_then(|incus| share(&incus.monitors())),
        }
    }

    fn print(&self, table: &mut Table, idle: Option<u64>, peer_idle: Option<u64>) {
        table.begin("Memory", &["Duet"]);
        megabytes(table, "duetd, resident, idle", idle, 15, peer_idle);
        megabytes(table, &format!("duetd, resident, {RUNNING} running"), self.daemon, 25, self.peer_daemon);
        let Some(own) = self.monitor else { return };
        let beside = self.peer_monitor.map_or_else(String::new, |peer| format!("Incus {:.1} MB", mega(peer)));
        table.bound("duet-monitor, share (PSS) of each", &format!("{own} kB"), "under 1 MB", own < 1024, &beside);
    }
}

/// The median of the processes' proportional shares of memory.
fn share(pids: &[i32]) -> Option<u64> {
    let mut shares: Vec<u64> =
        pids.iter().filter_map(|pid| processes::kilobytes(*pid, "smaps_rollup", "Pss")).collect();
    shares.sort_unstable();
    shares.get(shares.len() / 2).copied()
}

/// Deletes what [`measure`] left.
pub fn remove(host: &Host) {
    let duet = Contender::duet(host);
    let mut connection = Connection::open(&duet.socket);
    let all = connection.send("GET", "/1.0/instances", None).metadata();
    for path in all.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str) {
        duet.done(&mut connection, "DELETE", path, None);
    }
}
