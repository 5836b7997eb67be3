use super::*;
use crate::{Denied, FOREVER_US, Kind, LaneGrant};

const T0: u64 = 1_000_000_000;

fn bucket(key: &str, interval_us: u64) -> BucketSpec {
    BucketSpec { key: key.into(), kind: Kind::Rate { interval_us, burst: 10, reserve: 2, shared: false }, narrow: false }
}

struct Bench {
    pacer: Pacer<u32>,
    lane: LaneKey,
}

impl Bench {
    fn new() -> Self {
        Bench { pacer: Pacer::new("w1"), lane: "normal.google".into() }
    }

    fn push(&mut self, handle: u32, class: Class, buckets: &[(&str, u64)], now: u64) {
        let buckets = buckets.iter().map(|(k, t)| bucket(k, *t)).collect();
        let head = Head { handle, cost: 1.into(), class, destination: "google".into(), weight: 1, buckets };
        self.pacer.push(self.lane.clone(), head, now);
    }

    fn normal(&mut self, handles: std::ops::Range<u32>) {
        for h in handles {
            self.push(h, Class::Normal, &[("a", 1_000), ("a@google", 1_000)], T0);
        }
    }
}

fn grant(call: &Call, now: u64, dates: &[&[u64]], denied: Option<(u64, Why)>) -> Reply {
    assert_eq!(call.ask().lanes.len(), dates.len());
    let lane = |dates: &&[u64]| LaneGrant {
        dates_us: dates.to_vec(),
        denied: denied.map(|(retry_at_us, why)| Denied { retry_at_us, bucket: 0, why }),
    };
    Reply { now_us: now, lanes: dates.iter().map(lane).collect(), ..Reply::default() }
}

fn handles(granted: &[Granted<u32>]) -> Vec<(u32, u64)> {
    granted.iter().map(|g| (g.handle, g.date_us)).collect()
}

#[test]
fn heads_are_granted_in_order_and_the_rest_waits_for_its_hint() {
    let mut b = Bench::new();
    assert_eq!(b.pacer.next_call_at(T0), None);
    b.normal(0..5);
    assert_eq!(b.pacer.next_call_at(T0), Some(T0));
    let call = b.pacer.begin(T0, 100).unwrap();
    assert_eq!((call.ask().heads(), call.ask().buckets.len()), (5, 2));
    assert_eq!(b.pacer.next_call_at(T0 + 50_000), None, "one call at a time");
    assert!(b.pacer.begin(T0 + 50_000, 100).is_none());

    let reply = grant(&call, T0 + 300, &[&[T0 + 300, T0 + 1_300]], Some((T0 + 90_000, Why::Date)));
    let granted = b.pacer.complete(call, &reply);
    assert_eq!(handles(&granted), [(0, T0 + 300), (1, T0 + 1_300)]);
    assert_eq!(b.pacer.held(&b.lane), 3);
    assert_eq!(b.pacer.next_call_at(T0 + 1_000), Some(T0 + 90_000));
    let hint = b.pacer.hint(&b.lane).unwrap();
    assert_eq!((hint.retry_at_us, &*hint.bucket, hint.why), (T0 + 90_000, "a", Why::Date));

    let call = b.pacer.begin(T0 + 90_000, 100).unwrap();
    let lane = &call.ask().lanes[0];
    assert_eq!((lane.costs.len(), lane.seq, lane.since_us), (3, 3, T0 + 300));
    let reply = grant(&call, T0 + 90_100, &[&[T0 + 90_100; 3]], None);
    assert_eq!(b.pacer.complete(call, &reply).len(), 3);
    assert!(b.pacer.is_empty());
    assert_eq!((b.pacer.held(&b.lane), b.pacer.next_call_at(T0)), (0, None));
}

