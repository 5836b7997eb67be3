//! Opening a file and bringing its schema up to date.

use std::{
    cell::Cell,
    fs::OpenOptions,
    hash::{BuildHasher, RandomState},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};

use crate::OpenError;

/// How long another process may keep us from writing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What a file should hold.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// For messages: "spool", "ledger".
    pub what: &'static str,
    /// Written into the file, so that no adapter takes another's file for its own.
    pub application_id: i32,
    /// In order; the file's `user_version` says how many it has been through. Never changed once released.
    pub migrations: &'static [&'static str],
    /// Of a new file, in bytes; a power of two from 512 to 65536.
    pub page_size: u32,
}

/// Opens `path` for writing, makes it if it is not there (readable by this user alone), and migrates it. Any number of
/// processes may do so at once.
pub fn open(path: &Path, schema: &Schema) -> Result<Connection, OpenError> {
    let denied = |error: std::io::Error| OpenError::Denied { path: path.display().to_string(), reason: error.to_string() };
    if path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        return Err(OpenError::NoDirectory { path: path.display().to_string() });
    }
    // Never opened here when it is there already: closing any handle of a file drops this process's locks on it, also
    // those that SQLite holds for another connection.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(denied(error)),
        _ => {}
    }
    let db = connect(path)?;
    if db.is_readonly("main").unwrap_or(false) {
        return Err(OpenError::ReadOnly { path: path.display().to_string() });
    }
    prepare(&db, path, schema)?;
    Ok(db)
}

/// Another connection to a file that [`open`] has opened, for reading only.
pub fn reader(path: &Path) -> Result<Connection, OpenError> {
    let db = connect(path)?;
    db.execute_batch("PRAGMA query_only = ON").map_err(|error| OpenError::of(path, &error))?;
    Ok(db)
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || {
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_handler(Some(wait))?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(db)
    };
    connect().map_err(|error| OpenError::of(path, &error))
}

/// Waits a little, differently long in each process, until [`PATIENCE`] is over.
fn wait(tries: i32) -> bool {
    thread_local!(static SINCE: Cell<Option<Instant>> = const { Cell::new(None) });
    if tries == 0 {
        SINCE.set(Some(Instant::now()));
    }
    if SINCE.get().is_some_and(|since| since.elapsed() > PATIENCE) {
        return false;
    }
    let jitter_us = RandomState::new().hash_one(tries) % 1_000;
    sleep(Duration::from_micros(300 + jitter_us));
    true
}

fn prepare(db: &Connection, path: &Path, schema: &Schema) -> Result<(), OpenError> {
    let fail = |error: rusqlite::Error| OpenError::of(path, &error);
    judge(db, path, schema)?;
    db.pragma_update(None, "page_size", schema.page_size).map_err(fail)?;
    // SQLite does not always wait for others here.
    let started = Instant::now();
    loop {
        match db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => break,
            Ok(mode) => {
                let reason = format!("its disk does not support WAL mode, only `{mode}`");
                return Err(OpenError::Failed { path: path.display().to_string(), reason });
            }
            Err(error) if is_busy(&error) && started.elapsed() < PATIENCE => sleep(Duration::from_millis(5)),
            Err(error) => return Err(fail(error)),
        }
    }
    let settings =
        "PRAGMA synchronous = FULL; PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 67108864";
    db.execute_batch(settings).map_err(fail)?;
    let version = judge(db, path, schema)?;
    if version == schema.migrations.len() {
        return Ok(());
    }
    db.execute_batch("BEGIN IMMEDIATE").map_err(fail)?;
    // Another process may have been first.
    let migrated = judge(db, path, schema).and_then(|version| migrate(db, schema, version).map_err(fail));
    if migrated.is_err() {
        let _ = db.execute_batch("ROLLBACK");
        return migrated;
    }
    db.execute_batch("COMMIT").map_err(fail)
}

fn migrate(db: &Connection, schema: &Schema, version: usize) -> rusqlite::Result<()> {
    for migration in &schema.migrations[version..] {
        db.execute_batch(migration)?;
    }
    db.pragma_update(None, "application_id", schema.application_id)?;
    db.pragma_update(None, "user_version", i64::try_from(schema.migrations.len()).unwrap_or(i64::MAX))
}

