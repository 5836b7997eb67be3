//! A quota is never exceeded in any span of its length, and hardly anything of it is left unused.

use std::sync::Arc;

use paceline_core::Class;
use paceline_limiter::{
    Ask, BucketSpec, Kind, LaneAsk, Reply, Seed, Why,
    rules::{State, decide, tell},
};
use proptest::prelude::*;

use crate::sim::{Load, START_US, Sim, bucket, most_within, source};

const MINUTE: u64 = 60_000_000;

fn window(key: &str, length_us: u64, limit: u64, reserve: u64) -> BucketSpec {
    BucketSpec { key: key.into(), kind: Kind::Window { length_us, limit, reserve }, narrow: false }
}

/// One account without limits of its own to speak of, and quotas.
struct One {
    state: State,
    quotas: Vec<BucketSpec>,
    now: u64,
    granted: Vec<(u64, u64)>,
    epoch_us: u64,
}

impl One {
    fn new(quotas: Vec<BucketSpec>) -> Self {
        let mut state = State::new();
        decide(&mut state, &Ask::default(), START_US - 100_000_000).unwrap();
        One { state, quotas, now: START_US, granted: vec![], epoch_us: 0 }
    }

    fn ask(&mut self, class: Class, costs: &[u32]) -> Reply {
        let account = BucketSpec::new("a", "1000000/s".parse().unwrap(), 1_000_000, 0.0);
        let buckets: Vec<_> = std::iter::once(account).chain(self.quotas.iter().cloned()).collect();
        let lane = LaneAsk {
            class,
            destination: "google".into(),
            weight: 1,
            buckets: (0..buckets.len()).collect(),
            costs: costs.iter().map(|c| (*c).into()).collect(),
            since_us: 0,
            id: format!("w.{class}").into(),
            seq: 1,
        };
        let ask = Ask { buckets, lanes: vec![lane], epoch_us: self.epoch_us, ..Ask::default() };
        let reply = decide(&mut self.state, &ask, self.now).unwrap();
        let dates = reply.lanes[0].dates_us.iter();
        self.granted.extend(dates.zip(costs).map(|(date, cost)| (*date, u64::from(*cost))));
        reply
    }

