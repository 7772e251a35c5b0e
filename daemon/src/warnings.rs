//! Warnings: what an admin should know and no request could be told.

use uuid::Uuid;

use crate::app::App;
use crate::inventory;

/// A managed network could not be brought up.
pub const NETWORK_UNAVAILABLE: &str = "Network unavailable";
/// Another firewall of the host drops what instances on a network send.
pub const FIREWALL_IN_THE_WAY: &str = "Firewall of the host cuts instances off";
/// A storage pool cannot be used.
pub const POOL_UNAVAILABLE: &str = "Storage pool unavailable";
/// An instance that should have started did not.
pub const INSTANCE_AUTOSTART_FAILURE: &str = "Failed to start instance on boot";
/// A scheduled snapshot was not taken.
pub const SCHEDULED_SNAPSHOT_FAILURE: &str = "Failed to take a scheduled snapshot";

/// The kernel killed processes of an instance because its memory was used up.
pub const INSTANCE_OUT_OF_MEMORY: &str = "Instance ran out of memory";

/// Where warnings are raised. The rows are the inventory's; nothing is kept here.
#[derive(Default)]
pub struct Warnings;

impl Warnings {
    /// Raises a warning about `entity` (a path, or empty for the server). A failure to store it is only logged.
    pub async fn raise(&self, app: &App, kind: &'static str, entity: &str, message: &str) {
        let (entity, message, uuid) = (entity.to_owned(), message.to_owned(), Uuid::new_v4().to_string());
        let stored = app
            .inventory
            .write(move |tx| inventory::warnings::seen(tx, &uuid, kind, "moderate", &entity, &message))
            .await;
        if let Err(error) = stored {
            tracing::error!(%error, kind, "a warning could not be stored");
        }
    }

    /// Marks the warning of that sort about `entity`, if there is one, as resolved.
    pub async fn resolve(&self, app: &App, kind: &'static str, entity: &str) {
        let known = app.inventory.warnings().unwrap_or_default();
        if !known.iter().any(|w| w.kind == kind && w.entity_url == entity && w.status != "resolved") {
            return;
        }
        let entity = entity.to_owned();
        if let Err(error) = app.inventory.write(move |tx| inventory::warnings::resolve(tx, kind, &entity)).await {
            tracing::error!(%error, kind, "a warning could not be resolved");
        }
    }
}