#[test]
fn no_more_is_asked_for_than_there_is_room() {
    let mut b = Bench::new();
    b.normal(0..9);
    b.push(100, Class::Critical, &[("a", 1_000), ("a@yahoo", 1_000)], T0);
    let mut seen = Vec::new();
    let room = |first: &u32, most: usize| {
        seen.push((*first, most));
        if *first == 0 { 3 } else { most }
    };
    let call = b.pacer.begin_within(T0, 100, room).unwrap();
    let asked: Vec<_> = call.ask().lanes.iter().map(|lane| lane.costs.len()).collect();
    assert_eq!((asked, seen), (vec![1, 3], vec![(100, 1), (0, 9)]));
    let reply = grant(&call, T0, &[&[T0], &[T0; 3]], None);
    assert_eq!(b.pacer.complete(call, &reply).len(), 4);

    // Without any room nothing is asked, and it is looked at again.
    let next = b.pacer.next_call_at(T0).unwrap();
    assert!(b.pacer.begin_within(next, 100, |_, _| 0).is_none());
    assert_eq!((b.pacer.next_call_at(next), b.pacer.held(&b.lane)), (Some(next + CALL_GAP_US), 6));
    let call = b.pacer.begin(next + CALL_GAP_US, 100).unwrap();
    assert_eq!(call.ask().heads(), 6);
}

#[test]
fn calls_are_a_gap_apart_unless_a_critical_head_has_just_come() {
    let mut b = Bench::new();
    b.normal(0..1);
    let call = b.pacer.begin(T0, 100).unwrap();
    b.pacer.complete(call, &Reply { now_us: T0, ..Reply::default() });
    assert_eq!(b.pacer.next_call_at(T0 + 100), Some(T0 + CALL_GAP_US));
    b.push(7, Class::Critical, &[("a", 1_000)], T0 + 1_000);
    assert_eq!(b.pacer.next_call_at(T0 + 1_000), Some(T0 + CRITICAL_GAP_US));
    assert!(b.pacer.begin(T0 + CRITICAL_GAP_US - 1, 100).is_none());
    let call = b.pacer.begin(T0 + CRITICAL_GAP_US, 100).unwrap();
    assert_eq!(call.ask().lanes[0].class, Class::Critical);
    assert_eq!(call.ask().lanes.len(), 2, "the others go along");
}

#[test]
fn a_stream_of_critical_heads_keeps_to_fifty_calls_a_second() {
    let mut b = Bench::new();
    let (mut now, mut calls) = (T0, 0);
    while now < T0 + 10_000_000 {
        b.push(1, Class::Critical, &[("a", 1_000)], now);
        if let Some(call) = b.pacer.begin(now, 100) {
            calls += 1;
            let dates: Vec<u64> = call.ask().lanes[0].costs.iter().map(|_| now).collect();
            let lanes = vec![LaneGrant { dates_us: dates, denied: None }];
            b.pacer.complete(call, &Reply { now_us: now, lanes, ..Reply::default() });
        }
        now += 1_000;
    }
    assert!((490..=515).contains(&calls), "{calls} calls in 10 s");
}

#[test]
fn a_call_carries_no_more_than_fits() {
    let mut b = Bench::new();
    b.normal(0..300);
    // 100 ms of a bucket of 1,000/s, and one.
    let call = b.pacer.begin(T0, 1_000).unwrap();
    assert_eq!(call.ask().heads(), 101);
    b.pacer.failed(call, T0);

    let mut now = b.pacer.next_call_at(T0).unwrap();
    let call = b.pacer.begin(now, 7).unwrap();
    assert_eq!(call.ask().heads(), 7, "free slots");
    b.pacer.failed(call, now);

    now = b.pacer.next_call_at(now).unwrap();
    assert!(b.pacer.begin(now, 0).is_none());
    b.pacer = b.pacer.with_max_heads(20);
    assert_eq!(b.pacer.begin(now, 1_000).unwrap().ask().heads(), 20);
}

#[test]
fn slow_flows_still_ask_for_two() {
    let mut b = Bench::new();
    for h in 0..5 {
        b.push(h, Class::Normal, &[("a", 1_000), ("a@slow", 12_000_000)], T0);
    }
    assert_eq!(b.pacer.begin(T0, 100).unwrap().ask().heads(), 2);
}

