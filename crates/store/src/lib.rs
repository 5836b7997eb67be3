//! What outlives a process: one trait by concern, and the adapters behind them.
//!
//! Callers hold `Arc<dyn DeadLetters>` and never see SQL. Every call is bounded in time, and every [`Error`] says
//! what to do about it. [`PostgresStore`] connects when first asked, so a process starts while the database is away.

mod dead_letters;
mod error;
mod postgres;
mod text;

pub use dead_letters::{
    Burst, BurstKind, BurstRule, Count, DeadLetters, Filter, MAX_ID_BYTES, ReasonCount, Stats, StoredDeadLetter, Written,
};
pub use error::Error;
pub use postgres::{Options, PostgresStore};

/// Whether the store answers; for readiness.
#[async_trait::async_trait]
pub trait Ping: Send + Sync {
    /// One round trip, answered or refused within a few seconds; also brings the schema up to date.
    async fn ping(&self) -> Result<(), Error>;
}

/// Everything a store does. `Arc<dyn Store>` turns into an `Arc` of any of its parts.
pub trait Store: DeadLetters + Ping {}

impl<T: DeadLetters + Ping> Store for T {}
