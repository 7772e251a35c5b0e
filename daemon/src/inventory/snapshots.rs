//! Rows of snapshots.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::{ConfigMap, DeviceMap, Result, json, to_json};
use crate::storage::Snapshot;

/// One snapshot of an instance.
#[derive(Clone, Debug)]
pub struct SnapshotRow {
    /// Never reused.
    pub id: i64,
    /// Whose.
    pub instance_id: i64,
    /// Unique within the instance.
    pub name: String,
    /// As the instance's was.
    pub architecture: String,
    /// Free text.
    pub description: String,
    /// As the instance's was.
    pub ephemeral: bool,
    /// The instance's own keys at that time.
    pub config: ConfigMap,
    /// The instance's own devices at that time.
    pub devices: DeviceMap,
    /// The instance's profiles at that time.
    pub profiles: Vec<String>,
    /// The root filesystem's value.
    pub volume: Snapshot,
    /// When it was taken.
    pub created_at: Timestamp,
    /// As the instance's was.
    pub last_used_at: Timestamp,
    /// None: never.
    pub expires_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, instance_id, name, architecture, description, ephemeral, config, devices, profiles, \
    volume, created_at, last_used_at, expires_at";

fn read(row: &Row) -> rusqlite::Result<SnapshotRow> {
    let expires: String = row.get(12)?;
    Ok(SnapshotRow {
        id: row.get(0)?,
        instance_id: row.get(1)?,
        name: row.get(2)?,
        architecture: row.get(3)?,
        description: row.get(4)?,
        ephemeral: row.get(5)?,
        config: json(row, 6)?,
        devices: json(row, 7)?,
        profiles: json(row, 8)?,
        volume: json(row, 9)?,
        created_at: super::timestamp(row, 10)?,
        last_used_at: super::timestamp(row, 11)?,
        expires_at: if expires.is_empty() { None } else { Some(super::timestamp(row, 12)?) },
    })
}

impl super::Inventory {
    /// The snapshots of one instance, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn snapshots(&self, instance_id: i64) -> Result<Vec<SnapshotRow>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM snapshots WHERE instance_id = ?1 ORDER BY created_at, id"
            ))?;
            let rows = statement.query_map([instance_id], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Every snapshot of every instance, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn all_snapshots(&self) -> Result<Vec<SnapshotRow>> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots ORDER BY instance_id, created_at, id"))?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One snapshot by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn snapshot(&self, instance_id: i64, name: &str) -> Result<Option<SnapshotRow>> {
        self.read(|c| {
            Ok(c.prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots WHERE instance_id = ?1 AND name = ?2"))?
                .query_row((instance_id, name), read)
                .optional()?)
        })
    }
}

impl SnapshotRow {
    /// Adds the row and gives its id.
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the instance has a snapshot of that name.
    pub fn insert(&self, tx: &Transaction) -> Result<i64> {
        tx.prepare_cached(
            "INSERT INTO snapshots (instance_id, name, architecture, description, ephemeral, config, devices, \
             profiles, volume, created_at, last_used_at, expires_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute((
            self.instance_id,
            &self.name,
            &self.architecture,
            &self.description,
            self.ephemeral,
            to_json(&self.config)?,
            to_json(&self.devices)?,
            to_json(&self.profiles)?,
            to_json(&self.volume)?,
            self.created_at.to_string(),
            self.last_used_at.to_string(),
            self.expires_at.map(|t| t.to_string()).unwrap_or_default(),
        ))?;
        Ok(tx.last_insert_rowid())
    }
}

/// Renames a snapshot.
///
/// # Errors
/// [`super::Error::Exists`] where the name is taken.
pub fn rename(tx: &Transaction, id: i64, name: &str) -> Result<()> {
    tx.execute("UPDATE snapshots SET name = ?2 WHERE id = ?1", (id, name))?;
    Ok(())
}

/// Changes the expiry and description of a snapshot.
///
/// # Errors
/// SQLite's.
pub fn edit(tx: &Transaction, id: i64, expires_at: Option<Timestamp>, description: &str) -> Result<()> {
    tx.execute(
        "UPDATE snapshots SET expires_at = ?2, description = ?3 WHERE id = ?1",
        (id, expires_at.map(|t| t.to_string()).unwrap_or_default(), description),
    )?;
    Ok(())
}

/// Removes a snapshot's row.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction, id: i64) -> Result<()> {
    tx.execute("DELETE FROM snapshots WHERE id = ?1", [id])?;
    Ok(())
}
