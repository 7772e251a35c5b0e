//! Rows of instances.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use duet_client::api::InstanceType;

use super::{ConfigMap, DeviceMap, Error, Result, json, to_json};
use crate::config::InstanceKind;
use crate::storage::Volume;

/// The intended power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It should not run.
    Stopped,
    /// It should run.
    Running,
}

impl Power {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
        }
    }
}

/// One instance as the inventory knows it.
#[derive(Clone, Debug)]
pub struct InstanceRow {
    /// Never reused; names the run directory.
    pub id: i64,
    /// Unique.
    pub name: String,
    /// A container or a virtual machine.
    pub kind: InstanceKind,
    /// As `uname -m` has it.
    pub architecture: String,
    /// Free text.
    pub description: String,
    /// Deleted when it stops.
    pub ephemeral: bool,
    /// The intended state.
    pub power: Power,
    /// Its own keys, profiles not applied.
    pub config: ConfigMap,
    /// Its own devices, profiles not applied.
    pub devices: DeviceMap,
    /// In order of application.
    pub profiles: Vec<String>,
    /// The pool of its root disk.
    pub pool: String,
    /// Its root filesystem.
    pub volume: Volume,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last started; the epoch where never.
    pub last_used_at: Timestamp,
}

const COLUMNS: &str = "id, name, type, architecture, description, ephemeral, power, config, devices, pool, \
    volume, created_at, last_used_at, \
    (SELECT json_group_array(profile) FROM (SELECT profile FROM instance_profiles p WHERE p.instance_id = i.id \
     ORDER BY position))";

fn kind_of(text: &str) -> InstanceKind {
    if text == InstanceType::VirtualMachine.name() { InstanceKind::VirtualMachine } else { InstanceKind::Container }
}

fn read(row: &Row) -> rusqlite::Result<InstanceRow> {
    let power = row.get_ref(6)?.as_str()? == "running";
    Ok(InstanceRow {
        id: row.get(0)?,
        name: row.get(1)?,
        kind: kind_of(row.get_ref(2)?.as_str()?),
        architecture: row.get(3)?,
        description: row.get(4)?,
        ephemeral: row.get(5)?,
        power: if power { Power::Running } else { Power::Stopped },
        config: json(row, 7)?,
        devices: json(row, 8)?,
        pool: row.get(9)?,
        volume: json(row, 10)?,
        created_at: super::timestamp(row, 11)?,
        last_used_at: super::timestamp(row, 12)?,
        profiles: json(row, 13)?,
    })
}

