//! `duet top`: what instances use, live.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::context::Context;
use super::output::{Table, bytes_iec, print};
use super::parse::local_name;
use crate::Url;
use crate::api::{InstanceFull, StatusCode};

/// What the list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// CPU share
    Cpu,
    /// Memory
    Memory,
    /// Network traffic
    Network,
    /// Processes
    Processes,
    /// Name
    Name,
}

/// Show what running instances use, live
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Only these instances (or beginnings of names)
    #[arg(add = super::complete::instances())]
    names: Vec<String>,
    /// Seconds between two looks
    #[arg(short, long, default_value_t = 2.0)]
    delay: f64,
    /// How many looks; 0 for no end [default: 0 on a terminal, otherwise 1]
    #[arg(short = 'n', long)]
    count: Option<u64>,
    /// What the list is sorted by
    #[arg(short, long, value_enum, default_value_t = Order::Cpu)]
    sort: Order,
}

/// What was seen of an instance at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    /// CPU time in nanoseconds.
    cpu: i64,
    /// Bytes in, over all links.
    received: i64,
    /// Bytes out, over all links.
    sent: i64,
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    name: String,
    cpu_percent: f64,
    cpu_seconds: i64,
    memory: u64,
    memory_total: u64,
    processes: i64,
    received: f64,
    sent: f64,
    disk: u64,
}

impl Top {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let names = self.names.iter().map(|name| local_name(name)).collect::<anyhow::Result<Vec<_>>>()?;
        let delay = Duration::from_secs_f64(self.delay.clamp(0.1, 3600.0));
        let terminal = std::io::stdout().is_terminal();
        let count = self.count.unwrap_or(u64::from(!terminal));
        let live = terminal && count != 1;
        let mut before = look(context, &names).await?;
        let mut looked = Instant::now();
        // Shares need two looks; a single one is preceded by a short interval.
        let mut pause = delay.min(Duration::from_millis(500));
        let mut shown = 0;
        loop {
            tokio::time::sleep(pause).await;
            let now = look(context, &names).await?;
            let elapsed = looked.elapsed();
            looked = Instant::now();
            let lines = lines(&before, &now, elapsed, self.sort);
            let text = table(&lines).compact(true);
            if live {
                // Home, then each line cleared to its end, then the rest of the screen: no flicker.
                print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))?;
            } else {
                print(&text)?;
            }
            shown += 1;
            if shown == count {
                return Ok(());
            }
            before = now;
            pause = delay;
        }
    }
}

async fn look(context: &Context, names: &[&str]) -> anyhow::Result<Vec<InstanceFull>> {
    let url = Url::new(&["1.0", "instances"]).query("recursion", "2");
    let mut instances: Vec<InstanceFull> = context.client.get(&url).await?;
    instances.retain(|full| {
        let name = &full.instance.name;
        full.instance.status_code != StatusCode::Stopped
            && (names.is_empty() || names.iter().any(|prefix| name.starts_with(prefix)))
    });
    Ok(instances)
}

fn sample(full: &InstanceFull) -> Sample {
    let Some(state) = &full.state else { return Sample::default() };
    let links = state.network.iter().flatten().filter(|(name, _)| *name != "lo").map(|(_, link)| &link.counters);
    let (received, sent) = links.fold((0, 0), |(received, sent), c| (received + c.bytes_received, sent + c.bytes_sent));
    Sample { cpu: state.cpu.usage, received, sent }
}

fn lines(before: &[InstanceFull], now: &[InstanceFull], elapsed: Duration, order: Order) -> Vec<Line> {
    let old: HashMap<&str, Sample> = before.iter().map(|full| (full.instance.name.as_str(), sample(full))).collect();
    let seconds = elapsed.as_secs_f64().max(0.001);
    let mut lines: Vec<Line> = now
        .iter()
        .filter_map(|full| {
            let state = full.state.as_ref()?;
            let new = sample(full);
            let old = old.get(full.instance.name.as_str()).copied().unwrap_or(new);
            // Counters begin again when an instance is restarted.
            let rate = |new: i64, old: i64| (new - old).max(0) as f64 / seconds;
            Some(Line {
                name: full.instance.name.clone(),
                cpu_percent: rate(new.cpu, old.cpu) / 1e7,
                cpu_seconds: new.cpu / 1_000_000_000,
                memory: state.memory.usage.max(0).unsigned_abs(),
                memory_total: state.memory.total.max(0).unsigned_abs(),
                processes: state.processes.max(0),
                received: rate(new.received, old.received),
                sent: rate(new.sent, old.sent),
                disk: state.disk.values().map(|disk| disk.usage.max(0).unsigned_abs()).sum(),
            })
        })
        .collect();
    lines.sort_by(|a, b| {
        let key = |line: &Line| match order {
            Order::Cpu => line.cpu_percent,
            Order::Memory => line.memory as f64,
            Order::Network => line.received + line.sent,
            Order::Processes => line.processes as f64,
            Order::Name => 0.0,
        };
        key(b).total_cmp(&key(a)).then_with(|| a.name.cmp(&b.name))
    });
    lines
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(["NAME", "CPU", "CPU TIME", "MEMORY", "MEM", "PROCS", "NET IN", "NET OUT", "DISK"]);
    for line in lines {
        let share = match line.memory_total {
            0 => String::new(),
            total => format!("{:.1}%", line.memory as f64 * 100.0 / total as f64),
        };
        table.row(vec![
            line.name.clone(),
            format!("{:.1}%", line.cpu_percent),
            format!("{}s", line.cpu_seconds),
            bytes_iec(line.memory),
            share,
            line.processes.to_string(),
            format!("{}/s", bytes_iec(line.received as u64)),
            format!("{}/s", bytes_iec(line.sent as u64)),
            if line.disk == 0 { String::new() } else { bytes_iec(line.disk) },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{InstanceState, InstanceStateCpu};

    fn instance(name: &str, cpu: i64) -> InstanceFull {
        let mut full = InstanceFull::default();
        full.instance.name = name.into();
        full.instance.status_code = StatusCode::Running;
        let cpu = InstanceStateCpu { usage: cpu, allocated_time: 0 };
        full.state = Some(InstanceState { cpu, ..InstanceState::default() });
        full
    }

    #[test]
    fn shares_come_from_two_looks() {
        let before = [instance("a", 1_000_000_000), instance("b", 0), instance("c", 9_000_000_000)];
        let now = [instance("a", 1_500_000_000), instance("b", 2_000_000_000), instance("c", 0), instance("d", 7)];
        let lines = lines(&before, &now, Duration::from_secs(1), Order::Cpu);
        let shares: Vec<_> = lines.iter().map(|line| (line.name.as_str(), line.cpu_percent.round())).collect();
        assert_eq!(shares, [("b", 200.0), ("a", 50.0), ("c", 0.0), ("d", 0.0)]);
    }
}