#[test]
fn scarce_slots_go_critical_first_then_eight_to_three_to_one() {
    let mut b = Bench::new();
    let mut asked = [0; 4];
    let mut now = T0;
    for round in 0..1_200 {
        for class in Class::ALL {
            // Critical is seldom here; of the others more come than go.
            if class != Class::Critical || round % 100 == 0 {
                b.push(class.index() as u32, class, &[(class.as_str(), 1)], now);
            }
        }
        now = b.pacer.next_call_at(now).unwrap();
        let call = b.pacer.begin(now, 1).unwrap();
        assert_eq!(call.ask().heads(), 1);
        let reply = grant(&call, now, &[&[now]], None);
        for g in b.pacer.complete(call, &reply) {
            asked[g.handle as usize] += 1;
        }
    }
    let [critical, high, normal, low] = asked;
    assert!(critical > 0 && low > 0);
    let (high, normal) = (f64::from(high) / f64::from(low), f64::from(normal) / f64::from(low));
    assert!((7.2..8.8).contains(&high) && (2.7..3.3).contains(&normal), "{asked:?}");
}

#[test]
fn a_lane_comes_back_in_the_order_pushed() {
    let mut b = Bench::new();
    for h in 0..30 {
        let domain = format!("a@tail{}", h % 7);
        b.push(h, Class::Normal, &[("a", 1_000), (&domain, 1_000_000)], T0);
    }
    let call = b.pacer.begin(T0, 100).unwrap();
    assert_eq!(call.ask().lanes.len(), 7);
    // Taken while the call is under way: its grants are void.
    assert_eq!(b.pacer.take_where(&b.lane.clone(), |h, _| *h == 3), [3]);
    assert_eq!(b.pacer.held(&b.lane), 29);
    let one: &[u64] = &[T0];
    let reply = grant(&call, T0, &[one; 7], Some((T0 + 5_000_000, Why::Date)));
    assert_eq!(b.pacer.complete(call, &reply).len(), 6);
    assert_eq!(b.pacer.wasted(), 1);
    let lane = b.lane.clone();
    b.push(99, Class::Normal, &[("a", 1_000), ("a@new", 1)], T0);
    assert_eq!(b.pacer.hint(&lane), None, "one of its flows has not been asked about");
    assert_eq!(b.pacer.take_where(&lane, |h, _| *h < 99), (7..30).collect::<Vec<_>>());
    assert_eq!(b.pacer.take_lane(&lane), [99]);
    assert!(b.pacer.is_empty() && b.pacer.lanes.is_empty() && b.pacer.sharing.is_empty());
    assert_eq!(b.pacer.schedule.earliest(), None);
}

#[test]
fn a_failed_call_is_repeated_with_backoff() {
    let mut b = Bench::new();
    b.normal(0..2);
    let mut now = T0;
    for wait in [50_000, 100_000, 200_000, 400_000, 800_000, 1_000_000, 1_000_000] {
        let call = b.pacer.begin(now, 100).unwrap();
        assert_eq!(call.ask().heads(), 2);
        b.pacer.failed(call, now);
        assert_eq!(b.pacer.next_call_at(now), Some(now + wait));
        now += wait;
    }
    let call = b.pacer.begin(now, 100).unwrap();
    let reply = grant(&call, now, &[&[now]], None);
    b.pacer.complete(call, &reply);
    assert_eq!(b.pacer.next_call_at(now), Some(now + CALL_GAP_US));
}

#[test]
fn a_held_bucket_is_not_asked_about() {
    let mut b = Bench::new();
    b.normal(0..2);
    let account: Arc<str> = "a".into();
    b.pacer.hold_bucket(&account, T0 + 10_000_000, T0);
    b.push(9, Class::Normal, &[("b", 1_000)], T0);
    let call = b.pacer.begin(T0, 100).unwrap();
    assert_eq!(call.ask().buckets.iter().map(|b| &*b.key).collect::<Vec<_>>(), ["b"]);
    let reply = grant(&call, T0, &[&[T0]], None);
    assert_eq!(b.pacer.complete(call, &reply).len(), 1);
    assert_eq!(b.pacer.hint(&b.lane).unwrap().why, Why::Hold);
    assert_eq!(b.pacer.next_call_at(T0), Some(T0 + 10_000_000));
    b.pacer.hold_bucket(&account, 0, T0 + 500_000);
    assert_eq!(b.pacer.next_call_at(T0 + 500_000), Some(T0 + 500_000));
    assert_eq!(b.pacer.begin(T0 + 500_000, 100).unwrap().ask().heads(), 2);
}

