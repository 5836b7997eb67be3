//! Who gets what of a scarce account: critical first, then 8 : 3 : 1, and nobody nothing.

use paceline_core::Class;

use crate::sim::{Load, Sim, Source, bucket, source};

/// Lanes spread unevenly: each is held by one to three of eight workers.
fn uneven(rate: &str, burst: u32) -> Vec<Source> {
    let account = bucket("a", rate, burst);
    let mut sources = Vec::new();
    for d in 0..8 {
        let buckets = [account.clone(), bucket(&format!("a@d{d}"), "2000/s", 2_000)];
        for (c, class) in [Class::High, Class::Normal, Class::Low].into_iter().enumerate() {
            for holder in 0..(d + c) % 3 + 1 {
                sources.push(source((d * 3 + c + holder * 5) % 8, class, &format!("d{d}"), &buckets, Load::Backlog(14)));
            }
        }
    }
    sources
}

fn assert_shares(shares: &std::collections::HashMap<Class, f64>) {
    let low = shares[&Class::Low];
    let (high, normal) = (shares[&Class::High] / low, shares[&Class::Normal] / low);
    assert!((7.2..8.8).contains(&high), "high {high:.2} : 1");
    assert!((2.7..3.3).contains(&normal), "normal {normal:.2} : 1");
}

#[test]
fn eight_to_three_to_one() {
    for (rate, burst) in [("1000/s", 1_000), ("100/s", 20), ("100/s", 1)] {
        let run = Sim::new(uneven(rate, burst), 15).run();
        assert_shares(&run.by_class("a"));
        assert!(run.utilisation("a") >= 0.97, "{rate}: {:.3}", run.utilisation("a"));
    }
}

#[test]
fn critical_goes_first_and_the_rest_keep_their_shares() {
    let mut sources = uneven("1000/s", 1_000);
    for worker in 0..8 {
        for d in 0..8 {
            let buckets = [bucket("a", "1000/s", 1_000), bucket(&format!("a@d{d}"), "2000/s", 2_000)];
            sources.push(source(worker, Class::Critical, &format!("d{d}"), &buckets, Load::PerSecond(300.0 / 64.0)));
        }
    }
    // What was granted before the others came is evened out first.
    let run = Sim { settle_us: 5_000_000, ..Sim::new(sources, 15) }.run();
    let p99 = run.latency_ms(0.99, |_, s| s.class == Class::Critical);
    assert!(p99 < 25.0, "critical p99 {p99:.1} ms");
    assert_shares(&run.by_class("a"));
    assert!(run.worst_excess_us() <= 0);
    let calls = run.calls_per_worker_second();
    assert!(calls <= 52.0, "{calls:.0} calls a second and worker");
}

#[test]
fn a_message_for_fifty_is_not_starved() {
    for class in [Class::Critical, Class::High, Class::Low] {
        let mut sources = Vec::new();
        let account = bucket("a", "100/s", 20);
        for d in 0..8 {
            let buckets = [account.clone(), bucket(&format!("a@d{d}"), "200/s", 40)];
            for class in [Class::High, Class::Normal, Class::Low] {
                sources.push(source(d, class, &format!("d{d}"), &buckets, Load::Backlog(4)));
            }
        }
        let buckets = [account, bucket("a@d0", "200/s", 40)];
        let big = sources.len();
        sources.push(Source { costs: vec![50.into()], ..source(3, class, "d0", &buckets, Load::Once(3_000_000)) });
        let run = Sim::new(sources, 8).run();
        let waited = run.latency_ms(1.0, |i, _| i == big);
        let limit = if class == Class::Critical { 500.0 } else { 2_000.0 };
        assert!(waited < limit, "{class}: {waited:.0} ms");
        assert!(run.worst_excess_us() <= 0);
    }
}

/// Destinations of one class take turns, however many workers hold each.
#[test]
fn destinations_take_turns() {
    let account = bucket("a", "200/s", 50);
    let mut sources = Vec::new();
    for (d, holders) in [1, 2, 6].into_iter().enumerate() {
        let buckets = [account.clone(), bucket(&format!("a@d{d}"), "1000/s", 1_000)];
        for worker in 0..holders {
            sources.push(source(worker, Class::Normal, &format!("d{d}"), &buckets, Load::Backlog(10)));
        }
    }
    let run = Sim::new(sources, 12).run();
    for d in 0..3 {
        let used = run.utilisation(&format!("a@d{d}")) * 1_000.0;
        assert!((60.0..74.0).contains(&used), "d{d}: {used:.0}/s of 66.7");
    }
}
