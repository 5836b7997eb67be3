//! The worker's lanes as an operator wants to see them: once a second, from what the engine has in hand anyway.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use paceline_core::{
    Timestamp,
    diagnosis::Place,
    lane::TAIL,
    lanes::{LaneReport, LaneState, WorkerReport},
};
use paceline_limiter::{
    BucketSpec, Kind, Why,
    pacer::{Hint, Pacer},
};
use tokio::time::Instant;

use crate::{
    context::Context,
    item::Item,
    lane::LaneHandle,
    limits::Limits,
    standing::{Effect, Source, Standing},
    words,
};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// The span of the actual rate.
const SPAN: Duration = Duration::from_secs(10);
/// Who waits longer is not about to go.
const LONG_US: u64 = 5_000_000;
/// A rate so high is none.
const UNLIMITED_PER_S: f64 = 900_000.0;

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct View {
    lanes: HashMap<usize, Seen>,
    last: Option<Instant>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Messages accepted so far, a look each.
    accepted: VecDeque<(Instant, u64)>,
    rest: Option<Rest>,
}

/// A lane whose mail went back to the broker, and why.
#[derive(Debug, Clone)]
struct Rest {
    until_us: u64,
    hint: Hint,
    oldest_at: Option<Timestamp>,
}

/// What a look needs of the engine.
pub(crate) struct Sight<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) pacer: &'a Pacer<Box<Item>>,
    pub(crate) lanes: &'a [Arc<LaneHandle>],
    pub(crate) limits: &'a Limits,
    pub(crate) standing: &'a Standing,
    pub(crate) now_us: u64,
}

/// What the limits of a lane come to.
#[derive(Debug, Clone, PartialEq)]
struct Allowance {
    per_s: f64,
    /// What says so; `None` where nothing limits.
    key: Option<Arc<str>>,
    kind: Option<Kind>,
    /// Nothing may go, and who says so.
    closed: Option<Source>,
    /// Who says more than configuration does.
    source: Option<Source>,
    probing: bool,
}

impl View {
    /// A lane goes to rest; to be told while its mail is still held.
    pub(crate) fn rest(&mut self, lane: usize, until_us: u64, hint: &Hint, pacer: &Pacer<Box<Item>>, handle: &LaneHandle) {
        let rest = Rest { until_us, hint: hint.clone(), oldest_at: oldest(pacer, handle) };
        self.lanes.entry(lane).or_default().rest = Some(rest);
    }

    /// What a lane rests for is over.
    pub(crate) fn wake(&mut self, lane: usize) {
        if let Some(seen) = self.lanes.get_mut(&lane) {
            seen.rest = None;
        }
    }

    /// Whether the lane was put to rest and should rest still.
    pub(crate) fn rests(&self, lane: usize, now_us: u64) -> bool {
        let rest = self.lanes.get(&lane).and_then(|seen| seen.rest.as_ref());
        rest.is_some_and(|rest| rest.until_us > now_us)
    }

    /// Makes a report if it is time to.
    pub(crate) fn look(&mut self, sight: &Sight<'_>) {
        let now = Instant::now();
        let unheard = sight.cx.board.report.receiver_count() == 0;
        if unheard || self.last.is_some_and(|last| last + EVERY > now) {
            return;
        }
        self.last = Some(now);
        let lanes = sight.lanes.iter().enumerate().filter_map(|(index, handle)| self.lane(sight, index, handle, now)).collect();
        let worker = sight.cx.settings.worker_id.to_string();
        let report = WorkerReport { worker, lanes, places: places(sight) };
        sight.cx.board.report.send_replace(Arc::new(report));
    }

