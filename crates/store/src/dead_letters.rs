//! The dead letters: kept whole, listed, counted.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use paceline_core::{Class, DeadLetter, Reason, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Kept, Listed, Position, StateFilter};

/// An entry's id is at most this long, and not empty.
pub const MAX_ID_BYTES: usize = 200;

/// The dead letters.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Stores all of them or, on an error, none; on return they are durable. The answers are in the order of `letters`.
    ///
    /// Writing an entry again does no harm: an id is stored once. Text fields are bounded (512 bytes for what filters
    /// use, 4 kB for words) and lose NUL; the body is kept byte for byte.
    async fn insert(&self, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, Error>;

    /// Entries that match, the latest death first.
    async fn list(&self, filter: &Filter) -> Result<Vec<Listed>, Error>;

    /// Whole entries that match, in the order of [`list`](DeadLetters::list), after a place in it: at most `max`, and no
    /// more than the first that make 32 MiB of bodies. Empty at the end. The filter's limit is for the caller to keep.
    async fn page(&self, filter: &Filter, after: Option<&Position>, max: u32) -> Result<Vec<Kept>, Error>;

    /// One entry by its own id, with body and headers.
    async fn get(&self, id: &str) -> Result<Option<StoredDeadLetter>, Error>;

    /// What matches, counted, from one snapshot.
    async fn stats(&self, filter: &Filter, rule: &BurstRule) -> Result<Stats, Error>;
}

/// An entry and the message it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDeadLetter {
    pub entry: DeadLetter,
    /// The AMQP property, which stands in for an `id` the body lacks.
    pub amqp_message_id: Option<String>,
    pub content_type: Option<String>,
    /// The headers the message travelled with.
    pub headers: Map<String, Value>,
    /// The original, untouched.
    pub body: Bytes,
}

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Stored by this call.
    New,
    /// Already there, with the same body.
    Known,
    /// Not stored: its id is taken by an entry with another body.
    IdTaken,
}

/// Which entries; everything given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    pub state: StateFilter,
    pub reason: Option<Reason>,
    /// None of these reasons.
    pub except: Vec<Reason>,
    pub class: Option<Class>,
    pub destination: Option<String>,
    pub account: Option<String>,
    pub tenant: Option<String>,
    /// Died at this time or later.
    pub since: Option<Timestamp>,
    /// Died before this time.
    pub until: Option<Timestamp>,
    /// The entry's id or the message's.
    pub id: Option<String>,
    /// No more than the latest so many.
    pub limit: Option<u32>,
}

/// What counts as a burst: deaths of one domain from one kind of answer, none more than `gap` after the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BurstRule {
    pub gap: Duration,
    /// Fewer are no burst.
    pub min: u32,
}

impl Default for BurstRule {
    fn default() -> BurstRule {
        BurstRule { gap: Duration::from_secs(60), min: 10 }
    }
}

/// Dead letters, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub total: u64,
    pub oldest: Option<Timestamp>,
    pub newest: Option<Timestamp>,
    /// Most frequent first; together they make `total`.
    pub by_reason: Vec<ReasonCount>,
    /// Most frequent first; the first 1,000.
    pub counts: Vec<Count>,
    /// Latest first; the first 100.
    pub bursts: Vec<Burst>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonCount {
    pub reason: Reason,
    pub count: u64,
}

/// One reason at one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    pub reason: Reason,
    pub destination: Option<String>,
    pub domain: Option<String>,
    pub count: u64,
    pub oldest: Timestamp,
    pub newest: Timestamp,
}

/// The last answers that killed a burst's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum BurstKind {
    #[serde(rename = "429")]
    TooManyRequests,
    #[serde(rename = "5xx")]
    ServerError,
}

impl BurstKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            BurstKind::TooManyRequests => "429",
            BurstKind::ServerError => "5xx",
        }
    }
}

/// Many deaths of one domain, close together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Burst {
    pub kind: BurstKind,
    pub destination: Option<String>,
    pub domain: String,
    pub count: u64,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
}
