//! `duet info`: an instance, or the server.

use std::fmt::Write as _;

use clap::Args;
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;

use super::context::Context;
use super::output::{bytes_iec, bytes_si, date, print, to_yaml};
use super::parse::local_name;
use crate::Url;
use crate::api::{InstanceFull, InstanceState, InstanceStateNetwork, Resources, Server, Timestamp};
use crate::http::empty_body;

/// Show an instance, or the server
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The instance; without it the server is shown
    #[arg(add = super::complete::instances())]
    instance: Option<String>,
    /// Add the instance's log
    #[arg(long)]
    show_log: bool,
    /// Show the server's hardware
    #[arg(long)]
    resources: bool,
}

impl Info {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = local_name(self.instance.as_deref().unwrap_or_default())?;
        if !name.is_empty() {
            return instance(context, name, self.show_log).await;
        }
        if self.resources {
            let resources: Resources = context.client.get(&Url::new(&["1.0", "resources"])).await?;
            return print(&resources_text(&resources)?);
        }
        let server: Server = context.client.get(&Url::new(&["1.0"])).await?;
        print(&to_yaml(&server)?)
    }
}

async fn instance(context: &Context, name: &str, show_log: bool) -> anyhow::Result<()> {
    let url = Url::new(&["1.0", "instances", name]).query("recursion", "1");
    let full: InstanceFull = context.client.get(&url).await?;
    print(&instance_text(&full)?)?;
    if show_log {
        print("\nLog:\n\n")?;
        print(&log_text(context, name).await?)?;
    }
    Ok(())
}

