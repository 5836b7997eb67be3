//! What was counted: calls by what came of them, of an account at a destination.

use std::{collections::BTreeMap, ops::Add};

use serde::{Deserialize, Serialize};

use crate::{Outcome, Rejected, Scope};

/// How far `now` goes back, in seconds; `before` is the rest of the last hour.
pub const NOW_S: u64 = 600;

/// Calls, by what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    pub accepted: u64,
    /// Over a rate or number of connections of the destination.
    pub throttled: u64,
    /// Over a limit of the account.
    pub throttled_account: u64,
    pub greylisted: u64,
    /// Failed for now, or nobody knows.
    pub temporary: u64,
    pub rejected_recipient: u64,
    pub rejected_message: u64,
    /// Credentials, suspension, credit.
    pub rejected_account: u64,
    /// The sender is distrusted or blocked.
    pub reputation: u64,
    /// The sender's identity: SPF, DKIM, DMARC, reverse DNS.
    pub identity: u64,
}

/// Answers about the sender's identity, by the names of their rules.
const IDENTITY: [&str; 5] =
    ["no_reverse_dns", "sender_not_authenticated", "sender_identity_by_code", "sender_not_verified", "sender_not_permitted"];

impl Tally {
    /// Counts one call.
    pub fn count(&mut self, outcome: &Outcome) {
        let of = match outcome.chief() {
            Outcome::Accepted { .. } => &mut self.accepted,
            Outcome::Throttled { scope: Scope::Account, .. } => &mut self.throttled_account,
            Outcome::Throttled { .. } => &mut self.throttled,
            Outcome::Greylisted { .. } => &mut self.greylisted,
            // One that is divided has a chief part.
            Outcome::Temporary { .. } | Outcome::Uncertain { .. } | Outcome::Divided { .. } => &mut self.temporary,
            Outcome::ReputationBlock { answer, .. } if names_identity(&answer.code) => &mut self.identity,
            Outcome::ReputationBlock { .. } => &mut self.reputation,
            Outcome::Rejected { what: Rejected::Recipients(_), .. } => &mut self.rejected_recipient,
            Outcome::Rejected { what: Rejected::Message, answer } if names_identity(&answer.code) => &mut self.identity,
            Outcome::Rejected { what: Rejected::Message, .. } => &mut self.rejected_message,
            Outcome::Rejected { what: Rejected::Account, .. } => &mut self.rejected_account,
        };
        *of = of.saturating_add(1);
    }

