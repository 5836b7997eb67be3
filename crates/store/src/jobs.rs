//! Jobs: what an operator ordered for a frozen selection of dead letters.
//!
//! A job holds each entry of its selection as an item until it is settled, and an entry is in one live job at most. One
//! runner at a time holds a job, by lease. An entry is settled once: whatever crashes, whoever runs the job on finds
//! what is settled settled, and the rest in its order.

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;
use paceline_core::{Rate, Reason, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Error, Filter, ReasonCount, StateFilter, StoredDeadLetter};

/// Jobs over dead letters. Times are the database's: clocks of runners take no part.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// What a job over this selection would take. Reads no bodies. The filter's `state` is not asked: a job takes what is open.
    async fn plan(&self, filter: &Filter) -> Result<Plan, Error>;

    /// Freezes the selection, in one transaction; `None` when nothing open matches. The filter's limit counts open
    /// entries, its `state` is not asked.
    async fn create(&self, new: &NewJob) -> Result<Option<Job>, Error>;

    async fn job(&self, id: &str) -> Result<Option<Job>, Error>;

    /// The latest first.
    async fn jobs(&self, limit: u32) -> Result<Vec<Job>, Error>;

    /// Running jobs that nobody holds, the oldest first: for a process that runs on what others left.
    async fn abandoned(&self, limit: u32) -> Result<Vec<Job>, Error>;

    /// Takes the job, or keeps it, for `ttl` from now.
    async fn lease(&self, id: &str, owner: &str, ttl: Duration) -> Result<Leased, Error>;

    /// Gives the job back before its lease ends; no error where `owner` does not hold it.
    async fn release(&self, id: &str, owner: &str) -> Result<(), Error>;

    /// The oldest items not settled, in order of death; at most `max`, and no more than the first that make 32 MiB of
    /// bodies. Empty where nothing is left, and where `owner` does not hold the job: [`lease`](Jobs::lease) says which.
    async fn next(&self, id: &str, owner: &str, max: u32) -> Result<Vec<Item>, Error>;

    /// Records what became of items; on return it is durable. The answer is the job after it, which ends when nothing
    /// is left.
    ///
    /// Done entries are replayed or discarded from now on, failed ones open again. What is settled already is left as it
    /// is. Neither a lost lease nor a cancelled job stands in the way: what was published was published.
    async fn settle(&self, id: &str, owner: &str, outcomes: &[(u64, ItemOutcome)]) -> Result<Job, Error>;

    /// Settles the oldest `max` items of a [`JobKind::Discard`] job as done, in one step and without their bodies. The
    /// answer is the job after it; a job that `owner` does not hold is left as it is.
    async fn discard_next(&self, id: &str, owner: &str, max: u32) -> Result<Job, Error>;

    /// Ends a running job; what is not settled is open again. `None` where there is no such job; one that has ended
    /// stays as it is.
    ///
    /// Items in the hands of a runner at this moment stay with the job until the runner settles them, gives the job
    /// back or loses its lease.
    async fn cancel(&self, id: &str, by: &str, note: Option<&str>) -> Result<Option<Job>, Error>;

    /// Items that failed, in order of death.
    async fn failures(&self, id: &str, limit: u32) -> Result<Vec<FailedItem>, Error>;

    /// Deletes entries that died before a time, batch by batch; entries in live jobs stay. The answer is their number.
    async fn purge(&self, purge: &Purge) -> Result<u64, Error>;
}

/// What a job does with its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Replay,
    Discard,
}

impl JobKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::Replay => "replay",
            JobKind::Discard => "discard",
        }
    }

    /// Begins the ids of its jobs.
    pub(crate) const fn letter(self) -> char {
        match self {
            JobKind::Replay => 'r',
            JobKind::Discard => 'd',
        }
    }

    /// The kind of the job with this id.
    pub(crate) fn of_id(id: &str) -> JobKind {
        if id.starts_with(JobKind::Discard.letter()) { JobKind::Discard } else { JobKind::Replay }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Not ended; whether somebody works on it is for its lease to say.
    Running,
    Done,
    Cancelled,
}

impl JobState {
    pub const fn as_str(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = ();

    fn from_str(text: &str) -> Result<JobState, ()> {
        [JobState::Running, JobState::Done, JobState::Cancelled].into_iter().find(|s| s.as_str() == text).ok_or(())
    }
}

/// An operator's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    pub kind: JobKind,
    pub filter: Filter,
    /// For whoever runs it: items in so much time.
    pub rate: Option<Rate>,
    pub by: String,
    pub note: Option<String>,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Such as `r-20261122-2g9k0m7f4`: at most 32 of `[a-z0-9-]`, in the order of their making among one kind.
    pub id: String,
    pub kind: JobKind,
    pub state: JobState,
    pub by: String,
    pub note: Option<String>,
    pub filter: Filter,
    pub rate: Option<Rate>,
    /// Entries of the selection; `done + failed` of them are settled.
    pub total: u64,
    pub done: u64,
    pub failed: u64,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub cancelled_by: Option<String>,
    /// Who runs it, while the lease holds.
    pub owner: Option<String>,
    pub leased_until: Option<Timestamp>,
}

impl Job {
    /// Items of the selection that are not settled; in a cancelled job, those that were let go.
    pub const fn left(&self) -> u64 {
        self.total.saturating_sub(self.done).saturating_sub(self.failed)
    }
}

/// What a job would take, counted from one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub total: u64,
    /// Most frequent first; together they make `total`.
    pub by_reason: Vec<ReasonCount>,
    /// Of these nobody knows whether they were sent (reasons `uncertain` and `poison`): a replay may send them twice.
    pub uncertain: u64,
    /// Match as well and are not taken: replayed, discarded, or in a live job.
    pub settled: u64,
    pub oldest: Option<Timestamp>,
    pub newest: Option<Timestamp>,
}

impl Plan {
    /// Whether entries of this reason may have been sent.
    pub const fn is_uncertain(reason: Reason) -> bool {
        matches!(reason, Reason::Uncertain | Reason::Poison)
    }
}

/// One entry of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its place in the job, from 1, in order of death.
    pub seq: u64,
    /// 0 for the first entry of its message in this job, 1 for the second, and so on.
    pub copy: u32,
    pub letter: StoredDeadLetter,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemOutcome {
    Done,
    /// Why, in words without an address or a secret.
    Failed(String),
}

/// An item that failed; its entry is open again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedItem {
    pub seq: u64,
    /// The entry's id.
    pub id: String,
    pub error: String,
}

/// What became of the wish for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leased {
    /// The job is the caller's until then.
    Yes(Timestamp),
    /// Another runner's until then.
    Taken { owner: String, until: Timestamp },
    /// The job has ended.
    Ended(JobState),
    /// There is no such job.
    Unknown,
}

/// What to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    /// Entries that died before this time.
    pub before: Timestamp,
    pub state: StateFilter,
    pub by: String,
    pub note: Option<String>,
    /// Only count.
    pub dry_run: bool,
}
