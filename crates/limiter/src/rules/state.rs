//! What is remembered of a bucket between calls.

use std::{collections::HashMap, sync::Arc};

use super::KEEP_US;
use crate::{BucketSpec, MAX_DEBT_US};

/// All buckets of one fleet.
#[derive(Debug, Default)]
pub struct State {
    epoch_us: Option<u64>,
    buckets: HashMap<Arc<str>, Bucket>,
    sweep_at: usize,
}

/// One bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// The interval `tat` was computed with.
    pub(super) interval_us: u64,
    /// When the bucket is full again, were it left alone.
    pub(super) tat_us: u64,
    /// Forgotten from here on.
    pub(super) expires_us: u64,
    /// Virtual clocks of high, normal, low.
    pub(super) tags: [u64; 3],
    /// The virtual clock of the bucket: where a class that comes back starts.
    pub(super) v: u64,
    /// Each class counts as waiting until then.
    pub(super) active_until_us: [u64; 4],
    pub(super) ticket: Ticket,
    /// Turns by class: of destinations at an account, of accounts at a bucket they share, none elsewhere.
    pub(super) turns: Option<[Turns; 4]>,
}

/// Who may go first once the bucket has saved up enough.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ticket {
    pub(super) until_us: u64,
    /// 0 critical, 1 the others.
    pub(super) rank: u64,
    pub(super) holder: String,
}

/// Who takes turns in one class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Turns {
    pub(super) v: u64,
    pub(super) entries: Vec<Turn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) name: Arc<str>,
    pub(super) tag: u64,
    pub(super) until_us: u64,
}

impl State {
    /// A state that has seen no call: every bucket starts empty at the first one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Buckets remembered, forgotten ones not yet swept included.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// When this state began; a clock that stepped back starts it anew.
    pub(super) fn epoch_us(&mut self, now: u64) -> u64 {
        let epoch = self.epoch_us.filter(|e| *e <= now).unwrap_or(now);
        self.epoch_us = Some(epoch);
        epoch
    }

    /// The bucket as of `now`, in the units of `spec`.
    pub(super) fn load(&self, spec: &BucketSpec, epoch: u64, now: u64) -> Bucket {
        match self.buckets.get(&spec.key) {
            Some(b) if b.expires_us > now => {
                let mut b = b.clone();
                if b.interval_us != spec.interval_us {
                    if b.tat_us > now {
                        b.tat_us = now + rescale(b.tat_us - now, b.interval_us, spec.interval_us);
                    }
                    b.interval_us = spec.interval_us;
                }
                b
            }
            _ => Bucket {
                interval_us: spec.interval_us,
                tat_us: epoch + u64::from(spec.burst) * spec.interval_us,
                expires_us: 0,
                tags: [0; 3],
                v: 0,
                active_until_us: [0; 4],
                ticket: Ticket::default(),
                turns: None,
            },
        }
    }

    pub(super) fn store(&mut self, key: &Arc<str>, mut bucket: Bucket, now: u64) {
        bucket.expires_us = bucket.tat_us.max(now) + KEEP_US;
        self.buckets.insert(key.clone(), bucket);
        // Sweeping when the map has doubled costs nothing per bucket in the long run.
        if self.buckets.len() > self.sweep_at.max(1_024) {
            self.buckets.retain(|_, b| b.expires_us > now);
            self.sweep_at = self.buckets.len() * 2;
        }
    }
}

/// Time left until full, at another interval: the same tokens, rounded up.
///
/// The part of a token left over is scaled in units of 2ᵏ µs where an interval exceeds 2²⁶ µs, so that every product
/// stays below 2⁵³.
fn rescale(left: u64, old: u64, new: u64) -> u64 {
    let mut scale = 1;
    while old.max(new) > (1 << 26) * scale {
        scale *= 2;
    }
    let (whole, rest) = (left / old, left % old);
    let part = if rest == 0 {
        0
    } else if old < scale {
        new
    } else {
        let scaled = (rest.div_ceil(scale) * new.div_ceil(scale)).div_ceil(old / scale);
        new.min(scaled.saturating_mul(scale))
    };
    whole.saturating_mul(new).saturating_add(part).min(MAX_DEBT_US)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rescaling_keeps_the_tokens() {
        assert_eq!(rescale(0, 10, 20), 0);
        assert_eq!(rescale(25_000, 10_000, 20_000), 50_000);
        assert_eq!(rescale(50_000, 20_000, 10_000), 25_000);
        assert_eq!(rescale(1, 3, 1), 1);
        assert_eq!(rescale(MAX_DEBT_US, 1, MAX_DEBT_US), MAX_DEBT_US);
    }

    proptest! {
        #[test]
        fn rescaling_never_makes_tokens_and_hardly_loses_any(
            left in 0..4_000_000_000_u64, old in 1..100_000_000_000_u64, new in 1..100_000_000_000_u64,
        ) {
            let exact = u128::from(left) * u128::from(new);
            let got = u128::from(rescale(left, old, new)) * u128::from(old);
            prop_assume!(exact / u128::from(old) < u128::from(MAX_DEBT_US));
            prop_assert!(got >= exact);
            // At most one old-scale step in 2¹⁰ of a token, or one microsecond, or (very unlike intervals) one token.
            if old.max(new) <= (1 << 26) {
                prop_assert!(got - exact <= u128::from(old));
            } else {
                prop_assert!(got - exact <= u128::from(new) * u128::from(old));
            }
        }
    }
}
