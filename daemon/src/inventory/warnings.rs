//! Rows of warnings.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::{Result, timestamp};

/// Something an admin should know, once for each sort and object.
#[derive(Clone, Debug)]
pub struct WarningRow {
    /// Its id.
    pub uuid: String,
    /// What it is about, in words.
    pub kind: String,
    /// `low`, `moderate` or `high`.
    pub severity: String,
    /// `new`, `acknowledged` or `resolved`.
    pub status: String,
    /// What it concerns; empty for the server.
    pub entity_url: String,
    /// How often it was seen.
    pub count: i64,
    /// When first.
    pub first_seen_at: Timestamp,
    /// When last.
    pub last_seen_at: Timestamp,
    /// What was said last.
    pub last_message: String,
}

const COLUMNS: &str = "uuid, type, severity, status, entity_url, count, first_seen_at, last_seen_at, last_message";

fn read(row: &Row) -> rusqlite::Result<WarningRow> {
    Ok(WarningRow {
        uuid: row.get(0)?,
        kind: row.get(1)?,
        severity: row.get(2)?,
        status: row.get(3)?,
        entity_url: row.get(4)?,
        count: row.get(5)?,
        first_seen_at: timestamp(row, 6)?,
        last_seen_at: timestamp(row, 7)?,
        last_message: row.get(8)?,
    })
}

impl super::Inventory {
    /// Every warning, newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn warnings(&self) -> Result<Vec<WarningRow>> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached(&format!("SELECT {COLUMNS} FROM warnings ORDER BY last_seen_at DESC, uuid"))?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One warning.
    ///
    /// # Errors
    /// SQLite's.
    pub fn warning(&self, uuid: &str) -> Result<Option<WarningRow>> {
        self.read(|c| {
            Ok(c.prepare_cached(&format!("SELECT {COLUMNS} FROM warnings WHERE uuid = ?1"))?
                .query_row([uuid], read)
                .optional()?)
        })
    }
}

/// Records that something was seen: a new row, or one more sighting of the old one. A resolved one is new again.
///
/// # Errors
/// SQLite's.
pub fn seen(tx: &Transaction, uuid: &str, kind: &str, severity: &str, entity: &str, message: &str) -> Result<()> {
    let now = Timestamp::now().to_string();
    tx.execute(
        "INSERT INTO warnings (uuid, type, severity, status, entity_url, count, first_seen_at, last_seen_at, \
         last_message) VALUES (?1, ?2, ?3, 'new', ?4, 1, ?5, ?5, ?6) \
         ON CONFLICT (type, entity_url) DO UPDATE SET count = count + 1, last_seen_at = excluded.last_seen_at, \
         last_message = excluded.last_message, \
         status = CASE status WHEN 'resolved' THEN 'new' ELSE status END",
        (uuid, kind, severity, entity, now, message),
    )?;
    Ok(())
}

/// Sets the status of all warnings of one sort about one object. Gives whether there were any.
///
/// # Errors
/// SQLite's.
pub fn resolve(tx: &Transaction, kind: &str, entity: &str) -> Result<bool> {
    let changed = tx.execute(
        "UPDATE warnings SET status = 'resolved' WHERE type = ?1 AND entity_url = ?2 AND status != 'resolved'",
        (kind, entity),
    )?;
    Ok(changed > 0)
}

/// Sets the status of one warning.
///
/// # Errors
/// SQLite's.
pub fn set_status(tx: &Transaction, uuid: &str, status: &str) -> Result<()> {
    tx.execute("UPDATE warnings SET status = ?2 WHERE uuid = ?1", (uuid, status))?;
    Ok(())
}

/// Removes one warning.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction, uuid: &str) -> Result<()> {
    tx.execute("DELETE FROM warnings WHERE uuid = ?1", [uuid])?;
    Ok(())
}
