//! May this send go now? Shared through Redis or local, with one arithmetic.
//!
//! A worker sends all its waiting heads in one [`Ask`] and gets back *dated grants*: the moment, on the limiter's
//! clock, from which each message may go. No bucket ever hands out more than `max(burst, largest cost) + t / interval`
//! in any span `t`, counted on the dates, whatever the number of workers. Classes share what they have in common:
//! critical strictly first, then high : normal : low = 8 : 3 : 1; equal classes of one account take turns by destination.
//!
//! - [`Limiter`] is the port, [`redis::RedisLimiter`] the shared adapter, [`local::LocalLimiter`] the embedded one.
//!   Both answer one trace with the same integers; `rules` holds the arithmetic, `limiter.lua` says it again.
//! - [`pacer::Pacer`] decides when a worker calls and with which heads. Pure: it takes `now`.
//! - [`ledger::Ledger`] remembers which message was claimed, by whom, and what came of it.
//! - [`fleet::Fleet`] counts live workers and hands out leases, so that a slow lane has one holder.
//! - [`clock::ServerClock`] turns dates into this machine's time, never early.
//!
//! Times are microseconds of the limiter's clock (`_us`) and stay below 2⁵³, so that Lua's numbers hold them exactly.

pub mod clock;
mod error;
pub mod fleet;
pub mod ledger;
pub mod local;
pub mod pacer;
pub mod redis;
pub mod rules;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use paceline_core::{Class, Rate};

pub use error::LimiterError;

/// How far ahead a grant may be dated, and how late it may be used: later than date + this it is void, and stays spent.
pub const GRANT_LIFE_US: u64 = 100_000;
/// Least time between two calls of one worker.
pub const CALL_GAP_US: u64 = 20_000;
/// The same, when a critical message has just arrived.
pub const CRITICAL_GAP_US: u64 = 5_000;

/// Most buckets in one [`Ask`].
pub const MAX_BUCKETS: usize = 4_000;
/// Most heads, over all lanes, in one [`Ask`].
pub const MAX_HEADS: usize = 10_000;
/// No bucket holds, and no charge costs, more time than this (63 years): sums stay below 2⁵³.
const MAX_DEBT_US: u64 = 2_000_000_000_000_000;

/// One token bucket: its name in the shared state and its limits. Costs are recipients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BucketSpec {
    /// Names the bucket for the whole fleet, e.g. `account:ses-eu`. Any text will do: it is data, never a pattern.
    pub key: Arc<str>,
    /// The time one token takes.
    pub interval_us: u64,
    /// Tokens a full bucket holds, at least 1.
    pub burst: u32,
    /// Tokens of `burst` that only critical mail may use; less than `burst`.
    pub reserve: u32,
    /// Lanes of several accounts meet here (fleet and tenant limits): no lane may date it ahead because some other
    /// bucket of its own is slow. An account, always the first bucket of a lane, is protected anyway.
    pub shared: bool,
}

impl BucketSpec {
    /// A bucket of `rate` and `burst`, with `reserve_fraction` of the burst kept for critical mail.
    pub fn new(key: impl Into<Arc<str>>, rate: Rate, burst: u32, reserve_fraction: f64) -> Self {
        let interval_us = rate.interval_us().clamp(1, MAX_DEBT_US);
        let most = u32::try_from(MAX_DEBT_US / interval_us).unwrap_or(u32::MAX);
        let burst = burst.min(most).max(1);
        // `as` saturates: a negative or absurd fraction becomes none or all but one.
        let reserve = ((reserve_fraction * f64::from(burst)).floor() as u32).min(burst - 1);
        BucketSpec { key: key.into(), interval_us, burst, reserve, shared: false }
    }

    /// Marks a limit that several accounts share.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }
}

/// The heads of one lane that all touch the same buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneAsk {
    pub class: Class,
    /// Whose turn it is within the account: the destination's name. All tail domains share `tail`.
    pub destination: Arc<str>,
    /// Positions in [`Ask::buckets`], the account first, none twice.
    pub buckets: Vec<usize>,
    /// What each head costs, in the order of the queue; none is 0.
    pub costs: Vec<u32>,
    /// When the first head was first denied, or 0.
    pub since_us: u64,
    /// Names this lane of this worker for as long as it waits: `worker.lane`.
    pub id: Arc<str>,
    /// Tells the first head from those before it.
    pub seq: u64,
}

/// Everything a worker asks in one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ask {
    pub buckets: Vec<BucketSpec>,
    pub lanes: Vec<LaneAsk>,
}

/// What kept a head back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// No token soon enough.
    Date,
    /// Another class or destination goes first.
    Turn,
    /// A larger message has waited long enough to go first.
    Ticket,
    /// A slow bucket would have dated a shared one too far ahead.
    Gap,
    /// Held by this worker itself ([`pacer::Pacer::hold_bucket`]): a pause, a Retry-After. Never in a [`Reply`].
    Hold,
}

/// The first head of a lane that was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// Asking before this is useless.
    pub retry_at_us: u64,
    /// What binds: a position in [`Ask::buckets`].
    pub bucket: usize,
    pub why: Why,
}

/// The answer for one lane: its first `dates_us.len()` heads are granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneGrant {
    /// When each granted head may go; void at date + [`GRANT_LIFE_US`].
    pub dates_us: Vec<u64>,
    /// Set unless every head was granted.
    pub denied: Option<Denied>,
}

/// The answer to an [`Ask`], lane by lane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// The limiter's clock when it decided.
    pub now_us: u64,
    pub lanes: Vec<LaneGrant>,
}

/// Hands out dated grants; all buckets of a head together or none.
#[async_trait]
pub trait Limiter: Send + Sync {
    /// Grants what may go. After [`LimiterError::TimedOut`] the tokens may be spent: ask again, do not send.
    async fn ask(&self, ask: &Ask) -> Result<Reply, LimiterError>;

    /// The limiter's clock.
    async fn now_us(&self) -> Result<u64, LimiterError>;

    /// Calls made so far, for `paceline_limiter_calls_total`.
    fn calls(&self) -> u64;
}

impl Ask {
    /// Heads over all lanes.
    pub fn heads(&self) -> usize {
        self.lanes.iter().map(|l| l.costs.len()).sum()
    }

    /// What the arithmetic relies on; every adapter checks it before it does anything.
    pub fn check(&self) -> Result<(), LimiterError> {
        let refuse = |why: &str| Err(LimiterError::Refused { reason: why.to_owned() });
        if self.buckets.len() > MAX_BUCKETS {
            return refuse("too many buckets in one call");
        }
        if self.lanes.len() > MAX_HEADS || self.heads() > MAX_HEADS {
            return refuse("too many heads in one call");
        }
        for b in &self.buckets {
            let fits = b.interval_us.checked_mul(u64::from(b.burst)).is_some_and(|span| span <= MAX_DEBT_US);
            if b.interval_us == 0 || b.burst == 0 || b.reserve >= b.burst || !fits {
                return refuse("a bucket's interval, burst or reserve is out of range");
            }
        }
        for lane in &self.lanes {
            if lane.buckets.is_empty() || lane.buckets.len() > 16 || lane.costs.is_empty() {
                return refuse("a lane needs 1 to 16 buckets and at least one head");
            }
            if lane.costs.contains(&0) {
                return refuse("a head must cost at least 1");
            }
            for (i, b) in lane.buckets.iter().enumerate() {
                if *b >= self.buckets.len() || lane.buckets[..i].contains(b) {
                    return refuse("a lane names a bucket twice or one that is not there");
                }
            }
        }
        Ok(())
    }
}
