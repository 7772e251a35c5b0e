//! The lists of all instances, `GET /1.0/instances?recursion=1` and `2`.
//!
//! Clients ask for them again and again, and in between little changes. So what follows from the inventory is written as
//! JSON once and kept until the inventory changes; what an instance does is looked at for every list. All of it goes into
//! one buffer: a thousand instances as objects are many megabytes in small pieces, which a daemon would keep.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use duet_client::api::StatusCode;
use serde::Serialize;

use super::expand::{self, Expanded, status_of};
use super::state::{self, Subject};
use crate::app::App;
use crate::error::{Error, Result};
use crate::inventory::SnapshotRow;
use crate::pools::RootSizes;

/// What was written of all instances.
#[derive(Default)]
pub struct Listing {
    kept: Mutex<Option<Arc<Kept>>>,
    wanted: AtomicBool,
}

struct Kept {
    /// See [`Inventory::generation`](crate::inventory::Inventory::generation).
    generation: u64,
    entries: Vec<Entry>,
}

struct Entry {
    subject: Subject,
    status: StatusCode,
    instance: String,
    /// Its snapshots, or `null`.
    snapshots: String,
}

impl Listing {
    /// Forgets what no list was made of since this was last called.
    pub fn forget_unused(&self) {
        if !self.wanted.swap(false, Ordering::Relaxed) {
            self.lock().take();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every instance, by name, as a JSON array.
///
/// # Errors
/// The inventory's.
pub fn plain(app: &App) -> Result<String> {
    let kept = kept(app)?;
    let mut list = String::new();
    for entry in &kept.entries {
        begin(&mut list);
        list.push_str(&entry.instance);
    }
    Ok(end(list))
}

/// The same with state and snapshots.
///
/// # Errors
/// Where the kernel, the storage or the inventory cannot be asked.
pub async fn full(app: &App) -> Result<String> {
    let kept = kept(app)?;
    let host_memory = super::plan::host_memory().unwrap_or(0);
    let mut list = String::new();
    for entry in &kept.entries {
        let state = state::of(app, &entry.subject, host_memory).await?;
        begin(&mut list);
        list.push_str(&entry.instance);
        // The other members of an InstanceFull stand beside those of the instance.
        list.truncate(list.len() - 1);
        list.push_str(",\"backups\":null,\"state\":");
        list.push_str(&json(&state)?);
        list.push_str(",\"snapshots\":");
        list.push_str(&entry.snapshots);
        list.push('}');
    }
    Ok(end(list))
}

/// Before each object of a list.
fn begin(list: &mut String) {
    list.push(if list.is_empty() { '[' } else { ',' });
}

fn end(mut list: String) -> String {
    if list.is_empty() {
        list.push('[');
    }
    list.push(']');
    list
}

fn kept(app: &App) -> Result<Arc<Kept>> {
    let listing = &app.instances.listing;
    listing.wanted.store(true, Ordering::Relaxed);
    // Looked at before the rows are: what changes while they are read makes the next list read them again.
    let generation = app.inventory.generation();
    let shows_now =
        |kept: &Arc<Kept>| kept.generation == generation && kept.entries.iter().all(|entry| entry.is_so(app));
    let last = listing.lock().clone();
    if let Some(kept) = last.filter(shows_now) {
        return Ok(kept);
    }
    let kept = Arc::new(Kept { generation, entries: write_all(app)? });
    *listing.lock() = Some(Arc::clone(&kept));
    Ok(kept)
}

fn write_all(app: &App) -> Result<Vec<Entry>> {
    let profiles = expand::profile_table(app)?;
    let mut snapshots: HashMap<i64, Vec<SnapshotRow>> = HashMap::new();
    for snapshot in app.inventory.all_snapshots()? {
        snapshots.entry(snapshot.instance_id).or_default().push(snapshot);
    }
    let sizes = RootSizes::read(app)?;
    let mut entries = Vec::new();
    for row in app.inventory.instances()? {
        let own = snapshots.remove(&row.id).map(|own| state::render_snapshots_with(&profiles, own)).transpose()?;
        let expanded = expand::expand_with(&profiles, row)?;
        entries.push(Entry::new(app, &sizes, expanded, json(&own)?)?);
    }
    Ok(entries)
}

impl Entry {
    fn new(app: &App, sizes: &RootSizes, expanded: Expanded, snapshots: String) -> Result<Self> {
        let subject = Subject::of(sizes, &expanded);
        let instance = expanded.render(app);
        Ok(Self { subject, status: instance.status_code, instance: json(&instance)?, snapshots })
    }

    /// Whether the status that was written is still true, which can change without the inventory.
    fn is_so(&self, app: &App) -> bool {
        status_of(app.instances.slot(self.subject.id).observed()) == self.status
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}
