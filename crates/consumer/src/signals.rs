//! Circuits, adaptive rates and warm-up: this worker's part in what the fleet learns, and what follows for its limits.
//!
//! Outcomes are counted as they come ([`Tally`]) and reported a few times a second, at once when the account was refused
//! or a flood of refusals is seen. Whoever is handed the fleet's counts judges ([`paceline_core::scope::judge`]) and puts
//! what it concluded; the answers say what is known, and that stands beside what is configured
//! ([`Source::Learnt`]). While the shared memory does not answer, everything stays as it is.

mod keep;
mod tally;
mod view;

use std::{collections::HashMap, sync::Arc, time::Duration};

use paceline_core::{
    Outcome, Rejected, Scope,
    adaptive::LOOK_BACK_US,
    circuit::{Circuit, CircuitCause},
    lane::TAIL,
    scope::Cause,
};
use paceline_limiter::{
    LimiterError,
    signals::{Answer, MAX_COUNTS, Signals},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use self::keep::{Keep, KeepError, Kept};
pub(crate) use self::tally::{Ended, Tally};
use self::{
    keep::Keeper,
    tally::{BLOCK_MOST, Blocks, News},
    view::{Due, View},
};
use crate::{
    context::Context,
    engine::Input,
    item::Item,
    limits::Limits,
    metrics::{ChangeLabels, ScopeLabels},
    settings::Settings,
    standing::{Effect, Source},
};

/// Between two reports while there is news, and while there is none.
const REPORT: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_millis(500);
/// However urgent.
const LEAST: Duration = Duration::from_millis(50);
/// The fleet's counts are judged no more often, unless it is urgent.
const JUDGE_GAP: Duration = Duration::from_millis(500);
/// For a report that is not to be handed counts.
const NEVER: Duration = Duration::from_secs(86_400);
/// Counts are kept for longer than anything looks back, by this much.
const MORE: Duration = Duration::from_secs(30);

/// The task of one worker.
pub(crate) struct Learning {
    cx: Arc<Context>,
    memory: Arc<dyn Signals>,
    /// Anew with every configuration read anew, and with every order.
    limits: watch::Receiver<Arc<Limits>>,
    view: View,
    keeper: Keeper,
    blocks: Blocks,
    /// Lost by the shared memory, and not yet put back.
    again: Vec<Due>,
    /// What the engine was told last.
    said: HashMap<Arc<str>, Effect>,
    keep_counts: Duration,
    stale: bool,
}

impl Learning {
    pub(crate) fn new(
        cx: Arc<Context>,
        memory: Arc<dyn Signals>,
        keep: Option<Arc<dyn Keep>>,
        mut limits: watch::Receiver<Arc<Limits>>,
    ) -> Learning {
        let rates = limits.borrow_and_update().rates.clone();
        let settings = cx.current();
        let (view, keep_counts) = (View::new(&settings, &rates), keep_counts(&settings));
        Learning {
            cx,
            memory,
            limits,
            view,
            keeper: Keeper::new(keep),
            blocks: Blocks::new(),
            again: Vec::new(),
            said: HashMap::new(),
            keep_counts,
            stale: false,
        }
    }

    /// Runs until it is stopped, then reports a last time.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            if self.limits.has_changed().unwrap_or(false) {
                let rates = self.limits.borrow_and_update().rates.clone();
                let settings = self.cx.current();
                self.keep_counts = keep_counts(&settings);
                self.view.reread(&settings, &rates);
            }
            let began = Instant::now();
            let (news, blocks, urgent) = self.cx.tally.take();
            let busy = !news.is_empty();
            blocks.into_iter().for_each(|(of, until)| {
                let known = self.blocks.entry(of).or_default();
                *known = until.max(*known);
            });
            self.learn(news, urgent).await;
            if let Some(kept) = self.keeper.step().await {
                let due = self.view.remember(&kept);
                if !due.is_empty() {
                    tracing::info!(scopes = due.len(), "what was learnt before comes back from the store");
                    self.put(due).await;
                }
            }
            if stop.is_cancelled() {
                return self.keeper.finish().await;
            }
            let pause = if busy || self.view.restless() { REPORT } else { IDLE };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = async { self.cx.tally.urgent().await; sleep_until(began + LEAST).await } => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Reports, takes the answer, judges if it is this worker's turn.
    async fn learn(&mut self, mut news: News, urgent: bool) {
        while news.len() > MAX_COUNTS
            && let Some(oldest) = news.keys().min_by_key(|(_, _, slot)| *slot).cloned()
        {
            news.remove(&oldest);
        }
        let gap = if urgent { Duration::ZERO } else { JUDGE_GAP };
        let report = self.view.report(&news, &[], self.keep_counts, gap);
        match self.memory.exchange(&report).await {
            Ok(answer) => {
                if std::mem::take(&mut self.stale) {
                    tracing::info!("circuits and adaptive rates follow what happens again");
                }
                self.take(&answer);
                let mut due = std::mem::take(&mut self.again);
                for (account, of) in answer.accounts.iter().enumerate() {
                    let judged = of.counts.iter().flat_map(|counts| self.view.judge(account, counts, answer.now_us));
                    let judged: Vec<Due> = judged.collect();
                    // What was lost comes back first, or it would be concluded from nothing.
                    let again = |d: &Due| due.iter().any(|other| other.account == d.account && other.of == d.of);
                    let fresh: Vec<Due> = judged.into_iter().filter(|d| !again(d)).collect();
                    due.extend(fresh);
                }
                self.view.block(&mut self.blocks, &mut due, answer.now_us);
                if due.is_empty() { self.put_in_force(answer.now_us) } else { self.put(due).await }
            }
            Err(error) => {
                // After a time-out they may have been counted: twice would be worse than not at all.
                if !matches!(error, LimiterError::TimedOut { .. })
                    && let Some(now_us) = self.cx.limiter_now_us()
                {
                    let oldest = now_us.saturating_sub(self.keep_counts.as_micros() as u64);
                    self.cx.tally.put_back(news, oldest);
                }
                if !std::mem::replace(&mut self.stale, true) {
                    tracing::warn!(%error, "circuits and adaptive rates stay as they are: the fleet's counts cannot be reached");
                }
            }
        }
    }

    fn take(&mut self, answer: &Answer) {
        for (account, of) in answer.accounts.iter().enumerate() {
            self.again.extend(self.view.take(account, of));
        }
        if !self.again.is_empty() {
            let scopes = self.again.len();
            tracing::warn!(scopes, "the fleet's memory of what was learnt is lost; putting back what is known here");
        }
    }

    /// Puts conclusions; what others concluded meanwhile is not overruled.
    async fn put(&mut self, due: Vec<Due>) {
        let report = self.view.report(&News::new(), &due, self.keep_counts, NEVER);
        let Ok(answer) = self.memory.exchange(&report).await else { return };
        let mut taken: Vec<_> = answer.accounts.iter().map(|a| a.taken.iter()).collect();
        for due in due {
            let mine = taken.get_mut(due.account).and_then(Iterator::next).copied();
            if mine == Some(true) {
                self.tell(&due);
                let account = self.view.accounts[due.account].name.clone();
                self.keeper.note(Kept { account, destination: due.of, learnt: due.to, at_us: answer.now_us });
            }
        }
        self.take(&answer);
        self.put_in_force(answer.now_us);
    }

    /// Says what has changed, to whoever reads logs and metrics.
    fn tell(&self, due: &Due) {
        let account = &self.view.accounts[due.account];
        let (from, to, pace) = (&due.from.learnt, &due.to, account.pace(&due.of));
        let (name, destination) = (&*account.name, due.of.as_deref().unwrap_or(""));
        for cause in &due.causes {
            let labels = ChangeLabels {
                account: account.name.clone(),
                destination: due.of.clone().unwrap_or_default(),
                cause: cause.as_str(),
            };
            self.cx.metrics.limit_changes.get_or_create(&labels).inc();
            let cause = cause.as_str();
            match due.causes.iter().find(|c| c.as_str() == cause) {
                Some(Cause::Circuit(what)) => {
                    let (from, to, bad) =
                        (from.circuit.as_str(), to.circuit.as_str(), matches!(to.circuit, Circuit::Open { .. }));
                    match (bad, what) {
                        (true, CircuitCause::AccountRefused) => tracing::warn!(
                            account = name,
                            from,
                            to,
                            cause,
                            "circuit: the provider refuses the account itself; its mail is kept. Look at its credentials, \
                             suspension and credit; it is probed until it works"
                        ),
                        (true, CircuitCause::ReputationBlock) => tracing::warn!(
                            account = name,
                            destination,
                            from,
                            to,
                            cause,
                            "circuit: the destination distrusts this sender; its mail is kept. Look at the destination's \
                             postmaster pages, SPF, DKIM and DMARC, and block lists"
                        ),
                        (true, _) => tracing::warn!(account = name, destination, from, to, cause, "circuit"),
                        (false, _) => tracing::info!(account = name, destination, from, to, cause, "circuit"),
                    }
                }
                Some(Cause::Pace(_)) => {
                    let (slower, from_calls, to_calls) =
                        (to.pace.rate(&pace) < from.pace.rate(&pace), from.pace.concurrency(&pace), to.pace.concurrency(&pace));
                    let (from, to) = (shown(from.pace.rate(&pace)), shown(to.pace.rate(&pace)));
                    if slower || to_calls < from_calls {
                        tracing::warn!(account = name, destination, from, to, from_calls, to_calls, cause, "adaptive rate");
                    } else {
                        tracing::info!(account = name, destination, from, to, from_calls, to_calls, cause, "adaptive rate");
                    }
                }
                Some(Cause::First) => tracing::info!(account = name, "first mail of the account: a warm-up counts from now"),
                None => {}
            }
        }
    }

    /// Tells the engine what holds now, and shows it.
    fn put_in_force(&mut self, now_us: u64) {
        for account in &self.view.accounts {
            for of in account.scopes() {
                let labels = ScopeLabels { account: account.name.clone(), destination: of.clone().unwrap_or_default() };
                let state = match account.learnt(&of).circuit {
                    Circuit::Closed { .. } => 0,
                    Circuit::HalfOpen { .. } => 1,
                    Circuit::Open { .. } => 2,
                };
                self.cx.metrics.circuit_state.get_or_create(&labels).set(state);
                if let Some(rate) = account.rate(&of, now_us) {
                    self.cx.metrics.adaptive_rate.get_or_create(&labels).set(rate);
                }
            }
        }
        let mut effects = self.view.effects(now_us);
        for (key, effect) in &mut effects {
            // Read later is known better: what was read is no older than what anybody read before.
            let same = self.said.get(key).filter(|said| Effect { since_us: 0, ..**said } == *effect);
            effect.since_us = same.map_or(now_us, |said| said.since_us);
        }
        if effects != self.said {
            self.said.clone_from(&effects);
            self.cx.to_engine(Input::Stand { source: Source::Learnt, effects });
        }
    }
}