    fn granted(&self) -> u64 {
        self.granted.iter().map(|(_, cost)| cost).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_span_exceeds_any_quota(
        quotas in prop::collection::vec((1_000_000..200_000_000_u64, 1..400_u64, 0..20_u64), 1..4),
        steps in prop::collection::vec((0..3_000_000_u64, 0..4_usize, prop::collection::vec(1..30_u32, 1..12)), 1..120),
        slow in 1..40_u64,
    ) {
        let spec = |(i, (length, limit, reserve)): (usize, &(u64, u64, u64))| {
            window(&format!("q{i}"), *length, *limit, *reserve.min(&(limit - 1)))
        };
        let quotas: Vec<_> = quotas.iter().enumerate().map(spec).collect();
        let mut one = One::new(quotas.clone());
        for (wait, class, costs) in steps {
            // Some traces are quick beside their windows, some are slow.
            one.now += wait * 10 / slow;
            one.ask(Class::ALL[class], &costs);
        }
        for quota in &quotas {
            let Kind::Window { length_us, limit, .. } = quota.kind else { unreachable!() };
            prop_assert!(most_within(length_us, one.granted.clone()) <= limit, "{quota:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// With mail always waiting, at least 99 % of what an ideal limiter would grant.
    #[test]
    fn hardly_anything_is_left_unused(length in 10_000_000..4_000_000_000_u64, limit in 1..5_000_u64, pause in 1..40_u64) {
        let mut one = One::new(vec![window("q", length, limit, 0)]);
        let end = START_US + length * 20;
        let mut calls = 0;
        while one.now < end {
            let reply = one.ask(Class::Normal, &[1; 600]);
            let retry = reply.lanes[0].denied.map_or(reply.now_us, |d| d.retry_at_us);
            one.now = retry.max(one.now + pause * 1_000);
            calls += 1;
        }
        let granted = one.granted.iter().filter(|(date, _)| *date < end).count() as f64;
        prop_assert!(granted >= 0.99 * (limit * 20) as f64, "{granted} of {} in {calls} calls", limit * 20);
        prop_assert!(most_within(length, one.granted) <= limit);
    }
}

/// The quota of the issue's own check: eight workers, 500/s with burst 100, 6000 a minute, four destinations, 3 minutes.
#[test]
fn a_fleet_uses_its_quota_and_asks_seldom_while_it_is_spent() {
    let (account, quota) = (bucket("a", "500/s", 100), window("q", MINUTE, 6_000, 0));
    let mut sources = Vec::new();
    for worker in 0..8 {
        for d in 0..4 {
            let buckets = [account.clone(), bucket(&format!("a@d{d}"), "300/s", 60), quota.clone()];
            sources.push(source(worker, Class::Normal, &format!("d{d}"), &buckets, Load::Backlog(30)));
        }
    }
    let run = Sim::new(sources, 180).run();
    assert!(run.worst_excess_us() <= 0);
    assert!(run.worst_window_excess() <= 0, "{} over", run.worst_window_excess());
    // An ideal limiter: 6,000 from second 0, 60 and 120 on, each in 12 s.
    assert!(run.sent.len() >= 17_900, "{} granted", run.sent.len());
    let calls = run.calls_per_worker_second();
    assert!(calls < 15.0, "{calls:.1} calls a second and worker, though most of the time nothing can go");
}

#[test]
fn classes_keep_their_shares_of_a_scarce_quota() {
    let (account, quota) = (bucket("a", "1000/s", 1_000), window("q", 2_000_000, 400, 20));
    let mut sources = Vec::new();
    for worker in 0..8 {
        for class in [Class::High, Class::Normal, Class::Low] {
            let buckets = [account.clone(), quota.clone()];
            sources.push(source(worker, class, "google", &buckets, Load::Backlog(30)));
        }
    }
    let run = Sim { settle_us: 8_000_000, ..Sim::new(sources, 60) }.run();
    assert!(run.worst_window_excess() <= 0);
    let shares = run.by_class("q");
    let low = shares[&Class::Low];
    let (high, normal) = (shares[&Class::High] / low, shares[&Class::Normal] / low);
    assert!((6.5..9.5).contains(&high) && (2.5..3.5).contains(&normal), "{high:.1} : {normal:.1} : 1");
}

#[test]
fn the_reserve_is_for_critical_mail() {
    let mut one = One::new(vec![window("q", MINUTE, 100, 10)]);
    let reply = one.ask(Class::Normal, &[1; 200]);
    assert_eq!(reply.lanes[0].dates_us.len(), 90);
    let denied = reply.lanes[0].denied.unwrap();
    assert_eq!(denied.why, Why::Quota);
    assert_eq!(&*one.quotas[denied.bucket - 1].key, "q");
    assert_eq!(one.ask(Class::Critical, &[1; 200]).lanes[0].dates_us.len(), 10);
    assert_eq!(one.granted(), 100);
}

/// It comes back a slot after the oldest grant is a minute old, and the answer says so.
#[test]
fn the_answer_says_when_capacity_returns() {
    let mut one = One::new(vec![window("q", MINUTE, 10, 0)]);
    one.ask(Class::Critical, &[4]);
    one.now += 20_000_000;
    one.ask(Class::Critical, &[6]);
    let denied = one.ask(Class::Critical, &[4]).lanes[0].denied.unwrap();
    let expected = START_US + MINUTE..=START_US + MINUTE + MINUTE / 200;
    // A date may lie a tenth of a second ahead.
    assert!(expected.contains(&(denied.retry_at_us + 100_000)), "{}", denied.retry_at_us - START_US);
    one.now = denied.retry_at_us;
    let reply = one.ask(Class::Critical, &[4, 1]);
    assert_eq!(reply.lanes[0].dates_us, [denied.retry_at_us + 100_000]);
    let denied = reply.lanes[0].denied.unwrap();
    assert!(denied.retry_at_us >= START_US + 20_000_000 + MINUTE - 100_000);
}

/// A message for fifty waits until as much is free, and smaller ones do not pass it for ever.
#[test]
fn a_large_message_gets_its_quota() {
    let quota = window("q", 2_000_000, 100, 0);
    let buckets = [bucket("a", "1000/s", 1_000), quota];
    let mut sources: Vec<_> = (0..8).map(|w| source(w, Class::Normal, &format!("d{w}"), &buckets, Load::Backlog(10))).collect();
    let large = crate::sim::Source { costs: vec![50.into()], ..source(3, Class::Normal, "d3", &buckets, Load::Once(5_000_000)) };
    sources.push(large);
    let run = Sim::new(sources, 20).run();
    assert!(run.worst_window_excess() <= 0);
    let waited = run.latency_ms(1.0, |i, _| i == 8);
    assert!(waited < 4_000.0, "{waited:.0} ms");
}

#[test]
fn a_message_larger_than_the_quota_never_goes_and_keeps_nobody_else() {
    let mut one = One::new(vec![window("q", MINUTE, 10, 2)]);
    let reply = one.ask(Class::Critical, &[11]);
    assert_eq!(reply.lanes[0].denied.unwrap().why, Why::Quota);
    assert!(reply.lanes[0].denied.unwrap().retry_at_us > one.now + MINUTE / 2);
    // All of it at once, the reserve notwithstanding: otherwise it could never go.
    assert_eq!(one.ask(Class::Low, &[10]).lanes[0].dates_us.len(), 1);
}

#[test]
fn the_state_is_lost_and_told_again() {
    let quota = window("q", MINUTE, 100, 0);
    let seed = |spent: Vec<(u64, u64)>| [Seed { window: quota.clone(), spent }];
    let lost = || {
        let mut one = One::new(vec![quota.clone()]);
        one.ask(Class::Normal, &[60]);
        one.now += 10_000_000;
        let known = one.ask(Class::Normal, &[1]).epoch_us;
        One { state: State::new(), epoch_us: known, now: one.now + 1_000_000, ..one }
    };

    // Nobody tells it: closed for as long as it is, from when the new state began.
    let mut one = lost();
    let reply = one.ask(Class::Critical, &[1]);
    assert!(reply.lost && reply.lanes[0].dates_us.is_empty());
    one.now += MINUTE - 2_000_000;
    assert_eq!(one.ask(Class::Critical, &[1]).lanes[0].dates_us.len(), 0);
    one.now += 2_000_000 + MINUTE / 100;
    assert_eq!(one.ask(Class::Critical, &[100]).lanes[0].dates_us.len(), 1);

    // Told, once and not twice, with what it granted since.
    let mut one = lost();
    one.ask(Class::Normal, &[1]);
    for _ in 0..2 {
        tell(&mut one.state, &seed(vec![(START_US, 60), (one.now - 1_000_000, 1), (1_000, 7)]), true, one.now).unwrap();
    }
    let reply = one.ask(Class::Normal, &[1; 200]);
    assert_eq!((reply.lanes[0].dates_us.len(), reply.lost), (39, false));
    assert!(most_within(MINUTE, one.granted) <= 100);

    // All is told, and there was nothing about this one.
    let mut one = lost();
    one.ask(Class::Normal, &[1]);
    tell(&mut one.state, &[], true, one.now).unwrap();
    assert_eq!(one.ask(Class::Normal, &[1; 200]).lanes[0].dates_us.len(), 100);

    // A fleet that starts with nothing has lost nothing.
    let mut one = One::new(vec![quota.clone()]);
    assert_eq!(one.ask(Class::Normal, &[1; 200]).lanes[0].dates_us.len(), 100);

    // Told beside what was granted meanwhile.
    let mut one = One::new(vec![quota.clone()]);
    one.ask(Class::Normal, &[30]);
    tell(&mut one.state, &seed(vec![(one.now - 5_000_000, 50)]), false, one.now).unwrap();
    assert_eq!(one.ask(Class::Normal, &[1; 200]).lanes[0].dates_us.len(), 20);

    let bucket = [Seed { window: bucket("a", "1/s", 1), spent: vec![] }];
    assert!(tell(&mut one.state, &bucket, false, one.now).is_err());
}

/// Whoever remembers may tell it any moment: nobody waits for as long as it would stay closed otherwise.
#[test]
fn what_is_lost_is_asked_about_again_soon() {
    let (minute, day) = (window("q", MINUTE, 100, 0), window("r", 1_440 * MINUTE, 1_000, 0));
    let mut one = One::new(vec![minute.clone(), day.clone()]);
    let known = one.ask(Class::Normal, &[1]).epoch_us;
    one = One { state: State::new(), epoch_us: known, ..one };
    let again = |one: &mut One| {
        let denied = one.ask(Class::Normal, &[1]).lanes[0].denied.unwrap();
        assert_eq!((denied.why, denied.bucket), (Why::Quota, 2));
        denied.retry_at_us - one.now
    };
    assert_eq!(again(&mut one), 1_000_000, "they come back just now");
    one.now += 15_000_000;
    assert_eq!(again(&mut one), 15_000_000, "they may still");
    // Told, and spent: nothing is to be had before it is over.
    let seed = |window: &BucketSpec, cost| Seed { window: window.clone(), spent: vec![(one.now, cost)] };
    tell(&mut one.state, &[seed(&minute, 1), seed(&day, 1_000)], false, one.now).unwrap();
    assert!(again(&mut one) > 1_000 * MINUTE);
}

/// Windows by key: the same quota at another length is another window.
#[test]
fn a_window_of_another_length_under_the_same_key_counts_as_spent() {
    let mut one = One::new(vec![window("q", MINUTE, 100, 0)]);
    one.ask(Class::Normal, &[1]);
    one.quotas = vec![window("q", 2 * MINUTE, 100, 0)];
    let key: Arc<str> = one.quotas[0].key.clone();
    assert!(one.ask(Class::Normal, &[1]).lanes[0].dates_us.is_empty(), "{key}");
}
