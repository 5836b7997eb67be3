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
    /// Its recipients were answered differently: an outcome for each, none of them divided again.
    Divided { provider_id: Option<String>, each: Vec<(EmailAddress, Outcome)> },
}

impl Outcome {
    /// Accepted, nobody refused.
    pub fn accepted(provider_id: Option<String>) -> Outcome {
        Outcome::Accepted { provider_id, refused: Vec::new() }
    }

    /// The outcomes it consists of: itself, unless it is divided.
    pub fn parts(&self) -> impl Iterator<Item = &Outcome> {
        let (whole, each) = match self {
            Outcome::Divided { each, .. } => (None, each.as_slice()),
            whole => (Some(whole), [].as_slice()),
        };
        whole.into_iter().chain(each.iter().map(|(_, outcome)| outcome))
    }

    /// The one that stands for the call where only one can: accepted if anybody has it, else what it comes back for, else
    /// why it does not.
    pub fn chief(&self) -> &Outcome {
        let rank = |outcome: &&Outcome| match outcome {
            Outcome::Accepted { .. } => 0,
            Outcome::Uncertain { .. } => 1,
            Outcome::Throttled { .. } | Outcome::ReputationBlock { .. } | Outcome::Temporary { .. } => 2,
            // It passes by itself.
            Outcome::Greylisted { .. } => 3,
            Outcome::Rejected { .. } | Outcome::Divided { .. } => 4,
        };
        self.parts().min_by_key(rank).unwrap_or(self)
    }

    /// The provider's id for the message, where anybody has it.
    pub fn provider_id(&self) -> Option<&str> {
        match self {
            Outcome::Accepted { provider_id, .. } | Outcome::Divided { provider_id, .. } => provider_id.as_deref(),
            _ => None,
        }
    }

    /// The value of the metrics label `outcome`.
    pub fn label(&self) -> &'static str {
        match self.chief() {
            Outcome::Accepted { .. } => "accepted",
            Outcome::Throttled { .. } => "throttled",
            Outcome::Greylisted { .. } => "greylisted",
            Outcome::Temporary { .. } => "temporary",
            Outcome::Rejected { what: Rejected::Recipients(_), .. } => "rejected_recipient",
            Outcome::Rejected { what: Rejected::Message, .. } => "rejected_message",
            Outcome::Rejected { what: Rejected::Account, .. } => "rejected_account",
            Outcome::ReputationBlock { .. } => "reputation_block",
            // Of nobody: there is none such.
            Outcome::Uncertain { .. } | Outcome::Divided { .. } => "uncertain",
        }
    }

    /// What was said, unless all went well.
    pub fn answer(&self) -> Option<&ProviderAnswer> {
        match self {
            Outcome::Accepted { refused, .. } => refused.first().map(|(_, a)| a),
            Outcome::Divided { each, .. } => each.iter().find_map(|(_, outcome)| outcome.answer()),
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
    fn one_outcome_stands_for_a_divided_call() {
        let answer = || ProviderAnswer::new("x", None, "");
        let email = EmailAddress::parse("u@x.org").unwrap();
        let gone = Outcome::Rejected { what: Rejected::Recipients(vec![email.clone()]), answer: answer() };
        let grey = Outcome::Greylisted { retry_after: None, answer: answer() };
        let later = Outcome::Temporary { retry_after: None, answer: answer() };
        for (each, want) in [
            (vec![gone.clone(), grey.clone(), later.clone(), Outcome::accepted(None)], "accepted"),
            (vec![gone.clone(), grey.clone(), later.clone()], "temporary"),
            (vec![gone.clone(), grey], "greylisted"),
            (vec![gone.clone(), Outcome::Uncertain { answer: answer() }, later], "uncertain"),
            (vec![gone], "rejected_recipient"),
        ] {
            let n = each.len();
            let each = each.into_iter().map(|outcome| (email.clone(), outcome)).collect();
            let divided = Outcome::Divided { provider_id: None, each };
            assert_eq!((divided.label(), divided.parts().count()), (want, n));
        }
        let whole = Outcome::accepted(Some("id".into()));
        assert_eq!((whole.parts().collect::<Vec<_>>(), whole.provider_id()), (vec![&whole], Some("id")));
    }

    #[test]
    fn provider_words_are_bounded_and_on_one_line() {
        let a = ProviderAnswer::new("x", None, &format!("  a\r\nb{}", "é".repeat(2000)));
        assert!(a.message.starts_with("a  b") && a.message.chars().count() <= MAX_PROVIDER_MESSAGE);
    }
}