    fn lane(&mut self, sight: &Sight<'_>, index: usize, handle: &LaneHandle, now: Instant) -> Option<LaneReport> {
        let lane = handle.lane.as_ref()?;
        let counts = sight.cx.board.counts(index);
        let seen = self.lanes.entry(index).or_default();
        seen.accepted.push_back((now, counts.accepted));
        while seen.accepted.get(1).is_some_and(|(at, _)| *at + SPAN <= now) {
            seen.accepted.pop_front();
        }
        let held = sight.pacer.held(&handle.key) as u64;
        let hint = sight.pacer.hint(&handle.key);
        // Mail that is about to go back is still held for a moment.
        let moves = held > 0 && hint.as_ref().is_none_or(|h| h.retry_at_us < sight.now_us + LONG_US);
        if moves || seen.rest.as_ref().is_some_and(|r| r.until_us <= sight.now_us) {
            seen.rest = None;
        }
        let rest = seen.rest.as_ref();
        let hint = hint.or_else(|| rest.map(|r| r.hint.clone()));
        let hint = hint.filter(|h| h.retry_at_us > sight.now_us || held > 0);
        let allowance = allowance(sight, &lane.destination, hint.as_ref());
        let busy = held + counts.under_way > 0;
        let state = match (allowance.closed, allowance.probing) {
            (Some(Source::Ordered), _) => LaneState::Paused,
            (Some(Source::Learnt), _) => LaneState::Open,
            (Some(Source::Asked), _) => LaneState::BackingOff,
            (None, true) => LaneState::Probing,
            (None, false) if rest.is_some() => LaneState::Resting,
            (None, false) if hint.is_some() => LaneState::Paced,
            (None, false) if busy => LaneState::Flowing,
            (None, false) => LaneState::Idle,
        };
        Some(LaneReport {
            queue: handle.key.to_string(),
            class: lane.class,
            destination: lane.destination.to_string(),
            held,
            in_flight: counts.under_way,
            allowed_per_s: (allowance.per_s < UNLIMITED_PER_S).then_some(allowance.per_s),
            binding: binding(sight, &allowance, hint.as_ref()),
            actual_per_s: seen.rate(),
            state,
            oldest_at: oldest(sight.pacer, handle).or_else(|| rest.and_then(|r| r.oldest_at)),
        })
    }
}

impl Seen {
    fn rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.accepted.front(), self.accepted.back()) else { return 0.0 };
        let span_s = (last.0 - first.0).as_secs_f64();
        if span_s > 0.0 { (last.1 - first.1) as f64 / span_s } else { 0.0 }
    }
}

fn oldest(pacer: &Pacer<Box<Item>>, handle: &LaneHandle) -> Option<Timestamp> {
    let mut oldest = None;
    pacer.look(&handle.key, |item| {
        let at = item.journey.enqueued_at;
        oldest = Some(oldest.map_or(at, |o: Timestamp| o.min(at)));
    });
    oldest
}

/// What the lane may move, over all accounts that are open to it.
fn allowance(sight: &Sight<'_>, destination: &str, hint: Option<&Hint>) -> Allowance {
    let each: Vec<Allowance> =
        sight.limits.by_account(destination).map(|(_, list)| of_account(sight.standing, list, hint, sight.now_us)).collect();
    let open: Vec<&Allowance> = each.iter().filter(|a| a.closed.is_none()).collect();
    if open.is_empty() {
        // The gravest of what closes it.
        let worst = each.into_iter().max_by_key(|a| a.closed);
        return worst.unwrap_or(Allowance::none());
    }
    let sum: f64 = open.iter().map(|a| a.per_s).sum();
    let widest = open.iter().copied().max_by(|a, b| a.per_s.total_cmp(&b.per_s));
    let probing = open.iter().all(|a| a.probing);
    let mut of = Allowance { per_s: sum, probing, ..widest.cloned().unwrap_or(Allowance::none()) };
    if let Some((key, fleet)) = sight.limits.fleet_rate(destination) {
        let effect = sight.standing.at(key);
        let per_s = limits_per_s(effect.kind(fleet).unwrap_or(fleet));
        if per_s <= of.per_s {
            let source = sight.standing.by(key).find(|(_, e)| e.rate_per_s.is_some()).map(|(source, _)| source);
            of = Allowance { per_s, key: Some(key.clone()), kind: Some(fleet), source, ..of };
        }
    }
    of
}

impl Allowance {
    const fn none() -> Allowance {
        Allowance { per_s: f64::MAX, key: None, kind: None, closed: None, source: None, probing: false }
    }
}

