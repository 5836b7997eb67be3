//! Who is alive, who holds what, and whose turn is when.
//!
//! Workers report by heartbeat; a slow lane or a singleton job is held by a lease. Both run out by themselves on the
//! server's clock, so a worker that died frees what it held, and nobody's clock takes part.

mod local;
mod redis;
mod reports;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{
    local::LocalFleet,
    redis::RedisFleet,
    reports::{FileReports, LocalReports, MAX_REPORT_BYTES, RedisReports, Reports},
};
use crate::LimiterError;

/// What a heartbeat learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// Workers that live, the one that asked included.
    pub workers: u64,
    /// Since when some live worker has had this worker's configuration, without a gap: the later, the newer.
    pub generation_us: u64,
}

/// Turns wanted in a line: of those who wait for the same thing, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// What is waited for.
    pub line: Arc<str>,
    /// No turn is earlier, on the limiter's clock.
    pub from_us: u64,
    /// What they take together.
    pub takes_us: u64,
    /// None that would begin then or later is taken; less than [`FAR_US`] ahead.
    pub before_us: u64,
}

/// Turns are taken no further ahead than this.
pub const FAR_US: u64 = 86_400_000_000;

/// Heartbeats, leases, lists and lines of one fleet.
#[async_trait]
pub trait Fleet: Send + Sync {
    /// Says that `worker_id` lives for `ttl` more, with the configuration whose digest is `config`. `known_us` is the
    /// generation it was told before of the same digest, or 0: a worker that was not heard of for a while, and a server
    /// that lost its state, must not make an old configuration a new one.
    async fn heartbeat(&self, worker_id: &str, config: &str, known_us: u64, ttl: Duration) -> Result<Alive, LimiterError>;

    /// Takes this worker out of the count at once: a drained worker must not be waited for.
    async fn leave(&self, worker_id: &str) -> Result<(), LimiterError>;

    /// Takes or renews the lease `name`; true when `worker_id` holds it for `ttl` from now.
    async fn lease(&self, name: &str, worker_id: &str, ttl: Duration) -> Result<bool, LimiterError>;

    /// Notes that each of `used` is in use now; returns every name noted so far and how long ago that was. They stay until
    /// they are struck off.
    async fn note(&self, list: &str, used: &[Arc<str>]) -> Result<Vec<(Arc<str>, Duration)>, LimiterError>;

    /// Strikes a name off that has not been in use for at least `idle`.
    async fn strike(&self, list: &str, name: &str, idle: Duration) -> Result<(), LimiterError>;

    /// Takes turns in lines, and says for each when its first turn begins: where those taken before it end. From
    /// `before_us` on nothing was taken. A line is forgotten when its turns are over.
    async fn turns(&self, wanted: &[Turns]) -> Result<Vec<u64>, LimiterError>;

    /// Gives the lease back if `worker_id` holds it.
    async fn release(&self, name: &str, worker_id: &str) -> Result<(), LimiterError>;
}
