//! What outlives a process: one trait by concern, and the adapters behind them.
//!
//! Callers hold `Arc<dyn DeadLetters>` and never see SQL. Every call is bounded in time, and every [`Error`] says
//! what to do about it. [`PostgresStore`] connects when first asked, so a process starts while the database is away;
//! [`SqliteStore`] keeps the same in a file.

mod audit;
mod cancels;
mod dead_letters;
mod directives;
mod error;
mod jobs;
mod learnt;
mod options;
mod postgres;
mod quotas;
mod sql;
mod sqlite;
mod state;
mod suppressions;
mod text;

pub use audit::{Audit, AuditEntry};
pub use cancels::{CancelOrder, Cancels, Which};
pub use dead_letters::{
    Burst, BurstKind, BurstRule, Count, DeadLetters, Filter, MAX_ID_BYTES, ReasonCount, Stats, StoredDeadLetter, Written,
};
pub use directives::{Directives, Standing};
pub use error::Error;
pub use jobs::{FailedItem, Item, ItemOutcome, Job, JobKind, JobState, Jobs, Leased, NewJob, Plan, Purge};
pub use learnt::{Learning, LearntRow};
pub use options::Options;
pub use postgres::PostgresStore;
pub use quotas::{QuotaRow, Quotas};
pub use sqlite::SqliteStore;
pub use state::{Kept, Listed, Position, State, StateFilter, Status};
pub use suppressions::{Changes, Merged, NewSuppression, Order, Suppression, SuppressionFilter, Suppressions, Trail, is_reason};

/// Whether the store answers; for readiness.
#[async_trait::async_trait]
pub trait Ping: Send + Sync {
    /// One round trip, answered or refused within a few seconds; also brings the schema up to date.
    async fn ping(&self) -> Result<(), Error>;
}

/// Everything a store does. `Arc<dyn Store>` turns into an `Arc` of any of its parts.
pub trait Store: DeadLetters + Jobs + Cancels + Directives + Suppressions + Learning + Quotas + Audit + Ping {}

impl<T: DeadLetters + Jobs + Cancels + Directives + Suppressions + Learning + Quotas + Audit + Ping> Store for T {}