fn of_account(standing: &Standing, list: &[BucketSpec], hint: Option<&Hint>, now_us: u64) -> Allowance {
    let mut of = Allowance::none();
    for bucket in list {
        let said: Vec<(Source, Effect)> = standing.by(&bucket.key).collect();
        let closed = said.iter().filter(|(_, e)| e.closed_until_us > now_us).map(|(source, _)| *source).max();
        let effect = standing.at(&bucket.key);
        let kind = effect.kind(bucket.kind).unwrap_or(bucket.kind);
        let per_s = match (closed, kind) {
            (Some(_), _) => 0.0,
            // What is left of a quota goes as fast as the rates allow; when it is spent, it binds.
            (None, Kind::Window { .. }) if hint.is_none_or(|h| h.bucket != bucket.key || h.why != Why::Quota) => continue,
            (None, Kind::Slots { .. }) => continue,
            (None, kind) => limits_per_s(kind),
        };
        of.probing |= said.iter().any(|(_, e)| e.no_burst);
        if per_s < of.per_s || closed > of.closed {
            of.closed = of.closed.max(closed);
            of.per_s = per_s;
            of.key = (per_s < UNLIMITED_PER_S).then(|| bucket.key.clone());
            of.kind = Some(kind);
            let learnt = said.iter().filter(|(_, e)| e.rate_per_s.is_some());
            of.source = closed.or_else(|| {
                let slowest =
                    learnt.min_by(|a, b| a.1.rate_per_s.unwrap_or(f64::MAX).total_cmp(&b.1.rate_per_s.unwrap_or(f64::MAX)));
                slowest.map(|(source, _)| *source)
            });
        }
    }
    of
}

/// A quota's is its average, slots have none.
fn limits_per_s(kind: Kind) -> f64 {
    match kind {
        Kind::Rate { interval_us, .. } => 1e6 / interval_us.max(1) as f64,
        Kind::Window { length_us, limit, .. } => limit as f64 * 1e6 / length_us.max(1) as f64,
        Kind::Slots { .. } => f64::MAX,
    }
}

/// What binds, in words: what the limiter said last, else the slowest of what applies.
fn binding(sight: &Sight<'_>, allowance: &Allowance, hint: Option<&Hint>) -> Option<String> {
    let (key, kind) = match hint {
        Some(hint) if allowance.closed.is_none() => {
            let configured = sight.limits.configured(&hint.bucket);
            (hint.bucket.clone(), configured.and_then(|k| sight.standing.at(&hint.bucket).kind(k)).or(configured))
        }
        _ => (allowance.key.clone()?, allowance.kind),
    };
    let whose = words::limit(&key, kind);
    let said = sight.standing.by(&key).filter(|(_, e)| e.rate_per_s.is_some() || e.slots.is_some()).map(|(source, _)| source);
    Some(match allowance.closed {
        Some(Source::Ordered) => format!("paused: {whose}"),
        Some(Source::Learnt) => format!("circuit: {whose}"),
        Some(Source::Asked) => format!("asked to wait: {whose}"),
        None => match said.max() {
            Some(Source::Learnt) if allowance.probing => format!("circuit, probing: {whose}"),
            Some(Source::Learnt) if warms_up(sight, &key) => format!("warm-up or adaptive: {whose}"),
            Some(Source::Learnt) => format!("adaptive: {whose}"),
            Some(Source::Ordered) => format!("set by an operator: {whose}"),
            Some(Source::Asked) | None => whose,
        },
    })
}

