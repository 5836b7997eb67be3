//! What a reply means: the words of a mail server, or of a provider, read by ordered rules.
//!
//! The rules are data, in `rules/replies.toml`; each carries replies that it must and must not match, and the tests hold
//! it to them. Rules from configuration come first. They look at the basic code, the enhanced code and the words; where
//! the words say nothing, what RFC 5321 and RFC 3463 mean by the codes counts. Every line gets a verdict.
//!
//! Matching takes time linear in the reply, whatever the reply or a rule holds.

mod delay;
mod line;
mod rule;
mod shipped;
mod words;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use paceline_core::Scope;
use serde::{Deserialize, Serialize};

pub(crate) use self::line::{Enhanced, enhanced};
pub use self::rule::{BadReplyRule, ReplyRule, ReplyRuleText};
use self::{delay::named_delay, line::Line, rule::Facts};

/// What kind of answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Over a rate, a quota, a number of connections or recipients.
    Throttled,
    /// The same message is wanted again later, because the sender is new there.
    Greylisted,
    /// Something does not work for now.
    Temporary,
    /// There is no such recipient, or it takes no mail.
    RecipientPermanent,
    /// The message is refused for what it is.
    MessagePermanent,
    /// The sending address, network or domain is distrusted.
    ReputationBlock,
    /// The recipient has no room.
    MailboxFull,
    /// Credentials, account, relaying, or the sender's identity (SPF, DKIM, DMARC, reverse DNS).
    AuthOrAccount,
    /// Neither; the codes alone say whether to try again.
    Other,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Lower the rate of that scope.
    SlowDown,
    /// Fewer connections at a time, or fewer messages on each; the rate is not at fault.
    FewerConnections,
    /// Fewer recipients a message.
    FewerRecipients,
    /// Send again after the wait named, else with backoff.
    Retry,
    /// Never mail this recipient again.
    Suppress,
    /// Never again if it keeps being said: the code claims that it may pass.
    SuppressAfterRepeats,
    /// Give the message up.
    DeadLetter,
    /// Slow the destination down hard and tell somebody.
    SlowDownHard,
    /// Send nothing there for the wait, and tell somebody: mail that goes on makes it worse.
    PauseDestination,
    /// Send nothing by the account, keep the mail, and tell somebody.
    StopAccount,
    /// The sender's DNS or signing is wrong: keep the mail and tell somebody.
    FixSender,
    /// Nothing: it is no refusal.
    None,
}

/// What a reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub category: Category,
    /// What is concerned.
    pub scope: Scope,
    /// The wait: named by the reply, else the rule's, else the category's. At most a day.
    pub retry_after: Option<Duration>,
    /// The reply named the wait, or the rule has one of its own.
    pub wait_is_asked: bool,
    pub action: Action,
    /// The words said so, not the codes alone.
    pub by_words: bool,
    /// The rule that said so.
    pub rule: Arc<str>,
}

/// The rules in force: one's own, then the shipped ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyRules {
    own: Arc<[ReplyRule]>,
}

impl ReplyRules {
    /// `own` before the shipped rules, in order.
    pub fn new(own: Vec<ReplyRule>) -> ReplyRules {
        ReplyRules { own: own.into() }
    }

    /// Makes the shipped rules ready, which takes some 40 ms once. Otherwise the first reply waits for it.
    pub(crate) fn prepare(&self) {
        LazyLock::force(&SHIPPED);
    }

    /// What one line says: an SMTP reply as logs and bounces hold it, or a provider's words. Never fails.
    pub fn read(&self, line: &str) -> Verdict {
        let Line { code, enhanced, text } = line::parse(line);
        self.judge(code, enhanced, text)
    }

    /// What a reply says whose code is known.
    pub(crate) fn judge(&self, code: Option<u16>, enhanced: Option<Enhanced>, text: &str) -> Verdict {
        let words = words::normalise(text, code);
        let facts = Facts { code, enhanced };
        let rule = self.own.iter().chain(&*SHIPPED).find(|rule| rule.applies(facts, &words));
        // The last of the shipped rules applies to everything.
        let Some(rule) = rule else { unreachable!("no reply rule for {facts:?}") };
        rule.verdict(facts, named_delay(text))
    }
}

/// Compiled once; nothing of it ever changes.
static SHIPPED: LazyLock<Vec<ReplyRule>> = LazyLock::new(|| match shipped::rules() {
    Ok(rules) => rules,
    // It is part of the program, and its tests read it.
    Err(e) => unreachable!("the shipped reply rules: {e}"),
});

#[cfg(test)]
mod tests;
