//! Rows of images and their aliases.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::{Result, json, timestamp, to_json};

/// One image.
#[derive(Clone, Debug)]
pub struct ImageRow {
    /// SHA-256 of its file or files, in hexadecimal.
    pub fingerprint: String,
    /// The name its file had.
    pub filename: String,
    /// Whether metadata and root filesystem are two files.
    pub split: bool,
    /// Bytes of its files.
    pub size: i64,
    /// `container` or `virtual-machine`.
    pub kind: String,
    /// As `uname -m` has it.
    pub architecture: String,
    /// Whether it is offered to everyone (kept, not acted on: there is no public listener).
    pub public: bool,
    /// Kept as given.
    pub auto_update: bool,
    /// Whether it was fetched on demand.
    pub cached: bool,
    /// Free pairs: os, release, description...
    pub properties: BTreeMap<String, String>,
    /// Profiles its instances get when none are asked for.
    pub profiles: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it expires; the epoch where never.
    pub expires_at: Timestamp,
    /// When it came here.
    pub uploaded_at: Timestamp,
    /// When an instance was last made from it; the epoch where never.
    pub last_used_at: Timestamp,
}

/// One alias of an image.
#[derive(Clone, Debug)]
pub struct AliasRow {
    /// Unique.
    pub name: String,
    /// The image it names.
    pub fingerprint: String,
    /// Free text.
    pub description: String,
    /// The type of that image.
    pub kind: String,
}

const COLUMNS: &str = "fingerprint, filename, split, size, type, architecture, public, auto_update, cached, \
    properties, profiles, created_at, expires_at, uploaded_at, last_used_at";

fn read(row: &Row) -> rusqlite::Result<ImageRow> {
    Ok(ImageRow {
        fingerprint: row.get(0)?,
        filename: row.get(1)?,
        split: row.get(2)?,
        size: row.get(3)?,
        kind: row.get(4)?,
        architecture: row.get(5)?,
        public: row.get(6)?,
        auto_update: row.get(7)?,
        cached: row.get(8)?,
        properties: json(row, 9)?,
        profiles: json(row, 10)?,
        created_at: timestamp(row, 11)?,
        expires_at: timestamp(row, 12)?,
        uploaded_at: timestamp(row, 13)?,
        last_used_at: timestamp(row, 14)?,
    })
}

fn read_alias(row: &Row) -> rusqlite::Result<AliasRow> {
    Ok(AliasRow { name: row.get(0)?, fingerprint: row.get(1)?, description: row.get(2)?, kind: row.get(3)? })
}

impl super::Inventory {
    /// Every image, by fingerprint.
    ///
    /// # Errors
    /// SQLite's.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM images ORDER BY fingerprint"))?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The images whose fingerprint begins with `prefix` (at most two: enough to know that it is ambiguous).
    ///
    /// # Errors
    /// SQLite's.
    pub fn images_like(&self, prefix: &str) -> Result<Vec<ImageRow>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM images WHERE substr(fingerprint, 1, length(?1)) = ?1 LIMIT 2"
            ))?;
            let rows = statement.query_map([prefix], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Every alias, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn aliases(&self) -> Result<Vec<AliasRow>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT a.name, a.fingerprint, a.description, i.type FROM image_aliases a \
                 JOIN images i ON i.fingerprint = a.fingerprint ORDER BY a.name",
            )?;
            let rows = statement.query_map([], read_alias)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One alias.
    ///
    /// # Errors
    /// SQLite's.
    pub fn alias(&self, name: &str) -> Result<Option<AliasRow>> {
        self.read(|c| {
            Ok(c.prepare_cached(
                "SELECT a.name, a.fingerprint, a.description, i.type FROM image_aliases a \
                 JOIN images i ON i.fingerprint = a.fingerprint WHERE a.name = ?1",
            )?
            .query_row([name], read_alias)
            .optional()?)
        })
    }
}

impl ImageRow {
    /// Adds the row.
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the image is there already.
    pub fn insert(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            &format!(
                "INSERT INTO images ({COLUMNS}) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
            ),
            (
                &self.fingerprint,
                &self.filename,
                self.split,
                self.size,
                &self.kind,
                &self.architecture,
                self.public,
                self.auto_update,
                self.cached,
                to_json(&self.properties)?,
                to_json(&self.profiles)?,
                self.created_at.to_string(),
                self.expires_at.to_string(),
                self.uploaded_at.to_string(),
                self.last_used_at.to_string(),
            ),
        )?;
        Ok(())
    }

    /// Writes what a client may change.
    ///
    /// # Errors
    /// SQLite's.
    pub fn update(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "UPDATE images SET public = ?2, auto_update = ?3, properties = ?4, profiles = ?5, expires_at = ?6 \
             WHERE fingerprint = ?1",
            (
                &self.fingerprint,
                self.public,
                self.auto_update,
                to_json(&self.properties)?,
                to_json(&self.profiles)?,
                self.expires_at.to_string(),
            ),
        )?;
        Ok(())
    }
}

/// Records that an instance was made from an image.
///
/// # Errors
/// SQLite's.
pub fn touch(tx: &Transaction, fingerprint: &str, at: Timestamp) -> Result<()> {
    tx.execute("UPDATE images SET last_used_at = ?2 WHERE fingerprint = ?1", (fingerprint, at.to_string()))?;
    Ok(())
}

/// Removes an image's row with its aliases.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction, fingerprint: &str) -> Result<()> {
    tx.execute("DELETE FROM images WHERE fingerprint = ?1", [fingerprint])?;
    Ok(())
}

impl AliasRow {
    /// Adds the row.
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the name is taken.
    pub fn insert(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "INSERT INTO image_aliases (name, fingerprint, description) VALUES (?1, ?2, ?3)",
            (&self.name, &self.fingerprint, &self.description),
        )?;
        Ok(())
    }

    /// Writes target and description of the alias called `name` (which may differ from the row's own: a rename).
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the new name is taken.
    pub fn update(&self, tx: &Transaction, name: &str) -> Result<()> {
        tx.execute(
            "UPDATE image_aliases SET name = ?2, fingerprint = ?3, description = ?4 WHERE name = ?1",
            (name, &self.name, &self.fingerprint, &self.description),
        )?;
        Ok(())
    }
}

/// Removes an alias.
///
/// # Errors
/// SQLite's.
pub fn delete_alias(tx: &Transaction, name: &str) -> Result<()> {
    tx.execute("DELETE FROM image_aliases WHERE name = ?1", [name])?;
    Ok(())
}
