//! What is known of every account, and what follows from it for this worker. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use paceline_core::{
    adaptive::PacePolicy,
    circuit::{Circuit, CircuitCause},
    evidence::Evidence,
    scope::{AccountPolicy, Cause, Force, Learnt, force, judge},
    warmup::Warmup,
};
use paceline_limiter::signals::{AccountAnswer, AccountReport, Put, Report, Versioned, known};

use super::{
    keep::Kept,
    tally::{Blocks, News},
};
use crate::{
    limits::Rates,
    settings::{Limit, Settings},
    standing::Effect,
};

/// An account itself (`None`), or one of its destinations.
pub(super) type Of = Option<Arc<str>>;

/// A conclusion to be put.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Due {
    pub(super) account: usize,
    pub(super) of: Of,
    pub(super) from: Versioned,
    pub(super) to: Learnt,
    /// None: remembered from before the shared memory was lost.
    pub(super) causes: Vec<Cause>,
}

/// All accounts.
pub(super) struct View {
    pub(super) accounts: Vec<Account>,
}

/// One account: how it may change, and what is known.
pub(super) struct Account {
    pub(super) name: Arc<str>,
    policy: AccountPolicy,
    adaptive: bool,
    /// Where destinations begin their warm-up.
    starts: BTreeMap<Arc<str>, f64>,
    version: u64,
    learnt: BTreeMap<Of, Versioned>,
}

impl View {
    /// Of accounts that are configured so, with the rates that operators have set.
    pub(super) fn new(settings: &Settings, rates: &Rates) -> View {
        let settings = &rates.over(settings);
        let start = |d: &crate::settings::Destination| Some((d.name.clone(), d.warmup_start?.as_per_second()));
        let starts: BTreeMap<Arc<str>, f64> = settings.destinations.iter().filter_map(start).collect();
        let account = |a: &crate::settings::Account| Account {
            name: a.name.clone(),
            policy: AccountPolicy {
                circuit: settings.circuit,
                pace: pace(a.limit, a.max_rate, a.fleet_concurrency),
                warmup: a.warmup,
                destinations: settings
                    .destinations
                    .iter()
                    .map(|d| rates.destination(&a.name, d))
                    .map(|d| (d.name.clone(), pace(d.limit, d.max_rate, d.concurrency)))
                    .collect(),
            },
            adaptive: a.adaptive,
            starts: starts.clone(),
            version: 0,
            learnt: BTreeMap::new(),
        };
        View { accounts: settings.accounts.iter().map(account).collect() }
    }

    /// Goes by other limits and policies from now on; what is known of the same accounts stays.
    pub(super) fn reread(&mut self, settings: &Settings, rates: &Rates) {
        let before = std::mem::replace(self, View::new(settings, rates));
        for (account, before) in self.accounts.iter_mut().zip(before.accounts) {
            (account.version, account.learnt) = (before.version, before.learnt);
        }
    }

    /// What the shared memory is told: `news` counted here, and `due` concluded here.
    pub(super) fn report(&self, news: &News, due: &[Due], keep: Duration, judge_gap: Duration) -> Report {
        let known = |a: &Account| AccountReport { account: a.name.clone(), known: a.version, ..AccountReport::default() };
        let mut accounts: Vec<AccountReport> = self.accounts.iter().map(known).collect();
        for ((account, destination, slot), counts) in news {
            accounts[*account].counts.push((destination.clone(), *slot, *counts));
        }
        for d in due {
            let put = Put { destination: d.of.clone(), from: d.from.generation, to: d.to };
            accounts[d.account].puts.push(put);
        }
        Report { accounts, keep, judge_gap }
    }

    /// Takes what the shared memory knows of an account. What it has lost is due again.
    pub(super) fn take(&mut self, account: usize, answer: &AccountAnswer) -> Vec<Due> {
        let Some(a) = self.accounts.get_mut(account) else { return Vec::new() };
        let lost = answer.version < a.version;
        a.version = answer.version;
        let Some(learnt) = &answer.learnt else { return Vec::new() };
        let before = std::mem::replace(&mut a.learnt, learnt.clone());
        let mut due = Vec::new();
        for (of, known) in before.into_iter().filter(|(of, _)| lost && !learnt.contains_key(of)) {
            // It holds until it is put back, or something else is.
            let held = Versioned { generation: 0, learnt: known.learnt };
            due.push(Due { account, of: of.clone(), from: held, to: held.learnt, causes: vec![] });
            a.learnt.insert(of, held);
        }
        due
    }

    /// What is due of what the store remembered: all that the shared memory knows nothing of, and an account's first
    /// mail, if that was earlier.
    pub(super) fn remember(&self, kept: &[Kept]) -> Vec<Due> {
        let due = |k: &Kept| {
            let account = self.accounts.iter().position(|a| *a.name == *k.account)?;
            let of: Of = k.destination.as_deref().map(Into::into);
            let from = self.accounts[account].learnt.get(&of).copied().unwrap_or_default();
            let first_us = k.learnt.first_us;
            let earlier = first_us > 0 && (from.learnt.first_us == 0 || first_us < from.learnt.first_us);
            let to = match from.generation {
                0 => k.learnt,
                _ if earlier => Learnt { first_us, ..from.learnt },
                _ => return None,
            };
            Some(Due { account, of, from, to, causes: vec![] })
        };
        kept.iter().filter_map(due).collect()
    }

