//! No bucket hands out more than max(burst, largest cost) + t / interval in any window, whatever the fleet does; and
//! little less than its rate while mail waits.

use paceline_core::Class;
use paceline_limiter::{BucketSpec, Cost, Kind};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::sim::{Load, Sim, Source, bucket, source};

/// Random fleets with up to five buckets a head, quotas among them, mixed costs and stalls; some 20,000 grants.
#[test]
fn exact_over_every_window() {
    let mut grants = 0;
    for seed in 0..60 {
        let run = random_fleet(seed).run();
        assert!(run.worst_excess_us() <= 0, "seed {seed}: {} µs over", run.worst_excess_us());
        assert!(run.worst_window_excess() <= 0, "seed {seed}: {} recipients over", run.worst_window_excess());
        grants += run.sent.len();
    }
    assert!(grants > 15_000, "only {grants}");
}

fn random_fleet(seed: u64) -> Sim {
    let mut rng = StdRng::seed_from_u64(seed);
    let pick = |rng: &mut StdRng, of: &[u32]| of[rng.random_range(0..of.len())];
    let workers = pick(&mut rng, &[1, 2, 5, 12, 26]) as usize;
    let accounts = pick(&mut rng, &[1, 2]) as usize;
    let rate = |n: u32| format!("{n}/s");
    let fleet: Vec<_> = (0..5)
        .map(|d| {
            let (r, b) = (pick(&mut rng, &[2, 40, 400]), pick(&mut rng, &[1, 5, 50]));
            bucket(&format!("fleet:d{d}"), &rate(r), b).shared()
        })
        .collect();
    let windows: Vec<_> = (0..3)
        .map(|i| {
            let (length_us, limit) = ([1_000_000, 3_000_000, 60_000_000][i], pick(&mut rng, &[60, 200, 1_000]).into());
            BucketSpec {
                key: format!("q{i}").into(),
                kind: Kind::Window { length_us, limit, reserve: limit / 20 },
                narrow: false,
            }
        })
        .collect();
    let limits: Vec<_> = (0..accounts)
        .map(|a| {
            let (r, b) = (pick(&mut rng, &[3, 20, 100, 777]), pick(&mut rng, &[1, 2, 5, 20, 100]));
            let account = bucket(&format!("a{a}"), &rate(r), b);
            let each = (0..5)
                .map(|d| {
                    let (r, b) = (pick(&mut rng, &[1, 7, 50, 300]), pick(&mut rng, &[1, 3, 20, 60]));
                    bucket(&format!("a{a}@d{d}"), &rate(r), b)
                })
                .collect::<Vec<_>>();
            (account, each)
        })
        .collect();
    let sources = (0..pick(&mut rng, &[6, 20, 60]))
        .map(|_| {
            let (a, d) = (rng.random_range(0..accounts), rng.random_range(0..5));
            let mut buckets = vec![limits[a].0.clone(), limits[a].1[d].clone()];
            if rng.random() {
                buckets.push(fleet[d].clone());
            }
            if rng.random_bool(0.2) {
                buckets.push(windows[a].clone());
            }
            if rng.random_bool(0.2) {
                buckets.push(windows[2].clone());
            }
            let load = if rng.random_bool(0.6) {
                Load::Backlog(pick(&mut rng, &[1, 4, 16]) as usize)
            } else {
                Load::PerSecond([0.2, 3.0, 20.0][rng.random_range(0..3)])
            };
            let class = Class::ALL[rng.random_range(0..4)];
            let costs = match rng.random_range(0..10) {
                // To several destinations: this one is charged its own recipients only.
                0..2 => {
                    [[9, 1, 1, 9, 1], [3, 2, 2, 3, 2], [50, 7, 7, 50, 7]].map(|c| Cost::Each(c[..buckets.len()].into())).into()
                }
                2..5 => [1, 1, 1, 2, 7, 50].map(Cost::All).into(),
                _ => vec![Cost::All(1)],
            };
            Source { costs, ..source(rng.random_range(0..workers), class, &format!("d{d}"), &buckets, load) }
        })
        .collect();
    Sim { stalls: 0.2, seed, ..Sim::new(sources, 8) }
}

