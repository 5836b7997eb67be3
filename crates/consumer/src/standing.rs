//! What is in force at each limit just now, beside what is configured: what was learnt, what operators ordered, what a
//! provider asked for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use paceline_limiter::Kind;

/// Who says so. Each speaks for itself; the strictest holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A provider's Retry-After.
    Asked,
    /// Circuits, adaptive rates, warm-up.
    Learnt,
    /// Pauses and limits that operators set.
    Ordered,
}

/// What is different at one limit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Effect {
    /// Nothing goes before this, on the limiter's clock; `u64::MAX`: until told otherwise; 0: open.
    pub(crate) closed_until_us: u64,
    /// When this came about, on the limiter's clock, as everybody knows it who knows of it: the limiter then brings it into
    /// force for the whole fleet at the first ask. 0: it concerns this worker only.
    pub(crate) since_us: u64,
    /// Recipients a second, in place of what is configured.
    pub(crate) rate_per_s: Option<f64>,
    /// Nothing is saved up: probes go one at a time.
    pub(crate) no_burst: bool,
    /// Calls at a time, in place of what is configured.
    pub(crate) slots: Option<u32>,
}

/// Every effect in force, by the key of its bucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    by_source: HashMap<Source, HashMap<Arc<str>, Effect>>,
}

impl Standing {
    /// Takes all that `source` says now, in place of what it said before; returns the keys at which that is a change.
    pub(crate) fn set(&mut self, source: Source, effects: HashMap<Arc<str>, Effect>) -> Vec<Arc<str>> {
        let before = self.by_source.insert(source, effects).unwrap_or_default();
        let now = &self.by_source[&source];
        let gone = before.keys().filter(|k| !now.contains_key(*k)).cloned();
        let new = now.iter().filter(|(k, e)| before.get(*k) != Some(e)).map(|(k, _)| k.clone());
        gone.chain(new).collect()
    }

    /// Closes one bucket for the fleet because `source` says so, no shorter than it was, and forgets what it had closed
    /// until before now.
    pub(crate) fn close(&mut self, source: Source, key: Arc<str>, until_us: u64, now_us: u64) {
        let effects = self.by_source.entry(source).or_default();
        effects.retain(|_, e| e.closed_until_us > now_us);
        let effect = effects.entry(key).or_default();
        if until_us > effect.closed_until_us {
            *effect = Effect { closed_until_us: until_us, since_us: now_us, ..Effect::default() };
        }
    }

    /// Whether nobody says anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_source.values().all(HashMap::is_empty)
    }

    /// Every bucket of which something is said.
    pub(crate) fn keys(&self) -> Vec<Arc<str>> {
        let keys: HashSet<&Arc<str>> = self.by_source.values().flat_map(HashMap::keys).collect();
        keys.into_iter().cloned().collect()
    }

    /// What all of them come to at a bucket: closed for as long as anybody says, and the slowest that anybody says.
    pub(crate) fn at(&self, key: &str) -> Effect {
        self.of(key, |_| true)
    }

    /// The same, of what concerns this worker only.
    pub(crate) fn own(&self, key: &str) -> Effect {
        self.of(key, |effect| effect.since_us == 0)
    }

    /// The same, of what concerns the whole fleet.
    pub(crate) fn shared(&self, key: &str) -> Effect {
        self.of(key, |effect| effect.since_us > 0)
    }

    fn of(&self, key: &str, wanted: fn(&Effect) -> bool) -> Effect {
        let said = self.by_source.values().filter_map(|effects| effects.get(key)).filter(|e| wanted(e));
        said.fold(Effect::default(), |a, b| Effect {
            closed_until_us: a.closed_until_us.max(b.closed_until_us),
            since_us: a.since_us.max(b.since_us),
            rate_per_s: least(a.rate_per_s, b.rate_per_s),
            no_burst: a.no_burst || b.no_burst,
            slots: a.slots.into_iter().chain(b.slots).min(),
        })
    }

    /// What each says of a bucket.
    pub(crate) fn by(&self, key: &str) -> impl Iterator<Item = (Source, Effect)> {
        self.by_source.iter().filter_map(move |(source, effects)| Some((*source, *effects.get(key)?)))
    }

    /// Whether nothing goes through the bucket at that moment of the limiter's clock.
    pub(crate) fn closed(&self, key: &str, now_us: u64) -> bool {
        self.at(key).closed_until_us > now_us
    }
}

fn least(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::min)
}

