//! The adaptive rate of a scope: cut to what is accepted when refused, recovered while it is not.
//!
//! An *incident* is a share of refusals above what is tolerated, among calls granted after the last cut had settled. It
//! cuts the rate once: to what was seen to be accepted, less a margin; or, where the scope has just been fine at some
//! rate and refuses part of a slightly higher one, to a little below that. Without refusals, and only while the rate is
//! in use, it recovers: by doubling up to half of what was last refused, slowly up to that, then faster the longer nothing
//! is.

use serde::{Deserialize, Serialize};

use crate::evidence::{Counts, Evidence, SLOT_US};

/// A cut goes this far below what was accepted.
const MARGIN: f64 = 0.95;
/// Likewise, below a rate at which nothing was refused.
const BELOW_CLEAN: f64 = 0.9;
/// With more than this share refused, what was fine before is no guide.
const MINOR: f64 = 0.6;
/// Refusals up to this share are not an incident.
const TOLERATED: f64 = 0.01;
/// So many refusals, half of all, are an incident within the first second.
const FLOOD: f64 = 20.0;
/// Looks shorter than this do not tell how much was sent.
const KNOWN_S: f64 = 3.0;
/// Until a change is known and in use everywhere.
const SETTLE_US: u64 = 1_500_000;
/// No recovery for so long after a cut.
const QUIET_US: u64 = 10 * SLOT_US;
/// Recovery needs as many calls since the last step, within these bounds of time.
const STEP_CALLS: f64 = 10.0;
const STEP_S: (f64, f64) = (5.0, 60.0);
/// An incident is looked for over at least so long.
const LOOK_S: f64 = 10.0;
/// Recovery only while so much of the rate is used.
const IN_USE: f64 = 0.7;
/// Below this part of what seemed to be allowed, the rate doubles.
const FAR: f64 = 0.5;
/// Towards what was last refused, in parts of it.
const CAREFUL: f64 = 0.01;
/// Beyond what was last refused (and a little more): the first step, its growth, the largest step.
const BEYOND: f64 = 1.02;
const FASTER: (f64, f64, f64) = (0.02, 1.5, 0.12);
/// With less accepted than this, a cut goes down by a factor.
const FEW: f64 = 3.0;
const BLIND: f64 = 10.0;
/// Connections are cut to this part of what was in use, where no number of them is known to be fine.
const FEWER: f64 = 0.75;
/// As many as were refused are tried again after so long, twice as long each time they were, so often at most.
const HOLD_US: (u64, u32) = (60 * SLOT_US, 5);
/// How much evidence decisions look back on, at most.
pub const LOOK_BACK_US: u64 = 100 * SLOT_US;

/// The bounds of an adaptive rate. Rates are recipients a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PacePolicy {
    /// The configured rate, where it starts.
    pub start_per_s: f64,
    /// Never faster; no less than `start_per_s`.
    pub ceiling_per_s: f64,
    /// Calls at a time, where they are limited: they are cut instead of the rate when connections are refused.
    pub concurrency: Option<u32>,
}

impl PacePolicy {
    /// No rate is cut below this.
    pub fn floor_per_s(&self) -> f64 {
        (self.start_per_s / 1_000.0).clamp(1.0 / 60.0, 0.1).min(self.start_per_s)
    }
}

/// What has been learnt of a scope's rate. Times are the limiter's clock; 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pace {
    /// `None`: as configured.
    pub rate_per_s: Option<f64>,
    /// `None`: as configured.
    pub concurrency: Option<u32>,
    changed_us: u64,
    cut_us: u64,
    /// What seemed to be allowed at the last cut.
    limit_per_s: f64,
    /// The fastest since the last cut at which nothing was refused.
    clean_per_s: f64,
    /// Steps beyond the limit.
    streak: u32,
    /// Share refused at the last cut, where that cut was to what was accepted.
    share: f64,
    /// Share that is refused whatever the rate.
    background: f64,
    /// The calls at a time at which connections were last refused, how often in a row they were, and the most since at which
    /// they were not; 0: not known.
    #[serde(default)]
    refused_calls: u32,
    #[serde(default)]
    refusals: u32,
    #[serde(default)]
    clean_calls: u32,
}

