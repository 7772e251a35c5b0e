//! Other firewalls on the host: what of Docker, ufw and the like cuts instances off becomes a warning that names the
//! rule, and is resolved when the rule is mended.
//!
//! The rules are judged by the code of `duet doctor`, at the daemon's start and after changes of which the kernel tells.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::app::App;
use crate::error::{Error, Result, blocking};
use crate::warnings::FIREWALL_IN_THE_WAY;

/// A firewall that is restarted makes many changes; they are looked at together, and not more often than this.
const SETTLE: Duration = Duration::from_secs(3);

/// Watches until the daemon goes down.
pub async fn watch(app: App) {
    let mut told = BTreeMap::new();
    loop {
        match look(&app).await {
            Ok(found) => tell(&app, &mut told, found).await,
            Err(error) => tracing::warn!(%error, "the host's firewalls could not be looked at"),
        }
        duet_sys::memory::give_back();
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.network.rules_changed() => {}
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
    }
}

/// By network, what is wrong; empty where nothing is.
async fn look(app: &App) -> Result<BTreeMap<String, String>> {
    let networks: Vec<String> = app.inventory.networks()?.into_iter().map(|row| row.name).collect();
    let mut found: BTreeMap<String, String> = networks.iter().map(|name| (name.clone(), String::new())).collect();
    let checks = blocking(move || Ok::<_, Error>(duet_client::doctor::in_the_way(&networks))).await?;
    for (network, check) in checks {
        let message = found.entry(network).or_default();
        let mend = check.mend.unwrap_or_default().replace('\n', "; ");
        let how = if check.fix.is_empty() { mend } else { format!("\"duet doctor --fix\" lets them through ({mend})") };
        if !message.is_empty() {
            message.push_str(". ");
        }
        message.push_str(&format!("{}: {how}", check.message));
    }
    Ok(found)
}

/// Raises a warning for each network that has a new complaint, and resolves those that have none any more.
async fn tell(app: &App, told: &mut BTreeMap<String, String>, found: BTreeMap<String, String>) {
    for (network, message) in &found {
        if told.get(network) == Some(message) {
            continue;
        }
        let entity = format!("/1.0/networks/{network}");
        if message.is_empty() {
            app.warnings.resolve(app, FIREWALL_IN_THE_WAY, &entity).await;
        } else {
            tracing::info!(network, "another firewall is in the way: {message}");
            app.warnings.raise(app, FIREWALL_IN_THE_WAY, &entity, message).await;
        }
    }
    *told = found;
}
