//! Who has how many calls under way.
//!
//! A worker says in each call how many it has, so an answer that got lost corrects itself, and what it gives back costs
//! no call of its own. A worker that is not heard of any more loses its leases when the longest call must have ended.

use std::sync::Arc;

/// The calls under way at one bucket of slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Leases(Vec<Lease>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    worker: Arc<str>,
    calls: u64,
    until_us: u64,
}

impl Leases {
    /// Drops what has run out and takes the worker's own count as it says. Returns whether that is news.
    pub(super) fn report(&mut self, worker: &Arc<str>, calls: u64, life_us: u64, now: u64) -> bool {
        self.0.retain(|l| l.until_us > now || l.worker == *worker);
        match self.0.iter_mut().find(|l| l.worker == *worker) {
            Some(mine) => {
                let news = mine.calls != calls || (calls > 0 && mine.until_us < now + life_us / 2);
                if news {
                    (mine.calls, mine.until_us) = (calls, now + life_us);
                }
                news
            }
            None => {
                self.0.push(Lease { worker: worker.clone(), calls, until_us: now + life_us });
                calls > 0
            }
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.0.iter().map(|l| l.calls).sum()
    }

    /// One more for the worker that has reported in this call.
    pub(super) fn take(&mut self, worker: &Arc<str>, life_us: u64, now: u64) {
        if let Some(mine) = self.0.iter_mut().find(|l| l.worker == *worker) {
            mine.calls += 1;
            mine.until_us = now + life_us;
        }
    }

    /// Forgets workers without any; when the last lease runs out, if there is one.
    pub(super) fn tidy(&mut self) -> Option<u64> {
        self.0.retain(|l| l.calls > 0);
        self.0.iter().map(|l| l.until_us).max()
    }
}