/// Whose refusals count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Account,
    /// With those that spoke of the account, where it has become clear that they mean the destination.
    Destination {
        and_account: bool,
    },
}

/// Why a rate changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PaceCause {
    /// Refused: the rate was cut.
    Refused,
    /// Connections were refused: calls at a time were cut.
    ConnectionsRefused,
    /// Not refused any more.
    Recovered,
    /// Refused at any rate: that share is put up with.
    Tolerated,
}

impl PaceCause {
    /// The value of the metrics label `cause`.
    pub fn as_str(self) -> &'static str {
        match self {
            PaceCause::Refused => "refused",
            PaceCause::ConnectionsRefused => "connections_refused",
            PaceCause::Recovered => "recovered",
            PaceCause::Tolerated => "tolerated",
        }
    }
}

impl Pace {
    /// The rate in force, recipients a second.
    pub fn rate(&self, policy: &PacePolicy) -> f64 {
        self.rate_per_s.unwrap_or(policy.start_per_s).clamp(policy.floor_per_s(), policy.ceiling_per_s)
    }

    /// The calls at a time in force.
    pub fn concurrency(&self, policy: &PacePolicy) -> Option<u32> {
        policy.concurrency.map(|most| self.concurrency.unwrap_or(most).clamp(1, most))
    }

    /// What it becomes now, if anything else.
    pub(crate) fn step(&self, seen: &Evidence, count: Count, now_us: u64, policy: &PacePolicy) -> Option<(Pace, PaceCause)> {
        self.incident(seen, count, now_us, policy).or_else(|| self.recovery(seen, count, now_us, policy))
    }

    /// From when on refusals are news.
    fn settled_us(&self) -> u64 {
        if self.cut_us == 0 { 0 } else { self.cut_us + SETTLE_US }
    }

    /// Whether calls of that scope are refused beyond what is tolerated: what the last cut left behind does not count.
    pub(crate) fn look(&self, seen: &Evidence, count: Count, now_us: u64, policy: &PacePolicy) -> Look {
        let rate = self.rate(policy);
        let back = (2.0 * STEP_CALLS / rate).clamp(LOOK_S, STEP_S.1);
        let from = self.settled_us().max(now_us.saturating_sub((back * 1e6) as u64));
        let Some(begins) = seen.begins(from..now_us) else { return Look::default() };
        let counts = seen.within(begins..now_us);
        let (passed, refused, connections) = weigh(&counts, count, policy);
        let lag = counts.mean_call_us().min(now_us - begins);
        let span_s = (now_us - begins - lag) as f64 / 1e6;
        Look { passed, refused, connections, span_s, busy: counts.busy_ms as f64 / 1e3 }
    }

    /// What came of the number of calls at a time that is being tried: passed, refused.
    fn tried(&self, seen: &Evidence, count: Count, now_us: u64, policy: &PacePolicy) -> (f64, f64) {
        // The whole second of the step, or what it refused at once would be heard of only when the second is over.
        let since = (self.changed_us / SLOT_US * SLOT_US).max(self.settled_us());
        let (passed, _, connections) = weigh(&seen.within(since..now_us), count, policy);
        (passed, connections)
    }

    /// For how long after a cut what was refused is not tried again.
    fn hold_us(&self) -> u64 {
        HOLD_US.0 << self.refusals.saturating_sub(1).min(HOLD_US.1)
    }

    pub(crate) fn tolerance(&self) -> f64 {
        TOLERATED.max(1.5 * self.background)
    }

