//! May this send go now? Shared through Redis or local, with one arithmetic.
//!
//! A worker sends all its waiting heads in one [`Ask`] and gets back *dated grants*: the moment, on the limiter's
//! clock, from which each message may go. No bucket ever hands out more than `max(burst, largest cost) + t / interval`
//! in any span `t`, counted on the dates, whatever the number of workers; no quota window more than its limit in any span of
//! its length; and never are more calls under way than there are slots. Classes share what they have in common:
//! critical strictly first, then high : normal : low = 8 : 3 : 1; equal classes of one account take turns by destination.
//!
//! - [`Limiter`] is the port, [`redis::RedisLimiter`] the shared adapter, [`local::LocalLimiter`] the embedded one.
//!   Both answer one trace with the same integers; `rules` holds the arithmetic, `script/` says it again in Lua.
//! - [`pacer::Pacer`] decides when a worker calls and with which heads. Pure: it takes `now`.
//! - [`ledger::Ledger`] remembers which message was claimed, by whom, and what came of it.
//! - [`fleet::Fleet`] counts live workers and hands out leases, so that a slow lane has one holder.
//! - [`signals::Signals`] is what the fleet learns together: circuits and adaptive rates.
//! - [`degraded`] is what a worker does while it cannot see Redis, and how it comes back.
//! - [`clock::ServerClock`] turns dates into this machine's time, never early.
//!
//! Times are microseconds of the limiter's clock (`_us`) and stay below 2⁵³, so that Lua's numbers hold them exactly.

mod bucket;
pub mod clock;
mod cost;
pub mod degraded;
mod error;
pub mod fleet;
pub mod ledger;
pub mod local;
pub mod pacer;
pub mod redis;
pub mod rules;
pub mod signals;
mod wire;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use paceline_core::Class;

pub use bucket::{BucketSpec, Kind, LONGEST_WINDOW_US};
pub use cost::Cost;
pub use error::LimiterError;

/// How far ahead a grant may be dated, and how late it may be used: later than date + this it is void, and stays spent.
pub const GRANT_LIFE_US: u64 = 100_000;
/// An answer that took longer counts for nothing.
const CALL_TIMEOUT_US: u64 = 600_000;
/// Least time between two calls of one worker.
pub const CALL_GAP_US: u64 = 20_000;
/// The same, when a critical message has just arrived.
pub const CRITICAL_GAP_US: u64 = 5_000;

/// Most buckets in one [`Ask`].
pub const MAX_BUCKETS: usize = 4_000;
/// Most buckets of one lane: a message has up to 50 recipients, each with a domain and limits of its own.
pub const MAX_LANE_BUCKETS: usize = 1_000;
/// Most heads, over all lanes, in one [`Ask`].
pub const MAX_HEADS: usize = 10_000;
/// The largest [`LaneAsk::weight`].
pub const MAX_WEIGHT: u32 = 1_000;
/// Later than any date; the largest number that Lua holds exactly.
pub const FOREVER_US: u64 = (1 << 53) - 1;
/// No bucket holds, and no charge costs, more time than this (63 years): sums stay below 2⁵³.
const MAX_DEBT_US: u64 = 2_000_000_000_000_000;

/// The heads of one lane that all touch the same buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneAsk {
    pub class: Class,
    /// Whose turn it is within the account: the destination's name, or a flow's. All tail domains share `tail`.
    pub destination: Arc<str>,
    /// How much of the account it gets beside others of its class who take turns there: 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// Positions in [`Ask::buckets`], the account first, none twice.
    pub buckets: Vec<usize>,
    /// What each head costs, in the order of the queue; none is 0.
    pub costs: Vec<Cost>,
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
    /// Who asks, where there are slots among the buckets: leases are its own.
    pub worker: Arc<str>,
    /// Calls it has under way, granted ones included, of each bucket of slots in `buckets`; 0 where none is said.
    /// What is less than before has been given back.
    pub held: Vec<Held>,
    /// The [`Reply::epoch_us`] it was last told, or 0: a limiter whose state is younger knows that it lost some.
    pub epoch_us: u64,
    /// When the configuration that `buckets` come from came into force ([`fleet::Alive::generation_us`]). Limits of an
    /// older one give way to those of a newer one, whoever asks. 0: not known; the buckets hold as they are, for this call.
    pub generation_us: u64,
    /// Buckets that are not just now as configured. What is said of them lasts beyond the call, for everybody.
    pub changes: Vec<Change>,
}

/// A bucket of an [`Ask`] that is not as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// A position in [`Ask::buckets`].
    pub bucket: usize,
    /// When that came about: what is newer holds. 0: the bucket holds as it is for this call only.
    pub since_us: u64,
    /// Nothing is granted with an earlier date; one that has passed: open; 0: nothing is said of that; [`FOREVER_US`]: until
    /// told otherwise.
    pub closed_until_us: u64,
}

