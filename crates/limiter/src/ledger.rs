//! Once, as nearly as can be: which message was claimed for which attempt, by whom, and what came of it.
//!
//! Claim before the call, record after it, acknowledge last. An entry lives for the de-duplication window, is keyed by
//! message id and replay batch, and remembers the highest attempt claimed:
//!
//! | stored | asked: attempt n | answer |
//! |---|---|---|
//! | nothing | the first anybody hears of it | `Granted` |
//! | a first attempt of another digest | n = 1: two messages with one id | `Conflict` |
//! | sent, by whichever attempt | what went out went out | `Done` |
//! | attempt > n, or = n with a result | a late redelivery | `Done` |
//! | attempt = n, no result, before its deadline | somebody is at it | `Held` |
//! | attempt = n, no result, after its deadline | sent or not, nobody knows | `Expired`, now the asker's |
//! | attempt = n, released | no call was made | `Granted` |
//! | attempt < n | the next attempt | `Granted` |
//!
//! A replay batch has entries of its own: a redelivered original still meets the original's result, and the replayed
//! copy is a new claim. Digests are compared for attempt 1 of one entry only: a retry carries the recipients that
//! remain, and a replayed copy may have been edited.

mod entry;
mod local;
mod redis;
mod sqlite;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::future::join_all;

pub use self::{local::LocalLedger, redis::RedisLedger, sqlite::SqliteLedger};
use crate::LimiterError;

/// Ledger calls fail as limiter calls do: they share the connection.
pub type LedgerError = LimiterError;

/// A wish to make one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Message id.
    pub id: Arc<str>,
    /// Replay batch, for a copy that an operator replayed.
    pub replay: Option<String>,
    /// 1 for the first call to a provider. Counts every call, budget-spending or not.
    pub attempt: u32,
    /// Of the body as it came first: the same id with another body is a conflict. 53 bits are compared.
    pub digest: u64,
    /// Worker that will make the call.
    pub owner: Arc<str>,
    /// How long the claim is the owner's: the call's total time-out and a margin.
    pub hold: Duration,
    /// Tells this handling of the message from any other, also by the same worker.
    token: u64,
    /// Until then at least nobody else is given it.
    held_until: Instant,
}

impl Claim {
    /// A claim of this handling of the message: keep it, and pass the same one to `record` or `release`.
    pub fn new(id: Arc<str>, replay: Option<String>, attempt: u32, digest: u64, owner: Arc<str>, hold: Duration) -> Self {
        // A fresh hasher state is random to this process and distinct within it.
        let token = RandomState::new().hash_one(&id) & MASK_53;
        let held_until = Instant::now() + hold;
        Claim { id, replay, attempt, digest: digest & MASK_53, owner, hold, token, held_until }
    }

    /// Makes one handling of all, before any is claimed: messages that travel in one call. [`Ledger::record_all`] can
    /// then tell of all of them at once.
    pub fn join<'a>(claims: impl IntoIterator<Item = &'a mut Claim>) {
        let mut claims = claims.into_iter();
        if let Some(first) = claims.next() {
            claims.for_each(|other| other.token = first.token);
        }
    }
}

/// Lua's numbers hold 53 bits exactly.
const MASK_53: u64 = (1 << 53) - 1;

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// Make the call.
    Granted,
    /// A live owner is at it (perhaps this very worker, before a reconnect): come back then.
    Held { until_us: u64 },
    /// An earlier claim of this attempt ran out without a result: it may or may not have been sent. The claim is the
    /// asker's now, as if granted; whether to call again is for policy. `lost` such claims so far, this one included.
    Expired { lost: u32 },
    /// This attempt, or a later one, has a result: settle by it, without a call.
    Done { attempt: u32, result: Recorded },
    /// The id is taken by another body.
    Conflict,
}

/// What an attempt came to. `note` is opaque to the ledger and kept small by the caller, e.g. the provider's message id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    Sent {
        note: String,
    },
    /// A next attempt is on its way. A later attempt that is claimed without a result also reads as this.
    Retry {
        note: String,
    },
    Dead {
        note: String,
    },
}

/// The memory of claims.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Claims one attempt. After an error nothing is claimed for long: what the server may have stored is withdrawn
    /// as soon as it answers again.
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError>;

    /// Stores the result of a claimed attempt, unless a later attempt is already there. Tries for a while when the
    /// server is away; only then is an error returned, and the message must not be acknowledged as sent unrecorded.
    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError>;

    /// Withdraws a claim for which no call was made: the next claim of the attempt is granted.
    async fn release(&self, claim: &Claim) -> Result<(), LedgerError>;

    /// [`Ledger::claim`] of messages that travel together; an answer each, in order.
    async fn claim_all(&self, claims: Vec<Claim>) -> Vec<Result<Claimed, LedgerError>> {
        join_all(claims.into_iter().map(|claim| self.claim(claim))).await
    }

    /// [`Ledger::record`] of messages that travelled together; an answer each, in order.
    async fn record_all(&self, results: &[(Claim, Recorded)]) -> Vec<Result<(), LedgerError>> {
        join_all(results.iter().map(|(claim, result)| self.record(claim, result.clone()))).await
    }
}
