//! The inventory: everything Duet intends, in one SQLite file.
//!
//! All SQL lives in this module. One thread owns the only writing connection, so a write transaction never waits
//! for another and never meets `SQLITE_BUSY`; reads go through a second connection, which write-ahead logging
//! lets run beside the writer (<https://www.sqlite.org/wal.html>). Transactions are short: no disk tree is walked
//! and no instance is waited for inside one.
//!
//! `synchronous=FULL`: what the API has acknowledged survives a power cut. The cost is one fsync for a write,
//! so an operation groups its rows in as few transactions as it can.

pub mod images;
pub mod instances;
mod migrate;
pub mod networks;
pub mod pools;
pub mod profiles;
pub mod snapshots;
pub mod warnings;

use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};

use rusqlite::{Connection, Transaction};

pub use images::{AliasRow, ImageRow};
pub use instances::{InstanceRow, Power};
pub use networks::NetworkRow;
pub use pools::PoolRow;
pub use profiles::ProfileRow;
pub use snapshots::SnapshotRow;
pub use warnings::WarningRow;

/// A configuration map as the API has it.
pub type ConfigMap = BTreeMap<String, String>;
/// Devices by name, each a map of its options.
pub type DeviceMap = BTreeMap<String, BTreeMap<String, String>>;

/// Why the inventory could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused; the statement's own words.
    #[error("the inventory could not be read or written: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row of that name exists (UNIQUE or PRIMARY KEY).
    #[error("it already exists")]
    Exists,
    /// A row is still referenced (FOREIGN KEY).
    #[error("it is still in use")]
    InUse,
    /// A JSON column does not hold what it should.
    #[error("a damaged value in the inventory: {0}")]
    Json(#[from] serde_json::Error),
    /// The file was written by a newer Duet.
    #[error(
        "the inventory {path} has schema version {found}, this duetd knows versions up to {known}: \
         start the newer duetd that wrote it, or restore the copy made before the upgrade"
    )]
    Newer {
        /// The database file.
        path: String,
        /// Its `user_version`.
        found: i64,
        /// The newest version known here.
        known: usize,
    },
    /// The file could not be made.
    #[error("cannot write the inventory {path}: {source}")]
    Create {
        /// The database file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A migration failed; the file is as it was.
    #[error("the inventory {path} could not be migrated: {reason}")]
    Migrate {
        /// The database file.
        path: String,
        /// What failed.
        reason: String,
    },
    /// The writer thread is gone: the daemon is going down.
    #[error("the daemon is shutting down")]
    Closed,
}

/// The result of an inventory call.
pub type Result<T> = std::result::Result<T, Error>;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The open inventory.
pub struct Inventory {
    jobs: mpsc::Sender<Job>,
    reader: Mutex<Connection>,
}

impl Inventory {
    /// Opens `path`, creating or migrating it.
    ///
    /// # Errors
    /// [`Error::Newer`] for a file of a newer Duet, [`Error::Migrate`] where a migration fails, else SQLite's own.
    pub fn open(path: &Path) -> Result<Self> {
        keep_private(path)?;
        let mut writer = connect(path)?;
        migrate::run(&mut writer, path)?;
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", true)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("inventory".into())
            .stack_size(512 << 10)
            .spawn(move || {
                for job in queue {
                    job(&mut writer);
                }
            })
            .map_err(|e| Error::Migrate { path: path.display().to_string(), reason: e.to_string() })?;
        Ok(Self { jobs, reader: Mutex::new(reader) })
    }

    /// Runs `work` in one write transaction on the writer's thread; its error rolls everything back.
    ///
    /// # Errors
    /// What `work` returned, or what the commit met.
    pub async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction) -> Result<T> + Send + 'static,
    {
        let (answer, wait) = tokio::sync::oneshot::channel();
        self.jobs
            .send(Box::new(move |connection| {
                let result = (|| {
                    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                    let value = work(&tx)?;
                    tx.commit()?;
                    Ok(value)
                })();
                // Whoever asked may have gone away; the work is done all the same.
                let _ = answer.send(result.map_err(classify));
            }))
            .map_err(|_| Error::Closed)?;
        wait.await.map_err(|_| Error::Closed)?
    }

    /// Runs `work` on the reading connection.
    ///
    /// # Errors
    /// What `work` returned.
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        // A poisoned lock only means that another reader panicked; a connection holds no half-made state.
        let connection = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection)
    }

    /// The server's own configuration (`/1.0` config).
    ///
    /// # Errors
    /// SQLite's.
    pub fn server_config(&self) -> Result<ConfigMap> {
        self.read(|c| {
            let mut statement = c.prepare_cached("SELECT key, value FROM config ORDER BY key")?;
            let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Replaces the server's own configuration.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn set_server_config(&self, config: ConfigMap) -> Result<()> {
        self.write(move |tx| {
            tx.execute("DELETE FROM config", [])?;
            for (key, value) in &config {
                tx.execute("INSERT INTO config (key, value) VALUES (?1, ?2)", (key, value))?;
            }
            Ok(())
        })
        .await
    }
}

/// Makes the file, if need be, so that nobody but its owner can read what instances are configured with. The files
/// that SQLite puts beside it take over its mode.
fn keep_private(path: &Path) -> Result<()> {
    let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|source| Error::Create { path: path.display().to_string(), source })
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Names the two constraint failures that callers act on
/// (<https://www.sqlite.org/rescode.html#extrc>).
fn classify(error: Error) -> Error {
    use rusqlite::ffi;
    if let Error::Sqlite(rusqlite::Error::SqliteFailure(code, _)) = &error {
        match code.extended_code {
            ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY => return Error::Exists,
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY => return Error::InUse,
            _ => {}
        }
    }
    error
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    Ok(serde_json::to_string(value)?)
}

/// Reads a JSON column; a damaged one is reported as a conversion failure of that column.
fn json<T: serde::de::DeserializeOwned>(row: &rusqlite::Row, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}

/// Reads a timestamp column (RFC 3339).
fn timestamp(row: &rusqlite::Row, column: usize) -> rusqlite::Result<jiff::Timestamp> {
    row.get_ref(column)?
        .as_str()?
        .parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}
