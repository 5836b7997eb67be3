//! A connection of a pool in use.

use std::time::SystemTime;

use paceline_core::Timestamp;
use serde_json::Value as Json;
use sqlx::{
    AssertSqlSafe, Row as _, Sqlite,
    pool::PoolConnection,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::insert;
use crate::{
    Error, StoredDeadLetter, Written,
    sql::{Mode, Query, Row, Session, Value},
};

/// A pooled connection that is closed instead of reused when a call was abandoned on it half way.
pub(crate) struct SqliteSession {
    connection: PoolConnection<Sqlite>,
    in_transaction: bool,
    finished: bool,
}

impl SqliteSession {
    pub(super) async fn begin(connection: PoolConnection<Sqlite>, mode: Mode) -> Result<SqliteSession, Error> {
        let mut session = SqliteSession { connection, in_transaction: mode != Mode::Read, finished: false };
        match mode {
            Mode::Read => {}
            Mode::Snapshot => session.say("begin").await?,
            // The lock first: a transaction that reads and then writes could be refused half way.
            Mode::Write => session.say("begin immediate").await?,
        }
        Ok(session)
    }

    async fn say(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(sql).execute(&mut *self.connection).await.map(drop)
    }
}

impl Session for SqliteSession {
    type Row = SqliteRow;

    const WHOLE: &'static str = "dead_letters join dead_letter_originals on dead_letter_originals.letter = dead_letters.seq";
    const FOR_UPDATE: &'static str = "";

    fn any(n: usize) -> String {
        format!("in (select value from json_each(${n}))")
    }

    fn longer(difference: &str, n: usize) -> String {
        format!("{difference} > ${n}")
    }

    async fn execute(&mut self, query: Query) -> Result<u64, sqlx::Error> {
        let arguments = arguments(query.values)?;
        let done = sqlx::query_with(AssertSqlSafe(query.text), arguments).execute(&mut *self.connection).await?;
        Ok(done.rows_affected())
    }

    async fn fetch(&mut self, query: Query) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let arguments = arguments(query.values)?;
        sqlx::query_with(AssertSqlSafe(query.text), arguments).fetch_all(&mut *self.connection).await
    }

    async fn now(&mut self) -> Result<Timestamp, sqlx::Error> {
        // One machine, one clock.
        Ok(SystemTime::now().into())
    }

    async fn alone(&mut self) -> Result<(), sqlx::Error> {
        // Whoever writes is.
        Ok(())
    }

    async fn items_grew(&mut self) -> Result<(), sqlx::Error> {
        // Its planner takes the index that gives the order, whatever the number.
        Ok(())
    }

    async fn insert(&mut self, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, sqlx::Error> {
        insert::insert(self, letters).await
    }

    async fn finish<T: Send>(mut self, answer: Result<T, Error>) -> Result<T, Error> {
        match (&answer, self.in_transaction) {
            (Ok(_), true) => self.say("commit").await?,
            // Closing the connection rolls back, also where a full disk has done so already.
            (Err(_), true) => return answer,
            (_, false) => {}
        }
        self.finished = true;
        answer
    }
}

impl Drop for SqliteSession {
    fn drop(&mut self) {
        if !self.finished {
            self.connection.close_on_drop();
        }
    }
}

fn arguments(values: Vec<Value>) -> Result<SqliteArguments, sqlx::Error> {
    use sqlx::Arguments as _;
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Text(v) => arguments.add(v),
            Value::Int(v) => arguments.add(v),
            Value::Time(v) => arguments.add(v.map(Timestamp::as_micros)),
            Value::Json(v) => arguments.add(v.to_string()),
            Value::Bytes(v) => arguments.add(v.to_vec()),
            Value::Texts(v) => arguments.add(Json::from(v).to_string()),
            Value::Ints(v) => arguments.add(Json::from(v).to_string()),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

impl Row for SqliteRow {
    fn opt_text(&self, name: &str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(name)
    }

    fn opt_int(&self, name: &str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(name)
    }

    fn opt_time(&self, name: &str) -> Result<Option<Timestamp>, sqlx::Error> {
        self.try_get::<Option<i64>, _>(name).map(|t| t.map(Timestamp::from_micros))
    }

    fn json(&self, name: &str) -> Result<Json, sqlx::Error> {
        let text: &str = self.try_get(name)?;
        serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(e.into()))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, sqlx::Error> {
        self.try_get(name)
    }
}
