//! What both databases do alike: the traits, over a session of either.
//!
//! The SQL here is what PostgreSQL and SQLite both read; where they differ, [`Session`] says how.

/// One call: a session, what is done with it, and its end, all within the time a call has.
macro_rules! call {
    ($store:expr, $mode:expr, |$session:ident| $answer:expr) => {
        $crate::sql::in_time($store.call_timeout(), async {
            let mut session = $store.begin($mode).await?;
            let $session = &mut session;
            let answer = $answer.await;
            session.finish(answer).await
        })
        .await
    };
}

mod audit;
mod cancels;
mod dead_letters;
mod directives;
mod entry;
mod filter;
mod ids;
mod job_rows;
mod jobs;
mod learnt;
mod plan;
mod purge;
mod query;
mod quotas;
mod settle;
mod stats;
mod suppressions;

use std::time::Duration;

use paceline_core::Timestamp;
use serde_json::Value as Json;

pub(crate) use query::{Query, Value};

use crate::{Error, StoredDeadLetter, Written};

/// A database behind the traits.
pub(crate) trait Backend: Send + Sync {
    type Session: Session;

    /// How long a whole call may take.
    fn call_timeout(&self) -> Duration;

    /// A connection on an up-to-date schema.
    fn begin(&self, mode: Mode) -> impl Future<Output = Result<Self::Session, Error>> + Send;
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One statement that reads.
    Read,
    /// Several that see the same state.
    Snapshot,
    /// A transaction that writes.
    Write,
}

/// A connection in use. Dropped without [`finish`](Session::finish), nothing of it is kept.
pub(crate) trait Session: Send {
    type Row: Row;

    /// Where an entry's original is: for `select … from <this>`.
    const WHOLE: &'static str;
    /// Ends a select whose rows are about to be changed.
    const FOR_UPDATE: &'static str;

    /// A condition's end that holds for any of the values of parameter `n`.
    fn any(n: usize) -> String;
    /// A condition: a difference of times is longer than the microseconds of parameter `n`.
    fn longer(difference: &str, n: usize) -> String;

    /// The number of rows changed.
    fn execute(&mut self, query: Query) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;
    fn fetch(&mut self, query: Query) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
    /// The clock all processes agree on.
    fn now(&mut self) -> impl Future<Output = Result<Timestamp, sqlx::Error>> + Send;
    /// From here to the end of the transaction, no other process is between this call and its own end.
    fn alone(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Tells the planner of many new items: it knows a table by what it saw last.
    fn items_grew(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn insert(&mut self, letters: &[StoredDeadLetter]) -> impl Future<Output = Result<Vec<Written>, sqlx::Error>> + Send;
    /// Commits what was well, rolls back what was not.
    fn finish<T: Send>(self, answer: Result<T, Error>) -> impl Future<Output = Result<T, Error>> + Send;
}

/// A row, by the names of its columns. Integers are 64 bits wide on both sides.
pub(crate) trait Row: Send + Sync {
    fn opt_text(&self, name: &str) -> Result<Option<String>, sqlx::Error>;
    fn opt_int(&self, name: &str) -> Result<Option<i64>, sqlx::Error>;
    fn opt_time(&self, name: &str) -> Result<Option<Timestamp>, sqlx::Error>;
    fn json(&self, name: &str) -> Result<Json, sqlx::Error>;
    fn bytes(&self, name: &str) -> Result<Vec<u8>, sqlx::Error>;

    fn text(&self, name: &str) -> Result<String, sqlx::Error> {
        self.opt_text(name)?.ok_or_else(|| null(name))
    }

    fn int(&self, name: &str) -> Result<i64, sqlx::Error> {
        self.opt_int(name)?.ok_or_else(|| null(name))
    }

    fn time(&self, name: &str) -> Result<Timestamp, sqlx::Error> {
        self.opt_time(name)?.ok_or_else(|| null(name))
    }

    /// A count: never negative.
    fn count(&self, name: &str) -> Result<u64, sqlx::Error> {
        self.int(name).map(i64::unsigned_abs)
    }
}

fn null(name: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("column {name} is null").into())
}

/// Words a newer version wrote.
fn unknown(what: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the database holds {what} this version does not know: update it").into())
}

/// Bounds a whole call.
async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Error> {
    tokio::time::timeout(limit, call).await.map_err(|_| Error::timed_out(limit))?
}

/// Bodies of one answer, in bytes, unless the first alone is larger.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

/// How many of `sizes` an answer takes: the first, and what follows up to [`MAX_ANSWER_BYTES`].
fn fitting(sizes: impl Iterator<Item = u64>) -> usize {
    let mut sum = 0u64;
    sizes
        .enumerate()
        .take_while(|(i, size)| {
            sum = sum.saturating_add(*size);
            *i == 0 || sum <= MAX_ANSWER_BYTES
        })
        .count()
}
