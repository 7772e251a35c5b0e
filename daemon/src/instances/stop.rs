//! The end of a running instance, asked for or not.
//!
//! One task for each running instance waits for its end ([`watch`]). It releases what the instance held on the host,
//! then either hands on to whoever asked for the end, or does itself what follows: start again after a reboot, delete
//! an ephemeral one, record that it is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use duet_control::protocol::ExitReason;
use serde_json::Value;

use super::lifecycle::{Observed, Request};
use super::live::{self, Live};
use super::slot::{Held, Slot};
use super::{delete, expand, start};
use crate::app::App;
use crate::error::{Context, Error, Kind, Result, blocking};
use crate::inventory::{self, Power};

/// How long a killed container may take to go.
const KILL_DEADLINE: Duration = Duration::from_secs(60);
/// How long a fresh init may take until it can be asked to stop.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a virtual machine that was asked to shut down is given to begin.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// When a link that did not go with its instance is removed: something else holds the network namespace.
const LINGER: Duration = Duration::from_secs(3);
/// How long freezing and thawing may take.
const FREEZE_DEADLINE: Duration = Duration::from_secs(20);

/// How an end is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By the init's own signal; an error when it does not end in time.
    Clean {
        /// None: for as long as it takes.
        timeout: Option<Duration>,
    },
    /// By the init's own signal, and killed when it does not end in time.
    CleanThenKill {
        /// How long it may take.
        timeout: Duration,
    },
    /// Killed at once.
    Kill,
}

impl How {
    /// Reads what the API says: seconds (-1: no limit, 0: at once) and whether to use force. Force with a positive
    /// timeout asks first.
    pub fn from_api(timeout: i64, force: bool) -> Self {
        match (u64::try_from(timeout), force) {
            (Ok(0), _) | (Err(_), true) => Self::Kill,
            (Ok(seconds), true) => Self::CleanThenKill { timeout: Duration::from_secs(seconds) },
            (Ok(seconds), false) => Self::Clean { timeout: Some(Duration::from_secs(seconds)) },
            (Err(_), false) => Self::Clean { timeout: None },
        }
    }
}

/// Stops an instance that the caller holds, and records it.
///
/// # Errors
/// Where it did not end in time; it then runs on.
pub async fn stop(app: &App, held: &Held, name: &str, how: How) -> Result<()> {
    end(app, held, how).await?;
    record_stopped(app, held.slot().id()).await?;
    let action = if how == How::Kill { "instance-stopped" } else { "instance-shutdown" };
    app.events.lifecycle(action, format!("/1.0/instances/{name}"), Value::Null);
    Ok(())
}

/// Brings the end about and waits until everything is released.
///
/// # Errors
/// As [`stop`].
pub async fn end(app: &App, held: &Held, how: How) -> Result<()> {
    let Some(live) = held.slot().live() else { return Ok(()) };
    live.request_stop();
    let outcome = ask(app, &live, how).await;
    if outcome.is_err() {
        live.withdraw_stop();
        // It may have ended in this very moment: then all is well, and nobody else takes care of it.
        if held.slot().live().is_none() {
            return Ok(());
        }
    }
    outcome
}

async fn ask(app: &App, live: &Arc<Live>, how: How) -> Result<()> {
    let (patience, then_kill) = match how {
        How::Kill => return kill(app, live).await,
        How::Clean { timeout } => (timeout, false),
        How::CleanThenKill { timeout } => (Some(timeout), true),
    };
    if live.is_frozen() {
        thaw(live).await?;
    }
    let in_time = if live.is_machine() {
        let ended = async {
            tokio::select! {
                _ = live.wait_end() => {}
                () = keep_asking(live) => {}
            }
        };
        match patience {
            None => {
                ended.await;
                true
            }
            Some(patience) => tokio::time::timeout(patience, ended).await.is_ok(),
        }
    } else {
        listens(live, Instant::now() + LISTEN_DEADLINE).await;
        // A monitor that does not answer because the container has just ended is no failure.
        let asked = live.call(|monitor| monitor.stop()).await;
        match patience {
            None => {
                asked?;
                live.wait_end().await;
                true
            }
            Some(patience) => tokio::time::timeout(patience, live.wait_end()).await.is_ok(),
        }
    };
    match (in_time, then_kill) {
        (true, _) => Ok(()),
        (false, true) => kill(app, live).await,
        (false, false) => Err(Error::new(
            Kind::Timeout,
            format!(
                "Failed shutting down instance, status is \"Running\": it did not end within {} s (stop it with --force)",
                patience.unwrap_or_default().as_secs()
            ),
        )),
    }
}

