//! What the fleet learns together: counts of outcomes, and what was concluded from them.
//!
//! Workers report what they counted since their last call, in one small call for all accounts. Counts only add up, so any
//! number of workers may report in any order. Now and then the answer carries an account's counts back: that worker judges
//! ([`paceline_core::scope::judge`]) and puts what it concluded, which is taken only if nobody concluded anything about that
//! scope meanwhile. What was concluded reaches every worker with the answer to its next call.

mod local;
mod redis;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use paceline_core::{
    evidence::{Counts, Evidence},
    scope::{Known, Learnt},
};

pub use self::{local::LocalSignals, redis::RedisSignals};
use crate::LimiterError;

/// One worker's news.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    pub accounts: Vec<AccountReport>,
    /// How long counts are remembered.
    pub keep: Duration,
    /// An account's counts are handed out for judgement no more often.
    pub judge_gap: Duration,
}

/// News of one account.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AccountReport {
    pub account: Arc<str>,
    /// The [`AccountAnswer::version`] last seen, or 0.
    pub known: u64,
    /// By destination and slot of the grant.
    pub counts: Vec<(Arc<str>, u64, Counts)>,
    pub puts: Vec<Put>,
}

/// A conclusion.
#[derive(Debug, Clone, PartialEq)]
pub struct Put {
    /// `None`: the account itself.
    pub destination: Option<Arc<str>>,
    /// The [`Versioned::generation`] it was drawn from; 0 where there was nothing.
    pub from: u64,
    pub to: Learnt,
}

/// What has been concluded, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Versioned {
    pub generation: u64,
    pub learnt: Learnt,
}

/// The answer to a [`Report`], account by account.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    pub now_us: u64,
    pub accounts: Vec<AccountAnswer>,
}

/// What is known of one account.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AccountAnswer {
    /// Rises with every conclusion; begins again where the shared state was lost.
    pub version: u64,
    /// Everything concluded, unless the version is the one known. `None` as a key: the account itself.
    pub learnt: Option<BTreeMap<Option<Arc<str>>, Versioned>>,
    /// By destination, when it is this worker's turn to judge.
    pub counts: Option<BTreeMap<Arc<str>, Evidence>>,
    /// Whether each put was taken.
    pub taken: Vec<bool>,
}

/// The memory of what the fleet learns.
#[async_trait]
pub trait Signals: Send + Sync {
    /// Reports and learns. After [`LimiterError::TimedOut`] the report may have been taken: counts must not be repeated.
    async fn exchange(&self, report: &Report) -> Result<Answer, LimiterError>;
}

/// For [`paceline_core::scope::judge`].
pub fn known(learnt: &BTreeMap<Option<Arc<str>>, Versioned>, evidence: BTreeMap<Arc<str>, Evidence>) -> Known {
    let account = learnt.get(&None).map(|v| v.learnt).unwrap_or_default();
    let destinations = learnt.iter().filter_map(|(d, v)| Some((d.clone()?, v.learnt))).collect();
    Known { account, destinations, evidence }
}

/// Most accounts, and most counts of all, in one report.
pub const MAX_ACCOUNTS: usize = 1_000;
pub const MAX_COUNTS: usize = 20_000;

impl Report {
    fn check(&self) -> Result<(), LimiterError> {
        let many = self.accounts.len() > MAX_ACCOUNTS || self.accounts.iter().map(|a| a.counts.len()).sum::<usize>() > MAX_COUNTS;
        let long = self.accounts.iter().any(|a| a.account.is_empty());
        match many || long {
            true => Err(LimiterError::Refused { reason: "a report of too many counts, or of no account".into() }),
            false => Ok(()),
        }
    }
}