/// A worker's calls under way at one bucket of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// A position in [`Ask::buckets`].
    pub bucket: usize,
    pub calls: u32,
}

/// What a window had granted before the limiter lost its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// A [`Kind::Window`].
    pub window: BucketSpec,
    /// Dates and costs, in any order; those older than the window's length do not matter.
    pub spent: Vec<(u64, u64)>,
}

/// What was granted of a bucket without the limiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spent {
    /// It counts from now.
    Now(u64),
    /// Of a window, by its slots: `{slot, cost}`, each slot once. It counts from when it was granted.
    Slots(Vec<(u64, u64)>),
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
    /// A quota window is spent.
    Quota,
    /// All slots are taken.
    Concurrency,
    /// Closed for the whole fleet ([`Change::closed_until_us`]): an open circuit, a pause, a Retry-After.
    Closed,
    /// Held by this worker itself ([`pacer::Pacer::hold_bucket`]): a pause, a Retry-After. Never in a [`Reply`].
    Hold,
}

/// The first head of a lane that was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// Asking before this is useless; or, of a window whose past is lost, not likely to be of use.
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
    /// When its state began.
    pub epoch_us: u64,
    /// The state of before is lost and nobody has told it again ([`Limiter::seed`]): windows are closed until they are
    /// told, or as long as they are.
    pub lost: bool,
    pub lanes: Vec<LaneGrant>,
}

/// Hands out dated grants; all buckets of a head together or none.
#[async_trait]
pub trait Limiter: Send + Sync {
    /// Grants what may go. After [`LimiterError::TimedOut`] the tokens may be spent: ask again, do not send.
    async fn ask(&self, ask: &Ask) -> Result<Reply, LimiterError>;

    /// Tells windows what they had granted, as after a loss of the limiter's state. Each takes it once, beside what it
    /// has granted since. With `complete`, windows that are not told about have granted nothing before.
    async fn seed(&self, past: &[Seed], complete: bool) -> Result<(), LimiterError>;

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
        if !self.buckets.iter().all(BucketSpec::fits) {
            return refuse("a bucket's interval, length, limit or reserve is out of range");
        }
        if self.worker.is_empty() && self.buckets.iter().any(BucketSpec::is_slots) {
            return refuse("slots are held by a worker, and no worker asks");
        }
        if !self.held.iter().all(|h| self.buckets.get(h.bucket).is_some_and(BucketSpec::is_slots)) {
            return refuse("what is held must be slots");
        }
        let mut changed = vec![false; self.buckets.len()];
        let once = |c: &Change| changed.get_mut(c.bucket).is_some_and(|seen| !std::mem::replace(seen, true));
        if !self.changes.iter().all(once) {
            return refuse("a change is said twice of a bucket, or of one that is not there");
        }
        if self.generation_us > FOREVER_US || self.changes.iter().any(|c| c.since_us.max(c.closed_until_us) > FOREVER_US) {
            return refuse("no date is that late");
        }
        if self.changes.iter().any(|c| c.since_us == 0 && c.closed_until_us > 0) {
            return refuse("what is closed must be known since when");
        }
        for lane in &self.lanes {
            if lane.buckets.is_empty() || lane.buckets.len() > MAX_LANE_BUCKETS || lane.costs.is_empty() {
                return refuse("a lane needs at least one head, and one bucket but not too many");
            }
            if !(1..=MAX_WEIGHT).contains(&lane.weight) {
                return refuse("a weight is out of range");
            }
            if !lane.costs.iter().all(|c| c.fits(lane.buckets.len())) {
                return refuse("a head must cost at least 1 at each of its buckets");
            }
            for (i, b) in lane.buckets.iter().enumerate() {
                if *b >= self.buckets.len() || lane.buckets[..i].contains(b) {
                    return refuse("a lane names a bucket twice or one that is not there");
                }
            }
            if !matches!(self.buckets[lane.buckets[0]].kind, Kind::Rate { .. }) {
                return refuse("a lane's first bucket is its account's rate");
            }
        }
        Ok(())
    }
}

impl Spent {
    pub(crate) fn sum(&self) -> u64 {
        match self {
            Spent::Now(cost) => *cost,
            Spent::Slots(slots) => slots.iter().map(|(_, cost)| cost).sum(),
        }
    }
}

impl Seed {
    /// Checked, and added up by slot of the window: `{slot, cost}` in order.
    pub(crate) fn by_slot(&self) -> Result<BTreeMap<u64, u64>, LimiterError> {
        let Kind::Window { length_us, .. } = self.window.kind else {
            return Err(LimiterError::Refused { reason: "only a window has a past to be told".to_owned() });
        };
        let mut costs = BTreeMap::new();
        for (date_us, cost) in self.spent.iter().filter(|(_, cost)| *cost > 0) {
            *costs.entry(date_us / bucket::slot_width(length_us)).or_default() += cost;
        }
        Ok(costs)
    }
}
