//! What an instance is doing: processes, CPU, memory, disk, network.

use std::collections::BTreeMap;
use std::sync::Arc;

use duet_agent::protocol::message::State;
use duet_client::api::{
    InstanceFull, InstanceSnapshot, InstanceState, InstanceStateCpu, InstanceStateDisk, InstanceStateMemory,
    InstanceStatePressure, InstanceStateStall, InstanceStateStalls, StatusCode, Timestamp,
};
use duet_container::stats::{Pressure, Reader, Stall, Stalls, Usage};

use super::expand::{self, Expanded, ProfileTable, status_of};
use super::guest;
use super::live::Live;
use super::plan;
use crate::app::App;
use crate::config::InstanceKind;
use crate::config::values::MemoryLimit;
use crate::error::{Error, Result, blocking};
use crate::inventory::SnapshotRow;
use crate::machines;
use crate::pools::{self, RootSizes};
use crate::storage::{References, Volume};

/// The state of one instance.
///
/// # Errors
/// Where the kernel or the storage cannot be asked.
pub async fn state(app: &App, expanded: &Expanded) -> Result<InstanceState> {
    // A state is worth having without the sizes.
    let sizes = RootSizes::read(app).unwrap_or_default();
    of(app, &Subject::of(&sizes, expanded), plan::host_memory().unwrap_or(0)).await
}

/// What of an instance its state depends on.
pub struct Subject {
    /// The inventory's id of it.
    pub id: i64,
    /// The device that is its root.
    root: Option<String>,
    pool: String,
    kind: InstanceKind,
    size: Option<u64>,
    volume: Volume,
    memory: Option<MemoryLimit>,
}

impl Subject {
    /// That of an instance with its profiles applied.
    pub fn of(sizes: &RootSizes, expanded: &Expanded) -> Self {
        let root = expanded.devices.iter().find(|(_, device)| pools::is_root(device));
        Self {
            id: expanded.row.id,
            kind: expanded.row.kind,
            size: match expanded.row.kind {
                InstanceKind::Container => sizes.of(&expanded.devices),
                InstanceKind::VirtualMachine => Some(machines::disk_size(sizes.of(&expanded.devices))),
            },
            root: root.map(|(name, _)| name.clone()),
            pool: expanded.row.pool.clone(),
            volume: expanded.row.volume.clone(),
            memory: expanded.config.get("limits.memory").and_then(|text| text.parse().ok()),
        }
    }
}

/// [`state`] on a host with so much memory, which for a list of many is looked at once.
///
/// # Errors
/// As [`state`].
pub async fn of(app: &App, subject: &Subject, host_memory: u64) -> Result<InstanceState> {
    let slot = app.instances.slot(subject.id);
    let live = slot.live();
    let status = status_of(slot.observed());
    let mut state = InstanceState {
        status: status.to_string(),
        status_code: status,
        disk: disk(app, subject, live.is_some()).await?,
        ..InstanceState::default()
    };
    let Some(live) = live else {
        state.memory.total = total_memory(subject, host_memory);
        return Ok(state);
    };
    // An instance that ends in this moment has no counters any more: it is then shown as stopped by the next request.
    if let Ok(usage) = usage(&live) {
        fill(&mut state, usage);
    }
    let said = match live.guest() {
        // One that is paused says nothing.
        Some(guest) if !live.is_frozen() => guest.state().await.ok(),
        _ => None,
    };
    let network = match &said {
        Some(said) => Arc::new(guest::network_of(said)),
        None => live.network_now().await,
    };
    if live.is_machine() {
        guest_counters(&mut state, said.as_ref());
    }
    state.duet_pressure = Some(pressure(&live));
    state.network = Some(network.to_api().into_iter().collect());
    state.pid = i64::from(live.init_pid);
    state.started_at = live.started_at.into();
    if state.status_code == StatusCode::Running && state.memory.total == 0 {
        state.memory.total = total_memory(subject, host_memory);
    }
    Ok(state)
}

/// Of a virtual machine, processes and memory are its guest's own, where that says so; CPU time is what the host gave.
fn guest_counters(state: &mut InstanceState, said: Option<&State>) {
    let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // As Incus has it where there is no answer.
    state.processes = said.map_or(-1, |said| bytes(said.processes));
    if let Some(said) = said {
        let memory = &said.memory;
        state.memory = InstanceStateMemory {
            usage: bytes(memory.total.saturating_sub(memory.available)),
            usage_peak: 0,
            total: bytes(memory.total),
            swap_usage: bytes(memory.swap_total.saturating_sub(memory.swap_free)),
            swap_usage_peak: 0,
        };
    }
}

fn usage(live: &Live) -> Result<Usage> {
    let read = || Reader::open(&live.cgroup)?.read();
    read().map_err(Error::internal)
}

