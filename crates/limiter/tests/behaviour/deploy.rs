//! Workers that know different things: another configuration during a deploy, a closure others have not heard of.

use paceline_core::Class;
use paceline_limiter::{
    Ask, BucketSpec, Change, FOREVER_US, Kind, LaneAsk, Reply, Why,
    rules::{State, decide},
};
use proptest::prelude::*;

use crate::sim::{START_US, most_within};

const OLD: u64 = START_US - 50_000_000;
const NEW: u64 = START_US - 1;
const WINDOW_US: u64 = 2_000_000;

/// An account's rate and quota.
#[derive(Debug, Clone, Copy)]
struct Limits {
    interval_us: u64,
    burst: u32,
    quota: u64,
}

impl Limits {
    fn buckets(self) -> Vec<BucketSpec> {
        let Limits { interval_us, burst, quota } = self;
        let of = |key: &str, kind| BucketSpec { key: key.into(), kind, narrow: false };
        vec![
            of("a", Kind::Rate { interval_us, burst, reserve: 0, shared: false }),
            of("a/s", Kind::Window { length_us: WINDOW_US, limit: quota, reserve: 0 }),
        ]
    }
}

fn lane(class: Class, name: &str, costs: &[u32]) -> LaneAsk {
    LaneAsk {
        class,
        destination: name.into(),
        weight: 1,
        buckets: vec![0, 1],
        costs: costs.iter().map(|c| (*c).into()).collect(),
        since_us: 0,
        id: name.into(),
        seq: 1,
    }
}

fn ask(limits: Limits, generation_us: u64, class: Class, costs: &[u32]) -> Ask {
    Ask { buckets: limits.buckets(), lanes: vec![lane(class, "google", costs)], generation_us, ..Ask::default() }
}

fn begun() -> State {
    let mut state = State::new();
    decide(&mut state, &Ask::default(), START_US - 100_000_000).unwrap();
    state
}

/// The most by which `grants` exceed that rate in any span, in microseconds of it.
fn excess_us(grants: &[(u64, u64)], interval_us: u64, burst: u32) -> i128 {
    let mut grants = grants.to_vec();
    grants.sort_unstable();
    let most = grants.iter().map(|(_, cost)| *cost).max().unwrap_or(0).max(burst.into());
    let (mut level, mut last, mut worst) = (0_i128, 0, 0);
    for (date, cost) in grants {
        level = (level - i128::from(date - last)).max(0) + i128::from(cost * interval_us);
        last = date;
        worst = worst.max(level);
    }
    worst - i128::from(most * interval_us)
}

fn limits() -> impl Strategy<Value = Limits> {
    (1_000..200_000_u64, 1..40_u32, 20..400_u64).prop_map(|(interval_us, burst, quota)| Limits { interval_us, burst, quota })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Up or down: the larger of both limits over everything, and the new one from its first grant on, whoever asks. A message
    /// that is too large for the new burst goes once that is full, which may be earlier than before.
    #[test]
    fn a_rolling_deploy_is_never_at_both_rates(
        old in limits(),
        new in limits(),
        steps in prop::collection::vec((0..60_000_u64, 0..4_usize, any::<bool>(), prop::collection::vec(1..6_u32, 1..8)), 20..160),
        first_new in 5..80_usize,
    ) {
        let mut state = begun();
        let mut now = START_US;
        let (mut granted, mut from) = (Vec::new(), None);
        for (i, (wait, class, by_new, costs)) in steps.iter().enumerate() {
            now += wait;
            let by_new = *by_new && i >= first_new;
            let asked = if by_new { ask(new, NEW, Class::ALL[*class], costs) } else { ask(old, OLD, Class::ALL[*class], costs) };
            let reply = decide(&mut state, &asked, now).unwrap();
            let dates = &reply.lanes[0].dates_us;
            if by_new && from.is_none() {
                from = dates.first().copied();
            }
            granted.extend(dates.iter().zip(costs).map(|(date, cost)| (*date, u64::from(*cost))));
        }
        let (fastest, burst) = (old.interval_us.min(new.interval_us), old.burst.max(new.burst));
        let largest = granted.iter().map(|(_, cost)| *cost).max().unwrap_or(0);
        let too_large = largest.saturating_sub(new.burst.into()) * fastest;
        prop_assert!(excess_us(&granted, fastest, burst) <= too_large.into(), "both: {}", excess_us(&granted, fastest, burst));
        prop_assert!(most_within(WINDOW_US, granted.clone()) <= old.quota.max(new.quota));
        if let Some(from) = from {
            granted.retain(|(date, _)| *date >= from);
            prop_assert!(excess_us(&granted, new.interval_us, new.burst) <= 0, "new rate: {}", excess_us(&granted, new.interval_us, new.burst));
            prop_assert!(most_within(WINDOW_US, granted) <= new.quota);
        }
    }
}

