//! The ledger of one process; the same rules as `ledger.lua`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    Claim, Claimed, Ledger, LedgerError, Recorded,
    entry::{self, Entry},
};
use crate::local::LocalClock;

/// A ledger in memory: it forgets everything when the process ends.
#[derive(Debug)]
pub struct LocalLedger {
    clock: LocalClock,
    window: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// With the time when each is forgotten.
    by_key: HashMap<Key, (Entry, u64)>,
    sweep_at: usize,
}

type Key = (Option<String>, Arc<str>);

impl LocalLedger {
    /// A ledger that remembers an entry for `window` after its last change.
    pub fn new(window: Duration) -> Self {
        LocalLedger { clock: LocalClock::new(), window, entries: Mutex::default() }
    }

    /// The same, by this clock.
    #[must_use]
    pub fn with_clock(self, clock: LocalClock) -> Self {
        LocalLedger { clock, ..self }
    }

    /// What it says to a claim without taking it: `Some` where another ledger need not be asked.
    pub(crate) fn answers(&self, claim: &Claim) -> Option<Claimed> {
        if self.entries.lock().unwrap_or_else(PoisonError::into_inner).by_key.is_empty() {
            return None;
        }
        self.with(claim, |stored, now| {
            let answer = entry::claim(&mut Some(stored.clone()?), claim, now);
            matches!(answer, Claimed::Done { .. } | Claimed::Held { .. } | Claimed::Conflict).then_some(answer)
        })
    }

    fn with<T>(&self, claim: &Claim, f: impl FnOnce(&mut Option<Entry>, u64) -> T) -> T {
        let now = self.clock.now_us();
        let forget_us = now.saturating_add(u64::try_from(self.window.as_micros()).unwrap_or(u64::MAX));
        // `f` replaces an entry as a whole: nothing is left half changed.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (claim.replay.clone(), claim.id.clone());
        let mut entry = entries.by_key.remove(&key).filter(|(_, forget_us)| *forget_us > now).map(|(entry, _)| entry);
        let answer = f(&mut entry, now);
        if let Some(entry) = entry {
            entries.by_key.insert(key, (entry, forget_us));
        }
        if entries.by_key.len() > entries.sweep_at.max(10_000) {
            entries.by_key.retain(|_, (_, forget_us)| *forget_us > now);
            entries.sweep_at = entries.by_key.len() * 2;
        }
        answer
    }
}

#[async_trait]
impl Ledger for LocalLedger {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        Ok(self.with(&claim, |stored, now| entry::claim(stored, &claim, now)))
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        self.with(claim, |stored, _| entry::record(stored, claim, &result));
        Ok(())
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.with(claim, |stored, _| entry::release(stored, claim));
        Ok(())
    }
}
