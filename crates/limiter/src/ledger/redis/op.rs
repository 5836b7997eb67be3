//! Operations of the ledger as the server is asked for them.

use std::time::Instant;

use redis::Cmd;
use serde::{Serialize, Serializer};

use crate::{
    LimiterError,
    ledger::{Claim, Claimed, LedgerError, Recorded},
    wire::encode,
};

pub(super) enum Op {
    Claim,
    Record(Recorded),
    Release,
}

/// States of an entry, as `ledger.lua` numbers them.
const CLAIMED: u8 = 0;
const SENT: u8 = 2;
const RETRY: u8 = 3;
const DEAD: u8 = 4;

/// What nearly every message needs is one `SET` each: the first claim of its first attempt, and its result "sent". The
/// script would cost the server twice as much. `None` for anything else. Such a claim is answered with nil where there is
/// an entry.
pub(super) fn set(claim: &Claim, op: &Op, now_us: u64, key: impl FnOnce() -> String, life_ms: &str) -> Option<Cmd> {
    if claim.attempt != 1 {
        return None;
    }
    let entry = match op {
        Op::Claim => encode(&(1, CLAIMED, claim.digest, 0, &*claim.owner, claim.token, now_us + hold_us(claim))),
        // Final, so nothing that is stored need be looked at.
        Op::Record(Recorded::Sent { note }) => encode(&(1, SENT, claim.digest, 0, note)),
        Op::Record(_) | Op::Release => return None,
    };
    // What cannot be written here cannot be written for the script either, which will say so.
    let entry = entry.ok()?;
    let mut set = keep(&key(), &entry, life_ms);
    if let Op::Claim = op {
        set.arg("NX");
    }
    Some(set)
}

/// Stores a value for so long.
pub(super) fn keep(key: &str, value: &[u8], life_ms: &str) -> Cmd {
    let mut set = Cmd::with_capacity(6, key.len() + value.len() + 32);
    set.arg("SET").arg(key).arg(value).arg("PX").arg(life_ms);
    set
}

/// One record of all `results`, by the token that their claims share: what `told` of the script reads. `None` where that
/// cannot be: another result than "sent", or a claim that somebody else may have been given by `until`.
pub(super) fn record_of_call(
    results: &[(Claim, Recorded)],
    until: Instant,
    key: impl Fn(&Claim) -> String,
) -> Option<(u64, Result<Vec<u8>, LimiterError>)> {
    let (first, _) = results.first()?;
    let mut notes = Vec::with_capacity(results.len());
    for (claim, result) in results {
        match result {
            Recorded::Sent { note } if claim.token == first.token && claim.held_until > until => {
                notes.push((key(claim), note.as_str()));
            }
            _ => return None,
        }
    }
    Some((first.token, encode(&Notes(notes))))
}

struct Notes<'a>(Vec<(String, &'a str)>);

impl Serialize for Notes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, note)| (key, note)))
    }
}

fn hold_us(claim: &Claim) -> u64 {
    claim.hold.as_micros().min(86_400_000_000) as u64
}

/// An operation as `ledger.lua` reads it.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Wire<'a> {
    Claim(u8, u32, u64, u64, u64, &'a str),
    Record(u8, u32, u8, &'a str, u64),
    Release(u8, u32, u64),
}

impl<'a> Wire<'a> {
    pub(super) fn of(claim: &'a Claim, op: &'a Op) -> Self {
        match op {
            Op::Claim => Wire::Claim(1, claim.attempt, claim.digest, claim.token, hold_us(claim), &claim.owner),
            Op::Record(Recorded::Sent { note }) => Wire::Record(2, claim.attempt, SENT, note, claim.digest),
            Op::Record(Recorded::Retry { note }) => Wire::Record(2, claim.attempt, RETRY, note, claim.digest),
            Op::Record(Recorded::Dead { note }) => Wire::Record(2, claim.attempt, DEAD, note, claim.digest),
            Op::Release => Wire::Release(3, claim.attempt, claim.token),
        }
    }
}

/// The reply to one operation: code, number, state and note.
pub(super) fn answer((code, number, state, note): (u8, u64, u8, String)) -> Result<Claimed, LedgerError> {
    let small = u32::try_from(number).unwrap_or(u32::MAX);
    Ok(match (code, state) {
        (1, _) => Claimed::Granted,
        (2, _) => Claimed::Held { until_us: number },
        (3, _) => Claimed::Expired { lost: small },
        (4, SENT) => Claimed::Done { attempt: small, result: Recorded::Sent { note } },
        (4, RETRY) => Claimed::Done { attempt: small, result: Recorded::Retry { note } },
        (4, DEAD) => Claimed::Done { attempt: small, result: Recorded::Dead { note } },
        (5, _) => Claimed::Conflict,
        _ => return Err(unreadable()),
    })
}

pub(super) fn unreadable() -> LedgerError {
    LimiterError::Refused { reason: "the ledger's reply makes no sense; is another version running?".into() }
}
