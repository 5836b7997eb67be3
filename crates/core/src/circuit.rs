//! The circuit of a scope: closed, open, half-open.
//!
//! Counted are calls that were accepted and calls that failed. What speaks of one recipient or message, and what only asks
//! to go slower, is neither.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::evidence::{Evidence, SLOT_US};

/// `[circuit]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitPolicy {
    /// Opens at this share of failed calls, 0 to 1.
    pub rejection_rate: f64,
    pub window: Duration,
    /// How long nothing is sent.
    pub open: Duration,
    /// With fewer calls in the window it does not open.
    pub min_samples: u32,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        let (window, open) = (Duration::from_secs(60), Duration::from_secs(30));
        CircuitPolicy { rejection_rate: 0.2, window, open, min_samples: 20 }
    }
}

/// Whether a scope may send. Times are the limiter's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Circuit {
    /// It may. What was granted before `since_us` does not count.
    Closed { since_us: u64 },
    /// Nothing is sent.
    Open { until_us: u64 },
    /// A few real messages go, as probes, one [`PROBE_GAP`] apart.
    HalfOpen { since_us: u64 },
}

impl Default for Circuit {
    fn default() -> Self {
        Circuit::Closed { since_us: 0 }
    }
}

/// Time between two probes, over the whole fleet.
pub const PROBE_GAP: Duration = Duration::from_millis(500);
/// Answers without a failure among them that close a half-open circuit.
pub const PROBES: u64 = 5;

/// Why a circuit changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CircuitCause {
    /// Too many calls failed.
    Failures,
    /// The account itself was refused: credentials, suspension, credit.
    AccountRefused,
    /// The receiving side distrusts the sender and has said for how long.
    ReputationBlock,
    /// A probe failed.
    ProbeFailed,
    /// Open for long enough.
    Probing,
    /// The probes came back well.
    ProbesPassed,
}

impl CircuitCause {
    /// The value of the metrics label `cause`.
    pub fn as_str(self) -> &'static str {
        match self {
            CircuitCause::Failures => "failures",
            CircuitCause::AccountRefused => "account_refused",
            CircuitCause::ReputationBlock => "reputation_block",
            CircuitCause::ProbeFailed => "probe_failed",
            CircuitCause::Probing => "probing",
            CircuitCause::ProbesPassed => "probes_passed",
        }
    }
}

