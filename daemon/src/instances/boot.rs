//! The daemon's start: finding what still runs, removing what nothing names, starting what should run.
//!
//! The order matters: survivors are adopted first, by their monitors' sockets; then everything with our prefix that
//! belongs to no survivor goes (control groups with their processes, directories, layers; links with the networks);
//! only then is anything started.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_container::cgroup::Cgroup;
use duet_control::client::{MonitorClient, read_exit};
use duet_control::protocol::ExitReason;
use jiff::Timestamp;

use super::expand::Expanded;
use super::guest::Guest;
use super::lifecycle::Request;
use super::live::{self, Inside, Live, Parts};
use super::plan::Volatile;
use super::{idmap, snapshot, start, stop};
use crate::app::App;
use crate::config::InstanceKind;
use crate::config::InstanceSettings;
use crate::error::{Context, Error, Result, blocking};
use crate::inventory::{self, InstanceRow, Power};
use crate::warnings::INSTANCE_AUTOSTART_FAILURE;

/// How long a leftover control group may take to go.
const SWEEP_DEADLINE: Duration = Duration::from_secs(30);

/// Adopts every instance whose monitor answers. Returns the names of the links that belong to them.
///
/// # Errors
/// The inventory's.
pub async fn adopt(app: &App) -> Result<HashSet<String>> {
    let mut links = HashSet::new();
    for (id, _) in app.inventory.instance_names()? {
        // What runs, or has ended while nobody looked, left something there.
        if !app.paths.run(id).exists() {
            continue;
        }
        let Some(mut row) = app.inventory.instance_by_id(id)? else { continue };
        match adopt_one(app, &mut row) {
            Ok(Some((live, unrecorded))) => {
                links.extend(live.nics().into_values());
                let slot = app.instances.slot(row.id);
                live.announce_to(&slot);
                slot.set_live(Some(Arc::clone(&live)));
                stop::watch(app, &slot, &live)?;
                start::announce(app, &live);
                if let Some(unrecorded) = unrecorded {
                    start::record(app, row.id, unrecorded).await?;
                }
                tracing::info!(instance = row.name, pid = live.init_pid, "adopted");
            }
            Ok(None) => ended_meanwhile(app, &row).await?,
            Err(error) => {
                tracing::error!(instance = row.name, %error, "a monitor does not answer as it should; its instance is ended");
            }
        }
    }
    Ok(links)
}

/// Takes an instance over from its monitor, with what its start chose if the daemon did not live to write that down.
fn adopt_one(app: &App, row: &mut InstanceRow) -> Result<Option<(Arc<Live>, Option<Volatile>)>> {
    let run_dir = app.paths.run(row.id);
    let Ok(client) = MonitorClient::connect(&run_dir) else { return Ok(None) };
    let adopted = client.status().doing("its monitor does not say how it is")?;
    let started_at = live::timestamp(adopted.status.started_at);
    // A start is written down after it, and from then on the inventory knows better than the monitor.
    let recorded = row.power == Power::Running && row.last_used_at >= started_at;
    let unrecorded: Option<Volatile> = (!recorded).then(|| adopted.status.notes.into_iter().collect());
    for (key, value) in unrecorded.iter().flatten() {
        match value {
            Some(value) => drop(row.config.insert(key.clone(), value.clone())),
            None => drop(row.config.remove(key)),
        }
    }
    let cgroup = cgroup_of(app, &row.name)?;
    snapshot::let_go(&cgroup, &run_dir)?;
    let frozen = cgroup.is_frozen().unwrap_or(false);
    let host_name = |key: &String| key.strip_prefix("volatile.")?.strip_suffix(".host_name").map(str::to_owned);
    let nics: BTreeMap<String, String> =
        row.config.iter().filter_map(|(key, value)| Some((host_name(key)?, value.clone()))).collect();
    let live = Live::new(Parts {
        name: row.name.clone(),
        init_pid: adopted.status.init_pid,
        pidfd: adopted.pidfd,
        started_at,
        inside: match row.kind {
            InstanceKind::Container => {
                let netlink = adopted.netlink.ok_or_else(|| Error::internal("its monitor shows no network"))?;
                Inside::container(idmap::recorded(&row.config), netlink)?
            }
            InstanceKind::VirtualMachine => Inside::Machine(Guest::spawn(&run_dir)),
        },
        cpus: None,
        cgroup,
        nics,
        frozen,
        run_dir,
    });
    Ok(Some((live, unrecorded)))
}

/// The control group of an instance that runs: in its scope, unless it was started without one.
fn cgroup_of(app: &App, name: &str) -> Result<Cgroup> {
    let layout = app.instances.cgroups();
    if let Some(scope) = app.systemd.scope_of(name) {
        let cgroup = Cgroup::open(layout, &scope.cgroup).doing("no control group")?;
        if cgroup.is_populated().unwrap_or(false) {
            return Ok(cgroup);
        }
    }
    Cgroup::open(layout, &app.instances.cgroup_name(name)).doing("no control group")
}

/// An instance that should run and has no monitor: it ended while nobody looked, or the host was restarted.
async fn ended_meanwhile(app: &App, row: &InstanceRow) -> Result<()> {
    if row.power == Power::Stopped {
        return Ok(());
    }
    let Ok(Some(exit)) = read_exit(&app.paths.run(row.id)) else { return Ok(()) };
    if exit.reason == ExitReason::Reboot {
        // It wanted to come back: autostart does that, since it is still meant to run.
        return Ok(());
    }
    let id = row.id;
    app.inventory.write(move |tx| inventory::instances::set_power(tx, id, Power::Stopped, None)).await?;
    Ok(())
}

