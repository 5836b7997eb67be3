//! Dead letters: what was given up on, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Class, Journey, LastError, Suppress, Timestamp};

/// The header of a message in `paceline.dead` that holds the [`DeadLetter`] as JSON; the body is the original, untouched.
pub const HEADER: &str = "x-paceline-dead-letter";

/// Why a message was given up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    RetryBudgetExhausted,
    MaxAgeExceeded,
    RejectedRecipient,
    RejectedMessage,
    RejectedAccount,
    Suppressed,
    Expired,
    Cancelled,
    InvalidMessage,
    IdConflict,
    /// Sent or not, nobody knows, and the class says do not send again.
    Uncertain,
    /// Claimed again and again without a result: it seems to bring its worker down.
    Poison,
}

impl Reason {
    pub const ALL: [Reason; 12] = [
        Reason::RetryBudgetExhausted,
        Reason::MaxAgeExceeded,
        Reason::RejectedRecipient,
        Reason::RejectedMessage,
        Reason::RejectedAccount,
        Reason::Suppressed,
        Reason::Expired,
        Reason::Cancelled,
        Reason::InvalidMessage,
        Reason::IdConflict,
        Reason::Uncertain,
        Reason::Poison,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::RetryBudgetExhausted => "retry_budget_exhausted",
            Reason::MaxAgeExceeded => "max_age_exceeded",
            Reason::RejectedRecipient => "rejected_recipient",
            Reason::RejectedMessage => "rejected_message",
            Reason::RejectedAccount => "rejected_account",
            Reason::Suppressed => "suppressed",
            Reason::Expired => "expired",
            Reason::Cancelled => "cancelled",
            Reason::InvalidMessage => "invalid_message",
            Reason::IdConflict => "id_conflict",
            Reason::Uncertain => "uncertain",
            Reason::Poison => "poison",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Reason {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Reason::ALL.into_iter().find(|r| r.as_str() == s).ok_or_else(|| {
            let known: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
            format!("no such reason; known are {}", known.join(", "))
        })
    }
}

/// The last thing that went wrong, as dead letters show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterError {
    pub code: String,
    pub http_status: Option<u16>,
    pub provider_message: String,
}

impl From<&LastError> for DeadLetterError {
    fn from(e: &LastError) -> Self {
        DeadLetterError { code: e.code.clone(), http_status: e.status, provider_message: e.message.clone() }
    }
}

/// One entry, without the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Names the entry; the same give-up always has the same id, so that writing it twice does no harm.
    pub id: String,
    /// Where it could be read.
    pub message_id: Option<String>,
    pub to: Option<String>,
    pub class: Option<Class>,
    pub destination: Option<String>,
    pub domain: Option<String>,
    pub account: Option<String>,
    pub tenant: Option<String>,
    pub stream: Option<String>,
    pub reason: Reason,
    /// For `invalid_message`: the field at fault.
    pub field: Option<String>,
    /// For reasons without a provider's answer: what was wrong, in words.
    pub detail: Option<String>,
    pub enqueued_at: Timestamp,
    pub first_attempt_at: Option<Timestamp>,
    pub last_attempt_at: Option<Timestamp>,
    pub died_at: Timestamp,
    pub attempts: u32,
    pub last_error: Option<DeadLetterError>,
    /// Batch id, where it had been replayed before.
    pub replay: Option<String>,
    /// What its last answer says of mailing the recipient again; the store does not keep it.
    #[serde(default, skip_serializing_if = "Suppress::is_no")]
    pub suppress: Suppress,
}

impl DeadLetter {
    /// An entry with what the journey knows; the caller fills in the rest.
    pub fn new(id: String, reason: Reason, journey: &Journey, died_at: Timestamp) -> DeadLetter {
        DeadLetter {
            id,
            message_id: None,
            to: None,
            class: None,
            destination: None,
            domain: None,
            account: None,
            tenant: None,
            stream: None,
            reason,
            field: None,
            detail: None,
            enqueued_at: journey.enqueued_at,
            first_attempt_at: journey.first_attempt_at,
            last_attempt_at: None,
            died_at,
            attempts: journey.attempts,
            last_error: journey.last_error.as_ref().map(DeadLetterError::from),
            replay: journey.replay.clone(),
            suppress: journey.last_error.as_ref().map(|e| e.suppress).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_named_as_serialised() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
            assert_eq!(reason.as_str().parse(), Ok(reason));
        }
    }
}
