//! What a worker counts for whoever looks at its lanes: calls under way, what was accepted, and what was said where.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use paceline_core::{
    Outcome,
    diagnosis::{NOW_S, Tally},
    lanes::WorkerReport,
};
use tokio::{sync::watch, time::Instant};

/// What is counted, and the report that is made of it.
#[derive(Debug)]
pub(crate) struct Board {
    start: Instant,
    /// By the lane's place in the worker.
    lanes: Mutex<HashMap<usize, Counts>>,
    /// By the account's place and the destination.
    places: Mutex<HashMap<(usize, Arc<str>), Minutes>>,
    pub(crate) report: watch::Sender<Arc<WorkerReport>>,
}

/// Of one lane, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) under_way: u64,
    pub(crate) accepted: u64,
}

/// What was said at one place, minute by minute, for an hour.
#[derive(Debug, Default)]
struct Minutes(VecDeque<(u64, Tally)>);

/// Minutes that [`NOW_S`] covers, and that are kept at all.
const NOW: u64 = NOW_S / 60;
const KEPT: u64 = 60;

/// A granted message, counted until its handler ends.
pub(crate) struct UnderWay {
    board: Arc<Board>,
    lane: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.board.lane(self.lane, |counts| counts.under_way = counts.under_way.saturating_sub(1));
    }
}

/// Of one place: the last minutes and those before, with the seconds that were watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spans {
    pub(crate) now: Tally,
    pub(crate) now_s: u64,
    pub(crate) before: Tally,
    pub(crate) before_s: u64,
}

impl Board {
    pub(crate) fn new() -> Arc<Board> {
        let (lanes, places) = (Mutex::default(), Mutex::default());
        Arc::new(Board { start: Instant::now(), lanes, places, report: watch::Sender::default() })
    }

    fn lane<T>(&self, lane: usize, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(self.lanes.lock().unwrap_or_else(PoisonError::into_inner).entry(lane).or_default())
    }

    /// A message of the lane has its grant.
    pub(crate) fn begin(self: &Arc<Self>, lane: usize) -> UnderWay {
        self.lane(lane, |counts| counts.under_way += 1);
        UnderWay { board: self.clone(), lane }
    }

    /// A call has ended.
    pub(crate) fn ended(&self, lane: usize, account: usize, destination: &Arc<str>, outcome: &Outcome) {
        if matches!(outcome.chief(), Outcome::Accepted { .. }) {
            self.lane(lane, |counts| counts.accepted += 1);
        }
        let minute = self.start.elapsed().as_secs() / 60;
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry((account, destination.clone())).or_default().at(minute).count(outcome);
    }

    pub(crate) fn counts(&self, lane: usize) -> Counts {
        self.lane(lane, |counts| *counts)
    }

    /// Every place of which anything was heard within the hour.
    pub(crate) fn places(&self) -> Vec<(usize, Arc<str>, Spans)> {
        let elapsed_s = self.start.elapsed().as_secs();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, minutes| minutes.0.back().is_some_and(|(last, _)| last + KEPT > elapsed_s / 60));
        places.iter().map(|((account, destination), m)| (*account, destination.clone(), m.spans(elapsed_s))).collect()
    }
}

impl Minutes {
    fn at(&mut self, minute: u64) -> &mut Tally {
        while self.0.front().is_some_and(|(first, _)| first + KEPT <= minute) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|(last, _)| *last != minute) {
            self.0.push_back((minute, Tally::default()));
        }
        let last = self.0.len() - 1;
        &mut self.0[last].1
    }

    fn spans(&self, elapsed_s: u64) -> Spans {
        let minute = elapsed_s / 60;
        let sum = |within: &dyn Fn(u64) -> bool| {
            self.0.iter().filter(|(m, _)| within(*m)).fold(Tally::default(), |sum, (_, tally)| sum + *tally)
        };
        // The minute that runs, and whole ones before it.
        let now_s = elapsed_s.min((NOW - 1) * 60 + elapsed_s % 60).max(1);
        Spans {
            now: sum(&|m| m + NOW > minute),
            now_s,
            before: sum(&|m| m + NOW <= minute && m + KEPT > minute),
            before_s: elapsed_s.saturating_sub(now_s).min((KEPT - NOW) * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_minutes_and_the_hour_before_them() {
        let board = Board::new();
        let google: Arc<str> = "google".into();
        let accept = || board.ended(3, 0, &google, &Outcome::accepted(None));
        let seen = || board.places().first().map(|(_, _, s)| (s.now.accepted, s.now_s, s.before.accepted, s.before_s));
        assert_eq!(seen(), None);
        accept();
        assert_eq!(seen(), Some((1, 1, 0, 0)));
        tokio::time::advance(Duration::from_secs(599)).await;
        accept();
        assert_eq!(seen(), Some((2, 599, 0, 0)));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(seen(), Some((1, 570, 1, 60)));
        tokio::time::advance(Duration::from_secs(3_000)).await;
        assert_eq!(seen(), Some((0, 570, 1, 3_000)));
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(seen(), None, "an hour is all that is kept");
        assert_eq!(board.counts(3), Counts { under_way: 0, accepted: 2 });
        let under_way = board.begin(3);
        assert_eq!(board.counts(3).under_way, 1);
        drop(under_way);
        assert_eq!(board.counts(3).under_way, 0);
    }
}
