//! What a sandbox is told to do: keys, limits and rules. `docs/sandbox.md` documents the TOML form.

mod read;

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use paceline_core::Rate;

use crate::{api::Api, facts::Facts, glob::Glob, step::Sequence};

/// A script for the sandbox. The default one accepts everything that is well formed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario {
    /// Keys that are let in; empty: any, or none.
    pub(crate) api_keys: Vec<String>,
    /// Of the random delays.
    pub(crate) seed: u64,
    pub(crate) limits: Vec<Limit>,
    pub(crate) rules: Vec<Rule>,
}

/// One mistake in a scenario, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct ScenarioError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub problem: String,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// Every mistake at once, in the order of the text.
    pub fn from_toml(text: &str) -> Result<Scenario, Vec<ScenarioError>> {
        read::scenario(text)
    }

    /// Whether attempts are counted whatever their address.
    pub(crate) fn counts_attempts(&self) -> bool {
        self.rules.iter().any(|rule| rule.attempts.is_some())
    }
}

/// A rate above which requests are throttled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limit {
    pub(crate) per: PerLimit,
    pub(crate) rate: Rate,
    pub(crate) burst: u32,
    /// Named in the answer; else only what the API always names.
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PerLimit {
    Account,
    /// Each recipient domain that matches has a bucket of its own; without a pattern, each domain.
    Domain(Option<Glob>),
}

/// Conditions, which all must hold, and what to do then. The first rule that fits is the one that counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) to: Option<Glob>,
    pub(crate) domain: Option<Glob>,
    pub(crate) from: Option<Glob>,
    pub(crate) class: Option<Glob>,
    pub(crate) api: Option<Api>,
    pub(crate) path: Option<Glob>,
    /// Of the attempts with this message's id: these.
    pub(crate) attempts: Option<Vec<u32>>,
    /// Only each nth request for which all else holds.
    pub(crate) every: Option<u32>,
    pub(crate) then: Sequence,
    pub(crate) per: PerSequence,
    pub(crate) answer: Option<Custom>,
    /// Before the answer: uniform between the two.
    pub(crate) delay: Option<(Duration, Duration)>,
    /// Whether a request left without an answer counts as taken.
    pub(crate) accepted: bool,
}

/// What a sequence of steps is counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PerSequence {
    Message,
    Recipient,
}

/// The answer of the step `answer`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Custom {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

impl Rule {
    /// Whether the rule is for requests to this path, whatever their body.
    pub(crate) fn is_for_path(&self, api: Api, path: &str) -> bool {
        self.api.is_none_or(|a| a == api) && self.path.as_ref().is_none_or(|p| p.matches(path))
    }

    /// Whether the rule is for this request, but for attempts and turns. The position of the recipient it is about.
    pub(crate) fn is_for(&self, api: Api, path: &str, facts: &Facts<'_>) -> Option<usize> {
        let fits = |glob: &Option<Glob>, text: Option<&str>| glob.as_ref().is_none_or(|g| text.is_some_and(|t| g.matches(t)));
        let from = facts.from.as_deref();
        if !self.is_for_path(api, path) || !fits(&self.from, from) || !fits(&self.class, facts.class.as_deref()) {
            return None;
        }
        if self.to.is_none() && self.domain.is_none() {
            return Some(0);
        }
        facts.recipients.iter().position(|r| fits(&self.to, Some(&r.email)) && fits(&self.domain, Some(r.domain())))
    }
}

#[cfg(test)]
mod tests;