#[test]
fn what_a_narrow_limit_keeps_can_be_taken_without_the_rest() {
    let mut b = Bench::new();
    let narrow = |key: &str| bucket(key, 1_000).narrow();
    for h in 0..9 {
        let buckets = match h % 3 {
            0 => [bucket("a", 1_000), bucket("a@google", 1_000)],
            1 => [bucket("a", 1_000), narrow("tenant:x")],
            _ => [bucket("a", 1_000), narrow("tenant:y")],
        };
        let head = Head {
            handle: h,
            cost: 1.into(),
            class: Class::Low,
            destination: "google".into(),
            weight: 1,
            buckets: buckets.into(),
        };
        b.pacer.push(b.lane.clone(), head, T0);
    }
    let call = b.pacer.begin(T0, 100).unwrap();
    assert!(b.pacer.take_narrow(&b.lane.clone(), |_, _, _| true).is_empty(), "nothing is known yet");
    let denied =
        |bucket, retry_at_us| LaneGrant { dates_us: vec![], denied: Some(Denied { retry_at_us, bucket, why: Why::Date }) };
    let at = |key: &str| call.ask().buckets.iter().position(|b| &*b.key == key).unwrap();
    let lanes = vec![
        denied(at("a@google"), T0 + 60_000_000),
        denied(at("tenant:x"), T0 + 60_000_000),
        denied(at("tenant:y"), T0 + 1_000_000),
    ];
    b.pacer.complete(call, &Reply { now_us: T0, lanes, ..Reply::default() });
    let taken = b.pacer.take_narrow(&b.lane.clone(), |_, at, _| at > T0 + 2_000_000);
    assert_eq!(taken.len(), 1);
    assert_eq!((&*taken[0].0.bucket, &taken[0].1), ("tenant:x", &vec![1, 4, 7]));
    assert_eq!(b.pacer.held(&b.lane), 6);
    assert!(b.pacer.hint(&b.lane).unwrap().narrow, "tenant y goes first");
    // Tenant y's go one after another, a millisecond each: what is taken after the two that stay.
    let taken = b.pacer.take_narrow(&b.lane.clone(), |_, at, h| at > T0 + if *h == 8 { 1_002_000 } else { 1_000_000 });
    assert_eq!(
        taken.iter().map(|(hint, handles)| (hint.retry_at_us, &handles[..])).collect::<Vec<_>>(),
        [(T0 + 1_002_000, &[5][..])]
    );
    assert_eq!(b.pacer.held(&b.lane), 5);
}

#[test]
fn ended_calls_are_told_within_a_call_gap_and_wake_who_waits_for_them() {
    let mut b = Bench::new();
    let buckets: Arc<[BucketSpec]> = [bucket("a", 1_000), BucketSpec::slots("a slots", 2, 1_000_000)].into();
    for handle in 0..3 {
        let head =
            Head { handle, cost: 1.into(), class: Class::Low, destination: "google".into(), weight: 1, buckets: buckets.clone() };
        b.pacer.push(b.lane.clone(), head, T0);
    }
    let call = b.pacer.begin(T0, 100).unwrap();
    assert!(call.ask().held.is_empty());
    let denied = Some(Denied { retry_at_us: T0 + 40_000, bucket: 1, why: Why::Concurrency });
    let lanes = vec![LaneGrant { dates_us: vec![T0; 2], denied }];
    assert_eq!(b.pacer.complete(call, &Reply { now_us: T0, lanes, ..Reply::default() }).len(), 2);
    assert_eq!(b.pacer.next_call_at(T0), Some(T0 + 40_000));

    b.pacer.release(&buckets, T0 + 1_000);
    assert_eq!(b.pacer.next_call_at(T0 + 1_000), Some(T0 + CALL_GAP_US));
    // Nothing may be asked for want of places, but it is told.
    let call = b.pacer.begin(T0 + CALL_GAP_US, 0).unwrap();
    assert_eq!((call.ask().lanes.len(), call.ask().held[0].calls), (0, 1));
    b.pacer.complete(call, &Reply { now_us: T0 + CALL_GAP_US, ..Reply::default() });
    assert!(b.pacer.begin(T0 + 2 * CALL_GAP_US, 0).is_none(), "once");
    assert_eq!(b.pacer.begin(T0 + 2 * CALL_GAP_US, 1).unwrap().ask().heads(), 1);
}