    fn by_name(&self) -> [(&'static str, u64); 10] {
        [
            ("accepted", self.accepted),
            ("throttled", self.throttled),
            ("throttled for the account", self.throttled_account),
            ("greylisted", self.greylisted),
            ("failed", self.temporary),
            ("recipients refused", self.rejected_recipient),
            ("messages refused", self.rejected_message),
            ("account refused", self.rejected_account),
            ("blocked", self.reputation),
            ("identity refused", self.identity),
        ]
    }

    pub fn calls(&self) -> u64 {
        self.by_name().iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    pub fn is_empty(&self) -> bool {
        *self == Tally::default()
    }

    /// Refused for going too fast.
    pub(super) fn slowed(&self) -> u64 {
        self.throttled.saturating_add(self.throttled_account)
    }

    pub(super) fn failed(&self) -> u64 {
        self.temporary
    }

    /// `part` of all calls, 0 to 1.
    pub(super) fn share(&self, part: u64) -> f64 {
        part as f64 / self.calls().max(1) as f64
    }

    pub(super) fn in_words(&self) -> String {
        let said: Vec<_> = self.by_name().into_iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        said.join(", ")
    }
}

fn names_identity(code: &str) -> bool {
    IDENTITY.contains(&code)
}

impl Add for Tally {
    type Output = Tally;

    fn add(self, b: Tally) -> Tally {
        let a = self;
        Tally {
            accepted: a.accepted.saturating_add(b.accepted),
            throttled: a.throttled.saturating_add(b.throttled),
            throttled_account: a.throttled_account.saturating_add(b.throttled_account),
            greylisted: a.greylisted.saturating_add(b.greylisted),
            temporary: a.temporary.saturating_add(b.temporary),
            rejected_recipient: a.rejected_recipient.saturating_add(b.rejected_recipient),
            rejected_message: a.rejected_message.saturating_add(b.rejected_message),
            rejected_account: a.rejected_account.saturating_add(b.rejected_account),
            reputation: a.reputation.saturating_add(b.reputation),
            identity: a.identity.saturating_add(b.identity),
        }
    }
}

/// One account at one destination.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Place {
    pub account: String,
    pub destination: String,
    /// The last [`NOW_S`] seconds.
    pub now: Tally,
    /// What of them was watched, seconds.
    pub now_s: u64,
    /// The rest of the last hour.
    pub before: Tally,
    pub before_s: u64,
    /// Recipients a second that may go just now; `None`: nothing limits it.
    pub rate_per_s: Option<f64>,
    /// The same as configured.
    pub configured_per_s: Option<f64>,
    /// Its circuit, or that of the account, is not closed.
    pub circuit_open: bool,
    /// An operator holds it.
    pub paused: bool,
    /// A warm-up schedule is what limits it.
    pub warming: bool,
}

impl Place {
    /// What is in force there beside what is configured, in sentences.
    pub(super) fn in_force(&self) -> Vec<String> {
        let mut said = vec![];
        if self.paused {
            said.push(format!("an operator holds account {} there", self.account));
        }
        if self.circuit_open {
            said.push(format!("the circuit of account {} is open there", self.account));
        }
        if let (Some(rate), Some(configured)) = (self.rate_per_s, self.configured_per_s)
            && rate < configured * 0.99
            && !self.paused
            && !self.circuit_open
        {
            let why = if self.warming { "by its warm-up schedule" } else { "since it was refused at more" };
            said.push(format!("account {} goes at {rate:.2}/s of {configured:.2}/s, {why}", self.account));
        }
        said
    }

    /// Says how slow it is, where it is slow whatever it sends.
    pub(super) fn crawls(&self) -> Option<String> {
        let rate = self.rate_per_s?;
        let configured = self.configured_per_s.unwrap_or(f64::MAX);
        let slow = rate <= super::CRAWL_PER_S.min(configured) || rate < configured * super::SLOW;
        // One that is configured so slow, or stopped, tells nothing.
        (slow && rate > 0.0 && rate < configured).then(|| format!("account {} at {rate:.3}/s", self.account))
    }

    /// Enough calls, and hardly any refused for its rate, its reputation or its account.
    pub(super) fn is_clean(&self) -> bool {
        let bad = self.now.slowed() + self.now.reputation + self.now.identity + self.now.rejected_account;
        self.now.calls() >= super::FEW && self.now.share(bad) < super::SOME
    }
}

/// One place each, whoever counted: counts add up, of what is in force the strictest holds.
pub(super) fn together(places: &[Place]) -> Vec<Place> {
    let mut by: BTreeMap<(&str, &str), Place> = BTreeMap::new();
    for p in places {
        let sum = by.entry((&p.destination, &p.account)).or_insert_with(|| Place {
            account: p.account.clone(),
            destination: p.destination.clone(),
            rate_per_s: p.rate_per_s,
            configured_per_s: p.configured_per_s,
            ..Place::default()
        });
        sum.now = sum.now + p.now;
        sum.before = sum.before + p.before;
        sum.now_s = sum.now_s.max(p.now_s);
        sum.before_s = sum.before_s.max(p.before_s);
        sum.rate_per_s = sum.rate_per_s.into_iter().chain(p.rate_per_s).reduce(f64::min);
        sum.configured_per_s = sum.configured_per_s.into_iter().chain(p.configured_per_s).reduce(f64::min);
        sum.circuit_open |= p.circuit_open;
        sum.paused |= p.paused;
        sum.warming |= p.warming;
    }
    by.into_values().collect()
}
