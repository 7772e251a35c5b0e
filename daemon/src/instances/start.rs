//! Starting a container: from its rows to its init's exec.
//!
//! The path is short on purpose: one control group, one monitor, one veth for each NIC, one transaction. What may be
//! slow (unpacking, choosing ids) was done when the instance was made. Each side effect registers its undo; a daemon
//! that dies in between takes the monitor's handshake socket with it, on which the monitor undoes the rest.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_container::cgroup::{Cgroup, CreateOptions};
use duet_container::runtime::{Created, Starting};
use duet_container::spec::{CgroupDir, CgroupKind, ContainerSpec, IdMap, MountSource, MountSpec};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::expand::{self, Expanded};
use super::live::{Live, Parts};
use super::plan::{self, NicPlan, Plan, Volatile};
use super::slot::Held;
use super::undo::Undo;
use super::{idmap, stop, templates};
use crate::app::App;
use crate::apparmor::Rules;
use crate::error::{Context, Error, Kind, Result, blocking};
use crate::inventory::{self, Power};
use crate::network::{Netns, NicSpec};

/// How long the control group of a failed start may take to go.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Starts an instance that the caller holds.
///
/// # Errors
/// With the step that failed; nothing is left of it.
pub async fn start(app: &App, held: &Held, name: &str) -> Result<()> {
    if app.closing.is_cancelled() {
        return Err(Error::new(Kind::Closing, "The daemon is shutting down: no instance is started any more"));
    }
    let id = held.slot().id();
    let expanded = expand::find(app, name)?;
    let plan = plan::plan(app, &expanded)?;
    let map = idmap::of(app, &expanded, &plan.settings)?;
    let files = templates::apply(app, &expanded, plan.root_read_only).await?;
    for nic in &plan.nics {
        if let Some(host) = &nic.host {
            app.network.set_host(&nic.parent, host).await.map_err(crate::networks::error)?;
        }
    }

    let mut undo = Undo::default();
    let label = confine(app, name, &plan, &mut undo).await?;
    let mut prepared = prepare(app, &expanded, &plan, map.ids, &mut undo)?;
    prepared.spec.files = files;
    if label.is_some() && plan.settings.nesting {
        prepared.spec.mounts.push(policy_files());
    }
    prepared.spec.apparmor = label;
    let changes = changes(&plan, map.volatile);
    prepared.spec.notes = changes.iter().cloned().collect();
    let binary = app.instances.monitor_binary();
    let (spec, log) = (prepared.spec, prepared.log);
    let created =
        blocking(move || Starting::spawn(&spec, &binary, log, &[]).and_then(Starting::wait_created).map_err(failure))
            .await?;
    if let Err(error) = attach_nics(app, &created, &plan.nics).await {
        return Err(ended_early(created).await.unwrap_or(error));
    }
    let started = blocking(move || created.go().and_then(|()| created.wait_started()).map_err(failure)).await?;

    let live = Live::new(Parts {
        name: name.to_owned(),
        run_dir: app.paths.run(id),
        init_pid: started.init_pid,
        pidfd: started.pidfd,
        netlink: started.netlink,
        started_at: Timestamp::now(),
        cgroup: prepared.cgroup,
        idmap: map.ids,
        nics: plan.nics.iter().map(|nic| (nic.device.clone(), nic.host_name.clone())).collect(),
        cpus: prepared.cpus,
        frozen: false,
    })?;
    live.announce_to(held.slot());
    stop::watch(app, held.slot(), &live)?;
    held.slot().set_live(Some(Arc::clone(&live)));
    // From here on its end is handled by the watch.
    undo.disarm();

    if let Err(error) = record(app, id, changes).await {
        // What is not recorded must not run.
        stop::end(held, stop::How::Kill).await?;
        return Err(error);
    }
    app.events.lifecycle("instance-started", format!("/1.0/instances/{name}"), Value::Null);
    Ok(())
}

fn failure(error: duet_container::runtime::StartError) -> Error {
    Error::internal(format!("Failed to start the instance: {error}"))
}

/// Loads the instance's AppArmor profile and returns its label, where the host has AppArmor.
async fn confine(app: &App, name: &str, plan: &Plan, undo: &mut Undo) -> Result<Option<String>> {
    let rules = Rules { privileged: plan.settings.privileged, nesting: plan.settings.nesting };
    let label = app.apparmor.load(name, rules).await?;
    if label.is_some() {
        let (app, name) = (app.clone(), name.to_owned());
        undo.push(move || app.apparmor.unload(&name));
    }
    Ok(label)
}

/// The kernel's interface to profiles, which shows each process those of its own policy namespace.
fn policy_files() -> MountSpec {
    let path = PathBuf::from("/sys/kernel/security");
    MountSpec {
        source: MountSource::Path(path.clone()),
        target: path,
        read_only: false,
        recursive: false,
        shift: false,
        optional: true,
    }
}

