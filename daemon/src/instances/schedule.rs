//! What happens by the clock: scheduled snapshots, and the end of snapshots and images that expire.

use std::time::Duration;

use jiff::{Timestamp, Zoned};

use super::expand::{self, Expanded};
use super::lifecycle::Request;
use super::snapshot::{self, Ends};
use crate::app::App;
use crate::config::InstanceSettings;
use crate::error::Result;
use crate::warnings::SCHEDULED_SNAPSHOT_FAILURE;

/// Runs until the daemon goes down. Cron's resolution is a minute, so once a minute is looked at.
pub async fn run(app: App) {
    let mut since = Zoned::now();
    loop {
        let now = Zoned::now();
        // To the beginning of the next minute.
        let rest = 60 - u64::try_from(now.second()).unwrap_or(0);
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(rest)) => {}
        }
        let until = Zoned::now();
        take_due(&app, &since, &until).await;
        expire(&app).await;
        since = until;
        app.instances.listing.forget_unused();
        duet_sys::memory::give_back();
    }
}

/// Takes the snapshots whose time came in (since, until].
pub(super) async fn take_due(app: &App, since: &Zoned, until: &Zoned) {
    let all = match expand::expand_all(app) {
        Ok(all) => all,
        Err(error) => {
            tracing::error!(%error, "the snapshot schedule could not be read");
            return;
        }
    };
    for expanded in all {
        let Ok(settings) = InstanceSettings::from_config(&expanded.config) else { continue };
        let next = settings.snapshots.schedule.as_ref().and_then(|schedule| schedule.next_after(since));
        if next.is_some_and(|next| next <= *until) {
            scheduled(app, &expanded, settings.snapshots.while_stopped).await;
        }
    }
}

/// Takes one scheduled snapshot; one that fails becomes a warning.
pub(super) async fn scheduled(app: &App, expanded: &Expanded, while_stopped: bool) {
    let slot = app.instances.slot(expanded.row.id);
    if slot.live().is_none() && !while_stopped {
        return;
    }
    let entity = format!("/1.0/instances/{}", expanded.row.name);
    let outcome = async {
        let held = slot.claim_when_idle(Request::Snapshot).await?;
        snapshot::take(app, &held, &expanded.row.name, "", Ends::AsConfigured).await
    };
    match outcome.await {
        Ok(name) => {
            tracing::info!(instance = expanded.row.name, snapshot = name, "scheduled snapshot taken");
            app.warnings.resolve(app, SCHEDULED_SNAPSHOT_FAILURE, &entity).await;
        }
        Err(error) => app.warnings.raise(app, SCHEDULED_SNAPSHOT_FAILURE, &entity, &error.to_string()).await,
    }
}

/// Deletes the snapshots whose time is over.
pub(super) async fn expire(app: &App) {
    let now = Timestamp::now();
    let due = || -> Result<Vec<(String, String)>> {
        let instances = app.inventory.instances()?;
        let over = app.inventory.all_snapshots()?.into_iter().filter(|s| s.expires_at.is_some_and(|at| at <= now));
        Ok(over
            .filter_map(|s| Some((instances.iter().find(|i| i.id == s.instance_id)?.name.clone(), s.name)))
            .collect())
    };
    match due() {
        Ok(due) => {
            for (instance, name) in due {
                if let Err(error) = snapshot::delete(app, &instance, &name).await {
                    tracing::warn!(%error, instance, name, "an expired snapshot was not deleted; it is tried again");
                }
            }
        }
        Err(error) => tracing::error!(%error, "expired snapshots could not be looked for"),
    }
}
