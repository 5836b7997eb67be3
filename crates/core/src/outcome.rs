//! What a provider or the receiving side said, in terms that decide what happens next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::EmailAddress;

/// Longest provider message kept, in characters.
pub const MAX_PROVIDER_MESSAGE: usize = 500;

/// Whether an answer says that its recipient must not be mailed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suppress {
    #[default]
    No,
    /// Never again.
    Now,
    /// Never again if it keeps being said: the code claims that it may pass.
    AfterRepeats,
}

impl Suppress {
    /// Whether it says nothing.
    pub fn is_no(&self) -> bool {
        *self == Suppress::No
    }
}

/// The words of an answer: kept in headers, dead letters and events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderAnswer {
    /// Our short code for it, such as `rate_limited`, `unavailable`, `timeout`.
    pub code: String,
    /// HTTP status, or the SMTP basic code; `None` where no answer came.
    pub status: Option<u16>,
    /// The provider's own words, shortened, without control characters.
    pub message: String,
    /// What follows for the recipient it speaks of.
    #[serde(default)]
    pub suppress: Suppress,
}

impl ProviderAnswer {
    pub fn new(code: &str, status: Option<u16>, message: &str) -> ProviderAnswer {
        let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_PROVIDER_MESSAGE).collect();
        ProviderAnswer { code: code.to_owned(), status, message: message.trim().to_owned(), suppress: Suppress::No }
    }

    /// The same, of a recipient that must not be mailed again.
    pub fn suppressing(self, suppress: Suppress) -> ProviderAnswer {
        ProviderAnswer { suppress, ..self }
    }
}

/// Whose limit an answer speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Account,
    Destination,
    Connection,
    Recipient,
    Message,
}

/// What a permanent refusal is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// These recipients; nothing was sent to any other either.
    Recipients(Vec<EmailAddress>),
    /// The message as it is.
    Message,
    /// The account: credentials, suspension, credit. No message is at fault.
    Account,
}

/// What came of one attempt. Never an error: a failed call is an outcome too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted {
        /// The provider's id for the message.
        provider_id: Option<String>,
        /// Recipients that were refused while the others were accepted.
        refused: Vec<(EmailAddress, ProviderAnswer)>,
    },
    /// Over a rate or a quota of that scope: slow it down. Spends no budget.
    Throttled { scope: Scope, retry_after: Option<Duration>, answer: ProviderAnswer },
    /// The receiving server wants the same message again later. Spends no budget.
    Greylisted { retry_after: Option<Duration>, answer: ProviderAnswer },
    /// Try again with backoff; spends budget.
    Temporary { retry_after: Option<Duration>, answer: ProviderAnswer },
    /// Never again as it is.
    Rejected { what: Rejected, answer: ProviderAnswer },
    /// The destination distrusts the sender: slow down hard. Spends no budget.
    ReputationBlock { retry_after: Option<Duration>, answer: ProviderAnswer },
    /// The request was written and no answer read: sent or not, nobody knows. Spends budget.
    Uncertain { answer: ProviderAnswer },
}

impl Outcome {
    /// Accepted, nobody refused.
    pub fn accepted(provider_id: Option<String>) -> Outcome {
        Outcome::Accepted { provider_id, refused: Vec::new() }
    }

    /// The value of the metrics label `outcome`.
    pub fn label(&self) -> &'static str {
        match self {
            Outcome::Accepted { .. } => "accepted",
            Outcome::Throttled { .. } => "throttled",
            Outcome::Greylisted { .. } => "greylisted",
            Outcome::Temporary { .. } => "temporary",
            Outcome::Rejected { what: Rejected::Recipients(_), .. } => "rejected_recipient",
            Outcome::Rejected { what: Rejected::Message, .. } => "rejected_message",
            Outcome::Rejected { what: Rejected::Account, .. } => "rejected_account",
            Outcome::ReputationBlock { .. } => "reputation_block",
            Outcome::Uncertain { .. } => "uncertain",
        }
    }

    /// What was said, unless all went well.
    pub fn answer(&self) -> Option<&ProviderAnswer> {
        match self {
            Outcome::Accepted { refused, .. } => refused.first().map(|(_, a)| a),
            Outcome::Throttled { answer, .. }
            | Outcome::Greylisted { answer, .. }
            | Outcome::Temporary { answer, .. }
            | Outcome::Rejected { answer, .. }
            | Outcome::ReputationBlock { answer, .. }
            | Outcome::Uncertain { answer } => Some(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_words_are_bounded_and_on_one_line() {
        let a = ProviderAnswer::new("x", None, &format!("  a\r\nb{}", "é".repeat(2000)));
        assert!(a.message.starts_with("a  b") && a.message.chars().count() <= MAX_PROVIDER_MESSAGE);
    }
}
