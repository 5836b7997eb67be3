//! What a message has been through: the headers that travel with it.

use serde::{Deserialize, Serialize};

use crate::{ProviderAnswer, Reason, Suppress, Timestamp};

/// Header names, as in the contract.
pub mod header {
    pub const ATTEMPTS: &str = "x-paceline-attempts";
    pub const FAILURES: &str = "x-paceline-failures";
    pub const ENQUEUED_AT: &str = "x-paceline-enqueued-at";
    pub const FIRST_ATTEMPT_AT: &str = "x-paceline-first-attempt-at";
    pub const NOT_BEFORE: &str = "x-paceline-not-before";
    pub const LAST_ERROR: &str = "x-paceline-last-error";
    pub const REPLAY: &str = "x-paceline-replay";
    /// Digest of the body as the producer published it, in hexadecimal: set where a retry carries fewer recipients.
    pub const DIGEST: &str = "x-paceline-digest";
    /// Account whose last call may have been accepted: only there is a repeat of it known for one.
    pub const ACCOUNT: &str = "x-paceline-account";
}

/// The last answer that was not an acceptance: JSON `{code, status, message}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub code: String,
    pub status: Option<u16>,
    #[serde(default)]
    pub message: String,
    #[serde(default, skip_serializing_if = "Suppress::is_no")]
    pub suppress: Suppress,
    /// Why the message is given up on where it becomes too old after this, if it says more than its age does: the account
    /// was refused, or nobody knows whether the message was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_end: Option<Reason>,
}

impl From<&ProviderAnswer> for LastError {
    fn from(a: &ProviderAnswer) -> LastError {
        LastError { code: a.code.clone(), status: a.status, message: a.message.clone(), suppress: a.suppress, at_end: None }
    }
}

/// A message's history so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journey {
    /// Calls made.
    pub attempts: u32,
    /// Calls that spent budget.
    pub failures: u32,
    /// When it first entered the broker, as far as is known.
    pub enqueued_at: Timestamp,
    pub first_attempt_at: Option<Timestamp>,
    /// Not to be tried before.
    pub not_before: Option<Timestamp>,
    pub last_error: Option<LastError>,
    /// Batch id, where an operator replayed it.
    pub replay: Option<String>,
    /// See [`header::DIGEST`].
    pub digest: Option<u64>,
    /// See [`header::ACCOUNT`].
    pub account: Option<String>,
}

impl Journey {
    /// A message nobody has tried yet.
    pub fn starting(enqueued_at: Timestamp) -> Journey {
        Journey {
            attempts: 0,
            failures: 0,
            enqueued_at,
            first_attempt_at: None,
            not_before: None,
            last_error: None,
            replay: None,
            digest: None,
            account: None,
        }
    }

    /// Why it is given up on where it is too old.
    pub fn too_old(&self) -> Reason {
        let said = self.last_error.as_ref().and_then(|e| e.at_end);
        // The headers come from outside.
        said.filter(|reason| matches!(reason, Reason::RejectedAccount | Reason::Uncertain)).unwrap_or(Reason::MaxAgeExceeded)
    }

    /// Reads the travelling headers through `text` (a header's value as text, numbers included).
    ///
    /// Headers come from outside: one that does not parse counts as absent, and counters are capped.
    pub fn from_headers<'a>(
        text: impl Fn(&str) -> Option<std::borrow::Cow<'a, str>>,
        stamped: Option<Timestamp>,
        now: Timestamp,
    ) -> Journey {
        let time = |name| text(name).and_then(|t| t.parse::<Timestamp>().ok());
        let count = |name| text(name).and_then(|t| t.parse::<u32>().ok()).unwrap_or(0).min(1_000_000);
        let attempts = count(header::ATTEMPTS);
        Journey {
            attempts,
            failures: count(header::FAILURES).min(attempts),
            // A time in the future would make a message immortal.
            enqueued_at: time(header::ENQUEUED_AT).or(stamped).unwrap_or(now).min(now),
            first_attempt_at: time(header::FIRST_ATTEMPT_AT),
            not_before: time(header::NOT_BEFORE),
            last_error: text(header::LAST_ERROR).and_then(|t| serde_json::from_str(&t).ok()),
            replay: text(header::REPLAY).filter(|r| !r.is_empty() && r.len() <= 128).map(|r| r.into_owned()),
            digest: text(header::DIGEST).and_then(|t| u64::from_str_radix(&t, 16).ok()),
            account: text(header::ACCOUNT).filter(|a| !a.is_empty() && a.len() <= 64).map(|a| a.into_owned()),
        }
    }

    /// The travelling headers, as text.
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let mut out = vec![
            (header::ATTEMPTS, self.attempts.to_string()),
            (header::FAILURES, self.failures.to_string()),
            (header::ENQUEUED_AT, self.enqueued_at.to_string()),
        ];
        let mut optional = |name, value: Option<String>| out.extend(value.map(|v| (name, v)));
        optional(header::FIRST_ATTEMPT_AT, self.first_attempt_at.map(|t| t.to_string()));
        optional(header::NOT_BEFORE, self.not_before.map(|t| t.to_string()));
        optional(header::LAST_ERROR, self.last_error.as_ref().and_then(|e| serde_json::to_string(e).ok()));
        optional(header::REPLAY, self.replay.clone());
        optional(header::DIGEST, self.digest.map(|d| format!("{d:016x}")));
        optional(header::ACCOUNT, self.account.clone());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let now = Timestamp::from_secs(1_800_000_000);
        let journey = Journey {
            attempts: 3,
            failures: 2,
            first_attempt_at: Some(now),
            not_before: Some(now),
            last_error: Some(LastError {
                code: "timeout".into(),
                status: Some(504),
                message: "ä".into(),
                suppress: Suppress::AfterRepeats,
                at_end: Some(Reason::Uncertain),
            }),
            replay: Some("r1".into()),
            digest: Some(7),
            account: Some("main".into()),
            ..Journey::starting(now)
        };
        let headers = journey.to_headers();
        let get = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str().into());
        assert_eq!(Journey::from_headers(get, None, now), journey);
    }

    #[test]
    fn hostile_headers_count_as_absent() {
        let now = Timestamp::from_secs(1_800_000_000);
        let got = Journey::from_headers(|_| Some("-1 nonsense 9999-99-99".into()), None, now);
        assert_eq!(Journey { replay: None, account: None, ..got }, Journey::starting(now));
        let future = Journey::from_headers(|n| (n == header::ENQUEUED_AT).then(|| "2999-01-01T00:00:00Z".into()), None, now);
        assert_eq!(future.enqueued_at, now);
    }
}
