//! What the ledger keeps of a result, so that a redelivery can pass it on again.

use paceline_core::{DeadLetter, Journey, LastError, ProviderAnswer, Timestamp};
use serde::{Deserialize, Serialize};

/// A result that still has to be passed on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    Retry {
        journey: Kept,
        /// Positions of recipients that were given up on.
        gone: Vec<usize>,
        /// Likewise, before the call and with dead letters already: on the suppression list.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        suppressed: Vec<usize>,
    },
    /// Positions of recipients that were refused while the others were accepted, with what was said of each.
    Sent {
        refused: Vec<(usize, ProviderAnswer)>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        suppressed: Vec<usize>,
    },
    Dead {
        letter: Box<DeadLetter>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        suppressed: Vec<usize>,
    },
    Unreadable,
}

/// The part of a journey that an attempt changes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    a: u32,
    f: u32,
    first: Option<Timestamp>,
    due: Option<Timestamp>,
    error: Option<LastError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
}

impl Kept {
    fn of(journey: &Journey) -> Kept {
        Kept {
            a: journey.attempts,
            f: journey.failures,
            first: journey.first_attempt_at,
            due: journey.not_before,
            error: journey.last_error.clone(),
            account: journey.account.clone(),
        }
    }

    /// `journey` as it was after the attempt.
    pub(crate) fn resume(self, journey: Journey) -> Journey {
        let Kept { a, f, first, due, error, account } = self;
        Journey { attempts: a, failures: f, first_attempt_at: first, not_before: due, last_error: error, account, ..journey }
    }
}

impl Note {
    /// Empty where nobody was refused: nothing is left to do then.
    pub(crate) fn sent(refused: Vec<(usize, ProviderAnswer)>, suppressed: &[usize]) -> String {
        match refused.is_empty() {
            true => String::new(),
            false => Note::Sent { refused, suppressed: suppressed.to_vec() }.write(),
        }
    }

    pub(crate) fn retry(journey: &Journey, suppressed: &[usize]) -> String {
        Note::without(journey, &[], suppressed)
    }

    pub(crate) fn without(journey: &Journey, gone: &[usize], suppressed: &[usize]) -> String {
        Note::Retry { journey: Kept::of(journey), gone: gone.to_vec(), suppressed: suppressed.to_vec() }.write()
    }

    pub(crate) fn dead(letter: &DeadLetter, suppressed: &[usize]) -> String {
        // The recipient is in the message; the shared state need not hold it.
        let letter = DeadLetter { to: None, ..letter.clone() };
        Note::Dead { letter: Box::new(letter), suppressed: suppressed.to_vec() }.write()
    }

    fn write(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(crate) fn read(note: &str) -> Note {
        serde_json::from_str(note).unwrap_or(Note::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_can_be_resumed() {
        let t = Timestamp::from_secs(1_800_000_000);
        let before = Journey::starting(t);
        let after = Journey { attempts: 2, failures: 1, first_attempt_at: Some(t), not_before: Some(t), ..before.clone() };
        let Note::Retry { journey, gone, suppressed } = Note::read(&Note::without(&after, &[1, 4], &[2])) else { panic!() };
        assert_eq!((journey.resume(before), gone, suppressed), (after, vec![1, 4], vec![2]));
        // As an older worker wrote it.
        let old = r#"{"Retry":{"journey":{"a":1,"f":0,"first":null,"due":null,"error":null},"gone":[3]}}"#;
        let Note::Retry { gone, suppressed, .. } = Note::read(old) else { panic!() };
        assert_eq!((gone, suppressed), (vec![3], vec![]));
        assert!(matches!(Note::read("garbage"), Note::Unreadable));
    }
}