impl Circuit {
    /// `closed`, `open` or `half-open`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Circuit::Closed { .. } => "closed",
            Circuit::Open { .. } => "open",
            Circuit::HalfOpen { .. } => "half-open",
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(self, Circuit::Closed { .. })
    }

    /// From when on what was granted counts.
    pub(crate) fn counts_from_us(&self) -> u64 {
        match *self {
            Circuit::Closed { since_us } | Circuit::HalfOpen { since_us } => since_us,
            Circuit::Open { .. } => u64::MAX,
        }
    }

    /// What it becomes now, if anything else.
    pub fn step(&self, seen: &Evidence, now_us: u64, policy: &CircuitPolicy) -> Option<(Circuit, CircuitCause)> {
        let opened = || Circuit::Open { until_us: now_us.saturating_add(micros(policy.open)) };
        match *self {
            Circuit::Closed { since_us } => {
                let from = since_us.max(now_us.saturating_sub(micros(policy.window)));
                let counts = seen.within(from..now_us.saturating_add(SLOT_US));
                if counts.refused > 0 {
                    return Some((opened(), CircuitCause::AccountRefused));
                }
                let samples = counts.accepted + counts.failed;
                let enough = samples >= u64::from(policy.min_samples.max(1));
                let bad = counts.failed as f64 >= policy.rejection_rate * samples as f64 && counts.failed > 0;
                (enough && bad).then(|| (opened(), CircuitCause::Failures))
            }
            Circuit::Open { until_us } => {
                (now_us >= until_us).then_some((Circuit::HalfOpen { since_us: now_us }, CircuitCause::Probing))
            }
            Circuit::HalfOpen { since_us } => {
                let counts = seen.within(since_us..now_us.saturating_add(SLOT_US));
                if counts.failed + counts.refused > 0 {
                    return Some((opened(), CircuitCause::ProbeFailed));
                }
                let closed = Circuit::Closed { since_us: now_us };
                (counts.accepted + counts.answered >= PROBES).then_some((closed, CircuitCause::ProbesPassed))
            }
        }
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::evidence::Counts;

    const T0: u64 = 1_800_000_000;
    const S: u64 = SLOT_US;

    fn calls(accepted: u64, failed: u64) -> Counts {
        Counts { accepted, failed, ..Counts::default() }
    }

    fn seen(slots: &[(u64, Counts)]) -> Evidence {
        let mut e = Evidence::default();
        slots.iter().for_each(|(s, c)| e.add(T0 + s, *c));
        e
    }

    #[test]
    fn opens_at_the_share_with_enough_samples_within_the_window() {
        let closed = Circuit::default();
        let open = |at_s: u64| Some((Circuit::Open { until_us: (T0 + at_s + 30) * S }, CircuitCause::Failures));
        let bad_mail = Counts { answered: 500, ..Counts::default() };
        for (what, slots, at_s, want) in [
            ("nothing", vec![], 5, None),
            ("too few", vec![(0, calls(0, 19))], 5, None),
            ("enough", vec![(0, calls(0, 20))], 5, open(5)),
            ("just below", vec![(0, calls(81, 19))], 5, None),
            ("just there", vec![(0, calls(80, 20))], 5, open(5)),
            ("too old", vec![(0, calls(80, 20))], 61, None),
            ("diluted by age alone", vec![(0, calls(400, 0)), (50, calls(60, 20))], 55, None),
            ("not any more", vec![(0, calls(400, 0)), (50, calls(60, 20))], 62, open(62)),
            ("bad recipients neither open it", vec![(0, bad_mail)], 5, None),
            ("nor hide failures", vec![(0, bad_mail), (1, calls(3, 17))], 5, open(5)),
            ("of this very second", vec![(5, calls(0, 20))], 5, open(5)),
        ] {
            assert_eq!(closed.step(&seen(&slots), (T0 + at_s) * S, &CircuitPolicy::default()), want, "{what}");
        }
        let since = Circuit::Closed { since_us: (T0 + 1) * S };
        assert_eq!(since.step(&seen(&[(0, calls(0, 99))]), (T0 + 5) * S, &CircuitPolicy::default()), None);
    }

    #[test]
    fn a_refused_account_opens_it_at_once() {
        let refused = Counts { refused: 1, accepted: 1000, ..Counts::default() };
        let (now, policy) = ((T0 + 1) * S, CircuitPolicy::default());
        let got = Circuit::default().step(&seen(&[(0, refused)]), now, &policy);
        assert_eq!(got, Some((Circuit::Open { until_us: now + 30 * S }, CircuitCause::AccountRefused)));
    }

    #[test]
    fn probes_close_it_or_open_it_again() {
        let policy = CircuitPolicy::default();
        let (open, half) = (Circuit::Open { until_us: T0 * S }, Circuit::HalfOpen { since_us: T0 * S });
        assert_eq!(open.step(&seen(&[]), T0 * S - 1, &policy), None);
        assert_eq!(open.step(&seen(&[]), T0 * S, &policy), Some((half, CircuitCause::Probing)));
        let at = |s: u64, slots: &[(u64, Counts)]| half.step(&seen(slots), (T0 + s) * S, &policy);
        assert_eq!(at(600, &[]), None, "without mail there is nothing to learn");
        assert_eq!(at(4, &[(0, calls(2, 0)), (1, calls(2, 0))]), None);
        let again = Circuit::Open { until_us: (T0 + 34) * S };
        assert_eq!(at(4, &[(0, calls(4, 0)), (3, calls(2, 1))]), Some((again, CircuitCause::ProbeFailed)));
        let closed = Circuit::Closed { since_us: (T0 + 4) * S };
        let throttled = Counts { answered: 1, ..Counts::default() };
        assert_eq!(at(4, &[(0, calls(4, 0)), (3, throttled)]), Some((closed, CircuitCause::ProbesPassed)));
    }

    proptest! {
        /// Against the plain reading of the rule.
        #[test]
        fn opens_exactly_when_the_window_says_so(
            slots in prop::collection::vec((0u64..100, 0u64..8, 0u64..4), 0..60), now in 0u64..100, rate in 0.01f64..1.0, least in 1u32..60,
        ) {
            let policy = CircuitPolicy { rejection_rate: rate, min_samples: least, ..CircuitPolicy::default() };
            let evidence = seen(&slots.iter().map(|(s, a, f)| (*s, calls(*a, *f))).collect::<Vec<_>>());
            let within = slots.iter().filter(|(s, ..)| *s <= now && *s + 60 >= now);
            let (a, f) = within.fold((0, 0), |(a, f), (_, x, y)| (a + x, f + y));
            let want = a + f >= u64::from(least) && f > 0 && f as f64 / (a + f) as f64 >= rate;
            prop_assert_eq!(Circuit::default().step(&evidence, (T0 + now) * S, &policy).is_some(), want);
        }
    }
}
