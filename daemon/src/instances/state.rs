//! What an instance is doing: processes, CPU, memory, disk, network.

use std::collections::{BTreeMap, HashMap};

use duet_client::api::{
    InstanceFull, InstanceSnapshot, InstanceState, InstanceStateCpu, InstanceStateDisk, InstanceStateMemory,
    StatusCode, Timestamp,
};
use duet_container::stats::{Reader, Usage};

use super::expand::{self, Expanded, ProfileTable, Written, status_of};
use super::live::Live;
use super::plan;
use crate::app::App;
use crate::error::{Error, Result, blocking};
use crate::inventory::SnapshotRow;
use crate::storage::References;

/// The state of one instance.
///
/// # Errors
/// Where the kernel or the storage cannot be asked.
pub async fn state(app: &App, expanded: &Expanded) -> Result<InstanceState> {
    state_on(app, expanded, plan::host_memory().unwrap_or(0)).await
}

/// [`state`] on a host with so much memory, which for a list of many is looked at once.
async fn state_on(app: &App, expanded: &Expanded, host_memory: u64) -> Result<InstanceState> {
    let slot = app.instances.slot(expanded.row.id);
    let live = slot.live();
    let status = status_of(slot.observed());
    let mut state = InstanceState {
        status: status.to_string(),
        status_code: status,
        disk: disk(app, expanded, live.is_some()).await?,
        ..InstanceState::default()
    };
    let Some(live) = live else {
        state.memory.total = total_memory(expanded, host_memory);
        return Ok(state);
    };
    // An instance that ends in this moment has no counters any more: it is then shown as stopped by the next request.
    if let Ok(usage) = usage(&live) {
        fill(&mut state, usage);
    }
    let network = match live.netns.snapshot().await {
        Ok(network) => network,
        Err(_) => (*live.netns.current()).clone(),
    };
    state.network = Some(network.to_api().into_iter().collect());
    state.pid = i64::from(live.init_pid);
    state.started_at = live.started_at.into();
    if state.status_code == StatusCode::Running && state.memory.total == 0 {
        state.memory.total = total_memory(expanded, host_memory);
    }
    Ok(state)
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

/// The limit, or the host's memory.
fn total_memory(expanded: &Expanded, host: u64) -> i64 {
    let limit = expanded.config.get("limits.memory").and_then(|text| text.parse().ok());
    let limit = limit.map_or(host, |limit: crate::config::values::MemoryLimit| limit.bytes(host));
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// What the root disk occupies by itself: the image and what other instances share is not counted.
async fn disk(app: &App, expanded: &Expanded, running: bool) -> Result<BTreeMap<String, InstanceStateDisk>> {
    let row = &expanded.row;
    let is_root = |d: &BTreeMap<String, String>| {
        d.get("type").is_some_and(|t| t == "disk") && d.get("path").is_some_and(|p| p == "/")
    };
    let Some((device, _)) = expanded.devices.iter().find(|(_, d)| is_root(d)) else { return Ok(BTreeMap::new()) };
    let Ok(pool) = app.pools.get(&row.pool) else { return Ok(BTreeMap::new()) };
    let known = if running { None } else { app.instances.known_usage(row.id, row.volume.upper) };
    let bytes = match known {
        Some(bytes) => bytes,
        None => {
            let volume = row.volume.clone();
            let others = References::new();
            let bytes = blocking(move || pool.volume_usage(&volume, &others)).await?.own;
            if !running {
                app.instances.remember_usage(row.id, row.volume.upper, bytes);
            }
            bytes
        }
    };
    let usage = InstanceStateDisk { usage: i64::try_from(bytes).unwrap_or(i64::MAX), total: 0 };
    Ok([(device.clone(), usage)].into())
}

/// An instance with its state and snapshots.
///
/// # Errors
/// As [`state`].
pub async fn full(app: &App, expanded: Expanded) -> Result<InstanceFull> {
    let snapshots = app.inventory.snapshots(expanded.row.id)?;
    let host_memory = plan::host_memory().unwrap_or(0);
    with_snapshots(app, expanded, &expand::profile_table(app)?, snapshots, host_memory).await
}

/// Every instance with its state and snapshots.
///
/// # Errors
/// As [`state`].
pub async fn full_all(app: &App) -> Result<Vec<Written>> {
    let profiles = expand::profile_table(app)?;
    let host_memory = plan::host_memory().unwrap_or(0);
    let mut snapshots: HashMap<i64, Vec<SnapshotRow>> = HashMap::new();
    for snapshot in app.inventory.all_snapshots()? {
        snapshots.entry(snapshot.instance_id).or_default().push(snapshot);
    }
    let mut all = Vec::new();
    for row in app.inventory.instances()? {
        let own = snapshots.remove(&row.id).unwrap_or_default();
        let expanded = expand::expand_with(&profiles, row)?;
        all.push(expand::written(&with_snapshots(app, expanded, &profiles, own, host_memory).await?)?);
    }
    Ok(all)
}

async fn with_snapshots(
    app: &App,
    expanded: Expanded,
    profiles: &ProfileTable,
    snapshots: Vec<SnapshotRow>,
    host_memory: u64,
) -> Result<InstanceFull> {
    let snapshots = match snapshots.is_empty() {
        true => None,
        false => Some(snapshots.into_iter().map(|s| render_snapshot(profiles, s)).collect::<Result<Vec<_>>>()?),
    };
    let state = Some(state_on(app, &expanded, host_memory).await?);
    Ok(InstanceFull { instance: expanded.render(app), backups: None, state, snapshots })
}

/// Snapshots on the wire.
///
/// # Errors
/// The inventory's.
pub fn render_snapshots(app: &App, rows: Vec<SnapshotRow>) -> Result<Vec<InstanceSnapshot>> {
    let profiles = expand::profile_table(app)?;
    rows.into_iter().map(|row| render_snapshot(&profiles, row)).collect()
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
