//! What the fleet knows of an account and its destinations, and what follows from it.
//!
//! [`judge`] is taken by whichever worker sees it due; the shared state applies it only if nobody else was faster.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    adaptive::{Count, Pace, PaceCause, PacePolicy},
    circuit::{Circuit, CircuitCause, CircuitPolicy, PROBE_GAP},
    evidence::{Counts, Evidence, SLOT_US},
    lane::TAIL,
    warmup::Warmup,
};

/// What has been learnt of a scope: an account, or one of its destinations.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Learnt {
    pub circuit: Circuit,
    pub pace: Pace,
    /// When the first mail was accepted, for warm-up; 0 before, and of destinations always.
    pub first_us: u64,
}

/// An account's limits, as far as they change by themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountPolicy {
    pub circuit: CircuitPolicy,
    pub pace: PacePolicy,
    pub warmup: Option<Warmup>,
    /// The named destinations. Others have no circuit and no rate of their own: domains do not answer for each other.
    pub destinations: BTreeMap<Arc<str>, PacePolicy>,
}

/// What is known of an account.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    pub account: Learnt,
    pub destinations: BTreeMap<Arc<str>, Learnt>,
    /// By destination, `tail` included.
    pub evidence: BTreeMap<Arc<str>, Evidence>,
}

/// Why something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    Circuit(CircuitCause),
    Pace(PaceCause),
    /// The first mail of an account.
    First,
}

impl Cause {
    /// The value of the metrics label `cause`.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Circuit(c) => c.as_str(),
            Cause::Pace(p) => p.as_str(),
            Cause::First => "first",
        }
    }
}

/// A change that is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// `None`: the account itself.
    pub destination: Option<Arc<str>>,
    pub to: Learnt,
    pub causes: Vec<Cause>,
}

/// What is due now. At most one change a scope.
pub fn judge(known: &Known, policy: &AccountPolicy, now_us: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    let nothing = (Learnt::default(), Evidence::default());
    let of = |d: &Arc<str>| (known.destinations.get(d).unwrap_or(&nothing.0), known.evidence.get(d).unwrap_or(&nothing.1));
    let clean_elsewhere = clean_elsewhere(known, policy, now_us);
    let account_open = matches!(known.account.circuit, Circuit::Open { .. });
    let mut closed = known.evidence.get(TAIL).cloned().unwrap_or_default();
    let mut every = closed.clone();
    for (destination, pace) in &policy.destinations {
        let (learnt, seen) = of(destination);
        let (seen_here, seen_by_account) = connections(seen, pace, &policy.pace);
        every.merge(&seen_by_account, 0);
        let mut to = *learnt;
        let mut causes = Vec::new();
        // The account's own refusal is no destination's fault, nor are probes of the account.
        let circuit = (!account_open).then(|| learnt.circuit.step(&without_refusals(seen), now_us, &policy.circuit)).flatten();
        if let Some((circuit, cause)) = circuit {
            to.circuit = circuit;
            causes.push(Cause::Circuit(cause));
        } else if learnt.circuit.is_closed() {
            closed.merge(seen, learnt.circuit.counts_from_us());
        }
        if learnt.circuit.is_closed() {
            let count = Count::Destination { and_account: clean_elsewhere };
            if let Some((pace, cause)) = learnt.pace.step(&seen_here, count, now_us, pace) {
                to.pace = pace;
                causes.push(Cause::Pace(cause));
            }
        }
        if !causes.is_empty() {
            changes.push(Change { destination: Some(destination.clone()), to, causes });
        }
    }
    let account = &known.account;
    let mut to = *account;
    let mut causes = Vec::new();
    // Who it is refused to, or probed with, does not matter.
    let refused = every.within(from(account, now_us)).refused > 0;
    let circuit = match account.circuit.is_closed() && !refused {
        true if fails_elsewhere(known, policy, now_us) => None,
        true => account.circuit.step(&closed, now_us, &policy.circuit),
        false => account.circuit.step(&every, now_us, &policy.circuit),
    };
    if let Some((circuit, cause)) = circuit {
        to.circuit = circuit;
        causes.push(Cause::Circuit(cause));
    }
    if account.circuit.is_closed()
        && !clean_elsewhere
        && let Some((pace, cause)) = account.pace.step(&every, Count::Account, now_us, &policy.pace)
    {
        to.pace = pace;
        causes.push(Cause::Pace(cause));
    }
    if account.first_us == 0 && every.within(0..now_us + SLOT_US).accepted > 0 {
        to.first_us = now_us;
        causes.push(Cause::First);
    }
    if !causes.is_empty() {
        changes.push(Change { destination: None, to, causes });
    }
    changes
}