/// Both ask all the time; nobody loses what is there, and the old ones do not slow the new rate down.
#[test]
fn the_new_rate_is_used_while_both_ask() {
    for (old, new) in [(100_000, 10_000), (10_000, 100_000)] {
        let limits = |interval_us| Limits { interval_us, burst: 5, quota: 1_000_000 };
        let (mut state, mut granted) = (begun(), 0);
        for step in 0..1_000 {
            let (limits, generation) = if step % 2 == 0 { (limits(new), NEW) } else { (limits(old), OLD) };
            let reply = decide(&mut state, &ask(limits, generation, Class::Normal, &[1; 30]), START_US + step * 20_000).unwrap();
            granted += reply.lanes[0].dates_us.len() as u64;
        }
        let ideal = 20_000_000 / new;
        assert!(granted * 100 >= ideal * 97 && granted <= ideal + 25, "{granted} of {ideal}");
    }
}

#[test]
fn one_that_knows_closes_it_for_all() {
    let limits = Limits { interval_us: 1_000, burst: 100, quota: 1_000_000 };
    let mut state = begun();
    let mut say = |change: Option<(u64, u64)>, now: u64| -> Reply {
        let mut ask = ask(limits, OLD, Class::Critical, &[1; 2]);
        ask.changes.extend(change.map(|(since_us, closed_until_us)| Change { bucket: 0, since_us, closed_until_us }));
        decide(&mut state, &ask, now).unwrap()
    };
    let granted = |reply: &Reply| reply.lanes[0].dates_us.len();
    let mut now = START_US;
    assert_eq!(granted(&say(None, now)), 2);
    now += 1_000;
    let until = now + 5_000_000;
    // Older, and newer but about something else: neither opens it.
    for change in [Some((now, until)), None, Some((now - 1, 1)), Some((now + 1, 0))] {
        let reply = say(change, now);
        let denied = reply.lanes[0].denied.unwrap();
        assert_eq!((granted(&reply), denied.why, denied.bucket, denied.retry_at_us), (0, Why::Closed, 0, until - 100_000));
    }
    assert_eq!(say(None, until - 100_000).lanes[0].dates_us, [until, until], "dated not before it opens");
    // Until told otherwise; a rest is a minute at most, and the limits of a closed bucket are nobody's business.
    now = until + 1_000_000;
    let denied = say(Some((now, FOREVER_US)), now).lanes[0].denied.unwrap();
    assert_eq!((denied.why, denied.retry_at_us), (Why::Closed, now + 60_000_000));
    assert_eq!(granted(&say(None, now + 100_000_000)), 0);
    assert_eq!(granted(&say(Some((now + 1, 1)), now + 100_000_001)), 2);
    assert_eq!(granted(&say(None, now + 100_000_002)), 2);
}

/// Who waited for a closed gate leaves nothing behind that keeps others waiting once it is open.
#[test]
fn nobody_takes_turns_for_what_is_closed() {
    let limits = Limits { interval_us: 10_000, burst: 10, quota: 1_000_000 };
    let mut state = begun();
    let mut closed = ask(limits, OLD, Class::Critical, &[1; 2]);
    closed.changes.push(Change { bucket: 0, since_us: START_US, closed_until_us: FOREVER_US });
    decide(&mut state, &closed, START_US).unwrap();
    let mut open = ask(limits, OLD, Class::Low, &[1; 5]);
    open.changes.push(Change { bucket: 0, since_us: START_US + 1, closed_until_us: 1 });
    assert_eq!(decide(&mut state, &open, START_US + 1).unwrap().lanes[0].dates_us.len(), 5);
}

#[test]
fn weighted_turns_share_an_account_by_weight() {
    let limits = Limits { interval_us: 2_000, burst: 50, quota: 1_000_000 };
    let weights = [1, 3, 6];
    let (mut state, mut granted) = (begun(), [0_usize; 3]);
    for step in 0..1_000 {
        let lanes = weights.iter().enumerate().map(|(i, weight)| {
            let lane = lane(Class::Normal, &format!("flow:{i}"), if i == 1 { &[2; 20] } else { &[1; 40] });
            LaneAsk { weight: *weight, ..lane }
        });
        let ask = Ask { buckets: limits.buckets(), lanes: lanes.collect(), generation_us: OLD, ..Ask::default() };
        let reply = decide(&mut state, &ask, START_US + step * 20_000).unwrap();
        for (i, lane) in reply.lanes.iter().enumerate() {
            granted[i] += lane.dates_us.len() * if i == 1 { 2 } else { 1 };
        }
    }
    let total: usize = granted.iter().sum();
    assert!(total >= 9_700, "{total}");
    for (weight, granted) in weights.iter().zip(granted) {
        let (share, due) = (granted as f64 / total as f64, f64::from(*weight) / 10.0);
        assert!((share - due).abs() < 0.02, "{share:.3} for {due}");
    }
}