/// Whether the limit is one of an account with a warm-up schedule.
fn warms_up(sight: &Sight<'_>, key: &str) -> bool {
    let mut accounts = sight.cx.settings.accounts.iter().filter(|a| a.warmup.is_some());
    let of = |name: &str| key.strip_prefix("account:").and_then(|rest| rest.strip_prefix(name));
    accounts.any(|a| of(&a.name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
}

/// What came of calls, and what is in force there.
fn places(sight: &Sight<'_>) -> Vec<Place> {
    let counted = sight.cx.board.places();
    let of = |(account, destination, spans): (usize, Arc<str>, crate::board::Spans)| {
        let account = &sight.cx.settings.accounts[account];
        let list = sight.limits.by_account(&destination).find(|(name, _)| **name == account.name).map(|(_, list)| list);
        let list = list.unwrap_or_default();
        let rates = || list.iter().filter(|b| matches!(b.kind, Kind::Rate { .. }));
        let slowest = |per_s: &dyn Fn(&BucketSpec) -> f64| {
            let least = rates().map(per_s).fold(f64::MAX, f64::min);
            (least < UNLIMITED_PER_S).then_some(least)
        };
        let closed_by =
            |by: Source| list.iter().any(|b| sight.standing.by(&b.key).any(|(s, e)| s == by && e.closed_until_us > sight.now_us));
        // What limits such an account beside its configuration is its schedule, or what was refused within it.
        let learnt = rates().any(|b| sight.standing.by(&b.key).any(|(s, e)| s == Source::Learnt && e.rate_per_s.is_some()));
        Place {
            account: account.name.to_string(),
            destination: destination.to_string(),
            now: spans.now,
            now_s: spans.now_s,
            before: spans.before,
            before_s: spans.before_s,
            // The tail's domains have rates of their own, and of one of them this says nothing.
            rate_per_s: slowest(&|b| limits_per_s(sight.standing.at(&b.key).kind(b.kind).unwrap_or(b.kind)))
                .filter(|_| &*destination != TAIL),
            configured_per_s: slowest(&|b| limits_per_s(b.kind)),
            circuit_open: closed_by(Source::Learnt),
            paused: closed_by(Source::Ordered),
            warming: account.warmup.is_some() && learnt,
        }
    };
    let mut places: Vec<Place> = counted.into_iter().map(of).collect();
    places.sort_by(|a, b| (&a.destination, &a.account).cmp(&(&b.destination, &b.account)));
    places
}

#[cfg(test)]
mod tests {
    use paceline_core::Rate;

    use super::*;

    const NOW: u64 = 1_800_000_000_000_000;

    fn list() -> Vec<BucketSpec> {
        vec![
            BucketSpec::new("account:a", Rate::per_second(100), 200, 0.0),
            BucketSpec::new("account:a:destination:google", Rate::per_second(10), 20, 0.0),
            BucketSpec::window("account:a:quota:h", "3600/h".parse().unwrap(), 0.0),
            BucketSpec::slots("account:a:concurrency", 7, 1),
        ]
    }

    fn seen(effects: &[(Source, &str, Effect)], hint: Option<Hint>) -> (f64, Option<String>, Option<Source>, Option<Source>) {
        let mut standing = Standing::default();
        for source in [Source::Asked, Source::Learnt, Source::Ordered] {
            let of = effects.iter().filter(|(s, ..)| *s == source);
            standing.set(source, of.map(|(_, key, effect)| ((*key).into(), *effect)).collect());
        }
        let of = of_account(&standing, &list(), hint.as_ref(), NOW);
        (of.per_s, of.key.map(|k| k.to_string()), of.closed, of.source)
    }

    #[test]
    fn the_strictest_limit_of_an_account_is_told() {
        let google = || Some("account:a:destination:google".to_owned());
        assert_eq!(seen(&[], None), (10.0, google(), None, None));
        let hint = |why| Some(Hint { retry_at_us: NOW + 1, bucket: "account:a:quota:h".into(), narrow: false, why });
        let quota = Some("account:a:quota:h".to_owned());
        assert_eq!(seen(&[], hint(Why::Quota)), (1.0, quota, None, None), "spent: its average");
        let rate = |per_s| Effect { rate_per_s: Some(per_s), ..Effect::default() };
        let slower = seen(&[(Source::Learnt, "account:a", rate(2.0))], None);
        assert_eq!(slower, (2.0, Some("account:a".to_owned()), None, Some(Source::Learnt)));
        let both = [(Source::Learnt, "account:a", rate(2.0)), (Source::Ordered, "account:a", rate(1.0))];
        assert_eq!(seen(&both, None).3, Some(Source::Ordered));
        let closed = |source| (source, "account:a:destination:google", Effect { closed_until_us: NOW + 1, ..Effect::default() });
        assert_eq!(seen(&[closed(Source::Learnt)], None), (0.0, google(), Some(Source::Learnt), Some(Source::Learnt)));
        assert_eq!(seen(&[closed(Source::Asked), closed(Source::Ordered)], None).2, Some(Source::Ordered));
        let over = Effect { closed_until_us: NOW, ..Effect::default() };
        assert_eq!(seen(&[(Source::Ordered, "account:a", over)], None), (10.0, google(), None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_actual_rate_is_that_of_ten_seconds() {
        let mut seen = Seen::default();
        let start = Instant::now();
        for s in 0..=10 {
            seen.accepted.push_back((start + Duration::from_secs(s), s * 3));
        }
        assert_eq!((seen.rate(), Seen::default().rate()), (3.0, 0.0));
    }
}