    fn incident(&self, seen: &Evidence, count: Count, now_us: u64, policy: &PacePolicy) -> Option<(Pace, PaceCause)> {
        let look = self.look(seen, count, now_us, policy);
        // The first second tells little of a rate, unless most of it is refused; and nothing of whose limit it is.
        let flood = count != Count::Account && look.refused >= FLOOD && look.share() >= 0.5;
        let most = self.concurrency(policy).unwrap_or(1);
        let fine = Some(self.clean_calls).filter(|n| (1..most).contains(n));
        let short = look.span_s < 1.0;
        // Where one call less is known to be fine, the first refused one is answer enough: the next would be refused as well.
        let (passed, connections) = match fine {
            Some(_) => self.tried(seen, count, now_us, policy),
            None if short && !flood => return None,
            None => (look.passed, look.connections),
        };
        let span_s = look.span_s.max(1.0);
        if connections / (passed + connections) >= TOLERATED {
            let fewer = fine.unwrap_or_else(|| ((look.in_use(most) * FEWER).floor() as u32).max(1));
            let refusals = if most == self.refused_calls { self.refusals + 1 } else { 1 };
            let learnt = Pace { refused_calls: most, refusals, clean_calls: 0, ..*self };
            let cut = Pace { concurrency: Some(fewer), cut_us: now_us, changed_us: now_us, ..learnt };
            return (fewer < most).then_some((cut, PaceCause::ConnectionsRefused));
        }
        if short && !flood {
            return None;
        }
        let share = look.share();
        if look.refused == 0.0 || share < self.tolerance() {
            return None;
        }
        let cut = Pace { cut_us: now_us, changed_us: now_us, clean_per_s: 0.0, streak: 0, ..*self };
        // The last cut was to what had been accepted. If as many are refused all the same, rate is not what they are about.
        let recent = now_us.saturating_sub(self.cut_us) < 60 * SLOT_US;
        if self.share > 0.0 && self.clean_per_s == 0.0 && recent && share < 0.2 && share >= self.share / 2.0 {
            return Some((Pace { background: share, share: 0.0, ..cut }, PaceCause::Tolerated));
        }
        let (rate, floor) = (self.rate(policy), policy.floor_per_s());
        // Over a short look many answers are still to come: what was granted is known better, if the rate was in use.
        let counted = (look.passed + look.refused) / span_s;
        let tried = if look.span_s < KNOWN_S && counted >= rate / 20.0 { rate } else { counted.min(rate) };
        // Half a recipient more than none: what is refused altogether may still be allowed a little.
        let accepted = tried * (look.passed + 0.5) / (look.passed + look.refused);
        let seen_to_work = accepted * MARGIN;
        let was_fine = if share <= MINOR { self.clean_per_s * BELOW_CLEAN } else { 0.0 };
        // Of what is refused altogether no rate is known: it is found again from somewhat below, without caution. What was
        // allowed before may be so again: a receiver that counts by the minute refuses everything for the rest of one.
        let blind = look.passed < FEW;
        let new = seen_to_work.max(was_fine).max(if blind { tried / BLIND } else { 0.0 }).min(tried * MARGIN).max(floor);
        if new >= rate {
            return None;
        }
        let share = if was_fine > seen_to_work { 0.0 } else { share };
        Some((
            Pace { rate_per_s: Some(new), limit_per_s: if blind { self.limit_per_s } else { new / MARGIN }, share, ..cut },
            PaceCause::Refused,
        ))
    }

