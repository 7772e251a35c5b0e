//! Starting an instance: of a container, from its rows to its init's exec. (Of a virtual machine that is
//! [`super::machine`]'s.)
//!
//! The path is short on purpose: one control group, one monitor, one veth for each NIC, one transaction. What may be
//! slow (unpacking, choosing ids) was done when the instance was made. Each side effect registers its undo; a daemon
//! that dies in between takes the monitor's handshake socket with it, on which the monitor undoes the rest.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_container::cgroup::{Cgroup, CreateOptions, Limits};
use duet_container::runtime::{Created, Launched, Starting};
use duet_container::spec::{ContainerSpec, IdMap, MountSource, MountSpec};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::expand::{self, Expanded};
use super::live::{Inside, Live, Parts};
use super::plan::{self, NicPlan, Plan, Volatile};
use super::slot::Held;
use super::undo::Undo;
use super::{idmap, machine, stop, templates};
use crate::app::App;
use crate::apparmor::Rules;
use crate::config::InstanceKind;
use crate::error::{Context, Error, Kind, Result, blocking};
use crate::inventory::{self, InstanceRow, Power};
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
    for nic in &plan.nics {
        if let Some(host) = &nic.host {
            app.network.set_host(&nic.parent, host).await.map_err(crate::networks::error)?;
        }
    }

    let mut undo = Undo::default();
    let (live, changes) = match expanded.row.kind {
        InstanceKind::Container => container(app, held, &expanded, &plan, &mut undo).await?,
        InstanceKind::VirtualMachine => machine::start(app, held, &expanded, &plan, &mut undo).await?,
    };
    live.announce_to(held.slot());
    stop::watch(app, held.slot(), &live)?;
    held.slot().set_live(Some(Arc::clone(&live)));
    // From here on its end is handled by the watch.
    undo.disarm();
    announce(app, &live);

    if let Err(error) = record(app, id, changes).await {
        // What is not recorded must not run.
        stop::end(app, held, stop::How::Kill).await?;
        return Err(error);
    }
    app.events.lifecycle("instance-started", format!("/1.0/instances/{name}"), Value::Null);
    Ok(())
}

/// Starts a container; gives what runs, and what is to be recorded of it.
async fn container(
    app: &App,
    held: &Held,
    expanded: &Expanded,
    plan: &Plan,
    undo: &mut Undo,
) -> Result<(Arc<Live>, Volatile)> {
    let name = &expanded.row.name;
    let map = idmap::of(app, expanded, &plan.settings)?;
    let files = templates::apply(app, expanded, plan.root_read_only).await?;
    let label = confine(app, name, plan, undo).await?;
    let (binary, log) = (app.instances.monitor_binary(), prepare(app, &expanded.row, undo)?);
    let title = name.clone();
    let monitor = blocking(move || Launched::spawn(&title, &binary, log).map_err(failure)).await?;
    let limits = plan::limits(app, expanded, &plan.settings, &plan.devices)?;
    let cpus = limits.cpus.clone();
    let cgroup = make_cgroup(app, name, plan, map.ids, limits, monitor.pid(), undo).await?;
    let mut spec = specification(app, expanded, plan, map.ids)?;
    spec.cgroups = cgroup.joined();
    spec.files = files;
    if label.is_some() && plan.settings.nesting {
        spec.mounts.push(policy_files());
    }
    spec.apparmor = label;
    let changes = changes(plan, map.volatile);
    spec.notes = changes.iter().cloned().collect();
    let created = blocking(move || monitor.send(&spec, &[]).and_then(Starting::wait_created).map_err(failure)).await?;
    if let Err(error) = attach_nics(app, &created, &plan.nics).await {
        return Err(ended_early(created).await.unwrap_or(error));
    }
    let started = blocking(move || created.go().and_then(|()| created.wait_started()).map_err(failure)).await?;
    let live = Live::new(Parts {
        name: name.clone(),
        run_dir: app.paths.run(held.slot().id()),
        init_pid: started.init_pid,
        pidfd: started.pidfd,
        inside: Inside::container(map.ids, started.netlink)?,
        started_at: Timestamp::now(),
        cgroup,
        nics: plan.nics.iter().map(|nic| (nic.device.clone(), nic.host_name.clone())).collect(),
        cpus,
        frozen: false,
    });
    Ok((live, changes))
}

/// Has systemd-machined list a running instance; nobody waits for that.
pub(super) fn announce(app: &App, live: &Arc<Live>) {
    if live.cgroup.is_scope() {
        let (app, live) = (app.clone(), Arc::clone(live));
        tokio::spawn(async move {
            let links: Vec<String> = live.nics().into_values().collect();
            let class = if live.is_machine() { "vm" } else { "container" };
            app.systemd.register_machine(&live.name, class, live.init_pid, &links).await;
        });
    }
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

/// Makes the directories of a run, and the monitor's log.
pub(super) fn prepare(app: &App, row: &InstanceRow, undo: &mut Undo) -> Result<File> {
    let run_dir = app.paths.run(row.id);
    // A directory that a crash left behind says nothing any more.
    let _ = std::fs::remove_dir_all(&run_dir);
    make_dir(&run_dir)?;
    undo.push(move || drop(std::fs::remove_dir_all(run_dir)));
    let logs = app.paths.logs(&row.name);
    make_dir(&logs)?;
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(logs.join("monitor.log"))
        .doing("cannot make the instance's log")
}

/// Makes the control group: in a scope of systemd's around the process that is to become the monitor, where the host has
/// a systemd that makes one, and directly elsewhere.
pub(super) async fn make_cgroup(
    app: &App,
    name: &str,
    plan: &Plan,
    ids: Option<IdMap>,
    limits: Limits,
    monitor: u32,
    undo: &mut Undo,
) -> Result<Cgroup> {
    let scope = app.systemd.start_scope(name, monitor, plan::weights(&limits)).await;
    let group = scope.map_or_else(|| app.instances.cgroup_name(name), |scope| scope.cgroup);
    let owner = ids.map_or((0, 0), |map| (map.host_base_uid, map.host_base_gid));
    let options = CreateOptions { owner, limits, devices: plan::device_policy(plan), monitor: Some(monitor) };
    let layout = app.instances.cgroups();
    // Before it is made: a scope is there already.
    let made = Cgroup::open(layout, &group).map_err(Error::internal)?;
    undo.push(move || drop(made.destroy(Instant::now() + CLEAN_UP)));
    Cgroup::create(layout, &group, &options)
        .map_err(|e| Error::internal(format!("cannot make the instance's control group: {e}")))
}

/// Puts the specification together.
fn specification(app: &App, expanded: &Expanded, plan: &Plan, ids: Option<IdMap>) -> Result<ContainerSpec> {
    let row = &expanded.row;
    let root = app.pools.get(&row.pool)?.volume_root(&row.volume, crate::pools::root_size(app, &expanded.devices)?)?;
    let console = app.paths.logs(&row.name).join("console.log");
    let mut spec = ContainerSpec::new(&row.name, &app.paths.run(row.id), &console, root, ids);
    spec.root_read_only = plan.root_read_only;
    spec.environment = plan.settings.environment.clone();
    spec.nesting = plan.settings.nesting;
    spec.mounts = plan.mounts.clone();
    spec.devices = plan.nodes.clone();
    Ok(spec)
}

fn make_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) => Err(Error::internal(format!("cannot make {}: {error}", path.display()))),
        Ok(()) => Ok(()),
    }
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
pub(super) fn changes(plan: &Plan, ids: Volatile) -> Volatile {
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
