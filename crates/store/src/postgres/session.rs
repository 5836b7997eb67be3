//! A connection of the pool in use.

use paceline_core::Timestamp;
use serde_json::Value as Json;
use sqlx::{
    AssertSqlSafe, Connection, Postgres, Row as _,
    pool::PoolConnection,
    postgres::{PgArguments, PgRow},
};

use super::{insert, time::Tz};
use crate::{
    Error, StoredDeadLetter, Written,
    sql::{Mode, Query, Row, Session, Value},
};

/// A pooled connection that is closed instead of reused when a call was abandoned on it half way.
pub(crate) struct PgSession {
    connection: PoolConnection<Postgres>,
    in_transaction: bool,
    /// The last answer was the server's own, so the connection is as good as new; after anything else nobody knows.
    sound: bool,
    finished: bool,
}

impl PgSession {
    pub(super) async fn begin(connection: PoolConnection<Postgres>, mode: Mode) -> Result<PgSession, Error> {
        let mut session = PgSession { connection, in_transaction: mode != Mode::Read, sound: true, finished: false };
        match mode {
            Mode::Read => {}
            Mode::Snapshot => session.say("begin isolation level repeatable read read only").await?,
            Mode::Write => session.say("begin").await?,
        }
        Ok(session)
    }

    pub(super) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        let answer = self.connection.ping().await;
        self.heard(answer)
    }

    async fn say(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let answer = sqlx::raw_sql(sql).execute(&mut *self.connection).await;
        self.heard(answer).map(drop)
    }

    fn heard<T>(&mut self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.sound &= matches!(answer, Ok(_) | Err(sqlx::Error::Database(_)));
        answer
    }
}

impl Session for PgSession {
    type Row = PgRow;

    const WHOLE: &'static str = "dead_letters";
    const FOR_UPDATE: &'static str = " for update";

    fn any(n: usize) -> String {
        format!("= any(${n})")
    }

    fn longer(difference: &str, n: usize) -> String {
        format!("{difference} > ${n} * interval '1 microsecond'")
    }

    async fn execute(&mut self, query: Query) -> Result<u64, sqlx::Error> {
        let arguments = arguments(query.values)?;
        let answer = sqlx::query_with(AssertSqlSafe(query.text), arguments).execute(&mut *self.connection).await;
        self.heard(answer).map(|done| done.rows_affected())
    }

    async fn fetch(&mut self, query: Query) -> Result<Vec<PgRow>, sqlx::Error> {
        let arguments = arguments(query.values)?;
        let answer = sqlx::query_with(AssertSqlSafe(query.text), arguments).fetch_all(&mut *self.connection).await;
        self.heard(answer)
    }

    async fn now(&mut self) -> Result<Timestamp, sqlx::Error> {
        // Not the transaction's: it may have waited for a lock.
        let rows = self.fetch(Query::new("select clock_timestamp() as now")).await?;
        rows.first().map_or(Err(sqlx::Error::RowNotFound), |row| row.time("now"))
    }

    async fn alone(&mut self) -> Result<(), sqlx::Error> {
        // "paceline" in ASCII: a number of our own, as a database may be shared.
        self.execute(Query::new("select pg_advisory_xact_lock(8097862892250558053)")).await.map(drop)
    }

    async fn items_grew(&mut self) -> Result<(), sqlx::Error> {
        // Without it, every step of a large job sorts all of it until autovacuum comes round. A role that does not own
        // the table gets a warning.
        self.say("analyze dead_letter_job_items").await
    }

    async fn insert(&mut self, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, sqlx::Error> {
        let answer = insert::insert(&mut self.connection, letters).await;
        self.heard(answer)
    }

    async fn finish<T: Send>(mut self, answer: Result<T, Error>) -> Result<T, Error> {
        match (&answer, self.in_transaction) {
            (Ok(_), true) => self.say("commit").await?,
            (Err(_), true) if self.sound => self.say("rollback").await?,
            _ => {}
        }
        self.finished = true;
        answer
    }
}

impl Drop for PgSession {
    fn drop(&mut self) {
        if !self.finished || !self.sound {
            self.connection.close_on_drop();
        }
    }
}

fn arguments(values: Vec<Value>) -> Result<PgArguments, sqlx::Error> {
    use sqlx::Arguments as _;
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Text(v) => arguments.add(v),
            Value::Int(v) => arguments.add(v),
            Value::Time(v) => arguments.add(v.map(Tz)),
            Value::Json(v) => arguments.add(sqlx::types::Json(v)),
            Value::Bytes(v) => arguments.add(&*v),
            Value::Texts(v) => arguments.add(v),
            Value::Ints(v) => arguments.add(v),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

impl Row for PgRow {
    fn opt_text(&self, name: &str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(name)
    }

    fn opt_int(&self, name: &str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(name)
    }

    fn opt_time(&self, name: &str) -> Result<Option<Timestamp>, sqlx::Error> {
        self.try_get::<Option<Tz>, _>(name).map(|t| t.map(|t| t.0))
    }

    fn json(&self, name: &str) -> Result<Json, sqlx::Error> {
        self.try_get::<sqlx::types::Json<Json>, _>(name).map(|json| json.0)
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, sqlx::Error> {
        self.try_get(name)
    }
}
