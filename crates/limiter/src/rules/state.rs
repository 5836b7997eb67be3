//! What is remembered of a bucket between calls.

use std::{collections::HashMap, sync::Arc};

use super::{
    KEEP_US,
    leases::Leases,
    said::{Said, Saying},
    window::{Origin, Window},
};
use crate::{BucketSpec, Change, Kind, MAX_DEBT_US, bucket::slot_width};

/// All buckets of one fleet.
#[derive(Debug, Default)]
pub struct State {
    epoch: Option<Epoch>,
    buckets: HashMap<Arc<str>, Bucket>,
    sweep_at: usize,
    newest_us: u64,
}

/// When a state began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) at_us: u64,
    pub(super) past: Past,
}

/// What is known of the time before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// Nothing went before.
    None,
    /// There was another state, and it is lost.
    Lost,
    /// It was lost and has been told again.
    Told,
}

/// One bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// The interval and burst that `tat` was computed with; of a rate only.
    pub(super) interval_us: u64,
    pub(super) burst: u64,
    /// When the bucket is full again, were it left alone; of a rate only.
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
    /// Turns by class: of destinations at an account, of accounts at a rate they share, none elsewhere.
    pub(super) turns: Option<[Turns; 4]>,
    pub(super) more: More,
    pub(super) said: Said,
    /// The latest date granted, where that is ahead; of a rate only.
    pub(super) last_us: u64,
}

/// A bucket as it is for one ask.
pub(super) struct Loaded {
    pub(super) bucket: Bucket,
    /// What is in force.
    pub(super) kind: Kind,
    /// There is something to be remembered, whatever is granted.
    pub(super) dirty: bool,
}

/// What a bucket remembers by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum More {
    Rate,
    Window(Window),
    Slots(Leases),
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

    /// Says which generation is the newest that any live worker has; 0: not known.
    pub fn set_newest_generation(&mut self, generation_us: u64) {
        self.newest_us = generation_us;
    }

    /// When this state began; a clock that stepped back starts it anew. `known` is the epoch that the caller was last
    /// told, or 0; `told` says that all the past has been told now.
    pub(super) fn epoch(&mut self, known: u64, told: bool, now: u64) -> Epoch {
        let mut epoch = match self.epoch {
            None => Epoch { at_us: now, past: if known > 0 { Past::Lost } else { Past::None } },
            Some(e) if e.past == Past::None && known > 0 && known < e.at_us => Epoch { past: Past::Lost, ..e },
            Some(e) => e,
        };
        epoch.at_us = epoch.at_us.min(now);
        if told {
            epoch.past = Past::Told;
        }
        self.epoch = Some(epoch);
        epoch
    }

    /// The bucket as of `now`, in the units of what is in force.
    pub(super) fn load(&self, spec: &BucketSpec, generation_us: u64, change: Option<Change>, epoch: Epoch, now: u64) -> Loaded {
        let (mut bucket, known) = self.find(spec, epoch, now);
        let saying = Saying { generation_us, newest_us: self.newest_us, change };
        let (kind, news) = bucket.said.hear(spec.kind, saying, now);
        let changed = match kind {
            Kind::Rate { interval_us, burst, .. } => bucket.set_rate(interval_us, u64::from(burst), now),
            Kind::Window { .. } | Kind::Slots { .. } => false,
        };
        // A bucket that nobody remembers is not written down for what was said of it, unless that is that it is closed.
        let dirty = changed || (news && (known || bucket.said.opens_us(now).is_some()));
        Loaded { bucket, kind, dirty }
    }

    /// What is remembered of the bucket, or how it begins; and which of them it is.
    fn find(&self, spec: &BucketSpec, epoch: Epoch, now: u64) -> (Bucket, bool) {
        let known = self.buckets.get(&spec.key);
        let foreign = known.is_some_and(|b| !b.fits(spec));
        let known = known.filter(|b| !foreign && b.expires_us > now);
        match spec.kind {
            Kind::Rate { interval_us, burst, .. } => match known {
                Some(b) => (b.clone(), true),
                None => {
                    let empty_at = if foreign { now } else { epoch.at_us };
                    let burst = u64::from(burst);
                    let empty = Bucket::new(interval_us, empty_at + burst * interval_us, More::Rate);
                    (Bucket { burst, ..empty }, false)
                }
            },
            Kind::Window { length_us, limit, .. } => {
                let was_known = known.is_some();
                let mut b = known.cloned().unwrap_or_else(|| {
                    let window = if foreign {
                        Window::new(length_us, now, limit, Origin::Found)
                    } else if epoch.past == Past::Lost && epoch.at_us + length_us > now {
                        Window::new(length_us, now, 0, Origin::Unknown(epoch.at_us / slot_width(length_us)))
                    } else {
                        Window::new(length_us, now, 0, Origin::Found)
                    };
                    Bucket::new(0, 0, More::Window(window))
                });
                if let More::Window(window) = &mut b.more {
                    if epoch.past != Past::Lost {
                        window.found();
                    }
                    window.advance(now);
                }
                (b, was_known)
            }
            Kind::Slots { .. } => {
                (known.cloned().unwrap_or_else(|| Bucket::new(0, 0, More::Slots(Leases::default()))), known.is_some())
            }
        }
    }

    /// What was granted here and would be missing elsewhere: tokens that a rate lacks of its burst, what a window has
    /// granted, calls under way.
    pub(crate) fn owed(&self, key: &str, now: u64) -> u64 {
        match self.buckets.get(key) {
            None => 0,
            Some(b) => match &b.more {
                More::Rate => b.tat_us.saturating_sub(now).div_ceil(b.interval_us.max(1)),
                More::Window(window) => window.spent(),
                More::Slots(leases) => leases.used(),
            },
        }
    }

    /// What a window has granted, slot by slot.
    pub(crate) fn slots_of(&self, key: &str) -> Vec<(u64, u64)> {
        match self.buckets.get(key).map(|b| &b.more) {
            Some(More::Window(window)) => window.slots(),
            _ => Vec::new(),
        }
    }

    pub(super) fn store(&mut self, key: &Arc<str>, mut bucket: Bucket, now: u64) {
        let needed_until = match &mut bucket.more {
            More::Rate => bucket.tat_us.max(now),
            More::Window(window) => now + window.life_us(),
            More::Slots(leases) => leases.tidy().unwrap_or(now).max(now),
        };
        let told_until = if bucket.said.shut_since_us > 0 { bucket.said.lapses_us } else { 0 };
        if bucket.last_us <= now {
            bucket.last_us = 0;
        }
        bucket.expires_us = needed_until.max(told_until) + KEEP_US;
        self.buckets.insert(key.clone(), bucket);
        // Sweeping when the map has doubled costs nothing per bucket in the long run.
        if self.buckets.len() > self.sweep_at.max(1_024) {
            self.buckets.retain(|_, b| b.expires_us > now);
            self.sweep_at = self.buckets.len() * 2;
        }
    }
}