fn fill(state: &mut InstanceState, usage: Usage) {
    let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    state.cpu = InstanceStateCpu { usage: bytes(usage.cpu.used_ns), allocated_time: bytes(usage.cpu.allocated_ns) };
    state.processes = bytes(usage.processes);
    if let Some(memory) = usage.memory {
        state.memory = InstanceStateMemory {
            usage: bytes(memory.used),
            usage_peak: bytes(memory.peak.unwrap_or(0)),
            total: bytes(memory.total),
            swap_usage: bytes(memory.swap.unwrap_or(0)),
            swap_usage_peak: bytes(memory.swap_peak.unwrap_or(0)),
        };
    }
}

fn pressure(live: &Live) -> InstanceStatePressure {
    let stall = |stall: Stall| InstanceStateStall {
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
        total: i64::try_from(stall.total_us).unwrap_or(i64::MAX),
    };
    let stalls = |stalls: Stalls| InstanceStateStalls { some: stall(stalls.some), full: stall(stalls.full) };
    let found = Pressure::read(&live.cgroup);
    InstanceStatePressure { cpu: found.cpu.map(stalls), memory: found.memory.map(stalls), io: found.io.map(stalls) }
}

/// The limit, or the host's memory.
fn total_memory(subject: &Subject, host: u64) -> i64 {
    let limit = subject.memory.as_ref().map_or(host, |limit| limit.bytes(host));
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// What the root disk occupies. Of one with a size, what counts against that; else what it occupies by itself: the
/// image and what other instances share is not counted then.
async fn disk(app: &App, subject: &Subject, running: bool) -> Result<BTreeMap<String, InstanceStateDisk>> {
    let Some(device) = &subject.root else { return Ok(BTreeMap::new()) };
    let Ok(pool) = app.pools.get(&subject.pool) else { return Ok(BTreeMap::new()) };
    // A virtual machine's disk has its size on every pool, and what it takes up is what is in its files.
    let is_machine = subject.kind == InstanceKind::VirtualMachine;
    let size = subject.size.filter(|_| is_machine || pool.quota().is_ok());
    let known = if running { None } else { app.instances.known_usage(subject.id, subject.volume.upper) };
    let bytes = match known {
        Some(bytes) => bytes,
        None => {
            let volume = subject.volume.clone();
            let measure = move || match size {
                Some(_) if !is_machine => pool.volume_counted(&volume),
                _ => Ok(pool.volume_usage(&volume, &References::new())?.own),
            };
            let bytes = blocking(measure).await?;
            if !running {
                app.instances.remember_usage(subject.id, subject.volume.upper, bytes);
            }
            bytes
        }
    };
    let wire = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let usage = InstanceStateDisk { usage: wire(bytes), total: size.map_or(0, wire) };
    Ok([(device.clone(), usage)].into())
}

/// An instance with its state and snapshots.
///
/// # Errors
/// As [`state`].
pub async fn full(app: &App, expanded: Expanded) -> Result<InstanceFull> {
    let snapshots = app.inventory.snapshots(expanded.row.id)?;
    let snapshots = if snapshots.is_empty() { None } else { Some(render_snapshots(app, snapshots)?) };
    let state = Some(state(app, &expanded).await?);
    Ok(InstanceFull { instance: expanded.render(app), backups: None, state, snapshots })
}

/// Snapshots on the wire.
///
/// # Errors
/// The inventory's.
pub fn render_snapshots(app: &App, rows: Vec<SnapshotRow>) -> Result<Vec<InstanceSnapshot>> {
    render_snapshots_with(&expand::profile_table(app)?, rows)
}

/// [`render_snapshots`], with profiles that were looked up already.
pub(super) fn render_snapshots_with(profiles: &ProfileTable, rows: Vec<SnapshotRow>) -> Result<Vec<InstanceSnapshot>> {
    rows.into_iter().map(|row| render_snapshot(profiles, row)).collect()
}

/// A profile that is gone is left out of what is expanded.
fn render_snapshot(profiles: &ProfileTable, row: SnapshotRow) -> Result<InstanceSnapshot> {
    let there: Vec<String> = row.profiles.iter().filter(|p| profiles.contains_key(*p)).cloned().collect();
    let (expanded_config, expanded_devices) = expand::apply(profiles, &there, &row.config, &row.devices)?;
    Ok(InstanceSnapshot {
        expires_at: row.expires_at.map_or(Timestamp::ZERO, Timestamp::from),
        architecture: row.architecture,
        config: row.config,
        created_at: row.created_at.into(),
        devices: row.devices,
        ephemeral: row.ephemeral,
        expanded_config,
        expanded_devices,
        last_used_at: row.last_used_at.into(),
        name: row.name,
        profiles: row.profiles,
        stateful: false,
        size: -1,
    })
}
