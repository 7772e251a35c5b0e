//! Rows of managed networks.

use rusqlite::{OptionalExtension, Row, Transaction};

use super::{ConfigMap, Result, json, to_json};

/// One managed network.
#[derive(Clone, Debug)]
pub struct NetworkRow {
    /// Unique; also the name of its link.
    pub name: String,
    /// `bridge`.
    pub kind: String,
    /// Free text.
    pub description: String,
    /// Its keys.
    pub config: ConfigMap,
}

fn read(row: &Row) -> rusqlite::Result<NetworkRow> {
    Ok(NetworkRow { name: row.get(0)?, kind: row.get(1)?, description: row.get(2)?, config: json(row, 3)? })
}

impl super::Inventory {
    /// Every managed network, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn networks(&self) -> Result<Vec<NetworkRow>> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached("SELECT name, type, description, config FROM networks ORDER BY name")?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One managed network.
    ///
    /// # Errors
    /// SQLite's.
    pub fn network(&self, name: &str) -> Result<Option<NetworkRow>> {
        self.read(|c| {
            Ok(c.prepare_cached("SELECT name, type, description, config FROM networks WHERE name = ?1")?
                .query_row([name], read)
                .optional()?)
        })
    }
}

impl NetworkRow {
    /// Adds the row.
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the name is taken.
    pub fn insert(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "INSERT INTO networks (name, type, description, config) VALUES (?1, ?2, ?3, ?4)",
            (&self.name, &self.kind, &self.description, to_json(&self.config)?),
        )?;
        Ok(())
    }

    /// Writes description and config.
    ///
    /// # Errors
    /// SQLite's.
    pub fn update(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "UPDATE networks SET description = ?2, config = ?3 WHERE name = ?1",
            (&self.name, &self.description, to_json(&self.config)?),
        )?;
        Ok(())
    }
}

/// Renames a network.
///
/// # Errors
/// [`super::Error::Exists`] where the name is taken.
pub fn rename(tx: &Transaction, old: &str, new: &str) -> Result<()> {
    tx.execute("UPDATE networks SET name = ?2 WHERE name = ?1", (old, new))?;
    Ok(())
}

/// Removes a network's row.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction, name: &str) -> Result<()> {
    tx.execute("DELETE FROM networks WHERE name = ?1", [name])?;
    Ok(())
}