/// Asks a virtual machine to shut down, again and again: as long as its guest boots, nothing hears it.
async fn keep_asking(live: &Live) {
    loop {
        // Why it was not heard matters to nobody.
        let _ = live.call(|monitor| monitor.stop()).await;
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Waits until init has set itself up to be asked. Before that, the kernel drops signals to it: an init, alone among
/// processes, is not ended by what it does not handle (pid_namespaces(7)). Some inits block the signals and read them
/// from a descriptor, others handle them; /proc/pid/status (proc_pid_status(5)) shows both. Those that wait for blocked
/// signals by sigtimedwait(2), as busybox does, have them unblocked while they wait; that call shows in
/// /proc/pid/syscall (proc_pid_syscall(5)).
async fn listens(live: &Live, deadline: Instant) {
    /// The signals that inits are stopped by: SIGRTMIN+3 of systemd, SIGUSR2 of busybox, SIGPWR of others.
    const STOP_SIGNALS: u64 = 1 << (37 - 1) | 1 << (libc::SIGUSR2 - 1) | 1 << (libc::SIGPWR - 1);
    let path = format!("/proc/{}/status", live.init_pid);
    while Instant::now() < deadline {
        let Ok(status) = std::fs::read_to_string(&path) else { return };
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
        };
        if (mask("SigBlk:") | mask("SigCgt:")) & STOP_SIGNALS != 0 || waits_for_signals(live.init_pid) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process is in sigtimedwait(2).
fn waits_for_signals(pid: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split(' ').next().and_then(|number| number.parse().ok()) == Some(libc::SYS_rt_sigtimedwait)
}

async fn kill(app: &App, live: &Arc<Live>) -> Result<()> {
    let _short = app.grace.shorten();
    let cgroup = live.cgroup.clone();
    blocking(move || cgroup.kill().doing("cannot kill the instance")).await?;
    if tokio::time::timeout(KILL_DEADLINE, live.wait_end()).await.is_err() {
        return Err(Error::internal(format!(
            "the instance was killed but is not gone after {} s: a process of it hangs in the kernel",
            KILL_DEADLINE.as_secs()
        )));
    }
    Ok(())
}

/// Records that an instance should not run.
async fn record_stopped(app: &App, id: i64) -> Result<()> {
    let changes = vec![("volatile.last_state.power".to_owned(), Some("STOPPED".to_owned()))];
    app.inventory
        .write(move |tx| {
            inventory::instances::set_power(tx, id, Power::Stopped, None)?;
            inventory::instances::patch_config(tx, id, &changes)
        })
        .await?;
    Ok(())
}

/// Holds a running instance's processes.
///
/// # Errors
/// Where some cannot be held in time; they are let go again.
pub async fn freeze(app: &App, held: &Held, name: &str) -> Result<()> {
    let live = held.slot().live().ok_or_else(|| Error::invalid("The instance isn't running"))?;
    let cgroup = live.cgroup.clone();
    blocking(move || {
        cgroup.freeze(Instant::now() + FREEZE_DEADLINE).map_err(|e| {
            // Half frozen is neither: everything goes on.
            let _ = cgroup.thaw(Instant::now() + FREEZE_DEADLINE);
            Error::internal(format!("cannot pause the instance: {e}"))
        })
    })
    .await?;
    live.set_frozen(true);
    app.events.lifecycle("instance-paused", format!("/1.0/instances/{name}"), Value::Null);
    Ok(())
}

/// Lets a frozen instance go on.
///
/// # Errors
/// The kernel's.
pub async fn unfreeze(app: &App, held: &Held, name: &str) -> Result<()> {
    let live = held.slot().live().ok_or_else(|| Error::invalid("The instance isn't running"))?;
    thaw(&live).await?;
    app.events.lifecycle("instance-resumed", format!("/1.0/instances/{name}"), Value::Null);
    Ok(())
}

async fn thaw(live: &Arc<Live>) -> Result<()> {
    let cgroup = live.cgroup.clone();
    blocking(move || cgroup.thaw(Instant::now() + FREEZE_DEADLINE).doing("cannot resume the instance")).await?;
    live.set_frozen(false);
    Ok(())
}

/// Waits in the background for an instance's end.
///
/// # Errors
/// Where its monitor cannot be reached.
pub fn watch(app: &App, slot: &Arc<Slot>, live: &Arc<Live>) -> Result<()> {
    let (says, place) = (Arc::clone(live), Arc::clone(slot));
    let end = live::watch_end(&live.run_dir, move || {
        says.set_ready();
        place.announce();
    })?;
    super::oom::watch(app, live);
    let (app, slot, live) = (app.clone(), Arc::clone(slot), Arc::clone(live));
    tokio::spawn(async move {
        let reason = match end.await {
            Some(record) => record.reason,
            None => {
                tracing::warn!(id = slot.id(), pid = live.init_pid, "an instance's monitor is gone");
                ExitReason::Signal { signal: libc::SIGKILL }
            }
        };
        release(&app, &slot, &live).await;
        slot.set_live(None);
        let asked_for = live.stop_requested();
        if let ExitReason::Exited { code } = reason
            && live.is_machine()
            && !asked_for
        {
            // What the codes mean: duet_vmm::power::Ending. More may be in the monitor's log.
            tracing::warn!(instance = live.name, code, "a virtual machine ended by a failure");
        }
        live.set_ended(reason);
        if !asked_for {
            after(&app, &slot, reason).await;
        }
    });
    Ok(())
}

/// Releases what a running instance held on the host. Its veths went with its network namespace.
async fn release(app: &App, slot: &Slot, live: &Arc<Live>) {
    if live.cgroup.is_scope() {
        app.systemd.unregister_machine(&live.name).await;
    }
    let (daemon, ended) = (app.clone(), Arc::clone(live));
    let dirs = [live.run_dir.clone(), app.paths.devices(slot.id())];
    let work = move || -> Result<()> {
        let gone = ended.cgroup.destroy(Instant::now() + KILL_DEADLINE).doing("cannot remove its control group");
        daemon.apparmor.unload(&ended.name);
        for dir in dirs {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, dir = %dir.display(), "a directory of a stopped instance stays behind");
                }
                _ => {}
            }
        }
        gone
    };
    if let Err(error) = blocking(work).await {
        tracing::error!(%error, id = slot.id(), "a stopped instance was not released wholly");
    }
    for link in live.nics().into_values() {
        let network = app.network.clone();
        let made_up = crate::network::is_host_name(&link);
        let detach = async move {
            if let Err(error) = network.detach_nic(&link).await {
                tracing::warn!(%error, link, "a link of a stopped instance stays behind");
            }
        };
        // A pair goes with the namespace of its inner end, of which the kernel takes down many at a time; to ask for
        // each by itself costs some 10 ms. A name that was made up is never used again, so nobody has to wait for it.
        if made_up {
            tokio::spawn(async move {
                tokio::time::sleep(LINGER).await;
                detach.await;
            });
        } else {
            detach.await;
        }
    }
}