impl super::Inventory {
    /// Every instance, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn instances(&self) -> Result<Vec<InstanceRow>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} FROM instances i ORDER BY name"))?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The ids and names of all instances, by name, for those who need no more: reading whole rows takes ten times as
    /// long.
    ///
    /// # Errors
    /// SQLite's.
    pub fn instance_names(&self) -> Result<Vec<(i64, String)>> {
        self.read(|c| {
            let mut statement = c.prepare_cached("SELECT id, name FROM instances ORDER BY name")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The root filesystems of the instances in a pool, with the instances' ids.
    ///
    /// # Errors
    /// SQLite's.
    pub fn volumes(&self, pool: &str) -> Result<Vec<(i64, Volume)>> {
        self.read(|c| {
            let mut statement = c.prepare_cached("SELECT id, volume FROM instances WHERE pool = ?1")?;
            let rows = statement.query_map([pool], |row| Ok((row.get(0)?, json(row, 1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One instance by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn instance(&self, name: &str) -> Result<Option<InstanceRow>> {
        self.read(|c| instance(c, name))
    }

    /// One instance by id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn instance_by_id(&self, id: i64) -> Result<Option<InstanceRow>> {
        self.read(|c| {
            Ok(c.prepare_cached(&format!("SELECT {COLUMNS} FROM instances i WHERE id = ?1"))?
                .query_row([id], read)
                .optional()?)
        })
    }
}

/// One instance by name, inside a transaction.
///
/// # Errors
/// SQLite's.
pub fn instance(connection: &Connection, name: &str) -> Result<Option<InstanceRow>> {
    Ok(connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM instances i WHERE name = ?1"))?
        .query_row([name], read)
        .optional()?)
}

impl InstanceRow {
    /// Adds the row and gives its id.
    ///
    /// # Errors
    /// [`Error::Exists`] where the name is taken, [`Error::InUse`] where a profile or the pool does not exist.
    pub fn insert(&self, tx: &Transaction) -> Result<i64> {
        tx.prepare_cached(
            "INSERT INTO instances (name, type, architecture, description, ephemeral, power, config, devices, \
             pool, volume, created_at, last_used_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute((
            &self.name,
            InstanceType::from(self.kind).name(),
            &self.architecture,
            &self.description,
            self.ephemeral,
            self.power.as_str(),
            to_json(&self.config)?,
            to_json(&self.devices)?,
            &self.pool,
            to_json(&self.volume)?,
            self.created_at.to_string(),
            self.last_used_at.to_string(),
        ))?;
        let id = tx.last_insert_rowid();
        set_profiles(tx, id, &self.profiles)?;
        Ok(id)
    }

    /// Writes everything but the id.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn update(&self, tx: &Transaction) -> Result<()> {
        tx.prepare_cached(
            "UPDATE instances SET name = ?2, architecture = ?3, description = ?4, ephemeral = ?5, power = ?6, \
             config = ?7, devices = ?8, pool = ?9, volume = ?10, last_used_at = ?11, created_at = ?12 \
             WHERE id = ?1",
        )?
        .execute((
            self.id,
            &self.name,
            &self.architecture,
            &self.description,
            self.ephemeral,
            self.power.as_str(),
            to_json(&self.config)?,
            to_json(&self.devices)?,
            &self.pool,
            to_json(&self.volume)?,
            self.last_used_at.to_string(),
            self.created_at.to_string(),
        ))?;
        set_profiles(tx, self.id, &self.profiles)
    }
}

fn set_profiles(tx: &Transaction, id: i64, profiles: &[String]) -> Result<()> {
    tx.prepare_cached("DELETE FROM instance_profiles WHERE instance_id = ?1")?.execute([id])?;
    let mut insert =
        tx.prepare_cached("INSERT INTO instance_profiles (instance_id, position, profile) VALUES (?1, ?2, ?3)")?;
    for (position, profile) in profiles.iter().enumerate() {
        insert.execute((id, i64::try_from(position).unwrap_or(i64::MAX), profile))?;
    }
    Ok(())
}

/// Records the intended power state, and the moment of use when it is started.
///
/// # Errors
/// SQLite's.
pub fn set_power(tx: &Transaction, id: i64, power: Power, used_at: Option<Timestamp>) -> Result<()> {
    tx.execute(
        "UPDATE instances SET power = ?2, last_used_at = coalesce(?3, last_used_at) WHERE id = ?1",
        (id, power.as_str(), used_at.map(|t| t.to_string())),
    )?;
    Ok(())
}

/// Sets or removes (None) keys of the instance's own configuration: what the daemon itself records (`volatile.*`).
///
/// # Errors
/// SQLite's; a vanished row is not an error.
pub fn patch_config(tx: &Transaction, id: i64, changes: &[(String, Option<String>)]) -> Result<()> {
    let current: Option<String> =
        tx.query_row("SELECT config FROM instances WHERE id = ?1", [id], |r| r.get(0)).optional()?;
    let Some(current) = current else { return Ok(()) };
    let mut config: ConfigMap = serde_json::from_str(&current)?;
    for (key, value) in changes {
        match value {
            Some(value) => config.insert(key.clone(), value.clone()),
            None => config.remove(key),
        };
    }
    tx.execute("UPDATE instances SET config = ?2 WHERE id = ?1", (id, to_json(&config)?))?;
    Ok(())
}

/// Records the root filesystem's value.
///
/// # Errors
/// SQLite's.
pub fn set_volume(tx: &Transaction, id: i64, volume: &Volume) -> Result<()> {
    tx.execute("UPDATE instances SET volume = ?2 WHERE id = ?1", (id, to_json(volume)?))?;
    Ok(())
}

/// Removes the row with its snapshots.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction, id: i64) -> Result<()> {
    tx.execute("DELETE FROM instances WHERE id = ?1", [id])?;
    Ok(())
}

/// Renames; the new name must be free.
///
/// # Errors
/// [`Error::Exists`] once committed through `Inventory::write`.
pub fn rename(tx: &Transaction, id: i64, name: &str) -> Result<()> {
    let changed = tx.execute("UPDATE instances SET name = ?2 WHERE id = ?1", (id, name))?;
    if changed == 1 { Ok(()) } else { Err(Error::Sqlite(rusqlite::Error::QueryReturnedNoRows)) }
}