#[test]
fn changed_limits_are_asked_about_at_once() {
    let mut b = Bench::new();
    b.normal(0..2);
    let call = b.pacer.begin(T0, 100).unwrap();
    let reply = grant(&call, T0, &[&[]], Some((T0 + 3_600_000_000, Why::Date)));
    b.pacer.complete(call, &reply);
    b.push(5, Class::Normal, &[("a", 7), ("a@google", 7)], T0 + 1);
    assert_eq!(b.pacer.next_call_at(T0 + 1), Some(T0 + 3_600_000_000));
    b.pacer.reconsider(T0 + 1_000_000);
    let call = b.pacer.begin(T0 + 1_000_000, 100).unwrap();
    assert_eq!((call.ask().heads(), call.ask().buckets[0].interval_us()), (3, 7));
}

/// Ten thousand tail domains that all wait cost a call nothing.
#[test]
fn waiting_flows_are_not_visited() {
    let mut b = Bench::new();
    for i in 0..10_000 {
        b.push(i, Class::Low, &[("a", 1), (&format!("a@{i}"), 12_000_000)], T0);
    }
    let mut now = T0;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let call = b.pacer.begin(now, 1_000).unwrap();
        assert_eq!(call.ask().lanes.len(), 500);
        seen.extend(call.ask().lanes.iter().map(|l| l.id.clone()));
        let none: Vec<&[u64]> = vec![&[]; 500];
        let reply = grant(&call, now, &none, Some((T0 + 60_000_000, Why::Date)));
        b.pacer.complete(call, &reply);
        now += CALL_GAP_US;
    }
    assert_eq!(seen.len(), 10_000, "each was asked about once");
    assert_eq!(b.pacer.next_call_at(now), Some(T0 + 60_000_000));
}

#[test]
fn a_bucket_is_asked_for_as_it_is_just_now() {
    let mut b = Bench::new();
    for h in 0..50 {
        b.push(h, Class::Normal, &[("a", 1_000), ("a@google", 1_000)], T0);
    }
    let key: Arc<str> = "a@google".into();
    let slow = Kind::Rate { interval_us: 50_000, burst: 1, reserve: 0, shared: false };
    b.pacer.set_standing(&key, Some(Standing { kind: Some(slow), closed_until_us: 0, since_us: 7 }), T0);
    let call = b.pacer.begin(T0, 100).unwrap();
    assert_eq!((call.ask().buckets[1].kind, call.ask().heads()), (slow, 3), "no more heads than the slow rate has use for");
    let denied = Some(Denied { retry_at_us: T0 + 60_000_000, bucket: 1, why: Why::Date });
    b.pacer.complete(call, &Reply { now_us: T0, lanes: vec![LaneGrant { dates_us: vec![], denied }], ..Reply::default() });
    assert_eq!(b.pacer.next_call_at(T0), Some(T0 + 60_000_000));
    b.pacer.set_standing(&key, None, T0 + 1_000_000);
    assert_eq!(b.pacer.next_call_at(T0 + 1_000_000), Some(T0 + 1_000_000), "the wait was reckoned by the slow rate");
    let call = b.pacer.begin(T0 + 1_000_000, 100).unwrap();
    assert_eq!(call.ask().heads(), 50);
    let over = Change { bucket: 1, since_us: 8, closed_until_us: 0 };
    assert_eq!(call.ask().changes, [over], "that it is over is newer than that it was");
}