/// Removes what bears our names and belongs to no row or survivor.
pub async fn sweep(app: &App) {
    sweep_cgroups(app).await;
    sweep_profiles(app);
    crate::pools::sweep(app).await;
    if let Err(error) = sweep_dirs(app) {
        tracing::warn!(%error, "leftover directories could not be removed");
    }
}

/// Removes the AppArmor profiles of instances that are not adopted.
fn sweep_profiles(app: &App) {
    let running = app.instances.running();
    app.apparmor.sweep(&running.iter().filter_map(|slot| Some(slot.live()?.name.clone())).collect());
}

/// Kills and removes the control groups of instances that are not adopted.
async fn sweep_cgroups(app: &App) {
    let mut adopted = HashSet::new();
    for live in app.instances.running().iter().filter_map(|slot| slot.live()) {
        adopted.insert(live.cgroup.name().to_owned());
        // The scope of one that started the direct way: systemd may have made it too late, around its monitor.
        adopted.extend(app.systemd.scope_of(&live.name).map(|scope| scope.cgroup));
    }
    let layout = Arc::clone(app.instances.cgroups());
    let prefix = app.instances.cgroup_prefix().to_owned();
    let scopes = app.systemd.scopes();
    let work = move || -> Result<()> {
        let mut names = Cgroup::list(&layout, &prefix).doing("cannot list control groups")?;
        if let Some((slice, is_instance)) = scopes {
            let all = Cgroup::list(&layout, &slice).doing("cannot list scopes")?;
            names.extend(all.into_iter().filter(|name| is_instance(name)));
        }
        for name in names {
            if !adopted.contains(&name) {
                tracing::info!(name, "removing a leftover control group");
                let cgroup = Cgroup::open(&layout, &name).doing("cannot open a control group")?;
                cgroup.destroy(Instant::now() + SWEEP_DEADLINE).doing("cannot remove a control group")?;
            }
        }
        Ok(())
    };
    if let Err(error) = blocking(work).await {
        tracing::warn!(%error, "a leftover control group stays behind");
    }
}

/// Removes run, device and log directories that no row names.
fn sweep_dirs(app: &App) -> Result<()> {
    let instances = app.inventory.instance_names()?;
    let running: HashSet<String> = app.instances.running().iter().map(|slot| slot.id().to_string()).collect();
    let ids: HashSet<String> = instances.iter().map(|(id, _)| id.to_string()).collect();
    let names: HashSet<String> = instances.into_iter().map(|(_, name)| name).collect();
    let sweep = |dir: std::path::PathBuf, known: &HashSet<String>| -> Result<()> {
        for entry in std::fs::read_dir(&dir).doing("cannot read a directory")? {
            let entry = entry?;
            let is_known = entry.file_name().to_str().is_some_and(|name| known.contains(name));
            if !is_known && entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path()).doing("cannot remove a directory")?;
            }
        }
        Ok(())
    };
    sweep(app.paths.root.join("run"), &running)?;
    sweep(app.paths.root.join("devices"), &running)?;
    sweep(app.paths.root.join("logs"), &names)?;
    sweep(app.paths.root.join("metadata"), &ids)?;
    for entry in std::fs::read_dir(app.paths.work()).doing("cannot read the work directory")? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
            .doing("cannot empty the work directory")?;
    }
    Ok(())
}

/// Starts what should run: `boot.autostart=true`, or (unset) what ran before; by priority, each followed by its delay.
/// What is ephemeral and stopped is gone. `all` is every instance, as the daemon found it.
pub async fn autostart(app: App, all: Vec<Expanded>) {
    let mut due: Vec<(Expanded, InstanceSettings)> = Vec::new();
    for expanded in all {
        let slot = app.instances.slot(expanded.row.id);
        if slot.live().is_some() {
            continue;
        }
        let Ok(settings) = InstanceSettings::from_config(&expanded.config) else { continue };
        if settings.autostart.unwrap_or(expanded.row.power == Power::Running) {
            due.push((expanded, settings));
        } else if expanded.row.ephemeral && expanded.row.last_used_at > Timestamp::UNIX_EPOCH {
            stop::delete_if_ephemeral(&app, &slot, &expanded.row.name).await;
        }
    }
    due.sort_by(|(a, x), (b, y)| {
        y.autostart_priority.cmp(&x.autostart_priority).then_with(|| a.row.name.cmp(&b.row.name))
    });
    for (expanded, settings) in due {
        if app.shutdown.is_cancelled() || app.closing.is_cancelled() {
            return;
        }
        let entity = format!("/1.0/instances/{}", expanded.row.name);
        let slot = app.instances.slot(expanded.row.id);
        let outcome = match slot.claim(Request::Start) {
            Ok(held) => start::start(&app, &held, &expanded.row.name).await,
            // Somebody was quicker.
            Err(_) => Ok(()),
        };
        match outcome {
            Ok(()) => app.warnings.resolve(&app, INSTANCE_AUTOSTART_FAILURE, &entity).await,
            Err(error) => {
                tracing::error!(instance = expanded.row.name, %error, "an instance did not start");
                app.warnings.raise(&app, INSTANCE_AUTOSTART_FAILURE, &entity, &error.to_string()).await;
            }
        }
        if !settings.autostart_delay.is_zero() {
            tokio::select! {
                () = app.shutdown.cancelled() => return,
                () = app.closing.cancelled() => return,
                () = tokio::time::sleep(settings.autostart_delay) => {}
            }
        }
    }
}