    fn recovery(&self, seen: &Evidence, count: Count, now_us: u64, policy: &PacePolicy) -> Option<(Pace, PaceCause)> {
        let rate = self.rate(policy);
        let fewer = self.concurrency(policy) < policy.concurrency;
        if rate >= policy.ceiling_per_s && !fewer {
            return None;
        }
        let step_s = (STEP_CALLS / rate).clamp(STEP_S.0, STEP_S.1);
        let step_us = (step_s * 1e6) as u64;
        let quiet = now_us >= self.cut_us + QUIET_US || self.cut_us == 0;
        if !quiet || now_us < self.changed_us + step_us {
            return None;
        }
        // Calls still under way are not in the counts: look at a span that they had time to fill.
        let lag = seen.within(now_us.saturating_sub(2 * step_us)..now_us).mean_call_us();
        let end = now_us.saturating_sub(lag);
        let counts = seen.within(end.saturating_sub(step_us).max(self.settled_us())..end);
        let (passed, refused, connections) = weigh(&counts, count, policy);
        let used = (passed + refused) / step_s;
        let changed = Pace { changed_us: now_us, ..*self };
        let calls = self.concurrency(policy).unwrap_or(1);
        let held = calls + 1 == self.refused_calls && now_us < self.cut_us + self.hold_us();
        if fewer && connections == 0.0 && passed > 0.0 && !held {
            let more = Some(calls + 1).filter(|n| Some(*n) < policy.concurrency);
            let (refused_calls, refusals) = if calls < self.refused_calls { (self.refused_calls, self.refusals) } else { (0, 0) };
            let step = Pace { concurrency: more, clean_calls: calls, refused_calls, refusals, ..changed };
            return Some((step, PaceCause::Recovered));
        }
        if rate >= policy.ceiling_per_s || used < IN_USE * rate || refused >= self.tolerance() * (passed + refused) {
            return None;
        }
        let (new, streak) = if rate < self.limit_per_s * FAR {
            ((rate * 2.0).min(self.limit_per_s * FAR).max(rate + CAREFUL * self.limit_per_s), 0)
        } else if rate < self.limit_per_s * BEYOND {
            (rate + CAREFUL * self.limit_per_s, 0)
        } else {
            let faster = FASTER.0 * FASTER.1.powi(self.streak.min(20) as i32);
            (rate * (1.0 + faster.min(FASTER.2)), self.streak + 1)
        };
        let as_configured = new >= policy.ceiling_per_s && policy.ceiling_per_s <= policy.start_per_s;
        let rate_per_s = if as_configured { None } else { Some(new.min(policy.ceiling_per_s)) };
        let background = if refused < self.background / 4.0 * passed { 0.0 } else { self.background };
        Some((Pace { rate_per_s, clean_per_s: rate, streak, background, ..changed }, PaceCause::Recovered))
    }
}

/// What calls came to of late, in recipients.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Look {
    pub(crate) passed: f64,
    pub(crate) refused: f64,
    connections: f64,
    span_s: f64,
    /// Seconds of calls.
    busy: f64,
}

impl Look {
    /// Of what was tried, the share refused.
    pub(crate) fn share(&self) -> f64 {
        if self.refused == 0.0 { 0.0 } else { self.refused / (self.passed + self.refused) }
    }

    /// How many calls at a time were not refused, of `most` that were allowed.
    fn in_use(&self, most: u32) -> f64 {
        let (most, span_s) = (f64::from(most), self.span_s.max(1.0));
        let ended = (self.busy / span_s).ceil();
        // Those that take long are still under way over a short look. Each refused one kept a place for a second, however:
        // the rest was in use.
        let known = self.span_s >= KNOWN_S && self.passed > 0.0;
        let rest = if known { 0.0 } else { most - self.connections / span_s };
        ended.max(rest).min(most)
    }
}