impl Bucket {
    fn new(interval_us: u64, tat_us: u64, more: More) -> Self {
        Bucket {
            interval_us,
            burst: 0,
            tat_us,
            expires_us: 0,
            tags: [0; 3],
            v: 0,
            active_until_us: [0; 4],
            ticket: Ticket::default(),
            turns: None,
            more,
            said: Said::default(),
            last_us: 0,
        }
    }

    /// Another rate or burst: the tokens stay, but for those that a smaller burst has no room for. None are made, however
    /// often it changes to and fro; what was lacking of a larger burst is not lacking of a smaller one. A faster one starts
    /// after the last grant, or that would go in a burst with others; so does a smaller burst, and then without tokens. Whether
    /// it is another.
    fn set_rate(&mut self, interval_us: u64, burst: u64, now: u64) -> bool {
        if self.interval_us == interval_us && self.burst == burst {
            return false;
        }
        let smaller = burst < self.burst;
        let from = if interval_us < self.interval_us || smaller { now.max(self.last_us) } else { now };
        let lacking = self.tat_us.saturating_sub(from);
        let no_room = self.burst.saturating_sub(burst) * self.interval_us;
        let new_room = burst.saturating_sub(self.burst) * interval_us;
        let none = if smaller && from > now { burst * interval_us } else { 0 };
        let left = (rescale(lacking.saturating_sub(no_room), self.interval_us, interval_us) + new_room).max(none);
        if lacking > 0 || left > 0 {
            self.tat_us = from + left.min(MAX_DEBT_US);
        }
        (self.interval_us, self.burst) = (interval_us, burst);
        true
    }

    /// Whether this is the state of such a bucket.
    fn fits(&self, spec: &BucketSpec) -> bool {
        match (spec.kind, &self.more) {
            (Kind::Rate { .. }, More::Rate) | (Kind::Slots { .. }, More::Slots(_)) => true,
            (Kind::Window { length_us, .. }, More::Window(w)) => w.length_us == length_us,
            _ => false,
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

    fn lacking(lacking_us: u64, interval_us: u64, burst: u64) -> Bucket {
        Bucket { burst, ..Bucket::new(interval_us, 1_000 + lacking_us, More::Rate) }
    }

    #[test]
    fn another_rate_makes_no_tokens_and_loses_none_it_has_room_for() {
        let left = |mut bucket: Bucket, interval_us, burst| {
            assert!(bucket.set_rate(interval_us, burst, 1_000));
            bucket.tat_us.saturating_sub(1_000)
        };
        // Two of ten are left.
        assert_eq!(left(lacking(80, 10, 10), 30, 10), 240);
        assert_eq!(left(lacking(80, 10, 10), 10, 3), 10, "two of three");
        assert_eq!(left(lacking(80, 10, 10), 20, 1), 0, "one of one");
        assert_eq!(left(lacking(80, 10, 10), 1, 20), 18);
        assert_eq!(left(lacking(0, 10, 10), 10, 11), 10, "full, and room for one more");
        assert_eq!(left(lacking(130, 10, 10), 20, 5), 160, "three are owed");
        // What nothing limits, in the first second of its state, and then one probe every half second.
        assert_eq!(left(lacking(900_000, 1, 1_000_000), 500_000, 1), 0);
        let mut bucket = lacking(100, 10, 10);
        for _ in 0..9 {
            bucket.set_rate(500, 1, 1_000);
            bucket.set_rate(10, 10, 1_000);
        }
        assert_eq!(bucket.tat_us, 1_100, "to and fro");
        let ahead = Bucket { last_us: 1_050, ..lacking(70, 10, 10) };
        assert_eq!(left(ahead, 20, 2), 50 + 40, "eight left, and some granted for later");
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
