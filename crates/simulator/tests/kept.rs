//! The shipped scenarios keep what they claim. Small sizes where the full one takes long; `PACELINE_ACCEPTANCE=full` runs
//! each as it is shipped.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail anywhere, and shows what it saw")]

use paceline_simulator::{Report, Scenario, Span, random, shipped, simulate};

fn full() -> bool {
    std::env::var("PACELINE_ACCEPTANCE").is_ok_and(|v| v == "full")
}

fn scenario(name: &str) -> Scenario {
    Scenario::parse(name, shipped(name).unwrap().text).unwrap()
}

/// Runs it, smaller where `smaller` says so, and asserts every promise and every expectation.
fn holds(name: &str, smaller: impl FnOnce(&mut Scenario)) -> Report {
    let mut scenario = scenario(name);
    if !full() {
        smaller(&mut scenario);
    }
    let report = simulate(&scenario, &mut |_| {}).unwrap();
    for e in &report.expects {
        println!("{name}: {} {:?} (least {:?}, most {:?})", e.figure, e.found, e.least, e.most);
    }
    if !report.holds() {
        let failed: Vec<_> = report.expects.iter().filter(|e| !e.holds).collect();
        panic!("{name}: {:?} {failed:#?}\n{}", report.broken, serde_json::to_string_pretty(&report).unwrap());
    }
    report
}

#[test]
fn a_backlog_costs_the_broker_two_operations_a_message() {
    let report = holds("backlog", |s| s.loads[0].count = Some(5_000));
    assert_eq!(report.messages.left, 0);
}

#[test]
fn nor_more_with_fifty_workers() {
    holds("backlog-50-workers", |s| s.loads[0].count = Some(1_500));
}

#[test]
fn classes_share_a_saturated_account() {
    holds("shares", |_| {});
}

#[test]
fn critical_mail_goes_first() {
    holds("critical-first", |_| {});
}

#[test]
fn messages_to_fifty_go_beside_busy_lanes() {
    holds("large-costs", |_| {});
}

#[test]
fn a_hidden_rate_is_found_and_followed() {
    holds("hidden-rate", |s| s.fleet.workers = 2);
}

#[test]
fn one_message_a_second_to_a_sender_without_limits() {
    holds("one-per-second", |s| s.duration = Span::secs(20 * 60));
}

#[test]
fn greylisting_costs_a_wait_and_nothing_else() {
    holds("greylisting", |_| {});
}

#[test]
fn redis_away_or_empty_exceeds_nothing() {
    holds("redis-away", |_| {});
}

#[test]
fn workers_that_crash_anywhere_lose_nothing() {
    let report = holds("crash-storm", |_| {});
    assert!(report.messages.doubled < report.crashes as usize * 40, "{:?}", report.messages);
}

/// A tenth of the messages, for all of the domains.
#[test]
fn a_tail_does_not_wait_for_its_blocked_domains() {
    holds("blocked-tail", |s| {
        s.fleet.workers = 4;
        s.loads[1].count = Some(2_100);
        s.loads[2].count = Some(900);
    });
}

#[test]
fn two_hundred_workers_and_five_thousand_domains() {
    holds("wide-fleet", |s| {
        s.fleet.workers = 40;
        s.loads.iter_mut().for_each(|l| l.until = Some(Span::secs(20)));
    });
}

#[test]
fn the_same_seed_runs_the_same_way() {
    for seed in [3, 17] {
        let run = || serde_json::to_string(&simulate(&random(seed), &mut |_| {}).unwrap()).unwrap();
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// 500 small fleets by chance. One of them by itself: `PACELINE_SEED=123`, or `paceline simulate --random 123`.
#[test]
fn five_hundred_seeds_keep_every_promise() {
    let only = std::env::var("PACELINE_SEED").ok().map(|s| s.parse::<u64>().unwrap());
    let seeds = only.map_or(0..500, |s| s..s + 1);
    let (mut failed, mut messages, mut crashes, mut doubled) = (vec![], 0, 0, 0);
    for seed in seeds {
        let report = simulate(&random(seed), &mut |_| {}).unwrap();
        messages += report.messages.submitted;
        crashes += report.crashes;
        doubled += report.messages.doubled;
        if !report.holds() {
            println!("seed {seed}: {:?}\n{:?}", report.broken, report.messages);
            failed.push(seed);
        }
    }
    println!("{messages} messages, {crashes} crashes, {doubled} doubled with a lost result");
    assert!(failed.is_empty(), "seeds that broke a promise: {failed:?}");
    assert!(only.is_some() || (crashes > 300 && messages > 20_000), "nothing happened: {messages} messages, {crashes} crashes");
}
