//! Never more calls under way than there are slots, over the whole fleet, and slots do not lie idle.

use paceline_core::Class;
use paceline_limiter::{BucketSpec, GRANT_LIFE_US};

use crate::sim::{Load, START_US, Sim, Source, bucket, source};

const LIFE_US: u64 = 3_000_000;

fn slots(key: &str, limit: u32) -> BucketSpec {
    BucketSpec::slots(key, limit, LIFE_US)
}

fn fleet(limit: u32, workers: usize, classes: &[Class]) -> Vec<Source> {
    let mut sources = Vec::new();
    for worker in 0..workers {
        for class in classes {
            let buckets = [bucket("a", "5000/s", 500), bucket("a@google", "5000/s", 500), slots("a slots", limit)];
            sources.push(source(worker, *class, "google", &buckets, Load::Backlog(40)));
        }
    }
    sources
}

#[test]
fn slots_are_kept_and_used() {
    for (limit, workers, call_us) in [(10, 8, (50_000, 150_000)), (64, 3, (20_000, 200_000)), (1, 4, (80_000, 120_000))] {
        let run = Sim { call_us, ..Sim::new(fleet(limit, workers, &[Class::Normal]), 20) }.run();
        let (most, average) = run.under_way("a slots");
        assert!(most <= i64::from(limit), "{most} of {limit} slots");
        // What a call gives back is told within 20 ms, and taken by somebody who asks at least every 40 ms.
        let used = average / f64::from(limit);
        assert!(used > 0.85, "{limit} slots used {used:.2}");
        let calls = run.calls_per_worker_second();
        assert!(calls <= 51.0, "{calls:.1} calls a second and worker");
    }
}

/// Where calls are long beside 20 ms, nothing is lost to speak of.
#[test]
fn long_calls_use_every_slot() {
    let run = Sim { call_us: (1_000_000, 1_500_000), ..Sim::new(fleet(10, 8, &[Class::Normal]), 30) }.run();
    let (most, average) = run.under_way("a slots");
    assert!(most <= 10 && average > 9.8, "most {most}, {average:.2} on average");
}

#[test]
fn classes_share_slots() {
    let sources = fleet(20, 8, &[Class::High, Class::Normal, Class::Low]);
    let run = Sim { call_us: (80_000, 120_000), settle_us: 5_000_000, ..Sim::new(sources, 40) }.run();
    assert!(run.under_way("a slots").0 <= 20);
    let shares = run.by_class("a");
    let low = shares[&Class::Low];
    let (high, normal) = (shares[&Class::High] / low, shares[&Class::Normal] / low);
    assert!((6.5..9.5).contains(&high) && (2.5..3.5).contains(&normal), "{high:.1} : {normal:.1} : 1");
}

#[test]
fn critical_mail_gets_the_next_slot() {
    let mut sources = fleet(10, 8, &[Class::High, Class::Low]);
    let buckets = sources[0].buckets.clone();
    sources.extend((0..8).map(|w| source(w, Class::Critical, "google", &buckets, Load::PerSecond(1.0))));
    let run = Sim { call_us: (80_000, 120_000), ..Sim::new(sources, 30) }.run();
    let (most, average) = run.under_way("a slots");
    assert!(most <= 10 && average > 8.5, "most {most}, {average:.2} on average");
    let p99 = run.latency_ms(0.99, |_, s| s.class == Class::Critical);
    assert!(p99 < 120.0, "critical waited {p99:.0} ms");
}

/// What a crashed worker held is free again when its longest call must have ended, and not before.
#[test]
fn a_crashed_workers_slots_come_back() {
    // One slot: what others get after the crash is what comes back.
    let crash = START_US + 5_000_000;
    let run = Sim { call_us: (500_000, 900_000), crash: Some((0, crash)), ..Sim::new(fleet(4, 2, &[Class::Normal]), 20) }.run();
    assert!(run.under_way("a slots").0 <= 4);
    let of_other = |s: &&crate::sim::Sent| run.sim.sources[s.source].worker == 1;
    let full_from = run
        .sent
        .iter()
        .filter(of_other)
        .map(|s| s.at)
        .find(|at| run.sent.iter().filter(of_other).filter(|s| s.at <= *at && s.end > *at).count() == 4)
        .expect("the other worker takes all four in the end");
    let held_until = run.sent.iter().filter(|s| !of_other(s)).map(|s| s.date).max().unwrap() + LIFE_US;
    assert!(full_from >= crash.min(held_until), "all four at {} µs", full_from - START_US);
    assert!(full_from <= held_until + 2_000_000, "{} µs after the leases ended", full_from - held_until);
}

/// Answers that get lost leave leases behind at the limiter; the next call sets them right.
#[test]
fn lost_grants_are_corrected() {
    use paceline_limiter::{
        pacer::{Head, Pacer},
        rules::{State, decide},
    };
    let mut state = State::new();
    let mut pacer: Pacer<u32> = Pacer::new("w");
    let buckets: std::sync::Arc<[BucketSpec]> = fleet(5, 1, &[Class::High])[0].buckets.clone();
    let mut now = START_US;
    decide(&mut state, &Default::default(), now - 100_000_000).unwrap();
    for handle in 0..8 {
        let head = Head {
            handle,
            cost: 1.into(),
            class: Class::High,
            destination: "google".into(),
            weight: 1,
            buckets: buckets.clone(),
        };
        pacer.push("lane".into(), head, now);
    }
    for _ in 0..3 {
        let call = pacer.begin(now, 100).unwrap();
        // Granted five, and nobody hears of it.
        decide(&mut state, call.ask(), now).unwrap();
        pacer.failed(call, now);
        now = pacer.next_call_at(now).unwrap();
    }
    let call = pacer.begin(now, 100).unwrap();
    let reply = decide(&mut state, call.ask(), now).unwrap();
    assert_eq!(pacer.complete(call, &reply).len(), 5);
    // Nothing to ask before a call has ended; then there is.
    for _ in 0..2 {
        pacer.release(&buckets, now + 1_000);
    }
    now = pacer.next_call_at(now + 1_000).unwrap();
    assert!(now <= START_US + 10 * GRANT_LIFE_US + 3_000_000);
    let call = pacer.begin(now, 100).unwrap();
    assert_eq!(call.ask().held[0].calls, 3);
    let reply = decide(&mut state, call.ask(), now).unwrap();
    assert_eq!(pacer.complete(call, &reply).len(), 2);
}