/// What follows from an end that nobody asked for.
async fn after(app: &App, slot: &Arc<Slot>, reason: ExitReason) {
    let Ok(held) = slot.claim_when_idle(Request::Update).await else { return };
    if held.from() != Observed::Stopped {
        // Somebody started it meanwhile.
        return;
    }
    if reason == ExitReason::Reboot && app.closing.is_cancelled() {
        // It comes back when the host does.
        return;
    }
    let Ok(Some(row)) = app.inventory.instance_by_id(slot.id()) else { return };
    let source = format!("/1.0/instances/{}", row.name);
    if reason == ExitReason::Reboot {
        app.events.lifecycle("instance-restarted", source, Value::Null);
        match start::start(app, &held, &row.name).await {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(%error, instance = row.name, "an instance did not come back after its reboot")
            }
        }
    } else {
        app.events.lifecycle("instance-shutdown", source, Value::Null);
    }
    if let Err(error) = record_stopped(app, slot.id()).await {
        tracing::error!(%error, instance = row.name, "cannot record that an instance stopped");
    }
    drop(held);
    delete_if_ephemeral(app, slot, &row.name).await;
}

/// Deletes an ephemeral instance that has stopped. Takes the claim itself.
pub async fn delete_if_ephemeral(app: &App, slot: &Arc<Slot>, name: &str) {
    if !expand::find_row(app, name).is_ok_and(|row| row.ephemeral) {
        return;
    }
    match slot.claim_when_idle(Request::Delete).await {
        Ok(held) => {
            if let Err(error) = delete::delete(app, held, name).await {
                tracing::error!(%error, name, "an ephemeral instance was not deleted");
            }
        }
        Err(error) => tracing::debug!(%error, name, "an ephemeral instance runs again"),
    }
}
