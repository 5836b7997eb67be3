//! A file behind the traits: SQLite, for one machine.

mod insert;
mod path;
mod schema;
mod session;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::OnceCell;

use crate::{
    Error, Options, Ping,
    sql::{Backend, Mode, Query, Session as _},
};
use session::SqliteSession;

/// A database in a file. Any number of processes on one machine may share it; the directory must be on a local disk.
///
/// One connection writes, others read beside it. What a call has written is on the disk when it returns. The first
/// call makes the file where there is none and brings its schema up to date. Space that a purge frees is used again.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
    options: Options,
    schema: OnceCell<()>,
}

impl SqliteStore {
    /// Reads `sqlite:///absolute/path.db`, `sqlite:relative.db` or a plain path; opens nothing yet.
    pub fn new(path_or_url: &str, options: Options) -> Result<SqliteStore, Error> {
        Ok(SqliteStore::at(path::parse(path_or_url)?, options))
    }

    /// The database in this file; opens nothing yet.
    pub fn at(path: impl Into<PathBuf>, options: Options) -> SqliteStore {
        let path = path.into();
        let connect = connect(&path, &options);
        let pool = |max| {
            SqlitePoolOptions::new()
                .max_connections(max)
                .acquire_timeout(options.acquire_timeout)
                .idle_timeout(Duration::from_secs(60))
        };
        SqliteStore {
            writer: pool(1).connect_lazy_with(connect.clone()),
            readers: pool(options.max_connections).connect_lazy_with(connect.pragma("query_only", "on")),
            path,
            options,
            schema: OnceCell::new(),
        }
    }

    /// Makes the file and brings its schema up to date now. Safe to be called by several processes at once.
    pub async fn migrate(&self) -> Result<(), Error> {
        let limit = self.options.migrate_timeout;
        let run = schema::migrate(&self.path, connect(&self.path, &self.options));
        tokio::time::timeout(limit, run).await.map_err(|_| Error::timed_out(limit))?
    }

    /// Ends the connections; later calls fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn connect(path: &Path, options: &Options) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(options.acquire_timeout)
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", "67108864")
}

impl Backend for SqliteStore {
    type Session = SqliteSession;

    fn call_timeout(&self) -> Duration {
        self.options.call_timeout
    }

    async fn begin(&self, mode: Mode) -> Result<SqliteSession, Error> {
        self.schema.get_or_try_init(|| self.migrate()).await?;
        let pool = if mode == Mode::Write { &self.writer } else { &self.readers };
        SqliteSession::begin(pool.acquire().await?, mode).await
    }
}

#[async_trait]
impl Ping for SqliteStore {
    async fn ping(&self) -> Result<(), Error> {
        let limit = self.options.acquire_timeout.min(PING_TIMEOUT);
        let ping = async {
            let mut session = self.begin(Mode::Read).await?;
            let answer = session.fetch(Query::new("select count(*) from directive_versions")).await;
            session.finish(answer.map(drop).map_err(Error::from)).await
        };
        tokio::time::timeout(limit, ping).await.map_err(|_| Error::timed_out(limit))?
    }
}

/// How long a ping waits at most.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