/// The runtime's log of an instance: every log file that the daemon lists, except the console's, which has its own
/// command.
async fn log_text(context: &Context, name: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut logs: Vec<String> = context.client.get(&Url::new(&["1.0", "instances", name, "logs"])).await?;
    logs.retain(|log| !log.ends_with("/console.log"));
    logs.sort();
    for log in logs {
        let url = Url::raw(&log);
        let response = context.client.open(Method::GET, &url, HeaderMap::new(), empty_body()).await?;
        let bytes = response.into_body().collect().await?.to_bytes();
        text.push_str(&String::from_utf8_lossy(&bytes));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

fn instance_text(full: &InstanceFull) -> Result<String, std::fmt::Error> {
    let instance = &full.instance;
    let mut out = String::new();
    writeln!(out, "Name: {}", instance.name)?;
    writeln!(out, "Description: {}", instance.description)?;
    writeln!(out, "Status: {}", instance.status.to_uppercase())?;
    let ephemeral = if instance.ephemeral { " (ephemeral)" } else { "" };
    writeln!(out, "Type: {}{ephemeral}", instance.kind)?;
    if full.state.as_ref().is_some_and(|state| state.pid > 0) {
        match instance.config.get("volatile.vm.engine").map(String::as_str) {
            Some("emulation") => writeln!(out, "Engine: QEMU's emulation, which is slow: see \"duet doctor\" for why")?,
            Some("kvm") => writeln!(out, "Engine: KVM")?,
            _ => {}
        }
    }
    writeln!(out, "Architecture: {}", instance.architecture)?;
    if !instance.location.is_empty() && instance.location != "none" {
        writeln!(out, "Location: {}", instance.location)?;
    }
    if let Some(state) = full.state.as_ref().filter(|state| state.pid > 0) {
        writeln!(out, "PID: {}", state.pid)?;
    }
    if instance.created_at.is_set() {
        writeln!(out, "Created: {}", date(instance.created_at))?;
    }
    if instance.last_used_at.is_set() {
        writeln!(out, "Last Used: {}", date(instance.last_used_at))?;
    }
    if let Some(state) = &full.state {
        if state.started_at.is_set() {
            writeln!(out, "Started: {}", date(state.started_at))?;
        }
        state_text(&mut out, state)?;
    }
    if let Some(snapshots) = full.snapshots.as_ref().filter(|snapshots| !snapshots.is_empty()) {
        write!(out, "\nSnapshots:\n{}", super::snapshot::full_table(snapshots).boxed(true))?;
    }
    Ok(out)
}

fn state_text(out: &mut String, state: &InstanceState) -> std::fmt::Result {
    let size = |value: i64| bytes_iec(value.unsigned_abs());
    let mut text = String::new();
    if state.pid > 0 {
        writeln!(text, "  Processes: {}", state.processes)?;
    }
    let disks: Vec<_> = state.disk.iter().filter(|(_, disk)| disk.usage > 0).collect();
    if !disks.is_empty() {
        writeln!(text, "  Disk usage:")?;
        for (name, disk) in disks {
            writeln!(text, "    {name}: {}", size(disk.usage))?;
        }
    }
    if state.cpu.usage > 0 {
        writeln!(text, "  CPU usage:\n    CPU usage (in seconds): {}", state.cpu.usage / 1_000_000_000)?;
    }
    let memory = [
        ("Memory (current)", state.memory.usage),
        ("Memory (peak)", state.memory.usage_peak),
        ("Swap (current)", state.memory.swap_usage),
        ("Swap (peak)", state.memory.swap_usage_peak),
    ];
    if memory.iter().any(|(_, value)| *value > 0) {
        writeln!(text, "  Memory usage:")?;
        for (name, value) in memory.iter().filter(|(_, value)| *value > 0) {
            writeln!(text, "    {name}: {}", size(*value))?;
        }
    }
    if let Some(pressure) = &state.duet_pressure {
        let kinds = [("CPU", &pressure.cpu), ("Memory", &pressure.memory), ("Input and output", &pressure.io)];
        writeln!(text, "  Waiting in the last 10 s, 60 s, 300 s:")?;
        for (name, stalls) in kinds {
            if let Some(stall) = stalls.as_ref().map(|stalls| &stalls.some) {
                writeln!(text, "    {name}: {:.2}%, {:.2}%, {:.2}%", stall.avg10, stall.avg60, stall.avg300)?;
            }
        }
    }
    if let Some(network) = state.network.as_ref().filter(|network| !network.is_empty()) {
        writeln!(text, "  Network usage:")?;
        for (name, link) in network {
            link_text(&mut text, name, link)?;
        }
    }
    if !text.is_empty() {
        write!(out, "\nResources:\n{text}")?;
    }
    Ok(())
}

fn link_text(out: &mut String, name: &str, link: &InstanceStateNetwork) -> std::fmt::Result {
    writeln!(out, "    {name}:")?;
    writeln!(out, "      Type: {}", link.kind)?;
    writeln!(out, "      State: {}", link.state.to_uppercase())?;
    if !link.host_name.is_empty() {
        writeln!(out, "      Host interface: {}", link.host_name)?;
    }
    if !link.hwaddr.is_empty() {
        writeln!(out, "      MAC address: {}", link.hwaddr)?;
    }
    if link.mtu > 0 {
        writeln!(out, "      MTU: {}", link.mtu)?;
    }
    writeln!(out, "      Bytes received: {}", bytes_si(link.counters.bytes_received.unsigned_abs()))?;
    writeln!(out, "      Bytes sent: {}", bytes_si(link.counters.bytes_sent.unsigned_abs()))?;
    writeln!(out, "      Packets received: {}", link.counters.packets_received)?;
    writeln!(out, "      Packets sent: {}", link.counters.packets_sent)?;
    writeln!(out, "      IP addresses:")?;
    for address in &link.addresses {
        let family = format!("{}:", address.family);
        writeln!(out, "        {family:<6} {}/{} ({})", address.address, address.netmask, address.scope)?;
    }
    Ok(())
}

fn resources_text(resources: &Resources) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let system = &resources.system;
    writeln!(out, "System:")?;
    for (name, value) in [
        ("UUID", &system.uuid),
        ("Vendor", &system.vendor),
        ("Product", &system.product),
        ("Family", &system.family),
        ("Version", &system.version),
        ("SKU", &system.sku),
        ("Serial", &system.serial),
        ("Type", &system.kind),
    ] {
        if !value.is_empty() {
            writeln!(out, "  {name}: {value}")?;
        }
    }
    let load = &resources.load;
    writeln!(out, "\nLoad:\n  Processes: {}", load.processes)?;
    writeln!(out, "  Average: {:.2} {:.2} {:.2}", load.average_1_min, load.average_5_min, load.average_10_min)?;
    writeln!(out, "\nCPU:\n  Architecture: {}", resources.cpu.architecture)?;
    for socket in &resources.cpu.sockets {
        writeln!(out, "  Vendor: {}\n  Name: {}", socket.vendor, socket.name)?;
        if !socket.cache.is_empty() {
            writeln!(out, "  Caches:")?;
        }
        for cache in &socket.cache {
            writeln!(out, "    - Level {} (type: {}): {}", cache.level, cache.kind, bytes_iec(cache.size))?;
        }
        writeln!(out, "  Cores:")?;
        for core in &socket.cores {
            writeln!(out, "    - Core {}\n      Threads:", core.core)?;
            for thread in &core.threads {
                writeln!(
                    out,
                    "        - {} (id: {}, online: {}, NUMA node: {})",
                    thread.thread, thread.id, thread.online, thread.numa_node
                )?;
            }
        }
    }
    let memory = &resources.memory;
    writeln!(out, "\nMemory:\n  Free: {}", bytes_iec(memory.total.saturating_sub(memory.used)))?;
    writeln!(out, "  Used: {}\n  Total: {}", bytes_iec(memory.used), bytes_iec(memory.total))?;
    for card in &resources.network.cards {
        writeln!(out, "\nNIC:\n  NUMA node: {}\n  PCI address: {}", card.numa_node, card.pci_address)?;
        writeln!(out, "  Driver: {} ({})", card.driver, card.driver_version)?;
        for port in &card.ports {
            writeln!(out, "  Port {}: {} {}", port.port, port.id, port.address)?;
        }
    }
    for disk in &resources.storage.disks {
        writeln!(out, "\nDisk:\n  ID: {}\n  Device: {}", disk.id, disk.device)?;
        if !disk.model.is_empty() {
            writeln!(out, "  Model: {}", disk.model)?;
        }
        writeln!(out, "  Type: {}\n  Size: {}", disk.kind, bytes_iec(disk.size))?;
        writeln!(out, "  Read-Only: {}\n  Removable: {}", disk.read_only, disk.removable)?;
        for part in &disk.partitions {
            writeln!(out, "    - Partition {}: {} {}", part.partition, part.id, bytes_iec(part.size))?;
        }
    }
    Ok(out)
}

/// A date, or "never".
pub(super) fn date_or_never(time: Timestamp) -> String {
    if time.is_set() { date(time) } else { "never".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{InstanceStateCpu, InstanceStateMemory};

    #[test]
    fn a_stopped_instance_has_no_resources() {
        let mut full = InstanceFull::default();
        full.instance.name = "c1".into();
        full.instance.status = "Stopped".into();
        full.state = Some(InstanceState::default());
        let text = instance_text(&full).unwrap();
        assert!(text.starts_with("Name: c1\nDescription: \nStatus: STOPPED\nType: container\n"), "{text}");
        assert!(!text.contains("Resources"), "{text}");
    }

    #[test]
    fn a_running_one_shows_what_it_uses() {
        let state = Some(InstanceState {
            pid: 42,
            processes: 2,
            cpu: InstanceStateCpu { usage: 14_892_286, allocated_time: 0 },
            memory: InstanceStateMemory { usage: 622_592, usage_peak: 1_564_672, ..Default::default() },
            ..InstanceState::default()
        });
        let full = InstanceFull { state, ..InstanceFull::default() };
        let text = instance_text(&full).unwrap();
        assert!(
            text.contains(
                "\nResources:\n  Processes: 2\n  CPU usage:\n    CPU usage (in seconds): 0\n  Memory usage:\n    \
                 Memory (current): 608.00KiB\n    Memory (peak): 1.49MiB\n"
            ),
            "{text}"
        );
    }
}