/// Eight workers, three classes, eight destinations.
fn saturated(account: &str, account_burst: u32, each: &str, each_burst: u32) -> Sim {
    let account = bucket("a", account, account_burst);
    let mut sources = Vec::new();
    for d in 0..8 {
        let buckets = [account.clone(), bucket(&format!("a@d{d}"), each, each_burst)];
        for class in [Class::High, Class::Normal, Class::Low] {
            for worker in 0..8 {
                sources.push(source(worker, class, &format!("d{d}"), &buckets, Load::Backlog(6)));
            }
        }
    }
    Sim::new(sources, 12)
}

#[test]
fn the_rate_is_used() {
    for (account, burst, each, each_burst, binding) in [
        ("300/s", 300, "300/s", 300, "a"),
        ("100/s", 1, "200/s", 200, "a"),
        ("2000/s", 2_000, "20/s", 20, "a@d3"),
        ("1000/s", 1_000, "10/s", 2, "a@d5"),
    ] {
        let run = saturated(account, burst, each, each_burst).run();
        let used = run.utilisation(binding);
        assert!(used >= 0.97, "{account}, {each}: {used:.3} of {binding}");
        assert!(run.worst_excess_us() <= 0);
        assert_eq!(run.void(), 0);
        let calls = run.calls_per_worker_second();
        assert!(calls <= 51.0, "{account}, {each}: {calls:.0} calls a second and worker");
    }
}

/// Two accounts meet at one fleet limit: neither keeps the other out, though one is faster, nor does the slow one's own
/// limit date the fleet's away.
#[test]
fn a_fleet_limit_is_used_by_all_its_accounts() {
    for (burst, slow_burst, used, slow_used) in [(20, 5, 0.97, 0.95), (100, 30, 0.97, 0.95), (1, 1, 0.75, 0.8)] {
        let fleet = bucket("fleet:google", "100/s", burst).shared();
        let mut sources = Vec::new();
        for (name, rate, burst) in [("fast", "1000/s", 1_000), ("slow", "30/s", slow_burst)] {
            let buckets = [bucket(name, rate, burst), bucket(&format!("{name}@google"), "200/s", burst), fleet.clone()];
            for worker in 0..4 {
                sources.push(source(worker, Class::Normal, "google", &buckets, Load::Backlog(8)));
            }
        }
        let run = Sim::new(sources, 12).run();
        assert!(run.worst_excess_us() <= 0);
        let (fleet, slow) = (run.utilisation("fleet:google"), run.utilisation("slow"));
        assert!(fleet >= used && slow >= slow_used, "burst {burst}: fleet {fleet:.3}, slow account {slow:.3}");
    }
}

/// A stalled worker wastes what it was granted and nothing else.
#[test]
fn stalls_cost_little() {
    let run = Sim { stalls: 0.1, ..saturated("300/s", 300, "300/s", 300) }.run();
    let void = run.void() as f64 / run.sent.len() as f64;
    assert!(void < 0.03, "{void:.3} void");
    assert!(run.utilisation("a") >= 0.97);
}

/// Thousands of tail domains through one worker: all go, at their account's rate, and no call is large.
#[test]
fn many_tail_domains_share_an_account() {
    let account = bucket("a", "500/s", 100);
    let sources = (0..2_000)
        .map(|i| {
            let buckets = [account.clone(), bucket(&format!("a@tail{i}.example"), "300/h", 20)];
            source(0, Class::Normal, "tail", &buckets, Load::Once(0))
        })
        .collect();
    let run = Sim::new(sources, 6).run();
    assert_eq!(run.sent.len(), 2_000);
    assert!(run.worst_excess_us() <= 0);
    assert!(run.latency_ms(1.0, |_, _| true) < 4_500.0);
    assert!(run.calls <= 300, "{} calls", run.calls);
}
