//! Who is in the fleet, and which part of every limit is whose while it cannot see the others. `census.lua` says the
//! same in Redis.
//!
//! Every worker holds a *share*, in millionths, that it may go by when it is cut off; all shares that anybody may
//! believe in add up to at most one, so whatever is cut off from whatever, no limit is handed out twice. A worker whose
//! heartbeat stopped keeps its share until it must have stopped by itself. Then it is *gone*: only windows leave its share
//! out, for as long as they are, since what it sent still counts there; or until it is back and has told.
//!
//! A state that has lost the one before it knows whose shares there were only from those who come back. Until all they know
//! of are back, and one of them who was not forgotten meanwhile, all that none of them holds counts as somebody's.

use std::{collections::BTreeMap, sync::Arc};

/// All of a limit, in the units of shares.
pub const WHOLE: u64 = 1_000_000;

/// Who is gone is remembered for so long: a little longer than any window that can be configured.
pub(super) const GONE_US: u64 = 90_000_000_000;

/// A worker says that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    pub worker: Arc<str>,
    /// It counts as live for so long.
    pub life_us: u64,
    /// How long it would go on by itself after that.
    pub away_us: u64,
    /// When it believes this to arrive, or 0: a beat that was held up on its way counts for nothing.
    pub expected_us: u64,
    pub late_us: u64,
    /// The [`Census::since_us`] it was told, or 0.
    pub since_us: u64,
    /// The share it would go by now.
    pub believes: u64,
    pub version: u64,
    /// When the limiter last answered it, or 0.
    pub saw_us: u64,
    /// The others may have forgotten it by then, and share what was its own: it does not know who holds what.
    pub stale: bool,
    /// Who it knows of, with their shares.
    pub members: Vec<(Arc<str>, u64)>,
}

/// The answer to a [`Beat`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    pub now_us: u64,
    /// The beat came too late; nothing else here means anything.
    pub late: bool,
    /// When this state began.
    pub since_us: u64,
    pub version: u64,
    /// Live workers, the asker included.
    pub live: u64,
    /// Shares of all others that are not heard of any more.
    pub lost: u64,
    /// Since when who is gone has stopped, and its share.
    pub gone: Vec<(u64, u64)>,
    /// The asker's own.
    pub share: u64,
    /// When a state before this one was last seen, by those who knew it and have said so.
    pub saw_us: u64,
    /// So many knew it and have not.
    pub untold: u64,
    /// Everybody, where state and version are not those known.
    pub members: Vec<(Arc<str>, u64)>,
}

/// The reference of `census.lua`.
#[derive(Debug, Default)]
pub struct Book {
    since_us: Option<u64>,
    version: u64,
    members: BTreeMap<Arc<str>, Member>,
    /// Since when, and its share.
    gone: BTreeMap<Arc<str>, (u64, u64)>,
    saw_us: u64,
    /// Who knew a state before this one, and whether it has said so.
    knew: BTreeMap<Arc<str>, bool>,
    /// One of them was not stale.
    sure: bool,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    until_us: u64,
    forget_us: u64,
    share: u64,
}

impl Book {
    /// Takes a beat at `now`.
    pub fn beat(&mut self, beat: &Beat, now: u64) -> Census {
        if beat.expected_us > 0 && now > beat.expected_us + beat.late_us {
            return Census { now_us: now, late: true, ..Census::default() };
        }
        let before = self.members.len();
        for (name, m) in self.members.extract_if(.., |_, m| m.forget_us <= now).filter(|(_, m)| m.share > 0) {
            self.gone.insert(name, (m.forget_us, m.share));
        }
        self.gone.retain(|name, (since, _)| *since + GONE_US > now && *name != beat.worker);
        let mut changed = self.members.len() != before;
        let since_us = *self.since_us.get_or_insert(now);
        if beat.since_us > 0 && since_us > beat.since_us {
            self.saw_us = self.saw_us.max(beat.saw_us.min(since_us));
            self.knew.insert(beat.worker.clone(), true);
            self.sure |= !beat.stale;
            for (name, share) in beat.members.iter().filter(|(name, _)| *name != beat.worker) {
                self.knew.entry(name.clone()).or_default();
                self.members.entry(name.clone()).or_insert_with(|| {
                    changed = true;
                    Member { until_us: 0, forget_us: now + beat.life_us + beat.away_us, share: *share }
                });
            }
        }
        let others = || self.members.iter().filter(|(name, _)| **name != beat.worker).map(|(_, m)| m);
        let live = 1 + others().filter(|m| m.until_us > now).count() as u64;
        let mut lost: u64 = others().filter(|m| m.until_us <= now).map(|m| m.share).sum();
        let taken: u64 = others().map(|m| m.share).sum();
        let mut share = (WHOLE.saturating_sub(lost) / live).min(WHOLE.saturating_sub(taken));
        let untold = self.knew.values().filter(|said| !**said).count() as u64;
        // Whoever goes by an older state has stopped after that time.
        let unsure = !self.knew.is_empty() && (untold > 0 || !self.sure);
        if unsure && now < since_us + beat.life_us + beat.away_us {
            let held: u64 = others().filter(|m| m.until_us > now).map(|m| m.share).sum();
            lost = WHOLE.saturating_sub(held + beat.believes);
            share = beat.believes;
        }
        let until_us = now + beat.life_us;
        // Until it has said that it knows of its new share, it may go by the one before.
        let me = Member { until_us, forget_us: until_us + beat.away_us, share: share.max(beat.believes) };
        changed |= self.members.insert(beat.worker.clone(), me).is_none_or(|m| m.share != me.share);
        self.version += u64::from(changed);
        // Another state counts its versions anew.
        let members = match self.version == beat.version && since_us == beat.since_us {
            true => Vec::new(),
            false => self.members.iter().map(|(name, m)| (name.clone(), m.share)).collect(),
        };
        let mut gone: Vec<(u64, u64)> = self.gone.values().copied().collect();
        gone.sort_unstable();
        let (version, saw_us) = (self.version, self.saw_us);
        Census { now_us: now, late: false, since_us, version, live, lost, gone, share, saw_us, untold, members }
    }