/// Counts older than this tell nothing any more.
fn keep_counts(settings: &Settings) -> Duration {
    settings.circuit.window.max(Duration::from_micros(LOOK_BACK_US)) + MORE
}

fn shown(per_s: f64) -> String {
    format!("{per_s:.2}/s")
}

/// What one answer means at once, before the fleet has judged: how long which of the message's buckets is held.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Hold {
    /// Its position: the account's bucket comes first, then that of the destination or tail domain.
    bucket: usize,
    wait: Duration,
}

fn hold(outcome: &Outcome, named: bool, adaptive: bool, open: Duration) -> Option<Hold> {
    let asked = |wait: &Option<Duration>| wait.map(|w| w.min(ASKED_MOST));
    let (bucket, wait) = match outcome {
        Outcome::Throttled { scope: Scope::Account, retry_after, .. } => {
            // Without a time, the rate is cut instead.
            (0, asked(retry_after).or((!adaptive).then_some(THROTTLED))?)
        }
        Outcome::Throttled { scope: Scope::Destination, retry_after, .. } => {
            // A tail domain has no rate of its own to cut.
            (1, asked(retry_after).or((!adaptive || !named).then_some(THROTTLED))?)
        }
        Outcome::Throttled { scope: Scope::Connection, retry_after, .. } if !named => {
            (1, asked(retry_after).unwrap_or(THROTTLED))
        }
        Outcome::Rejected { what: Rejected::Account, .. } => (0, open),
        // A named destination is closed for the fleet for as long as was said; this is until that is known.
        Outcome::ReputationBlock { .. } if named => (1, DISTRUSTED),
        Outcome::ReputationBlock { retry_after, .. } => (1, retry_after.unwrap_or(DISTRUSTED).min(BLOCK_MOST)),
        _ => return None,
    };
    Some(Hold { bucket, wait })
}

