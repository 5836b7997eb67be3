//! What is in force at a bucket, whoever asks.
//!
//! Workers of one fleet may know different things: another configuration during a deploy, a pause or a cut rate that others
//! have not heard of yet. A bucket remembers the newest that was said of it, and every ask is served by that:
//!
//! - of configured numbers, those of the newest *generation*, as long as a live worker has it; within one generation, the
//!   latest change;
//! - of closures the latest, whatever its generation; of two as late as each other, the one that lasts longer. Who says
//!   nothing of closures changes none.
//!
//! What changed is forgotten when nobody has said it again for three minutes: nobody who lives knows of it.

use super::STAND_US;
use crate::{Change, Kind};

/// What a bucket remembers of what it was told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Said {
    /// Whose numbers hold, and since which change of theirs; 0: nobody's.
    generation_us: u64,
    since_us: u64,
    numbers: Numbers,
    /// The latest word on whether it is closed; 0: none.
    pub(super) shut_since_us: u64,
    shut_until_us: u64,
    /// What changed is forgotten from here on.
    pub(super) lapses_us: u64,
}

/// What one ask says, its kind apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saying {
    pub(super) generation_us: u64,
    /// The newest generation of any live worker; 0: not known.
    pub(super) newest_us: u64,
    pub(super) change: Option<Change>,
}

/// What of a [`Kind`] another configuration may say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Numbers {
    interval_us: u64,
    /// A burst or a limit.
    most: u64,
    reserve: u64,
}

impl Said {
    /// Takes what an ask says; returns what holds, and whether there is something new to be remembered.
    pub(super) fn hear(&mut self, asked: Kind, saying: Saying, now: u64) -> (Kind, bool) {
        let Saying { generation_us: generation, newest_us: newest, change } = saying;
        if newest > 0 && self.generation_us > newest {
            (self.generation_us, self.since_us) = (0, 0);
        }
        if self.lapses_us <= now {
            // Its numbers give way to those of the same generation, not to an older one's.
            self.generation_us = self.generation_us.saturating_sub(u64::from(self.since_us > 0));
            (self.since_us, self.shut_since_us, self.shut_until_us, self.lapses_us) = (0, 0, 0, 0);
        }
        let mut news = false;
        let (since, until) = change.map_or((0, 0), |c| (c.since_us, c.closed_until_us));
        if since > 0 {
            if (since, until) > (self.shut_since_us, self.shut_until_us) {
                self.shut_since_us = since;
                // Who closes nothing opens nothing: another cut rate is no word on what a provider asked for.
                if until > 0 {
                    self.shut_until_us = until;
                }
                news = true;
            }
            if since == self.shut_since_us && self.lapses_us < now + STAND_US / 2 {
                self.lapses_us = now + STAND_US;
                news = true;
            }
        }
        let own = change.is_some_and(|c| c.since_us == 0);
        let alive = newest == 0 || generation <= newest;
        if generation == 0 || own || (!alive && self.generation_us == 0) {
            return (asked, news);
        }
        if alive && (generation, since) > (self.generation_us, self.since_us) {
            (self.generation_us, self.since_us) = (generation, since);
            self.numbers = Numbers::of(asked);
            return (asked, true);
        }
        (self.numbers.of_kind(asked), news)
    }

    /// From when on it is open, if it is closed.
    pub(super) fn opens_us(&self, now: u64) -> Option<u64> {
        (self.shut_until_us > now).then_some(self.shut_until_us)
    }
}

impl Numbers {
    fn of(kind: Kind) -> Self {
        let (interval_us, most, reserve) = match kind {
            Kind::Rate { interval_us, burst, reserve, .. } => (interval_us, u64::from(burst), u64::from(reserve)),
            Kind::Window { limit, reserve, .. } => (0, limit, reserve),
            Kind::Slots { limit, .. } => (0, u64::from(limit), 0),
        };
        Numbers { interval_us, most, reserve }
    }

