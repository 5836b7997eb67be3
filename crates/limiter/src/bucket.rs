//! What can be limited, and how.

use std::sync::Arc;

use paceline_core::Rate;

use crate::MAX_DEBT_US;

/// One limit: its name in the shared state and what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BucketSpec {
    /// Names it for the whole fleet, e.g. `account:ses-eu`. Any text will do: it is data, never a pattern.
    pub key: Arc<str>,
    pub kind: Kind,
    /// Only part of a lane's mail touches it (a tail domain, a tenant, a recipient): what it binds must not keep the
    /// rest of the lane. For whoever decides where mail waits; the limiter makes no difference.
    pub narrow: bool,
}

/// How a bucket limits. Costs are recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A token bucket.
    Rate {
        /// The time one token takes.
        interval_us: u64,
        /// Tokens a full bucket holds, at least 1.
        burst: u32,
        /// Tokens of `burst` that only critical mail may use; less than `burst`.
        reserve: u32,
        /// Lanes of several accounts meet here (fleet and tenant limits): no lane may date it ahead because some other
        /// bucket of its own is slow. An account, always the first bucket of a lane, is protected anyway.
        shared: bool,
    },
    /// A quota: never more than `limit` in any span of `length_us`, counted on the dates of grants. A message that
    /// costs more than `limit` is never granted.
    Window {
        /// 1 s to [`LONGEST_WINDOW_US`].
        length_us: u64,
        limit: u64,
        /// Part of `limit` that only critical mail may use; less than `limit`.
        reserve: u64,
    },
    /// Calls at a time. Each granted head takes one lease, whatever it costs.
    Slots {
        limit: u32,
        /// A worker that has not been heard of for so long has no calls under way any more.
        life_us: u64,
    },
}

/// The longest quota window: 400 days.
pub const LONGEST_WINDOW_US: u64 = 400 * 86_400_000_000;
/// The largest quota, and the most slots of one bucket.
const MOST: u64 = 1 << 40;
/// A window's ring: so many slots make its length, and one more holds what is partly in it.
pub(crate) const SPANS: u64 = 200;
/// Slots count as if calls took this long: a class may be ahead of another by as many calls as there are slots.
const CALL_US: u64 = 100_000;

impl BucketSpec {
    /// A bucket of `rate` and `burst`, with `reserve_fraction` of the burst kept for critical mail.
    pub fn new(key: impl Into<Arc<str>>, rate: Rate, burst: u32, reserve_fraction: f64) -> Self {
        let interval_us = rate.interval_us().clamp(1, MAX_DEBT_US);
        let most = u32::try_from(MAX_DEBT_US / interval_us).unwrap_or(u32::MAX);
        let burst = burst.min(most).max(1);
        // `as` saturates: a negative or absurd fraction becomes none or all but one.
        let reserve = ((reserve_fraction * f64::from(burst)).floor() as u32).min(burst - 1);
        Self::of(key, Kind::Rate { interval_us, burst, reserve, shared: false })
    }

    /// A window of `quota`'s unit of time, with `reserve_fraction` of it kept for critical mail. A part of a unit
    /// counts for nothing; at least one is allowed.
    pub fn window(key: impl Into<Arc<str>>, quota: Rate, reserve_fraction: f64) -> Self {
        let limit = quota.units().clamp(1, MOST);
        let reserve = ((reserve_fraction * limit as f64).floor() as u64).min(limit - 1);
        let length_us = u64::try_from(quota.period().as_micros()).unwrap_or(LONGEST_WINDOW_US);
        Self::of(key, Kind::Window { length_us, limit, reserve })
    }

    /// So many calls at a time, none longer than `life_us`.
    pub fn slots(key: impl Into<Arc<str>>, limit: u32, life_us: u64) -> Self {
        Self::of(key, Kind::Slots { limit: limit.max(1), life_us: life_us.max(1) })
    }

    fn of(key: impl Into<Arc<str>>, kind: Kind) -> Self {
        BucketSpec { key: key.into(), kind, narrow: false }
    }

    /// Marks a rate that several accounts share.
    #[must_use]
    pub fn shared(mut self) -> Self {
        if let Kind::Rate { shared, .. } = &mut self.kind {
            *shared = true;
        }
        self
    }

    /// Marks a limit that only part of a lane's mail touches.
    #[must_use]
    pub fn narrow(mut self) -> Self {
        self.narrow = true;
        self
    }

    /// The time one token takes, on average for a window; 0 for slots.
    pub fn interval_us(&self) -> u64 {
        match self.kind {
            Kind::Rate { interval_us, .. } => interval_us,
            Kind::Window { length_us, limit, .. } => length_us.div_ceil(limit),
            Kind::Slots { .. } => 0,
        }
    }

    pub(crate) fn is_slots(&self) -> bool {
        matches!(self.kind, Kind::Slots { .. })
    }

    /// What the arithmetic relies on.
    pub(crate) fn fits(&self) -> bool {
        match self.kind {
            Kind::Rate { interval_us, burst, reserve, .. } => {
                let fits = interval_us.checked_mul(u64::from(burst)).is_some_and(|span| span <= MAX_DEBT_US);
                interval_us > 0 && reserve < burst && fits
            }
            Kind::Window { length_us, limit, reserve } => {
                (1_000_000..=LONGEST_WINDOW_US).contains(&length_us) && reserve < limit && limit <= MOST
            }
            Kind::Slots { limit, life_us } => limit > 0 && (1..=LONGEST_WINDOW_US).contains(&life_us),
        }
    }
}

impl Kind {
    /// The interval that shares and look-ahead are measured by.
    pub(crate) fn pace_us(self) -> u64 {
        match self {
            Kind::Rate { interval_us, .. } => interval_us,
            Kind::Window { length_us, limit, .. } => length_us.div_ceil(limit),
            Kind::Slots { limit, .. } => (CALL_US / u64::from(limit)).max(1),
        }
    }
}

/// The length of a window's slot.
pub(crate) fn slot_width(length_us: u64) -> u64 {
    length_us.div_ceil(SPANS)
}
