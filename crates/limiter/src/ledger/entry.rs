//! One entry and what becomes of it: the table in the module above, for the ledgers that are not in Redis. Pure.

use super::{Claim, Claimed, Recorded};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) attempt: u32,
    pub(super) state: EntryState,
    /// Of the first attempt, once it has been claimed.
    pub(super) digest: Option<u64>,
    /// Claims of this message that ran out.
    pub(super) lost: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryState {
    Claimed { token: u64, until_us: u64 },
    Released,
    Result(Recorded),
}

/// The entry of a message that nobody has heard of.
pub(super) fn first_claim(claim: &Claim, now_us: u64) -> Entry {
    let digest = (claim.attempt == 1).then_some(claim.digest);
    Entry { attempt: claim.attempt, state: taken(claim, now_us), digest, lost: 0 }
}

fn taken(claim: &Claim, now_us: u64) -> EntryState {
    let hold_us = u64::try_from(claim.hold.as_micros()).unwrap_or(u64::MAX);
    EntryState::Claimed { token: claim.token, until_us: now_us.saturating_add(hold_us) }
}

/// Claims one attempt.
pub(super) fn claim(stored: &mut Option<Entry>, claim: &Claim, now_us: u64) -> Claimed {
    let Some(entry) = stored else {
        *stored = Some(first_claim(claim, now_us));
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
            EntryState::Result(result) => return Claimed::Done { attempt: entry.attempt, result: result.clone() },
            EntryState::Claimed { token, .. } if *token == claim.token => return Claimed::Granted,
            EntryState::Claimed { until_us, .. } if *until_us > now_us => return Claimed::Held { until_us: *until_us },
            EntryState::Claimed { .. } => {
                entry.lost += 1;
                entry.state = taken(claim, now_us);
                return Claimed::Expired { lost: entry.lost };
            }
            EntryState::Released => {}
        }
    }
    entry.attempt = claim.attempt;
    entry.state = taken(claim, now_us);
    Claimed::Granted
}

/// A first attempt that was sent: final, whatever is stored.
pub(super) fn sent_at_first(claim: &Claim, result: &Recorded) -> Option<Entry> {
    let final_at_once = claim.attempt == 1 && matches!(result, Recorded::Sent { .. });
    let entry = || Entry { attempt: 1, state: EntryState::Result(result.clone()), digest: Some(claim.digest), lost: 0 };
    final_at_once.then(entry)
}

/// Stores the result of a claimed attempt.
pub(super) fn record(stored: &mut Option<Entry>, claim: &Claim, result: &Recorded) {
    if let Some(entry) = sent_at_first(claim, result) {
        *stored = Some(entry);
        return;
    }
    let state = EntryState::Result(result.clone());
    match stored {
        None => *stored = Some(Entry { attempt: claim.attempt, state, digest: None, lost: 0 }),
        Some(e) if e.attempt > claim.attempt => {}
        Some(e) if e.attempt == claim.attempt && matches!(e.state, EntryState::Result(Recorded::Sent { .. })) => {}
        Some(e) => {
            e.attempt = claim.attempt;
            e.state = state;
        }
    }
}

/// Withdraws a claim.
pub(super) fn release(stored: &mut Option<Entry>, claim: &Claim) {
    if let Some(entry) = stored
        && entry.attempt == claim.attempt
        && matches!(entry.state, EntryState::Claimed { token, .. } if token == claim.token)
    {
        entry.state = EntryState::Released;
    }
}
