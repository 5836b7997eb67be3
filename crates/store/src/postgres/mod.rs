//! PostgreSQL behind the traits, through a small pool that connects when asked.

mod insert;
mod session;
mod time;
mod url;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::OnceCell;

use crate::{
    Error, Options, Ping,
    sql::{Backend, Mode, Session as _},
};
use session::PgSession;

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
}

impl Backend for PostgresStore {
    type Session = PgSession;

    fn call_timeout(&self) -> Duration {
        self.options.call_timeout
    }

    async fn begin(&self, mode: Mode) -> Result<PgSession, Error> {
        self.schema.get_or_try_init(|| self.migrate()).await?;
        PgSession::begin(self.pool.acquire().await?, mode).await
    }
}

#[async_trait]
impl Ping for PostgresStore {
    async fn ping(&self) -> Result<(), Error> {
        // Readiness is to tell the truth soon.
        let limit = self.options.acquire_timeout.min(PING_TIMEOUT);
        let ping = async {
            let mut session = self.begin(Mode::Read).await?;
            let answer = session.ping().await.map_err(Error::from);
            session.finish(answer).await
        };
        tokio::time::timeout(limit, ping).await.map_err(|_| Error::timed_out(limit))?
    }
}

/// How long a ping waits at most.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The table that says which migrations were run; a name of our own, as a database may be shared.
const MIGRATIONS_TABLE: &str = "paceline_migrations";

fn migrations() -> Vec<Migration> {
    use sqlx::SqlSafeStr;
    let one = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    vec![
        one(1, "dead letters", include_str!("../../../../migrations/postgres/0001_dead_letters.sql")),
        one(2, "jobs", include_str!("../../../../migrations/postgres/0002_jobs.sql")),
        one(3, "suppressions", include_str!("../../../../migrations/postgres/0003_suppressions.sql")),
        one(4, "limit orders", include_str!("../../../../migrations/postgres/0004_limit_orders.sql")),
        one(5, "learnt", include_str!("../../../../migrations/postgres/0005_learnt.sql")),
        one(6, "quotas", include_str!("../../../../migrations/postgres/0006_quotas.sql")),
    ]
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