/// Whether the file is ours, and how many migrations it has been through.
fn judge(db: &Connection, path: &Path, schema: &Schema) -> Result<usize, OpenError> {
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|error| OpenError::of(path, &error));
    let known = schema.migrations.len();
    let is_ours = || Ok(number("PRAGMA application_id")? == i64::from(schema.application_id));
    let path = || path.display().to_string();
    if !is_ours()? {
        if number("PRAGMA user_version")? == 0 && number("SELECT count(*) FROM sqlite_schema")? == 0 {
            return Ok(0);
        }
        // Another process may have made it since, all at once.
        if !is_ours()? {
            return Err(OpenError::Foreign { path: path(), what: schema.what });
        }
    }
    let found = number("PRAGMA user_version")?;
    match usize::try_from(found) {
        Ok(version) if version <= known => Ok(version),
        _ => Err(OpenError::Newer { path: path(), found, known: i64::try_from(known).unwrap_or(i64::MAX) }),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;

    const ONE: Schema = Schema {
        what: "thing",
        application_id: 77,
        migrations: &["CREATE TABLE a (x); INSERT INTO a VALUES (1)"],
        page_size: 8192,
    };
    const TWO: Schema = Schema { migrations: &["CREATE TABLE a (x); INSERT INTO a VALUES (1)", "CREATE TABLE b (y)"], ..ONE };

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing.db");
        (dir, path)
    }

    fn count(db: &Connection, sql: &str) -> i64 {
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_file_is_made_migrated_and_opened_again() {
        let (_dir, path) = dir();
        let db = open(&path, &ONE).unwrap();
        assert_eq!(count(&db, "PRAGMA page_size"), 8192);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(db);
        let db = open(&path, &TWO).unwrap();
        assert_eq!((count(&db, "SELECT count(*) FROM a"), count(&db, "SELECT count(*) FROM b")), (1, 0));
        let again = reader(&path).unwrap();
        assert_eq!(count(&again, "SELECT count(*) FROM a"), 1);
        again.execute("DELETE FROM a", []).unwrap_err();
    }

    #[test]
    fn a_newer_file_is_refused() {
        let (_dir, path) = dir();
        open(&path, &TWO).unwrap();
        let error = open(&path, &ONE).unwrap_err();
        assert_eq!(error, OpenError::Newer { path: path.display().to_string(), found: 2, known: 1 });
        assert!(error.to_string().contains("newer version"), "{error}");
    }

    #[test]
    fn other_files_are_refused_and_left_alone() {
        let (dir, path) = dir();
        std::fs::write(&path, "not a database, however long it may be ".repeat(100)).unwrap();
        assert!(matches!(open(&path, &ONE), Err(OpenError::NotADatabase { .. })));
        assert!(std::fs::read(&path).unwrap().starts_with(b"not a"));

        let other = dir.path().join("other.db");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE users (x)").unwrap();
        assert_eq!(open(&other, &ONE).unwrap_err(), OpenError::Foreign { path: other.display().to_string(), what: "thing" });
        let theirs = dir.path().join("theirs.db");
        open(&theirs, &Schema { application_id: 78, ..ONE }).unwrap();
        assert!(matches!(open(&theirs, &ONE), Err(OpenError::Foreign { .. })));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let (_dir, path) = dir();
        drop(open(&path, &ONE).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100..4096].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(open(&path, &TWO), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn places_that_cannot_be() {
        let (dir, path) = dir();
        let error = open(&path.join("below/x.db"), &ONE).unwrap_err();
        assert!(matches!(error, OpenError::NoDirectory { .. }), "{error}");
        let error = open(dir.path(), &ONE).unwrap_err();
        assert!(matches!(error, OpenError::Denied { .. }), "{error}");
        assert!(error.to_string().contains(&dir.path().display().to_string()));
    }

    #[test]
    fn many_open_it_at_once() {
        let (_dir, path) = dir();
        let path = &path;
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(move || open(path, &TWO).unwrap());
            }
        });
        assert_eq!(count(&open(path, &TWO).unwrap(), "SELECT count(*) FROM a"), 1);
    }
}