/// Passed, refused for the rate, refused for connections.
fn weigh(counts: &Counts, count: Count, policy: &PacePolicy) -> (f64, f64, f64) {
    let own = match count {
        Count::Account => counts.throttled_account,
        Count::Destination { and_account } => counts.throttled + if and_account { counts.throttled_account } else { 0 },
    };
    // An account without a limit of its own leaves them to its destinations.
    let connections = if count == Count::Account && policy.concurrency.is_none() { 0 } else { counts.throttled_connection };
    // Where nothing limits the calls at a time, they are as many as the rate makes them.
    let (refused, connections) = if policy.concurrency.is_some() { (own, connections) } else { (own + connections, 0) };
    (counts.passed as f64, refused as f64, connections as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_800_000_000;
    const D: Count = Count::Destination { and_account: false };

    fn policy(start: f64, ceiling: f64) -> PacePolicy {
        PacePolicy { start_per_s: start, ceiling_per_s: ceiling, concurrency: None }
    }

    fn each_second(from: u64, to: u64, counts: Counts) -> Evidence {
        let mut e = Evidence::default();
        (from..to).for_each(|s| e.add(T0 + s, counts));
        e
    }

    fn calls(passed: u64, throttled: u64) -> Counts {
        Counts {
            passed,
            throttled,
            accepted: passed,
            answered: throttled,
            busy_ms: 50 * (passed + throttled),
            ..Counts::default()
        }
    }

    fn at(s: u64) -> u64 {
        (T0 + s) * SLOT_US
    }

    #[test]
    fn cut_once_to_what_is_accepted() {
        let p = policy(500.0, 500.0);
        let flood = each_second(0, 60, calls(50, 450));
        let few = each_second(0, 1, calls(5, 4));
        assert_eq!(Pace::default().step(&few, D, at(1) - 1, &p), None, "too early to know what is accepted");
        let (cut, cause) = Pace::default().step(&flood, D, at(4), &p).unwrap();
        assert_eq!(cause, PaceCause::Refused);
        assert!((44.0..51.0).contains(&cut.rate(&p)), "{cut:?}");
        // What was granted before the cut goes on being refused for a while.
        assert_eq!(cut.step(&each_second(0, 5, calls(50, 450)), D, at(8), &p), None);
        assert_eq!(cut.step(&flood, Count::Account, at(8), &p), None, "not the account's");
    }

    #[test]
    fn recovers_only_in_use_after_a_quiet_time_and_up_to_the_ceiling() {
        let p = policy(100.0, 100.0);
        let (cut, _) = Pace::default().step(&each_second(0, 5, calls(50, 50)), D, at(4), &p).unwrap();
        let busy = each_second(5, 90, calls(48, 0));
        assert_eq!(cut.step(&busy, D, at(13), &p), None, "quiet");
        assert_eq!(cut.step(&each_second(5, 90, calls(20, 0)), D, at(30), &p), None, "not in use");
        assert_eq!(cut.step(&Evidence::default(), D, at(3_000), &p), None, "stale");
        let (more, cause) = cut.step(&busy, D, at(15), &p).unwrap();
        assert_eq!(cause, PaceCause::Recovered);
        assert!(more.rate(&p) > cut.rate(&p) && more.rate(&p) < cut.rate(&p) * 1.02);
        let mut pace = more;
        let mut t = 15;
        while let Some(rate) = pace.rate_per_s {
            t += 5;
            let all = each_second(t - 20, t, calls(rate.ceil() as u64, 0));
            pace = pace.step(&all, D, at(t), &p).unwrap().0;
            assert!(t < 300, "{pace:?}");
        }
        assert_eq!(pace.rate(&p), 100.0);
    }

    #[test]
    fn refused_at_any_rate_is_put_up_with() {
        let p = policy(100.0, 100.0);
        let (mut pace, mut t, mut low) = (Pace::default(), 0, f64::MAX);
        for _ in 0..2_000 {
            t += 1;
            let rate = pace.rate(&p);
            low = low.min(rate);
            let refused = (rate * 0.03).round() as u64;
            if let Some((next, _)) =
                pace.step(&each_second(t.max(60) - 60, t, calls(rate as u64 - refused, refused)), D, at(t), &p)
            {
                pace = next;
            }
        }
        assert!(low > 60.0 && pace.rate(&p) > 80.0, "{low} {pace:?}");
    }

    #[test]
    fn connections_are_cut_instead_where_they_are_limited() {
        let p = PacePolicy { concurrency: Some(40), ..policy(100.0, 100.0) };
        let counts = Counts { throttled_connection: 5, busy_ms: 20_000, ..calls(50, 0) };
        let (cut, cause) = Pace::default().step(&each_second(0, 5, counts), D, at(4), &p).unwrap();
        assert_eq!((cause, cut.rate_per_s), (PaceCause::ConnectionsRefused, None));
        assert!((13..21).contains(&cut.concurrency(&p).unwrap()), "{cut:?}");
        let (more, _) = cut.step(&each_second(5, 30, calls(50, 0)), D, at(20), &p).unwrap();
        assert_eq!(more.concurrency(&p), cut.concurrency(&p).map(|n| n + 1));
    }

    /// A server that takes so many connections and refuses all others at once, calls of a second, 500 seconds: the calls at a
    /// time by second, and how many of the calls were refused from then on.
    fn against_connections(limit: u32, p: &PacePolicy, from: u64) -> (Vec<u32>, f64) {
        let (mut pace, mut seen, mut levels, mut passed, mut refused) = (Pace::default(), Evidence::default(), vec![], 0, 0);
        for t in 0..500 {
            let level = pace.concurrency(p).unwrap();
            levels.push(level);
            let ok = u64::from(level.min(limit));
            // Each refused one is followed by the next after 25 ms; the cut comes half-way through its second.
            let turned_away = u64::from(level.saturating_sub(limit)) * 40;
            let part = if t > 0 && levels[t as usize - 1] == level { turned_away } else { turned_away / 2 };
            seen.add(T0 + t, Counts { throttled_connection: part, busy_ms: ok * 1_000, ..calls(ok, 0) });
            if let Some((next, _)) = pace.step(&seen, D, at(t + 1), p) {
                pace = next;
            }
            if t >= from {
                (passed, refused) = (passed + ok, refused + part);
            }
        }
        (levels, refused as f64 / (passed + refused) as f64)
    }

    #[test]
    fn a_number_of_connections_is_found_and_kept_to() {
        let p = PacePolicy { concurrency: Some(24), ..policy(100.0, 100.0) };
        for limit in [1, 2, 10, 20] {
            let (levels, refused) = against_connections(limit, &p, 250);
            let settled = &levels[250..];
            let mean = f64::from(settled.iter().sum::<u32>()) / settled.len() as f64;
            assert!(refused < 0.05 || limit < 3 && refused < 0.2, "{limit}: {refused} {settled:?}");
            assert!(mean > 0.9 * f64::from(limit), "{limit}: {mean} {settled:?}");
        }
        let (levels, refused) = against_connections(24, &p, 0);
        assert_eq!((levels[499], refused), (24, 0.0));
    }

    #[test]
    fn a_number_that_is_tried_ends_with_the_first_refusal() {
        let p = PacePolicy { concurrency: Some(24), ..policy(100.0, 100.0) };
        let fine = Pace { concurrency: Some(10), cut_us: at(0), changed_us: at(15), ..Pace::default() };
        let mut seen = each_second(2, 20, Counts { busy_ms: 10_000, ..calls(10, 0) });
        let (tried, _) = fine.step(&seen, D, at(20) + 300_000, &p).unwrap();
        assert_eq!(tried.concurrency(&p), Some(11));
        assert_eq!(tried.step(&seen, D, at(20) + 400_000, &p), None);
        let refused = Counts { throttled_connection: 1, ..calls(0, 0) };
        seen.add(T0 + 20, refused);
        let (cut, cause) = tried.step(&seen, D, at(20) + 400_000, &p).unwrap();
        assert_eq!((cut.concurrency(&p), cause), (Some(10), PaceCause::ConnectionsRefused));
        // One of many is not what the number is about.
        let mut many = each_second(20, 35, Counts { busy_ms: 10_000, ..calls(10, 0) });
        many.add(T0 + 30, refused);
        assert_eq!(tried.step(&many, D, at(35), &p), None);
    }

    #[test]
    fn calls_that_are_not_over_yet_are_in_use() {
        let p = PacePolicy { concurrency: Some(24), ..policy(100.0, 100.0) };
        // Ten of 24 are under way when the others have been refused.
        let seen = each_second(0, 1, Counts { throttled_connection: 14, busy_ms: 70, ..calls(0, 0) });
        let (cut, _) = Pace::default().step(&seen, D, at(1) + 100_000, &p).unwrap();
        assert!((6..=10).contains(&cut.concurrency(&p).unwrap()), "{cut:?}");
        let none = each_second(0, 4, Counts { throttled_connection: 24, busy_ms: 120, ..calls(0, 0) });
        let (cut, _) = Pace::default().step(&none, D, at(4), &p).unwrap();
        assert_eq!(cut.concurrency(&p), Some(1), "all are refused");
    }

    /// A rate as it adapts to what `takes` of so many in a second, over so many seconds: passed and refused in each.
    fn against(mut takes: impl FnMut(u64, u64) -> u64, p: &PacePolicy, seconds: u64) -> Vec<(u64, u64)> {
        let (mut pace, mut seen, mut went, mut due) = (Pace::default(), Evidence::default(), vec![], 0.0);
        for t in 0..seconds {
            due += pace.rate(p);
            let sent = due as u64;
            due -= sent as f64;
            let passed = takes(t, sent);
            went.push((passed, sent - passed));
            seen.add(T0 + t, Counts { busy_ms: 0, ..calls(passed, sent - passed) });
            if let Some((next, _)) = pace.step(&seen, D, at(t + 1), p) {
                pace = next;
            }
        }
        went
    }

    /// Of all that was sent, the share refused; and what passed, a second.
    fn share_and_rate(went: &[(u64, u64)]) -> (f64, f64) {
        let (passed, refused) = went.iter().fold((0, 0), |(p, r), s| (p + s.0, r + s.1));
        (refused as f64 / (passed + refused).max(1) as f64, passed as f64 / went.len() as f64)
    }

    #[test]
    fn a_receiver_that_counts_by_the_minute_is_not_given_up_on() {
        // When a minute's mail has been sent in its first seconds, everything is refused for the rest of it.
        for (start, per_minute) in [(100.0, 1_200), (100.0, 100), (500.0, 3_000)] {
            let mut counted = 0;
            let takes = |t: u64, sent: u64| {
                counted = if t.is_multiple_of(60) { 0 } else { counted };
                let taken = sent.min(per_minute - counted);
                counted += taken;
                taken
            };
            let went = against(takes, &policy(start, start), 1_800);
            let ((_, all), (refused, settled)) = (share_and_rate(&went), share_and_rate(&went[900..]));
            let ideal = per_minute as f64 / 60.0;
            assert!(all > 0.5 * ideal && settled > 0.6 * ideal, "{per_minute}: {all}, then {settled} of {ideal} a second");
            assert!(refused < 0.05, "{per_minute}: {refused}");
        }
    }

    #[test]
    fn a_block_that_ends_is_left_behind() {
        let takes = |t: u64, sent: u64| if (300..400).contains(&t) { 0 } else { sent.min(50) };
        let went = against(takes, &policy(500.0, 500.0), 900);
        let minute = |from: usize| share_and_rate(&went[from..from + 60]).1;
        assert!(minute(240) > 45.0 && minute(660) > 30.0 && minute(840) > 40.0, "{:?}", [240, 660, 840].map(minute));
    }

    #[test]
    fn never_below_the_floor() {
        for (start, floor) in [(0.01, 0.01), (5.0, 1.0 / 60.0), (1e6, 0.1)] {
            let p = policy(start, start);
            let none = each_second(0, 60, calls(0, 9));
            let rate = Pace::default().step(&none, D, at(59), &p).map_or(start, |(cut, _)| cut.rate(&p));
            assert!((floor..=start).contains(&rate), "{start}: {rate}");
        }
    }
}