impl Effect {
    /// The bucket as it is now; `None`: as configured.
    pub(crate) fn kind(&self, configured: Kind) -> Option<Kind> {
        match configured {
            Kind::Rate { interval_us, burst, reserve, shared } if self.rate_per_s.is_some() || self.no_burst => {
                let was_us = interval_us;
                let interval_us = self.rate_per_s.map_or(interval_us, |r| (1e6 / r).ceil().clamp(1.0, 1e12) as u64);
                // A faster rate saves up no more than a second of itself, unless it was configured to; a slower one no
                // longer than it was configured to, or it would still be fast for a while.
                let second = u32::try_from(1_000_000 / interval_us).unwrap_or(u32::MAX).max(1);
                let as_long = u64::from(burst).saturating_mul(was_us) / interval_us;
                let most = match self.no_burst {
                    true => 1,
                    false if interval_us > was_us => u32::try_from(as_long).unwrap_or(u32::MAX).max(1),
                    false => burst.max(second),
                };
                let reserve = u64::from(reserve) * u64::from(most) / u64::from(burst.max(1));
                let reserve = u32::try_from(reserve).unwrap_or(u32::MAX).min(most - 1);
                Some(Kind::Rate { interval_us, burst: most, reserve, shared })
            }
            Kind::Slots { limit, life_us } => {
                let fewer = self.slots.map(|n| n.clamp(1, limit)).filter(|n| *n != limit);
                fewer.map(|limit| Kind::Slots { limit, life_us })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_s: f64) -> Effect {
        Effect { rate_per_s: Some(per_s), ..Effect::default() }
    }

    #[test]
    fn the_strictest_holds_and_each_speaks_for_itself() {
        let mut standing = Standing::default();
        let all = |effect| HashMap::from([("a".into(), effect)]);
        let at_a: Vec<Arc<str>> = vec!["a".into()];
        assert_eq!(standing.set(Source::Learnt, all(rate(5.0))), at_a);
        assert_eq!(standing.set(Source::Learnt, all(rate(5.0))), Vec::<Arc<str>>::new());
        standing.set(Source::Ordered, all(Effect { closed_until_us: 9, ..rate(7.0) }));
        assert_eq!(standing.at("a"), Effect { closed_until_us: 9, ..rate(5.0) });
        assert!(standing.closed("a", 8) && !standing.closed("a", 9) && !standing.closed("b", 0));
        assert_eq!(standing.set(Source::Learnt, HashMap::new()), at_a);
        assert_eq!(standing.at("a").rate_per_s, Some(7.0));
        standing.set(Source::Asked, all(Effect { closed_until_us: 5, since_us: 3, ..Effect::default() }));
        let (own, shared) = (standing.own("a"), standing.shared("a"));
        assert_eq!((own.closed_until_us, own.rate_per_s, own.since_us), (9, Some(7.0), 0));
        assert_eq!((shared.closed_until_us, shared.rate_per_s, shared.since_us), (5, None, 3));
    }

    #[test]
    fn what_is_asked_for_is_never_shortened_and_forgotten_when_over() {
        let mut standing = Standing::default();
        standing.close(Source::Asked, "a".into(), 9, 1);
        standing.close(Source::Asked, "a".into(), 5, 2);
        assert_eq!((standing.at("a").closed_until_us, standing.shared("a").since_us), (9, 1));
        standing.close(Source::Asked, "b".into(), 20, 10);
        assert_eq!(standing.at("a"), Effect::default());
        assert!(!standing.is_empty() && standing.closed("b", 19));
    }

    #[test]
    fn a_bucket_as_it_is_now() {
        let configured = Kind::Rate { interval_us: 10_000, burst: 200, reserve: 40, shared: false };
        assert_eq!(Effect::default().kind(configured), None);
        let slower = Kind::Rate { interval_us: 500_000, burst: 4, reserve: 0, shared: false };
        assert_eq!(rate(2.0).kind(configured), Some(slower));
        let faster = Kind::Rate { interval_us: 1_000, burst: 1_000, reserve: 200, shared: false };
        assert_eq!(rate(1_000.0).kind(configured), Some(faster));
        let probing = Kind::Rate { interval_us: 500_000, burst: 1, reserve: 0, shared: false };
        assert_eq!(Effect { no_burst: true, ..rate(2.0) }.kind(configured), Some(probing));
        let slots = Kind::Slots { limit: 7, life_us: 5 };
        let fewer = |n| Effect { slots: Some(n), ..Effect::default() }.kind(slots);
        assert_eq!((fewer(3), fewer(7), fewer(9)), (Some(Kind::Slots { limit: 3, life_us: 5 }), None, None));
    }
}