fn from(account: &Learnt, now_us: u64) -> std::ops::Range<u64> {
    account.circuit.counts_from_us()..now_us.saturating_add(SLOT_US)
}

fn without_refusals(seen: &Evidence) -> Evidence {
    changed(seen, |counts| Counts { refused: 0, ..counts })
}

fn changed(seen: &Evidence, change: impl Fn(Counts) -> Counts) -> Evidence {
    let mut out = Evidence::default();
    seen.iter().for_each(|(slot, counts)| out.add(slot, change(*counts)));
    out
}

/// What is seen of a destination, for itself and for its account: refused connections count where calls at a time are limited,
/// at the destination first.
fn connections<'a>(seen: &'a Evidence, own: &PacePolicy, account: &PacePolicy) -> (Cow<'a, Evidence>, Cow<'a, Evidence>) {
    let without = || Cow::Owned(changed(seen, |counts| Counts { throttled_connection: 0, ..counts }));
    match (own.concurrency, account.concurrency) {
        (None, Some(_)) => (without(), Cow::Borrowed(seen)),
        (Some(_), Some(_)) => (Cow::Borrowed(seen), without()),
        // The account counts none.
        (_, None) => (Cow::Borrowed(seen), Cow::Borrowed(seen)),
    }
}

/// Whether what fails is for the circuits of destinations: only one of them fails, or another one does well that would
/// fail too, were it the account.
fn fails_elsewhere(known: &Known, policy: &AccountPolicy, now_us: u64) -> bool {
    const EXPECTED: f64 = 0.5;
    let window = u64::try_from(policy.circuit.window.as_micros()).unwrap_or(u64::MAX);
    let since = known.account.circuit.counts_from_us().max(now_us.saturating_sub(window));
    let counts: Vec<_> = known.evidence.iter().map(|(d, e)| (d, e.within(since..now_us.saturating_add(SLOT_US)))).collect();
    let share = |c: &Counts| c.failed as f64 / (c.accepted + c.failed).max(1) as f64;
    let worst = counts.iter().map(|(_, c)| share(c)).fold(0.0, f64::max);
    let does_well = |c: &Counts| share(c) < policy.circuit.rejection_rate && c.accepted as f64 * worst >= EXPECTED;
    let mut failing = counts.iter().filter(|(_, c)| c.failed > 0).map(|(d, _)| d);
    let only_one = failing.next().is_some_and(|d| &***d != TAIL) && failing.next().is_none();
    only_one || counts.iter().any(|(_, c)| does_well(c))
}

/// Whether refusals that speak of the account meet some destinations and spare others: then they are about those
/// destinations, whatever they say. Many providers have one answer for both.
fn clean_elsewhere(known: &Known, policy: &AccountPolicy, now_us: u64) -> bool {
    const EXPECTED: f64 = 5.0;
    let look = |e| known.account.pace.look(e, Count::Account, now_us, &policy.pace);
    let looks: Vec<_> = known.evidence.values().map(look).collect();
    let tolerance = known.account.pace.tolerance();
    let worst = looks.iter().map(|l| l.share()).fold(0.0, f64::max);
    // As many as passed there would have met some refusals, were it the same limit.
    worst >= tolerance && looks.iter().any(|l| l.share() < tolerance && l.passed * worst >= EXPECTED)
}

/// What a scope may do just now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Force {
    /// Nothing before this.
    pub closed_until_us: Option<u64>,
    /// `None`: as configured.
    pub rate_per_s: Option<f64>,
    /// Probes only: nothing saved up.
    pub probing: bool,
    /// `None`: as configured.
    pub concurrency: Option<u32>,
}

