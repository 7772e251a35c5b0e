//! The end of all instances, when the host goes down.
//!
//! They stop as their keys say: `boot.stop.priority` puts them into groups, the highest first, and each has
//! `boot.host_shutdown_timeout` to end by itself before it is killed. In the inventory they go on running, so that the
//! next start of the daemon brings them back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use super::expand;
use super::lifecycle::Request;
use super::slot::Slot;
use super::stop::{self, How};
use crate::app::App;
use crate::config::InstanceSettings;
use crate::error::{Error, Kind, Result};

/// How long an operation under way may take to let go of its instance.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops every instance and starts none any more.
///
/// # Errors
/// The inventory's. An instance that does not end is logged, and no reason to leave the others running.
pub async fn stop_all(app: &App) -> Result<()> {
    app.closing.cancel();
    let mut groups: BTreeMap<i64, Vec<(Arc<Slot>, String, How)>> = BTreeMap::new();
    for expanded in expand::expand_all(app)? {
        let slot = app.instances.slot(expanded.row.id);
        if slot.live().is_none() && slot.busy().is_none() {
            continue;
        }
        let (priority, timeout) = match InstanceSettings::from_config(&expanded.config) {
            Ok(settings) => (settings.stop_priority, settings.host_shutdown_timeout),
            Err(_) => (0, Duration::ZERO),
        };
        groups.entry(priority).or_default().push((slot, expanded.row.name, How::CleanThenKill { timeout }));
    }
    for (priority, group) in groups.into_iter().rev() {
        tracing::info!(priority, instances = group.len(), "stopping instances");
        let mut stopping = JoinSet::new();
        for (slot, name, how) in group {
            let app = app.clone();
            stopping.spawn(async move {
                if let Err(error) = stop_one(&app, &slot, &name, how).await {
                    tracing::error!(instance = name, %error, "an instance was not stopped");
                }
            });
        }
        while stopping.join_next().await.is_some() {}
    }
    Ok(())
}

async fn stop_one(app: &App, slot: &Arc<Slot>, name: &str, how: How) -> Result<()> {
    let held = match tokio::time::timeout(PATIENCE, slot.claim_when_idle(Request::Stop)).await {
        Ok(Ok(held)) => held,
        // It has ended meanwhile.
        Ok(Err(_)) => return Ok(()),
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(Error::new(Kind::Timeout, format!("it was busy for {seconds} s with something else")));
        }
    };
    stop::end(app, &held, how).await?;
    app.events.lifecycle("instance-shutdown", format!("/1.0/instances/{name}"), Value::Null);
    drop(held);
    stop::delete_if_ephemeral(app, slot, name).await;
    Ok(())
}
