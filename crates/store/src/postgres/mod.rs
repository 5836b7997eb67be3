//! PostgreSQL behind the traits, through a small pool that connects when asked.

mod dead_letters;
mod rows;
mod stats;
mod time;
mod url;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    Connection, PgConnection, PgPool, Postgres,
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::OnceCell;

use crate::{Error, Ping};

/// Bounds of the pool and of every call.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub max_connections: u32,
    /// How long a call waits for a connection.
    pub acquire_timeout: Duration,
    /// How long a call may take in all.
    pub call_timeout: Duration,
    /// How long bringing the schema up to date may take, waiting for another process that does so included.
    pub migrate_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_connections: 4,
            acquire_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            migrate_timeout: Duration::from_secs(120),
        }
    }
}

/// A PostgreSQL database. Any number of processes may share one.
///
/// The first call that reaches the database brings its schema up to date; the role needs the right to create tables
/// in the first schema of its search path for that, and nothing more. Where the schema is up to date already, the
/// rights to read and write rows suffice.
#[derive(Debug)]
pub struct PostgresStore {
    pool: PgPool,
    connect: PgConnectOptions,
    options: Options,
    schema: OnceCell<()>,
}

impl PostgresStore {
    /// Reads the address; connects to nothing yet. Must be called within a tokio runtime.
    pub fn new(url: &str, options: Options) -> Result<PostgresStore, Error> {
        let connect = url::parse(url)?;
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.acquire_timeout)
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(connect.clone());
        Ok(PostgresStore { pool, connect, options, schema: OnceCell::new() })
    }

    /// Brings the schema up to date now. Safe to be called by several processes at once.
    pub async fn migrate(&self) -> Result<(), Error> {
        let limit = self.options.migrate_timeout;
        let run = async {
            // A connection of its own: the lock ends with it, whatever happens.
            let mut connection = PgConnection::connect_with(&self.connect).await?;
            if !is_current(&mut connection).await? {
                migrator().run_direct(None, &mut connection, false).await?;
            }
            Ok(connection.close().await?)
        };
        tokio::time::timeout(limit, run).await.map_err(|_| Error::timed_out(limit))?
    }

    /// Ends the connections; later calls fail.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection on an up-to-date schema.
    async fn lease(&self) -> Result<Lease, Error> {
        self.schema.get_or_try_init(|| self.migrate()).await?;
        Ok(Lease { connection: self.pool.acquire().await?, clean: false })
    }
}

#[async_trait]
impl Ping for PostgresStore {
    async fn ping(&self) -> Result<(), Error> {
        // Readiness is to tell the truth soon.
        let limit = self.options.acquire_timeout.min(PING_TIMEOUT);
        let ping = async {
            let mut lease = self.lease().await?;
            let answer = lease.connection.ping().await;
            lease.finish(answer)
        };
        tokio::time::timeout(limit, ping).await.map_err(|_| Error::timed_out(limit))?
    }
}

/// How long a ping waits at most.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// A pooled connection that is closed instead of reused when a call was abandoned on it half way.
struct Lease {
    connection: PoolConnection<Postgres>,
    clean: bool,
}

impl Lease {
    fn finish<T>(mut self, answer: Result<T, sqlx::Error>) -> Result<T, Error> {
        // After the server's own refusal the connection is as good as new; after anything else nobody knows.
        self.clean = matches!(answer, Ok(_) | Err(sqlx::Error::Database(_)));
        Ok(answer?)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.clean {
            self.connection.close_on_drop();
        }
    }
}

/// Bounds a whole call.
async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, call).await.map_err(|_| Error::timed_out(limit))?
}

/// The table that says which migrations were run; a name of our own, as a database may be shared.
const MIGRATIONS_TABLE: &str = "paceline_migrations";

fn migrations() -> Vec<Migration> {
    use sqlx::SqlSafeStr;
    let one = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    vec![one(1, "dead letters", include_str!("../../../../migrations/postgres/0001_dead_letters.sql"))]
}

fn migrator() -> Migrator {
    let mut migrator = Migrator::with_migrations(migrations());
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    // During a rolling deploy the older process meets the newer schema; migrations only add.
    migrator.set_ignore_missing(true);
    migrator
}

/// Whether every migration was run: then neither the lock nor the right to create tables is needed.
async fn is_current(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let there: bool =
        sqlx::query_scalar("select to_regclass($1) is not null").bind(MIGRATIONS_TABLE).fetch_one(&mut *connection).await?;
    if !there {
        return Ok(false);
    }
    let done: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from paceline_migrations where success").fetch_all(connection).await?;
    Ok(migrations().iter().all(|m| done.iter().any(|(version, checksum)| *version == m.version && *checksum == *m.checksum)))
}
