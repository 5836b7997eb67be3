//! What the fleet has learnt of accounts and destinations, as workers keep it in the store, and what follows from it for
//! the rates in force.
//!
//! Workers go by the memory they share and write what they conclude into the store at once: this is what they knew a
//! moment ago, by this machine's clock.

use std::collections::HashMap;

use paceline_core::{
    Rate, Timestamp,
    adaptive::PacePolicy,
    circuit::Circuit,
    scope::{Learnt, force},
    warmup::Warmup,
};
use paceline_store::LearntRow;
use serde::Serialize;

use crate::config::{Account, Destination};

/// Everything learnt, by account and destination; `None`: the account itself.
pub(super) struct Memory {
    of: HashMap<(String, Option<String>), (Learnt, u64)>,
    now_us: u64,
}

/// What was learnt of one limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Shown {
    /// `closed`: mail may go; `open`: none goes; `half_open`: probes go.
    pub(super) circuit: &'static str,
    /// When an open one lets probes through.
    pub(super) opens_at: Option<Timestamp>,
    /// The rate that follows from it; `None`: the one that is set.
    pub(super) rate: Option<Rate>,
    /// Calls at a time; `None`: as configured.
    pub(super) concurrency: Option<u32>,
    /// When something was last learnt.
    pub(super) since: Option<Timestamp>,
}

/// The rate a limit has otherwise, and how fast it may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rate: Option<Rate>,
    pub(super) max: Option<Rate>,
    pub(super) concurrency: Option<u32>,
}

impl Memory {
    pub(super) fn new(rows: Vec<LearntRow>, now: Timestamp) -> Memory {
        // What another version wrote and this one cannot read counts for nothing, as it does for workers.
        let known = |row: LearntRow| {
            let learnt = serde_json::from_value(row.learnt).ok()?;
            Some(((row.account, row.destination), (learnt, row.at_us)))
        };
        Memory { of: rows.into_iter().filter_map(known).collect(), now_us: u64::try_from(now.as_micros()).unwrap_or(0) }
    }

    /// Of an account, or of a destination through it; `None` where nothing holds but what is set.
    pub(super) fn at(&self, account: &Account, destination: Option<&Destination>, bounds: Bounds) -> Option<Shown> {
        let known = |destination: Option<&str>| self.of.get(&(account.name.clone(), destination.map(str::to_owned)));
        let found = known(destination.map(|d| d.name.as_str()));
        let (mut learnt, at_us) = found.copied().unwrap_or_default();
        // A destination warms up with its account.
        learnt.first_us = known(None).map_or(0, |(of, _)| of.first_us);
        if !account.adaptive {
            learnt.pace = Default::default();
        }
        let warmup = account.warmup.as_ref().and_then(|w| {
            let start = match destination {
                None => w.start,
                Some(d) => d.warmup_start?,
            };
            Some(Warmup { start_per_s: start.as_per_second(), factor: w.factor, days: w.days })
        });
        let start_per_s = bounds.rate.map_or(UNLIMITED, Rate::as_per_second);
        let ceiling_per_s = bounds.max.map_or(start_per_s, |m| m.as_per_second().max(start_per_s));
        let policy = PacePolicy { start_per_s, ceiling_per_s, concurrency: bounds.concurrency };
        let force = force(&learnt, &policy, warmup.as_ref(), self.now_us);
        let opens_at = force.closed_until_us.map(|us| Timestamp::from_micros(i64::try_from(us).unwrap_or(i64::MAX)));
        let circuit = match learnt.circuit {
            Circuit::Closed { .. } => "closed",
            Circuit::Open { .. } => "open",
            Circuit::HalfOpen { .. } => "half_open",
        };
        let rate = force.rate_per_s.filter(|r| *r < UNLIMITED && (*r - start_per_s).abs() > start_per_s / 1e6);
        let concurrency = force.concurrency.filter(|n| Some(*n) != bounds.concurrency);
        let since = (at_us > 0).then(|| Timestamp::from_micros(i64::try_from(at_us).unwrap_or(i64::MAX)));
        let shown = Shown { circuit, opens_at, rate: rate.and_then(Rate::about), concurrency, since };
        (shown.rate.is_some() || shown.concurrency.is_some() || circuit != "closed").then_some(shown)
    }
}

/// Where nothing else limits an account or a destination.
const UNLIMITED: f64 = 1e6;
