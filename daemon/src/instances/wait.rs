//! Waiting until an instance is usable: one call with a deadline, driven by events, never by polling.

use std::sync::Arc;
use std::time::Duration;

use duet_client::api::{InstanceState, WAIT_DEFAULT_SECONDS, WaitCondition};

use super::slot::Slot;
use super::{expand, state};
use crate::app::App;
use crate::error::{Error, Kind, Result};

/// Waits until all conditions hold at once.
///
/// # Errors
/// When the time is over, with what was still missing; when the instance is not there or goes away.
pub async fn wait(app: &App, name: &str, conditions: &[WaitCondition], timeout: Option<i64>) -> Result<InstanceState> {
    let row = expand::find_row(app, name)?;
    let slot = app.instances.slot(row.id);
    let seconds = timeout.unwrap_or(WAIT_DEFAULT_SECONDS);
    let waiting = until(app, &slot, row.id, conditions);
    match u64::try_from(seconds) {
        Err(_) => waiting.await?,
        Ok(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), waiting).await {
            Ok(outcome) => outcome?,
            Err(_) => {
                let missing: Vec<&str> = conditions.iter().filter(|c| !holds(&slot, **c)).map(|c| c.name()).collect();
                return Err(Error::new(
                    Kind::Timeout,
                    format!("instance \"{name}\" is not {} after {seconds} s", missing.join(", ")),
                ));
            }
        },
    }
    state::state(app, &expand::find(app, name)?).await
}

async fn until(app: &App, slot: &Arc<Slot>, id: i64, conditions: &[WaitCondition]) -> Result<()> {
    let mut changed = slot.watch();
    loop {
        changed.borrow_and_update();
        if conditions.iter().all(|condition| holds(slot, *condition)) {
            return Ok(());
        }
        if app.inventory.instance_by_id(id)?.is_none() {
            return Err(Error::not_found("the instance was deleted while it was waited for"));
        }
        if changed.changed().await.is_err() {
            return Err(Error::not_found("the instance was deleted while it was waited for"));
        }
    }
}

fn holds(slot: &Slot, condition: WaitCondition) -> bool {
    let live = slot.live();
    match (condition, live) {
        (WaitCondition::Stopped, live) => live.is_none() && slot.busy().is_none(),
        (_, None) => false,
        (WaitCondition::Running, Some(live)) => !live.is_frozen(),
        (WaitCondition::Ipv4, Some(live)) => live.network().has_ipv4(),
        (WaitCondition::Ipv6, Some(live)) => live.network().has_ipv6(),
        (WaitCondition::Ready, Some(live)) => live.is_ready(),
    }
}