    /// `kind` with these numbers, which came from one of its sort.
    fn of_kind(self, kind: Kind) -> Kind {
        let Numbers { interval_us, most, reserve } = self;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match kind {
            Kind::Rate { shared, .. } => Kind::Rate { interval_us, burst: small(most), reserve: small(reserve), shared },
            Kind::Window { length_us, .. } => Kind::Window { length_us, limit: most, reserve },
            Kind::Slots { life_us, .. } => Kind::Slots { limit: small(most), life_us },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_000_000_000;

    fn slots(limit: u32) -> Kind {
        Kind::Slots { limit, life_us: 5 }
    }

    fn saying(generation_us: u64, since_us: u64) -> Saying {
        let change = (since_us > 0).then_some(Change { bucket: 0, since_us, closed_until_us: 0 });
        Saying { generation_us, newest_us: 0, change }
    }

    #[test]
    fn the_newest_configuration_holds_whoever_asks() {
        let mut said = Said::default();
        assert_eq!(said.hear(slots(1), saying(100, 0), T), (slots(1), true));
        assert_eq!(said.hear(slots(2), saying(300, 0), T), (slots(2), true));
        assert_eq!(said.hear(slots(1), saying(100, 0), T), (slots(2), false));
        assert_eq!(said.hear(slots(1), saying(100, 500), T).0, slots(2), "an old one does not know what its change means now");
        assert_eq!(said.hear(slots(7), saying(0, 0), T), (slots(7), false), "who knows of none is served as asked");
        assert_eq!(said.hear(slots(1), saying(300, 600), T).0, slots(1));
        assert_eq!(said.hear(slots(2), saying(300, 0), T).0, slots(1), "one that has not heard of the change yet");
        assert_eq!(said.hear(slots(1), saying(100, 0), T + STAND_US).0, slots(1), "nobody knows of the change any more");
        assert_eq!(said.hear(slots(2), saying(300, 0), T + STAND_US).0, slots(2));
        assert_eq!(said.hear(slots(1), saying(100, 0), T + STAND_US).0, slots(2));
        let newer = saying(300, 601);
        assert_eq!(said.hear(slots(3), newer, T + STAND_US).0, slots(3));
        assert_eq!(said.hear(slots(2), saying(300, 0), T + 2 * STAND_US - 1), (slots(3), false));
    }

    #[test]
    fn a_configuration_that_no_live_worker_has_holds_no_more() {
        let mut said = Said::default();
        said.hear(slots(2), saying(300, 0), T);
        let alive = |generation_us| Saying { generation_us, newest_us: 100, change: None };
        assert_eq!(said.hear(slots(2), alive(300), T), (slots(2), false), "its last ask is served, and not remembered");
        assert_eq!(said.hear(slots(1), alive(100), T), (slots(1), true));
        assert_eq!(said.hear(slots(2), alive(300), T), (slots(1), false));
    }

    #[test]
    fn closed_and_opened_by_the_latest_word() {
        let mut said = Said::default();
        let mut say = |generation_us, since_us, closed_until_us, now| {
            let change = Some(Change { bucket: 0, since_us, closed_until_us });
            said.hear(slots(1), Saying { generation_us, newest_us: 0, change }, now);
            said.opens_us(now)
        };
        assert_eq!(say(300, 10, T + 50, T), Some(T + 50));
        assert_eq!(say(400, 9, 0, T), Some(T + 50), "who has not heard of it");
        assert_eq!(say(100, 10, T + 70, T), Some(T + 70), "of two as late the longer");
        assert_eq!(say(100, 10, 0, T + 1), Some(T + 70));
        assert_eq!(say(100, 11, 0, T + 2), Some(T + 70), "nothing is said of that");
        assert_eq!(say(100, 11, 1, T + 2), Some(T + 70), "no later than what stands");
        assert_eq!(say(100, 12, 1, T + 2), None, "open");
        assert_eq!(say(300, 10, T + 50, T + 3), None);
        assert_eq!(say(300, 13, crate::FOREVER_US, T + 4), Some(crate::FOREVER_US));
        assert_eq!(say(300, 11, 0, T + 4 + STAND_US / 2 + 1), Some(crate::FOREVER_US), "it stands unless nobody says it again");
        assert_eq!(say(300, 11, 0, T + 4 + STAND_US), None);
    }
}