/// Hold after "slow down" without a time.
const THROTTLED: Duration = Duration::from_secs(1);
/// No Retry-After holds a limit for longer.
const ASKED_MOST: Duration = Duration::from_secs(3600);
/// Hold after a destination's distrust without a time.
const DISTRUSTED: Duration = Duration::from_secs(60);

impl Context {
    /// Learns from the outcome of a call that was granted at `granted_us`: counts it, and holds what must not go on.
    pub(crate) fn learn(&self, item: &Item, outcome: &Outcome, granted_us: u64, took: Duration) {
        let (adaptive, open) = {
            let settings = self.current.borrow();
            (settings.accounts[item.account].adaptive, settings.circuit.open)
        };
        let destination = &item.lane.destination;
        let named = **destination != *TAIL;
        self.tally.add(&Ended {
            account: item.account,
            destination,
            recipients: item.recipients as u64,
            granted_us,
            took,
            outcome,
            adaptive,
        });
        // Where recipients were answered differently, each answer counts: of those that hold the same, the longest.
        let mut longest: [Option<(Duration, &Outcome)>; 2] = [None, None];
        for part in outcome.parts() {
            if let Outcome::ReputationBlock { retry_after: Some(wait), .. } = part
                && named
                && let Some(now_us) = self.limiter_now_us()
            {
                let until_us = now_us + (*wait).min(BLOCK_MOST).as_micros() as u64;
                self.tally.block(item.account, destination, until_us);
            }
            if let Some(Hold { bucket, wait }) = hold(part, named, adaptive, open)
                && let Some(held) = longest.get_mut(bucket)
                && held.is_none_or(|(other, _)| other < wait)
            {
                *held = Some((wait, part));
            }
        }
        let held = longest.into_iter().enumerate().filter_map(|(bucket, held)| Some((bucket, held?)));
        held.for_each(|(bucket, (wait, part))| self.hold(item, part, bucket, wait));
    }

