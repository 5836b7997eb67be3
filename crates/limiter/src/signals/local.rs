//! What the tasks of one process learn together; the same rules as `signals.lua`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use paceline_core::evidence::Evidence;

use super::{AccountAnswer, Answer, Report, Signals, Versioned};
use crate::{LimiterError, local::LocalClock};

/// Signals in memory: they are forgotten when the process ends.
#[derive(Debug, Default)]
pub struct LocalSignals {
    clock: LocalClock,
    accounts: Mutex<HashMap<Arc<str>, Account>>,
}

#[derive(Debug, Default)]
struct Account {
    version: u64,
    judged_us: u64,
    learnt: BTreeMap<Option<Arc<str>>, Versioned>,
    counts: BTreeMap<Arc<str>, Evidence>,
}

impl LocalSignals {
    /// Signals that know nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, by this clock.
    #[must_use]
    pub fn with_clock(self, clock: LocalClock) -> Self {
        LocalSignals { clock, ..self }
    }
}

#[async_trait]
impl Signals for LocalSignals {
    async fn exchange(&self, report: &Report) -> Result<Answer, LimiterError> {
        report.check()?;
        let now_us = self.clock.now_us();
        let micros = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        // Each step leaves an account whole.
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = report.accounts.iter().map(|news| {
            let account = accounts.entry(news.account.clone()).or_default();
            let oldest = now_us.saturating_sub(micros(report.keep));
            for (destination, slot, counts) in &news.counts {
                let evidence = account.counts.entry(destination.clone()).or_default();
                evidence.add(*slot, *counts);
                evidence.forget(oldest);
            }
            let taken = news.puts.iter().map(|put| {
                let now = account.learnt.entry(put.destination.clone()).or_default();
                let taken = now.generation == put.from;
                if taken {
                    *now = Versioned { generation: now.generation + 1, learnt: put.to };
                    account.version += 1;
                }
                taken
            });
            let taken = taken.collect();
            let turn = now_us >= account.judged_us.saturating_add(micros(report.judge_gap));
            if turn {
                account.judged_us = now_us;
                account.counts.values_mut().for_each(|e| e.forget(oldest));
                account.counts.retain(|_, e| !e.is_empty());
            }
            AccountAnswer {
                version: account.version,
                learnt: (account.version != news.known).then(|| account.learnt.clone()),
                counts: turn.then(|| account.counts.clone()),
                taken,
            }
        });
        let accounts = answer.collect();
        Ok(Answer { now_us, accounts })
    }
}