/// Why a container ended that was to wait for its network: its monitor knows, where the network only misses its process.
/// None: it has not ended.
async fn ended_early(created: Created) -> Option<Error> {
    let mut end = [PollFd::new(&created.pidfd, PollFlags::IN)];
    match poll(&mut end, Some(&Timespec::default())) {
        Ok(1..) => blocking(move || created.wait_started().map(drop).map_err(failure)).await.err(),
        _ => None,
    }
}

/// What is ready for the monitor.
struct Prepared {
    spec: ContainerSpec,
    log: File,
    cgroup: Cgroup,
    cpus: Option<duet_container::cgroup::CpuList>,
}

/// Makes directories and the control group, and puts the specification together.
fn prepare(app: &App, expanded: &Expanded, plan: &Plan, ids: Option<IdMap>, undo: &mut Undo) -> Result<Prepared> {
    let row = &expanded.row;
    let run_dir = app.paths.run(row.id);
    // A directory that a crash left behind says nothing any more.
    let _ = std::fs::remove_dir_all(&run_dir);
    make_dir(&run_dir)?;
    let dir = run_dir.clone();
    undo.push(move || drop(std::fs::remove_dir_all(dir)));
    let logs = app.paths.logs(&row.name);
    make_dir(&logs)?;
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(logs.join("monitor.log"))
        .doing("cannot make the instance's log")?;

    let pool = app.pools.get(&row.pool)?;
    let root = pool.volume_root(&row.volume)?;
    let limits = plan::limits(app, row.id, &plan.settings)?;
    let cpus = limits.cpus.clone();
    let owner = ids.map_or((0, 0), |map| (map.host_base_uid, map.host_base_gid));
    let options = CreateOptions { owner, limits, devices: plan::device_policy(plan) };
    let cgroup = Cgroup::create(app.instances.cgroups(), &app.instances.cgroup_name(&row.name), &options)
        .map_err(|e| Error::internal(format!("cannot make the instance's control group: {e}")))?;
    let made = cgroup.clone();
    undo.push(move || drop(made.destroy(Instant::now() + CLEAN_UP)));

    let mut spec = ContainerSpec::new(&row.name, &run_dir, &logs.join("console.log"), root, ids);
    spec.root_read_only = plan.root_read_only;
    spec.environment = plan.settings.environment.clone();
    spec.nesting = plan.settings.nesting;
    spec.mounts = plan.mounts.clone();
    spec.devices = plan.nodes.clone();
    spec.cgroups = cgroup_dirs(&cgroup);
    Ok(Prepared { spec, log, cgroup, cpus })
}

fn make_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) => Err(Error::internal(format!("cannot make {}: {error}", path.display()))),
        Ok(()) => Ok(()),
    }
}

fn cgroup_dirs(cgroup: &Cgroup) -> Vec<CgroupDir> {
    let v1 = cgroup.layout().v1_roots().map(|root| CgroupDir { path: root.join(cgroup.name()), kind: CgroupKind::V1 });
    let v2 = CgroupDir { path: cgroup.unified().join("payload"), kind: CgroupKind::V2 };
    std::iter::once(v2).chain(v1).collect()
}

async fn attach_nics(app: &App, created: &Created, nics: &[NicPlan]) -> Result<()> {
    for nic in nics {
        attach_nic(app, created.init_pid, nic).await?;
    }
    Ok(())
}

/// Plugs one NIC into the network namespace of a process.
///
/// # Errors
/// With the device's name.
pub(super) async fn attach_nic(app: &App, pid: u32, nic: &NicPlan) -> Result<()> {
    let spec = NicSpec {
        host_name: &nic.host_name,
        peer_name: &nic.peer_name,
        parent: &nic.parent,
        hwaddr: nic.hwaddr,
        mtu: nic.mtu,
        netns: Netns::Pid(pid),
    };
    app.network.attach_nic(&spec).await.map_err(|e| {
        Error::new(crate::networks::error_kind(&e), format!("Failed to start device \"{}\": {e}", nic.device))
    })
}

/// What a start changes of the instance's keys: what was chosen for it, and that it runs.
fn changes(plan: &Plan, ids: Volatile) -> Volatile {
    let mut changes = plan.volatile.clone();
    changes.extend(ids);
    changes.push((super::templates::DUE.to_owned(), None));
    changes.push(("volatile.last_state.power".to_owned(), Some("RUNNING".to_owned())));
    changes
}

/// One transaction: it runs, as of now, and what was chosen for it.
pub(super) async fn record(app: &App, id: i64, changes: Volatile) -> Result<()> {
    app.inventory
        .write(move |tx| {
            inventory::instances::set_power(tx, id, Power::Running, Some(Timestamp::now()))?;
            inventory::instances::patch_config(tx, id, &changes)
        })
        .await?;
    Ok(())
}
