//! The inventory: everything Duet intends, in one SQLite file.
//!
//! All SQL lives in this module. One thread owns the only writing connection, so a write transaction never waits
//! for another and never meets `SQLITE_BUSY`; reads go through a second connection, which write-ahead logging
//! lets run beside the writer (<https://www.sqlite.org/wal.html>). Transactions are short: no disk tree is walked
//! and no instance is waited for inside one.
//!
//! A full disk must not keep anybody from deleting, stopping or starting the daemon, all of which write here or open
//! the file. So the log has room of its own on the disk ([`LOG_ROOM`]) and is never given up: a write on a full disk goes
//! there, and from there over what the file has already. The index of the log, which SQLite makes anew in a file at each
//! start, is kept in memory where there is no room for that file.
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
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, ffi};
use rustix::fs::{FallocateFlags, fallocate};

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

/// The log's room in bytes. SQLite goes on writing behind the first 1000 pages, which it moves into the file then, only
/// while a full disk keeps the file from growing.
const LOG_ROOM: u64 = 8 << 20;

/// Why the inventory could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused; the statement's own words.
    #[error("the inventory could not be read or written: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The filesystem is full, and so is the log's room.
    #[error("no space left for the inventory {path}: free some or delete instances, snapshots or images")]
    Full {
        /// The database file.
        path: String,
    },
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
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    reader: Mutex<Connection>,
    generation: Arc<AtomicU64>,
}

impl Inventory {
    /// Opens `path`, creating or migrating it.
    ///
    /// # Errors
    /// [`Error::Newer`] for a file of a newer Duet, [`Error::Migrate`] where a migration fails, else SQLite's own.
    pub fn open(path: &Path) -> Result<Self> {
        keep_private(path)?;
        match Self::open_with(path, Index::File) {
            Err(error) if is_full(&error) => {
                tracing::error!(path = %path.display(), "no space left on the filesystem of the inventory");
                Self::open_with(path, Index::Memory)
            }
            opened => opened,
        }
        .map_err(|error| classify(error, path))
    }

    fn open_with(path: &Path, index: Index) -> Result<Self> {
        let mut writer = connect(path, index)?;
        migrate::run(&mut writer, path)?;
        let reader = connect(path, index)?;
        if let Err(error) = reserve(path) {
            tracing::warn!(%error, "the inventory's log has no room of its own: on a full disk nothing can be deleted");
        }
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
        Ok(Self { path: path.to_owned(), jobs, reader: Mutex::new(reader), generation: Arc::default() })
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
        let path = self.path.clone();
        let generation = Arc::clone(&self.generation);
        self.jobs
            .send(Box::new(move |connection| {
                let result = (|| {
                    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                    let value = work(&tx)?;
                    tx.commit()?;
                    Ok(value)
                })();
                generation.fetch_add(1, Ordering::Release);
                // Whoever asked may have gone away; the work is done all the same.
                let _ = answer.send(result.map_err(|error| classify(error, &path)));
            }))
            .map_err(|_| Error::Closed)?;
        wait.await.map_err(|_| Error::Closed)?
    }

    /// Changes with every write, before whoever asked for that is answered: what was read since it was this is still so.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Runs `work` on the reading connection.
    ///
    /// # Errors
    /// What `work` returned.
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        // A poisoned lock only means that another reader panicked; a connection holds no half-made state.
        let connection = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection).map_err(|error| classify(error, &self.path))
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

/// Where SQLite keeps the index of the log.
#[derive(Clone, Copy, Debug)]
enum Index {
    /// In a file, which other programs that look into the inventory share.
    File,
    /// In memory, which they cannot: the file is this process' alone (<https://www.sqlite.org/vfs.html>, unix-excl).
    Memory,
}

fn connect(path: &Path, index: Index) -> Result<Connection> {
    let connection = match index {
        Index::File => Connection::open(path)?,
        Index::Memory => Connection::open_with_flags_and_vfs(path, OpenFlags::default(), "unix-excl")?,
    };
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // The last to close would remove the log, and with it its room.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Sees to it that the log has its room, beyond what is written of it. Once it has, this changes nothing.
fn reserve(path: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, LOG_ROOM) {
        // A filesystem that knows no such promise.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether SQLite met a full disk: in the file or the log, or when it made the log's index.
fn is_full(error: &Error) -> bool {
    const INDEX: [i32; 3] = [ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMMAP, ffi::SQLITE_IOERR_SHMOPEN];
    match error {
        Error::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
            failure.code == ErrorCode::DiskFull || INDEX.contains(&failure.extended_code)
        }
        Error::Full { .. } => true,
        _ => false,
    }
}

/// Names a full disk and the two constraint failures that callers act on
/// (<https://www.sqlite.org/rescode.html#extrc>).
fn classify(error: Error, path: &Path) -> Error {
    if is_full(&error) {
        return Error::Full { path: path.display().to_string() };
    }
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
