//! The ledger of one process; the same rules as `ledger.lua`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{Claim, Claimed, Ledger, LedgerError, Recorded};
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
    by_key: HashMap<Key, Entry>,
    sweep_at: usize,
}

type Key = (Option<String>, String);

#[derive(Debug, Clone)]
struct Entry {
    attempt: u32,
    state: EntryState,
    digest: Option<u64>,
    lost: u32,
    forget_us: u64,
}

#[derive(Debug, Clone)]
enum EntryState {
    Claimed { token: u64, until_us: u64 },
    Released,
    Result(Recorded),
}

impl LocalLedger {
    /// A ledger that remembers an entry for `window` after its last change.
    pub fn new(window: Duration) -> Self {
        LocalLedger { clock: LocalClock::new(), window, entries: Mutex::default() }
    }

    fn with<T>(&self, claim: &Claim, f: impl FnOnce(&mut Option<Entry>, u64) -> T) -> T {
        let now = self.clock.now_us();
        let forget_us = now.saturating_add(micros(self.window));
        // `f` replaces an entry as a whole: nothing is left half changed.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (claim.replay.clone(), claim.id.clone());
        let mut entry = entries.by_key.remove(&key).filter(|e| e.forget_us > now);
        let answer = f(&mut entry, now);
        if let Some(mut entry) = entry {
            entry.forget_us = forget_us;
            entries.by_key.insert(key, entry);
        }
        if entries.by_key.len() > entries.sweep_at.max(10_000) {
            entries.by_key.retain(|_, e| e.forget_us > now);
            entries.sweep_at = entries.by_key.len() * 2;
        }
        answer
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[async_trait]
impl Ledger for LocalLedger {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        Ok(self.with(&claim, |stored, now| {
            let taken = EntryState::Claimed { token: claim.token, until_us: now.saturating_add(micros(claim.hold)) };
            let Some(entry) = stored else {
                let digest = (claim.attempt == 1).then_some(claim.digest);
                *stored = Some(Entry { attempt: claim.attempt, state: taken, digest, lost: 0, forget_us: 0 });
                return Claimed::Granted;
            };
            if claim.attempt == 1 && *entry.digest.get_or_insert(claim.digest) != claim.digest {
                return Claimed::Conflict;
            }
            if let EntryState::Result(sent @ Recorded::Sent { .. }) = &entry.state {
                return Claimed::Done { attempt: entry.attempt, result: sent.clone() };
            }
            if entry.attempt > claim.attempt {
                let result = match &entry.state {
                    EntryState::Result(result) => result.clone(),
                    _ => Recorded::Retry { note: String::new() },
                };
                return Claimed::Done { attempt: entry.attempt, result };
            }
            if entry.attempt == claim.attempt {
                match &entry.state {
                    EntryState::Result(result) => {
                        return Claimed::Done { attempt: entry.attempt, result: result.clone() };
                    }
                    EntryState::Claimed { token, .. } if *token == claim.token => return Claimed::Granted,
                    EntryState::Claimed { until_us, .. } if *until_us > now => {
                        return Claimed::Held { until_us: *until_us };
                    }
                    EntryState::Claimed { .. } => {
                        entry.lost += 1;
                        entry.state = taken;
                        return Claimed::Expired { lost: entry.lost };
                    }
                    EntryState::Released => {}
                }
            }
            entry.attempt = claim.attempt;
            entry.state = taken;
            Claimed::Granted
        }))
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        self.with(claim, |stored, _| {
            let sent_at_first = claim.attempt == 1 && matches!(result, Recorded::Sent { .. });
            let state = EntryState::Result(result);
            match stored {
                _ if sent_at_first => {
                    *stored = Some(Entry { attempt: 1, state, digest: Some(claim.digest), lost: 0, forget_us: 0 });
                }
                None => {
                    *stored = Some(Entry { attempt: claim.attempt, state, digest: None, lost: 0, forget_us: 0 });
                }
                Some(e) if e.attempt > claim.attempt => {}
                Some(e) if e.attempt == claim.attempt && matches!(e.state, EntryState::Result(Recorded::Sent { .. })) => {}
                Some(e) => {
                    e.attempt = claim.attempt;
                    e.state = state;
                }
            }
        });
        Ok(())
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.with(claim, |stored, _| {
            if let Some(entry) = stored
                && entry.attempt == claim.attempt
                && matches!(entry.state, EntryState::Claimed { token, .. } if token == claim.token)
            {
                entry.state = EntryState::Released;
            }
        });
        Ok(())
    }
}
