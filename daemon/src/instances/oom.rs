//! Telling of processes that the kernel killed because an instance's memory was used up: a lifecycle event and a warning.
//!
//! What is killed while the daemon is away is not told of: the count that it finds when it returns is where it begins.

use std::time::Duration;

use duet_container::cgroup::OomWatch;
use serde_json::json;
use tokio::io::unix::AsyncFd;

use super::live::Live;
use crate::app::App;
use crate::readiness;
use crate::warnings::INSTANCE_OUT_OF_MEMORY;

/// The kernel wakes us for each time that a limit was met, which may be many times a second; and what runs out of memory
/// is often killed by several processes. All of this time is told of at once.
const GATHER: Duration = Duration::from_millis(200);

/// Watches a running instance until it ends.
pub fn watch(app: &App, live: &Live) {
    let watched = match live.cgroup.watch_oom() {
        Ok(Some(file)) => file.kills().map_err(|e| e.to_string()).and_then(|known| {
            let file = readiness::register_priority(file).map_err(|e| e.to_string())?;
            Ok((file, known))
        }),
        Ok(None) => return,
        Err(error) => Err(error.to_string()),
    };
    let name = live.name.clone();
    match watched {
        Ok((file, known)) => drop(tokio::spawn(follow(app.clone(), name, file, known))),
        Err(error) => tracing::warn!(error, instance = name, "nobody will be told if an instance runs out of memory"),
    }
}

async fn follow(app: App, name: String, file: AsyncFd<OomWatch>, mut known: u64) {
    // Until the group is gone.
    while let Ok(mut guard) = file.ready(tokio::io::Interest::PRIORITY).await {
        guard.clear_ready();
        tokio::time::sleep(GATHER).await;
        let Ok(kills) = file.get_ref().kills() else { return };
        if kills > known {
            tell(&app, &name, kills - known, kills).await;
            known = kills;
        }
    }
}

async fn tell(app: &App, name: &str, killed: u64, since_start: u64) {
    let source = format!("/1.0/instances/{name}");
    let message = format!(
        "the kernel killed {killed} of its processes because its memory was used up ({since_start} since its start): raise limits.memory"
    );
    tracing::info!(instance = name, killed, "processes of an instance were killed: its memory was used up");
    let context = json!({ "killed": killed, "killed_since_start": since_start });
    app.events.lifecycle("instance-oom", source.clone(), context);
    app.warnings.raise(app, INSTANCE_OUT_OF_MEMORY, &source, &message).await;
}
