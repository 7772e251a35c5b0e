//! Schema versions: the numbered files of `migrations/`, applied in order, each in its own transaction.
//!
//! The version is SQLite's `user_version`. Before an existing file is migrated, a copy is kept beside it as
//! `duet.db.before-<version>`, made with `VACUUM INTO` so that it is whole whatever the write-ahead log holds.

use std::path::Path;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use super::{Error, Result};

const STEPS: &[M<'static>] = &[M::up(include_str!("../../../migrations/0001-inventory.sql"))];

/// Brings the file to the newest schema.
pub(super) fn run(connection: &mut Connection, path: &Path) -> Result<()> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let known = STEPS.len();
    if usize::try_from(found).map_or(true, |f| f > known) {
        return Err(Error::Newer { path: path.display().to_string(), found, known });
    }
    let failed = |reason: String| Error::Migrate { path: path.display().to_string(), reason };
    if found > 0 && usize::try_from(found).is_ok_and(|f| f < known) {
        let copy = path.with_extension(format!("db.before-{found}"));
        if !copy.exists() {
            let target = copy.to_str().ok_or_else(|| failed("its path is not UTF-8".into()))?;
            connection.execute("VACUUM INTO ?1", [target])?;
        }
    }
    Migrations::from_slice(STEPS).to_latest(connection).map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("duet.db");
        let mut connection = Connection::open(&path).expect("a database");
        run(&mut connection, &path).expect("first migration");
        connection.pragma_update(None, "user_version", STEPS.len() as i64 + 1).expect("a newer version");
        let error = run(&mut connection, &path).expect_err("a newer file must be refused");
        assert!(matches!(error, Error::Newer { .. }), "{error}");
    }

    #[test]
    fn every_step_applies_to_an_empty_file() {
        Migrations::from_slice(STEPS).validate().expect("valid migrations");
    }
}
