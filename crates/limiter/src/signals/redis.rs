//! What the fleet learns together, in Redis.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use paceline_core::{
    evidence::{Counts, Evidence, FIELDS, SLOT_US},
    scope::Learnt,
};
use serde::{Deserialize, Serialize};

use super::{AccountAnswer, AccountReport, Answer, Report, Signals, Versioned};
use crate::{
    LimiterError,
    redis::{RedisClient, Script},
    wire::{decode, encode},
};

/// Signals shared by the fleet.
pub struct RedisSignals {
    client: RedisClient,
    script: Script,
}

impl RedisSignals {
    /// A view over `client`; nothing is sent yet.
    pub fn new(client: RedisClient) -> Self {
        RedisSignals { client, script: Script::new(include_str!("signals.lua")) }
    }
}

#[async_trait]
impl Signals for RedisSignals {
    async fn exchange(&self, report: &Report) -> Result<Answer, LimiterError> {
        report.check()?;
        let keys: Vec<String> = report.accounts.iter().map(|a| self.client.key("signals", &a.account)).collect();
        let news = report.accounts.iter().map(account).collect::<Result<Vec<_>, _>>()?;
        let gap_us = u64::try_from(report.judge_gap.as_micros()).unwrap_or(u64::MAX).min(1 << 50);
        let request = encode(&(report.keep.as_micros() as u64 / SLOT_US, gap_us, news))?;
        let bytes = self.client.run(&self.script, &keys, &[&request]).await?;
        let (now_us, answers): (u64, Vec<Wire>) = decode(&bytes)?;
        if answers.len() != keys.len() {
            return Err(unreadable());
        }
        Ok(Answer { now_us, accounts: answers.into_iter().map(Wire::read).collect::<Result<_, _>>()? })
    }
}

/// A list whose members take turns between two types, as Lua reads them.
#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Text(&'a str),
    Number(u64),
    Numbers(Vec<u64>),
    Blob(String),
}

/// `{known, {destination, flat counts, …}, {scope, from, blob, …}}`
fn account(of: &AccountReport) -> Result<(u64, Vec<Part<'_>>, Vec<Part<'_>>), LimiterError> {
    let mut by_destination: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (destination, slot, counts) in &of.counts {
        let flat = by_destination.entry(destination).or_default();
        flat.push(*slot);
        flat.extend(counts.to_array());
    }
    let counts = by_destination.into_iter().flat_map(|(d, flat)| [Part::Text(d), Part::Numbers(flat)]).collect();
    let mut puts = Vec::with_capacity(of.puts.len() * 3);
    for put in &of.puts {
        let blob = serde_json::to_string(&put.to)
            .map_err(|e| LimiterError::Refused { reason: format!("cannot encode a conclusion: {e}") })?;
        puts.extend([Part::Text(put.destination.as_deref().unwrap_or("")), Part::Number(put.from), Part::Blob(blob)]);
    }
    Ok((of.known, counts, puts))
}

/// `{version, {learnt} or {}, {counts} or {}, taken}`
#[derive(Deserialize)]
struct Wire(u64, Vec<Vec<(String, u64, String)>>, Vec<Vec<(String, Vec<u64>)>>, Vec<u8>);

impl Wire {
    fn read(self) -> Result<AccountAnswer, LimiterError> {
        let Wire(version, learnt, counts, taken) = self;
        let scope = |name: String| (!name.is_empty()).then(|| Arc::<str>::from(name));
        let learnt = learnt.into_iter().next().map(|all| {
            let read = |(name, generation, blob): (String, u64, String)| {
                // Another version's conclusion that cannot be read counts for nothing, and is replaced by the next.
                let learnt = serde_json::from_str::<Learnt>(&blob).unwrap_or_default();
                (scope(name), Versioned { generation, learnt })
            };
            all.into_iter().map(read).collect()
        });
        let read = |(d, flat): (String, Vec<u64>)| evidence(&flat).map(|e| (d.into(), e));
        let counts = counts.into_iter().next().map(|all| all.into_iter().map(read).collect::<Result<_, _>>()).transpose()?;
        Ok(AccountAnswer { version, learnt, counts, taken: taken.into_iter().map(|t| t == 1).collect() })
    }
}

fn evidence(flat: &[u64]) -> Result<Evidence, LimiterError> {
    let mut evidence = Evidence::default();
    for entry in flat.chunks(FIELDS + 1) {
        let (slot, counts) = entry.split_first().ok_or_else(unreadable)?;
        evidence.add(*slot, Counts::from_array(counts.try_into().map_err(|_| unreadable())?));
    }
    Ok(evidence)
}

fn unreadable() -> LimiterError {
    LimiterError::Refused { reason: "the signals' reply makes no sense; is another version running?".into() }
}
