//! Rows of storage pools.

use rusqlite::{OptionalExtension, Row, Transaction};

use super::{ConfigMap, Result, json, to_json};

/// One storage pool.
#[derive(Clone, Debug)]
pub struct PoolRow {
    /// Unique.
    pub name: String,
    /// Which storage driver serves it.
    pub driver: String,
    /// Free text.
    pub description: String,
    /// Its keys.
    pub config: ConfigMap,
}

fn read(row: &Row) -> rusqlite::Result<PoolRow> {
    Ok(PoolRow { name: row.get(0)?, driver: row.get(1)?, description: row.get(2)?, config: json(row, 3)? })
}

impl super::Inventory {
    /// Every pool, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pools(&self) -> Result<Vec<PoolRow>> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached("SELECT name, driver, description, config FROM storage_pools ORDER BY name")?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One pool.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pool(&self, name: &str) -> Result<Option<PoolRow>> {
        self.read(|c| {
            Ok(c.prepare_cached("SELECT name, driver, description, config FROM storage_pools WHERE name = ?1")?
                .query_row([name], read)
                .optional()?)
        })
    }
}

impl PoolRow {
    /// Adds the row.
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the name is taken.
    pub fn insert(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "INSERT INTO storage_pools (name, driver, description, config) VALUES (?1, ?2, ?3, ?4)",
            (&self.name, &self.driver, &self.description, to_json(&self.config)?),
        )?;
        Ok(())
    }

    /// Writes description and config.
    ///
    /// # Errors
    /// SQLite's.
    pub fn update(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "UPDATE storage_pools SET description = ?2, config = ?3 WHERE name = ?1",
            (&self.name, &self.description, to_json(&self.config)?),
        )?;
        Ok(())
    }
}

/// Removes a pool's row.
///
/// # Errors
/// [`super::Error::InUse`] where an instance lives in it.
pub fn delete(tx: &Transaction, name: &str) -> Result<()> {
    tx.execute("DELETE FROM storage_pools WHERE name = ?1", [name])?;
    Ok(())
}