    fn hold(&self, item: &Item, outcome: &Outcome, bucket: usize, wait: Duration) {
        if let Outcome::Rejected { what: Rejected::Account, .. } = outcome
            && let Some(now_us) = self.limiter_now_us()
        {
            self.tally.refuse(item.account, now_us + wait.as_micros() as u64);
        }
        let Some(bucket) = item.buckets.get(bucket) else { return };
        tracing::warn!(
            bucket = &*bucket.key,
            hold_s = wait.as_secs_f64(),
            outcome = outcome.label(),
            "provider asked to slow down; holding"
        );
        self.to_engine(Input::Hold { bucket: bucket.key.clone(), wait });
    }

    /// Whether something on the message's way was closed after it was granted: then no call is made.
    pub(crate) fn closed(&self, item: &Item) -> bool {
        let standing = self.standing.borrow();
        self.limiter_now_us().is_some_and(|now_us| {
            self.tally.refuses(item.account, now_us)
                || (!standing.is_empty() && item.buckets.iter().any(|b| standing.closed(&b.key, now_us)))
        })
    }
}

#[cfg(test)]
mod tests {
    use paceline_core::ProviderAnswer;

    use super::*;

    #[test]
    fn what_is_held_at_once() {
        let answer = || ProviderAnswer::new("code", None, "words");
        let s = Duration::from_secs;
        let throttled = |scope, wait: Option<u64>| Outcome::Throttled { scope, retry_after: wait.map(s), answer: answer() };
        let block = |wait: Option<u64>| Outcome::ReputationBlock { retry_after: wait.map(s), answer: answer() };
        let refused = Outcome::Rejected { what: Rejected::Account, answer: answer() };
        let (named, tail) = (true, false);
        for (outcome, to, adaptive, want) in [
            (throttled(Scope::Account, None), named, true, None),
            (throttled(Scope::Account, None), named, false, Some((0, 1))),
            (throttled(Scope::Account, Some(7)), named, true, Some((0, 7))),
            (throttled(Scope::Account, Some(1 << 40)), named, true, Some((0, 3600))),
            (throttled(Scope::Destination, None), named, true, None),
            (throttled(Scope::Destination, None), tail, true, Some((1, 1))),
            (throttled(Scope::Destination, Some(7)), tail, true, Some((1, 7))),
            (throttled(Scope::Connection, None), named, true, None),
            (throttled(Scope::Connection, None), tail, true, Some((1, 1))),
            (throttled(Scope::Recipient, Some(9)), tail, true, None),
            (refused, named, true, Some((0, 30))),
            (block(None), named, true, Some((1, 60))),
            (block(Some(14_400)), named, true, Some((1, 60))),
            (block(Some(14_400)), tail, true, Some((1, 14_400))),
            (block(Some(1 << 40)), tail, true, Some((1, 86_400))),
            (Outcome::accepted(None), tail, true, None),
        ] {
            let want = want.map(|(bucket, wait)| Hold { bucket, wait: s(wait) });
            assert_eq!(hold(&outcome, to, adaptive, s(30)), want, "{outcome:?} {to} {adaptive}");
        }
    }
}
