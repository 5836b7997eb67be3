//! What the ledger keeps of a result, so that a redelivery can pass it on again.

use paceline_core::{DeadLetter, Journey, LastError, ProviderAnswer, Reason, Timestamp};
use serde::{Deserialize, Serialize};

/// A result that still has to be passed on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    Retry {
        journey: Kept,
        /// Positions of recipients that were given up on.
        gone: Vec<usize>,
        /// Likewise, each for a reason of its own.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dead: Vec<Dead>,
        /// Positions of those who have it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sent: Vec<usize>,
        /// Given up on before the call and with dead letters already: on the suppression list.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        suppressed: Vec<usize>,
    },
    /// Positions of recipients that were refused while the others were accepted, with what was said of each.
    Sent {
        refused: Vec<(usize, ProviderAnswer)>,
        /// Likewise, given up on for other reasons.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dead: Vec<Dead>,
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

/// One recipient's end: where it stands in the message as it came, why, and what was said.
pub(crate) type Dead = (usize, Reason, ProviderAnswer);

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
    pub(crate) fn sent(all: Vec<Dead>, suppressed: &[usize]) -> String {
        if all.is_empty() {
            return String::new();
        }
        let (refused, dead): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, reason, _)| *reason == Reason::RejectedRecipient);
        let refused = refused.into_iter().map(|(at, _, answer)| (at, answer)).collect();
        Note::Sent { refused, dead, suppressed: suppressed.to_vec() }.write()
    }

    pub(crate) fn retry(journey: &Journey, suppressed: &[usize]) -> String {
        Note::without(journey, &[], suppressed)
    }

    pub(crate) fn without(journey: &Journey, gone: &[usize], suppressed: &[usize]) -> String {
        let (journey, gone, suppressed) = (Kept::of(journey), gone.to_vec(), suppressed.to_vec());
        Note::Retry { journey, gone, dead: Vec::new(), sent: Vec::new(), suppressed }.write()
    }

    pub(crate) fn part(journey: &Journey, sent: Vec<usize>, dead: Vec<Dead>, suppressed: &[usize]) -> String {
        Note::Retry { journey: Kept::of(journey), gone: Vec::new(), dead, sent, suppressed: suppressed.to_vec() }.write()
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
        let Note::Retry { journey, gone, suppressed, .. } = Note::read(&Note::without(&after, &[1, 4], &[2])) else { panic!() };
        assert_eq!((journey.resume(before), gone, suppressed), (after.clone(), vec![1, 4], vec![2]));
        let said = |reason| (3, reason, ProviderAnswer::new("x", None, ""));
        let part = Note::part(&after, vec![0], vec![said(Reason::MaxAgeExceeded)], &[]);
        let Note::Retry { gone, dead, sent, .. } = Note::read(&part) else { panic!() };
        assert_eq!((gone, dead, sent), (vec![], vec![said(Reason::MaxAgeExceeded)], vec![0]));
        let note = Note::sent(vec![said(Reason::RejectedRecipient), said(Reason::Uncertain)], &[]);
        let Note::Sent { refused, dead, .. } = Note::read(&note) else { panic!() };
        assert_eq!((refused.len(), dead), (1, vec![said(Reason::Uncertain)]));
        // As an older worker wrote it.
        let old = r#"{"Retry":{"journey":{"a":1,"f":0,"first":null,"due":null,"error":null},"gone":[3]}}"#;
        let Note::Retry { gone, suppressed, .. } = Note::read(old) else { panic!() };
        assert_eq!((gone, suppressed), (vec![3], vec![]));
        assert!(matches!(Note::read("garbage"), Note::Unreadable));
    }
}