    /// What follows from an account's counts.
    pub(super) fn judge(&self, account: usize, counts: &BTreeMap<Arc<str>, Evidence>, now_us: u64) -> Vec<Due> {
        let a = &self.accounts[account];
        let changes = judge(&known(&a.learnt, counts.clone()), &a.policy, now_us).into_iter();
        let due = changes.map(|change| {
            let from = a.learnt.get(&change.destination).copied().unwrap_or_default();
            let (mut to, mut causes) = (change.to, change.causes);
            if !a.adaptive {
                to.pace = from.learnt.pace;
                causes.retain(|c| !matches!(c, Cause::Pace(_)));
            }
            Due { account, of: change.destination, from, to, causes }
        });
        due.filter(|d| !d.causes.is_empty()).collect()
    }

    /// Destinations that have said for how long they want nothing: they are closed for as long, whatever else is `due`.
    /// Forgets those that are closed already.
    pub(super) fn block(&self, blocks: &mut Blocks, due: &mut Vec<Due>, now_us: u64) {
        blocks.retain(|(account, destination), until_us| {
            let (of, until_us) = (Some(destination.clone()), *until_us);
            let from = self.accounts[*account].learnt.get(&of).copied().unwrap_or_default();
            let closed = matches!(from.learnt.circuit, Circuit::Open { until_us: already } if already >= until_us);
            if closed || until_us <= now_us {
                return false;
            }
            let of_it = |d: &&mut Due| d.account == *account && d.of == of;
            let to = match due.iter_mut().find(of_it) {
                Some(d) => d,
                None => {
                    due.push(Due { account: *account, of: of.clone(), from, to: from.learnt, causes: vec![] });
                    // It has just been pushed.
                    match due.last_mut() {
                        Some(d) => d,
                        None => return true,
                    }
                }
            };
            to.to.circuit = Circuit::Open { until_us };
            to.causes.retain(|c| !matches!(c, Cause::Circuit(_)));
            to.causes.push(Cause::Circuit(CircuitCause::ReputationBlock));
            true
        });
    }

    /// Whether anything is to be watched closely: a circuit that is not closed.
    pub(super) fn restless(&self) -> bool {
        self.accounts.iter().any(|a| a.learnt.values().any(|v| !v.learnt.circuit.is_closed()))
    }

    /// What holds just now, by the keys of the buckets: also where nothing has changed after all, since others may have been
    /// told otherwise before.
    pub(super) fn effects(&self, now_us: u64) -> HashMap<Arc<str>, Effect> {
        let mut effects = HashMap::new();
        for a in &self.accounts {
            for of in a.scopes() {
                let (force, key) = (a.force(&of, now_us), a.key(&of));
                let known = a.learnt.contains_key(&of);
                if force.concurrency.is_some() || (known && a.pace(&of).concurrency.is_some()) {
                    let slots = Effect { slots: force.concurrency, ..Effect::default() };
                    effects.insert(format!("{key}:concurrency").into(), slots);
                }
                let effect = Effect {
                    closed_until_us: force.closed_until_us.unwrap_or(0),
                    rate_per_s: force.rate_per_s,
                    no_burst: force.probing,
                    ..Effect::default()
                };
                if known || effect != Effect::default() {
                    effects.insert(key.into(), effect);
                }
            }
        }
        effects
    }
}

impl Account {
    /// The account itself, then its destinations.
    pub(super) fn scopes(&self) -> impl Iterator<Item = Of> + '_ {
        std::iter::once(None).chain(self.policy.destinations.keys().cloned().map(Some))
    }

    pub(super) fn learnt(&self, of: &Of) -> Learnt {
        self.learnt.get(of).map(|v| v.learnt).unwrap_or_default()
    }

    pub(super) fn pace(&self, of: &Of) -> PacePolicy {
        of.as_ref().and_then(|d| self.policy.destinations.get(d)).copied().unwrap_or(self.policy.pace)
    }

    /// The rate in force but for circuits, recipients a second; `None` where nothing limits it.
    pub(super) fn rate(&self, of: &Of, now_us: u64) -> Option<f64> {
        let pace = self.pace(of);
        let calm = Learnt { circuit: Circuit::default(), ..self.known(of) };
        let rate = force(&calm, &pace, self.warmup(of).as_ref(), now_us).rate_per_s.unwrap_or(pace.start_per_s);
        (rate < UNLIMITED).then_some(rate)
    }

    fn force(&self, of: &Of, now_us: u64) -> Force {
        force(&self.known(of), &self.pace(of), self.warmup(of).as_ref(), now_us)
    }

    /// What has been learnt, as far as it is to be followed; a destination warms up with its account.
    fn known(&self, of: &Of) -> Learnt {
        let mut learnt = self.learnt(of);
        if !self.adaptive {
            learnt.pace = paceline_core::adaptive::Pace::default();
        }
        Learnt { first_us: self.learnt(&None).first_us, ..learnt }
    }

    fn warmup(&self, of: &Of) -> Option<Warmup> {
        match of {
            None => self.policy.warmup,
            Some(d) => Some(Warmup { start_per_s: *self.starts.get(d)?, ..self.policy.warmup? }),
        }
    }

    fn key(&self, of: &Of) -> String {
        match of {
            None => format!("account:{}", self.name),
            Some(d) => format!("account:{}:destination:{d}", self.name),
        }
    }
}

/// Where nothing else limits an account or a destination.
const UNLIMITED: f64 = 1e6;

fn pace(limit: Option<Limit>, max: Option<paceline_core::Rate>, concurrency: Option<u32>) -> PacePolicy {
    let start_per_s = limit.map_or(UNLIMITED, |l| l.rate.as_per_second());
    let ceiling_per_s = max.map_or(start_per_s, |m| m.as_per_second().max(start_per_s));
    PacePolicy { start_per_s, ceiling_per_s, concurrency }
}

#[cfg(test)]
mod tests;