/// What is said of a bucket says since when; what no date is known of is this worker's own affair, and never closes it.
#[test]
fn what_stands_at_a_bucket_is_said_with_its_date() {
    let mut b = Bench::new();
    b.normal(0..2);
    b.pacer.set_generation(5);
    let key: Arc<str> = "a@google".into();
    let said = |pacer: &mut Pacer<u32>, closed_until_us: u64, since_us: u64| {
        pacer.set_standing(&key, Some(Standing { kind: None, closed_until_us, since_us }), T0);
        pacer.standing.get(&key).map(|s| (s.since_us, s.closed_until_us))
    };
    assert_eq!(said(&mut b.pacer, 9, 0), None);
    assert_eq!(said(&mut b.pacer, u64::MAX, 100), Some((100, FOREVER_US)));
    assert_eq!(said(&mut b.pacer, u64::MAX, 90), Some((100, FOREVER_US)), "nothing new");
    assert_eq!(said(&mut b.pacer, 70, 90), Some((101, 70)), "newer than what it replaces");
    assert_eq!(said(&mut b.pacer, 80, 200), Some((200, 80)));
    let call = b.pacer.begin(T0, 100).unwrap();
    assert_eq!(call.ask().generation_us, 5);
    assert_eq!(call.ask().changes, [Change { bucket: 1, since_us: 200, closed_until_us: 80 }]);
}

#[test]
fn a_held_group_is_not_asked_about_and_keeps_its_lanes() {
    let mut b = Bench::new();
    b.normal(0..2);
    b.push(5, Class::Low, &[("a", 1_000), ("a@google", 1_000)], T0);
    let low: Arc<str> = "class:low".into();
    b.pacer.hold_group(&low, Group::Class(Class::Low), u64::MAX, T0);
    let call = b.pacer.begin(T0, 100).unwrap();
    assert_eq!(call.ask().lanes.iter().map(|l| l.class).collect::<Vec<_>>(), [Class::Normal]);
    let reply = grant(&call, T0, &[&[T0, T0]], None);
    assert_eq!(b.pacer.complete(call, &reply).len(), 2);
    let hint = b.pacer.hint(&b.lane).unwrap();
    assert_eq!((hint.retry_at_us, &*hint.bucket, hint.narrow, hint.why), (u64::MAX, "class:low", false, Why::Hold));
    b.pacer.hold_group(&low, Group::Class(Class::Low), 0, T0 + 500_000);
    assert_eq!(b.pacer.begin(T0 + 500_000, 100).unwrap().ask().heads(), 1);

    // Domains of the tail: all that waits in a lane of the tail, but only a part of another lane's mail.
    let mut b = Bench::new();
    let tail: Arc<str> = "a:tail".into();
    b.pacer.hold_group(&tail, Group::Keys { prefix: "a:domain:".into(), of: "tail".into() }, u64::MAX, T0);
    b.push(1, Class::Low, &[("a", 1_000), ("a@google", 1_000), ("a:domain:x.org", 1_000)], T0);
    assert!(b.pacer.begin(T0, 100).is_none());
    let taken = b.pacer.take_narrow(&b.lane.clone(), |_, at, _| at > T0);
    assert_eq!(taken.iter().map(|(hint, handles)| (hint.narrow, handles.len())).collect::<Vec<_>>(), [(true, 1)]);
    let buckets = vec![bucket("a", 1_000), bucket("a:domain:x.org", 1_000).narrow()].into();
    let head = Head { handle: 2, cost: 1.into(), class: Class::Low, destination: "tail".into(), weight: 1, buckets };
    b.pacer.push("low.tail".into(), head, T0);
    assert!(b.pacer.begin(T0, 100).is_none());
    let hint = b.pacer.hint(&"low.tail".into()).unwrap();
    assert_eq!((&*hint.bucket, hint.narrow), ("a:tail", false));
}
