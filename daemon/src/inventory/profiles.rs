//! Rows of profiles.

use rusqlite::{OptionalExtension, Row, Transaction};

use super::{ConfigMap, DeviceMap, Result, json, to_json};

/// One profile.
#[derive(Clone, Debug)]
pub struct ProfileRow {
    /// Unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Keys given to instances.
    pub config: ConfigMap,
    /// Devices given to instances.
    pub devices: DeviceMap,
}

fn read(row: &Row) -> rusqlite::Result<ProfileRow> {
    Ok(ProfileRow { name: row.get(0)?, description: row.get(1)?, config: json(row, 2)?, devices: json(row, 3)? })
}

impl super::Inventory {
    /// Every profile, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn profiles(&self) -> Result<Vec<ProfileRow>> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached("SELECT name, description, config, devices FROM profiles ORDER BY name")?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One profile.
    ///
    /// # Errors
    /// SQLite's.
    pub fn profile(&self, name: &str) -> Result<Option<ProfileRow>> {
        self.read(|c| {
            Ok(c.prepare_cached("SELECT name, description, config, devices FROM profiles WHERE name = ?1")?
                .query_row([name], read)
                .optional()?)
        })
    }

    /// Which instances use which profile: (profile, instance), by instance.
    ///
    /// # Errors
    /// SQLite's.
    pub fn profile_users(&self) -> Result<Vec<(String, String)>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT p.profile, i.name FROM instance_profiles p JOIN instances i ON i.id = p.instance_id \
                 ORDER BY i.name",
            )?;
            let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}

impl ProfileRow {
    /// Adds the row.
    ///
    /// # Errors
    /// [`super::Error::Exists`] where the name is taken.
    pub fn insert(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "INSERT INTO profiles (name, description, config, devices) VALUES (?1, ?2, ?3, ?4)",
            (&self.name, &self.description, to_json(&self.config)?, to_json(&self.devices)?),
        )?;
        Ok(())
    }

    /// Writes description, config and devices.
    ///
    /// # Errors
    /// SQLite's.
    pub fn update(&self, tx: &Transaction) -> Result<()> {
        tx.execute(
            "UPDATE profiles SET description = ?2, config = ?3, devices = ?4 WHERE name = ?1",
            (&self.name, &self.description, to_json(&self.config)?, to_json(&self.devices)?),
        )?;
        Ok(())
    }
}

/// Renames a profile; instances that use it follow.
///
/// # Errors
/// [`super::Error::Exists`] where the name is taken.
pub fn rename(tx: &Transaction, old: &str, new: &str) -> Result<()> {
    tx.execute("UPDATE profiles SET name = ?2 WHERE name = ?1", (old, new))?;
    Ok(())
}

/// Removes a profile.
///
/// # Errors
/// [`super::Error::InUse`] where an instance uses it.
pub fn delete(tx: &Transaction, name: &str) -> Result<()> {
    tx.execute("DELETE FROM profiles WHERE name = ?1", [name])?;
    Ok(())
}
