//! Counts of what went to the broker, by purpose.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Purpose;

/// Monotonic counts since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    published: [AtomicU64; Purpose::ALL.len()],
    failed: AtomicU64,
    events_dropped: AtomicU64,
    events_unheard: AtomicU64,
}

impl Counters {
    /// Messages of this purpose handed to the broker: confirmed ones, and events sent.
    pub fn published(&self, purpose: Purpose) -> u64 {
        self.published[purpose as usize].load(Ordering::Relaxed)
    }

    /// Publishes that returned an error.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Events lost because the broker was away or too slow.
    pub fn events_dropped(&self) -> u64 {
        self.events_dropped.load(Ordering::Relaxed)
    }

    /// Events not sent because nobody listens to their key.
    pub fn events_unheard(&self) -> u64 {
        self.events_unheard.load(Ordering::Relaxed)
    }

    pub(crate) fn count_published(&self, purpose: Purpose) {
        self.published[purpose as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_dropped(&self) {
        self.events_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_unheard(&self) {
        self.events_unheard.fetch_add(1, Ordering::Relaxed);
    }
}
