//! Whose file it is, and its schema.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{Connection, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::Error;

/// In order; `user_version` counts those a file has seen.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../../migrations/sqlite/0001_store.sql"),
    include_str!("../../../../migrations/sqlite/0002_suppressions.sql"),
    include_str!("../../../../migrations/sqlite/0003_limit_orders.sql"),
    include_str!("../../../../migrations/sqlite/0004_learnt.sql"),
    include_str!("../../../../migrations/sqlite/0005_quotas.sql"),
];

/// Says whose file it is, where SQLite keeps that: "PcSt".
const APPLICATION_ID: i64 = 0x5063_5374;

/// How long to wait before the next try at what SQLite does not wait for by itself.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn migrate(path: &Path, connect: SqliteConnectOptions) -> Result<(), Error> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.is_dir()) {
        let why = format!("no directory {}: make it, or name another in the store's address", directory.display());
        return Err(Error::Misconfigured(why.into()));
    }
    make(path)?;
    loop {
        match up_to_date(&connect).await {
            // Changing to write-ahead logging is one thing the busy time-out does not cover.
            Err(Step::Sql(sqlx::Error::Database(e))) if is_busy(&*e) => tokio::time::sleep(PAUSE).await,
            Err(Step::Sql(e)) => return Err(at(path, e.into())),
            Err(Step::Foreign(why)) => return Err(Error::Misconfigured(format!("{} {why}", path.display()).into())),
            Ok(()) => return Ok(()),
        }
    }
}

/// Makes the file where there is none. What is in it is for nobody else's eyes; SQLite gives its side files the same mode.
fn make(path: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            let why = format!("cannot make {}: {e}", path.display()).into();
            Err(if e.kind() == io::ErrorKind::StorageFull { Error::Unavailable(why) } else { Error::Misconfigured(why) })
        }
        _ => Ok(()),
    }
}

/// Why it did not come up to date.
enum Step {
    Sql(sqlx::Error),
    Foreign(&'static str),
}

impl From<sqlx::Error> for Step {
    fn from(e: sqlx::Error) -> Step {
        Step::Sql(e)
    }
}

async fn up_to_date(connect: &SqliteConnectOptions) -> Result<(), Step> {
    let mut connection = SqliteConnection::connect_with(connect).await?;
    if seen(&mut connection).await? < MIGRATIONS.len() {
        sqlx::raw_sql("pragma journal_mode = wal").execute(&mut connection).await?;
        sqlx::raw_sql("begin immediate").execute(&mut connection).await?;
        // Another process may have been faster.
        let seen = seen(&mut connection).await?;
        for migration in &MIGRATIONS[seen..] {
            sqlx::raw_sql(*migration).execute(&mut connection).await?;
        }
        let marks = format!("pragma application_id = {APPLICATION_ID}; pragma user_version = {}; commit", MIGRATIONS.len());
        sqlx::raw_sql(sqlx::AssertSqlSafe(marks)).execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}

/// The migrations this file has seen; none for a new one.
async fn seen(connection: &mut SqliteConnection) -> Result<usize, Step> {
    // One statement, so that one state is seen while another process migrates.
    let row = sqlx::raw_sql(
        "select (select application_id from pragma_application_id), (select user_version from pragma_user_version),
                (select count(*) from sqlite_schema)",
    )
    .fetch_one(connection)
    .await?;
    let number = |column: usize| row.try_get_unchecked::<i64, _>(column);
    let (id, version, objects) = (number(0)?, number(1)?, number(2)?);
    if id == 0 && version == 0 && objects == 0 {
        return Ok(0);
    }
    if id != APPLICATION_ID {
        return Err(Step::Foreign("is not a database of the store: name another file in the store's address"));
    }
    match usize::try_from(version) {
        Ok(version) if version <= MIGRATIONS.len() => Ok(version),
        _ => Err(Step::Foreign("was written by a newer version of paceline: use that one")),
    }
}

fn is_busy(e: &dyn sqlx::error::DatabaseError) -> bool {
    // The low byte is the kind: SQLITE_BUSY.
    e.code().and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}

/// The error, with the file it is about.
fn at(path: &Path, e: Error) -> Error {
    let cause = |e: &dyn std::error::Error| format!("{}: {e}", path.display()).into();
    match e {
        Error::Unavailable(e) => Error::Unavailable(cause(&*e)),
        Error::Misconfigured(e) => Error::Misconfigured(cause(&*e)),
        Error::Refused(code) => Error::Misconfigured(format!("{}: a migration failed ({code})", path.display()).into()),
    }
}