    #[cfg(test)]
    pub(super) fn since_us(&self) -> u64 {
        self.since_us.unwrap_or(0)
    }

    /// Takes a worker out that has ended in order.
    pub fn leave(&mut self, worker: &str) {
        self.gone.remove(worker);
        self.version += u64::from(self.members.remove(worker).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(worker: &str, believes: u64) -> Beat {
        Beat {
            worker: worker.into(),
            life_us: 4,
            away_us: 100,
            expected_us: 0,
            late_us: 0,
            since_us: 0,
            believes,
            version: 0,
            saw_us: 0,
            stale: false,
            members: vec![],
        }
    }

    #[test]
    fn what_is_given_to_a_new_worker_is_first_given_back_by_the_others() {
        let mut book = Book::default();
        assert_eq!(book.beat(&beat("a", 0), 1).share, WHOLE);
        assert_eq!(book.beat(&beat("b", 0), 1).share, 0);
        assert_eq!(book.beat(&beat("a", WHOLE), 2).share, WHOLE / 2);
        assert_eq!(book.beat(&beat("b", 0), 2).share, 0, "a may not have heard it");
        assert_eq!(book.beat(&beat("a", WHOLE / 2), 3).share, WHOLE / 2);
        assert_eq!(book.beat(&beat("b", 0), 3).share, WHOLE / 2);
    }

    #[test]
    fn who_is_not_heard_of_keeps_its_share_until_it_is_forgotten() {
        let mut book = Book::default();
        for _ in 0..3 {
            let a = book.beat(&beat("a", 0), 1).share;
            book.beat(&beat("b", 0), 1);
            book.beat(&beat("a", a), 1);
        }
        let census = book.beat(&beat("a", WHOLE / 2), 5);
        assert_eq!((census.live, census.lost, census.share), (1, WHOLE / 2, WHOLE / 2));
        let census = book.beat(&beat("a", WHOLE / 2), 105);
        assert_eq!((census.live, census.lost, census.share, census.gone), (1, 0, WHOLE, vec![(105, WHOLE / 2)]));
        assert_eq!(book.beat(&beat("b", 0), 106).gone, []);
        book.leave("b");
        book.leave("a");
        assert_eq!(book.beat(&beat("c", 0), 106).share, WHOLE);
    }

    #[test]
    fn a_late_beat_counts_for_nothing_and_a_new_state_hears_who_there_was() {
        let mut book = Book::default();
        let late = Beat { expected_us: 5, late_us: 2, ..beat("a", 0) };
        assert!(!book.beat(&late, 7).late && book.beat(&late, 8).late);
        let mut book = Book::default();
        let members = vec![("a".into(), 1), ("b".into(), 400_000)];
        let back = Beat { since_us: 3, saw_us: 6, members, ..beat("a", 0) };
        let census = book.beat(&back, 9);
        assert_eq!((census.live, census.lost, census.share, census.members.len()), (1, WHOLE, 0, 2), "b may have more by now");
        assert_eq!((census.saw_us, census.untold), (6, 1));
        let census = book.beat(&Beat { since_us: 3, saw_us: 7, ..beat("b", 500_000) }, 10);
        assert_eq!((census.saw_us, census.untold, census.lost, census.share), (7, 0, 0, 500_000));
        let census = book.beat(&Beat { since_us: 9, saw_us: 11, ..beat("b", 0) }, 12);
        assert_eq!((census.saw_us, census.untold), (7, 0), "that was here");
    }

    #[test]
    fn who_was_forgotten_does_not_know_who_holds_what() {
        let mut book = Book::default();
        let members = vec![("a".into(), 250_000), ("b".into(), 250_000)];
        let stale = Beat { since_us: 3, stale: true, members, ..beat("a", 0) };
        let lost = |census: Census| (census.untold, census.lost, census.share);
        assert_eq!(lost(book.beat(&stale, 9)), (1, WHOLE, 0));
        let other = Beat { since_us: 3, stale: true, ..beat("b", 0) };
        assert_eq!(lost(book.beat(&other, 9)), (0, WHOLE, 0), "there may be one that neither knows");
        let here = Beat { since_us: 9, ..beat("b", 0) };
        assert_eq!(lost(book.beat(&here, 9 + 104)), (0, 0, WHOLE), "that one has stopped by now");
        let mut book = Book::default();
        book.beat(&stale, 9);
        let fresh = Beat { since_us: 3, ..beat("b", 750_000) };
        assert_eq!(lost(book.beat(&fresh, 9)), (0, 0, 500_000));
    }

    #[test]
    fn who_there_is_is_told_to_whoever_knows_another_state() {
        let mut book = Book::default();
        book.beat(&beat("a", 0), 9);
        let of = |since_us, version| Beat { since_us, version, ..beat("b", 0) };
        let told = book.beat(&of(0, 0), 9);
        assert_eq!(told.members.len(), 2);
        assert_eq!(book.beat(&of(9, told.version), 9).members, []);
        assert_eq!(book.beat(&of(3, told.version), 9).members.len(), 2, "a version of before the loss");
    }
}