/// What follows from what has been learnt: of an account with its `warmup`, of a destination without.
pub fn force(learnt: &Learnt, policy: &PacePolicy, warmup: Option<&Warmup>, now_us: u64) -> Force {
    let adaptive = learnt.pace.rate_per_s.map(|_| learnt.pace.rate(policy));
    // An open one is followed by probes, also where nobody has said so yet.
    let probing = !learnt.circuit.is_closed();
    let probes = probing.then(|| 1.0 / PROBE_GAP.as_secs_f64());
    let warm = warmup.and_then(|w| w.ceiling(learnt.first_us, now_us)).filter(|w| *w < policy.ceiling_per_s);
    let least = [adaptive, probes, warm].into_iter().flatten().reduce(f64::min);
    Force {
        closed_until_us: match learnt.circuit {
            Circuit::Open { until_us } => Some(until_us),
            _ => None,
        },
        // Above the configured rate only what has been learnt may go.
        rate_per_s: least.map(|r| if adaptive.is_some() { r } else { r.min(policy.start_per_s) }),
        probing,
        concurrency: learnt.pace.concurrency.and_then(|_| learnt.pace.concurrency(policy)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_800_000_000;

    fn policy() -> AccountPolicy {
        let pace = PacePolicy { start_per_s: 100.0, ceiling_per_s: 100.0, concurrency: None };
        AccountPolicy {
            circuit: CircuitPolicy::default(),
            pace,
            warmup: None,
            destinations: ["google", "yahoo"].into_iter().map(|d| (d.into(), pace)).collect(),
        }
    }

    fn known(evidence: &[(&str, Counts)]) -> Known {
        let mut known = Known { account: Learnt { first_us: 1, ..Learnt::default() }, ..Known::default() };
        for (destination, counts) in evidence {
            for slot in 0..10 {
                known.evidence.entry((*destination).into()).or_default().add(T0 + slot, *counts);
            }
        }
        known
    }

    fn due(known: &Known) -> Vec<(Option<String>, Vec<Cause>)> {
        let changes = judge(known, &policy(), (T0 + 10) * SLOT_US);
        changes.into_iter().map(|c| (c.destination.map(|d| d.to_string()), c.causes)).collect()
    }

    const GOOD: Counts = Counts {
        accepted: 10,
        passed: 10,
        failed: 0,
        answered: 0,
        refused: 0,
        throttled: 0,
        throttled_account: 0,
        throttled_connection: 0,
        busy_ms: 500,
    };

    #[test]
    fn who_answers_for_what() {
        const FAILED: Cause = Cause::Circuit(CircuitCause::Failures);
        const SLOWER: Cause = Cause::Pace(PaceCause::Refused);
        let failing = Counts { failed: 20, ..GOOD };
        let few = Counts { failed: 1, accepted: 0, ..GOOD };
        let fine = Counts { accepted: 1, ..GOOD };
        let refused = Counts { refused: 1, ..GOOD };
        let slow = Counts { throttled: 10, ..GOOD };
        let account_slow = Counts { throttled_account: 10, ..GOOD };
        let on = |d: &str, cause| (Some(d.to_owned()), vec![cause]);
        let account = |cause| (None, vec![cause]);
        for (what, evidence, want) in [
            ("all is well", vec![("google", GOOD), ("yahoo", GOOD), ("tail", GOOD)], vec![]),
            ("one fails", vec![("google", failing), ("yahoo", GOOD)], vec![on("google", FAILED)]),
            ("one fails, before its own circuit can tell", vec![("google", few), ("yahoo", fine)], vec![]),
            ("all but one fail", vec![("google", failing), ("yahoo", GOOD), ("tail", failing)], vec![on("google", FAILED)]),
            ("only the tail fails", vec![("tail", failing)], vec![account(FAILED)]),
            ("one fails, alone", vec![("google", failing)], vec![on("google", FAILED)]),
            (
                "all fail",
                vec![("google", failing), ("yahoo", failing), ("tail", failing)],
                vec![on("google", FAILED), on("yahoo", FAILED), account(FAILED)],
            ),
            (
                "the account is refused",
                vec![("google", refused), ("yahoo", GOOD)],
                vec![account(Cause::Circuit(CircuitCause::AccountRefused))],
            ),
            ("one is slow", vec![("google", slow), ("yahoo", GOOD)], vec![on("google", SLOWER)]),
            ("the account is slow", vec![("google", account_slow), ("yahoo", account_slow)], vec![account(SLOWER)]),
            ("it says account and means google", vec![("google", account_slow), ("yahoo", GOOD)], vec![on("google", SLOWER)]),
            ("the tail has no rate of its own", vec![("tail", slow)], vec![]),
        ] {
            assert_eq!(due(&known(&evidence)), want, "{what}");
        }
    }

    #[test]
    fn refused_connections_count_where_calls_are_limited() {
        let turned_away = Counts { throttled_connection: 5, busy_ms: 20_000, ..GOOD };
        let found = |account: Option<u32>, google: Option<u32>, of: &str| {
            let mut policy = policy();
            policy.pace.concurrency = account;
            policy.destinations.get_mut("google").unwrap().concurrency = google;
            let changes = judge(&known(&[(of, turned_away)]), &policy, (T0 + 5) * SLOT_US);
            changes.into_iter().map(|c| (c.destination.is_some(), c.causes)).collect::<Vec<_>>()
        };
        let fewer = |at_destination| vec![(at_destination, vec![Cause::Pace(PaceCause::ConnectionsRefused)])];
        assert_eq!(found(Some(24), None, TAIL), fewer(false));
        assert_eq!(found(Some(24), None, "google"), fewer(false));
        assert_eq!(found(Some(24), Some(24), "google"), fewer(true));
        assert_eq!(found(None, Some(24), "google"), fewer(true));
        assert_eq!(found(None, None, "google"), vec![(true, vec![Cause::Pace(PaceCause::Refused)])]);
        assert_eq!(found(None, None, TAIL), vec![]);
    }

    #[test]
    fn an_open_account_keeps_its_destinations_as_they_are() {
        let mut k = known(&[("google", Counts { failed: 20, ..GOOD })]);
        k.account.circuit = Circuit::Open { until_us: (T0 + 60) * SLOT_US };
        assert_eq!(due(&k), []);
        k.account.circuit = Circuit::HalfOpen { since_us: T0 * SLOT_US };
        k.destinations.insert("google".into(), Learnt { circuit: Circuit::Open { until_us: (T0 + 60) * SLOT_US }, ..k.account });
        assert_eq!(due(&k), [(None, vec![Cause::Circuit(CircuitCause::ProbeFailed)])]);
    }

    #[test]
    fn what_is_in_force() {
        let policy = PacePolicy { start_per_s: 100.0, ceiling_per_s: 200.0, concurrency: Some(9) };
        let now = T0 * SLOT_US;
        let rate = |l: &Learnt, w: Option<&Warmup>| force(l, &policy, w, now).rate_per_s;
        let mut l = Learnt { first_us: now - 86_400_000_000, ..Learnt::default() };
        let warmup = Warmup { start_per_s: 10.0, factor: 2.0, days: 9 };
        assert_eq!((rate(&l, None), rate(&l, Some(&warmup))), (None, Some(20.0)));
        let steep = Warmup { factor: 15.0, ..warmup };
        assert_eq!(rate(&l, Some(&steep)), Some(100.0), "no faster than configured before it is learnt");
        l.pace.rate_per_s = Some(150.0);
        assert_eq!((rate(&l, None), rate(&l, Some(&warmup))), (Some(150.0), Some(20.0)));
        l.pace.rate_per_s = Some(999.0);
        assert_eq!(rate(&l, None), Some(200.0), "the ceiling has come down");
        l.circuit = Circuit::HalfOpen { since_us: now };
        assert_eq!(force(&l, &policy, None, now).rate_per_s, Some(2.0));
        l.circuit = Circuit::Open { until_us: now + 5 };
        let open = force(&l, &policy, None, now);
        assert_eq!(
            (open.closed_until_us, open.probing, open.rate_per_s),
            (Some(now + 5), true, Some(2.0)),
            "no burst at its end"
        );
    }
}
