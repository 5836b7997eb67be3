//! The adaptive rate against a model of receivers, under virtual time: a fleet of workers that report, judge and learn as
//! the real ones do, grants on time, calls that take theirs.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use paceline_core::{
    adaptive::PacePolicy,
    circuit::CircuitPolicy,
    evidence::{Counts, SLOT_US},
    scope::{AccountPolicy, Known, force, judge},
};

const T0: u64 = 1_800_000_000 * SLOT_US;
const WORKERS: usize = 8;
const REPORT_US: u64 = 250_000;
const IDLE_US: u64 = 1_000_000;

/// splitmix64
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What a destination allows, and from when on.
#[derive(Clone, Copy)]
struct Allows {
    from_s: u64,
    per_s: f64,
    burst: f64,
}

/// One destination with its mail, as much as may go.
struct Destination {
    name: Arc<str>,
    allows: Vec<Allows>,
    /// More cannot be sent at all.
    demand_per_s: f64,
    full_at_us: f64,
    next_us: u64,
    /// Accepted and refused, by second.
    accepted: Vec<u64>,
    refused: Vec<u64>,
}

impl Destination {
    fn new(name: &str, allows: &[Allows], demand_per_s: f64) -> Destination {
        Destination {
            name: name.into(),
            allows: allows.to_vec(),
            demand_per_s,
            full_at_us: 0.0,
            next_us: T0,
            accepted: vec![0; 20_000],
            refused: vec![0; 20_000],
        }
    }

    fn takes(&mut self, at_us: u64) -> bool {
        let second = (at_us - T0) / SLOT_US;
        let a = self.allows.iter().rev().find(|a| a.from_s <= second).unwrap();
        let interval = 1e6 / a.per_s;
        let full = self.full_at_us.max(at_us as f64) + interval;
        let ok = full - at_us as f64 <= interval * a.burst + 1.0;
        if ok {
            self.full_at_us = full;
        }
        let by_second = if ok { &mut self.accepted } else { &mut self.refused };
        by_second[second as usize] += 1;
        ok
    }

    fn accepted(&self, from_s: usize, to_s: usize) -> f64 {
        self.accepted[from_s..to_s].iter().sum::<u64>() as f64
    }

    fn refused(&self, from_s: usize, to_s: usize) -> f64 {
        self.refused[from_s..to_s].iter().sum::<u64>() as f64
    }

    fn refused_share(&self, from_s: usize, to_s: usize) -> f64 {
        self.refused(from_s, to_s) / (self.refused(from_s, to_s) + self.accepted(from_s, to_s)).max(1.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Grant { destination: usize },
    Result { worker: usize, destination: usize, granted_us: u64, ok: bool, took_us: u64 },
    Exchange { worker: usize },
}

struct Sim {
    policy: AccountPolicy,
    /// Refusals speak of the account.
    says_account: bool,
    destinations: Vec<Destination>,
    chance: Chance,
    known: Known,
    /// What each worker knows.
    views: Vec<Known>,
    tallies: Vec<BTreeMap<(usize, u64), Counts>>,
    judged_us: u64,
    changes: usize,
}

impl Sim {
    fn new(seed: u64, configured: PacePolicy, destinations: Vec<Destination>) -> Sim {
        let unlimited = PacePolicy { start_per_s: 1e6, ceiling_per_s: 1e6, concurrency: None };
        let policy = AccountPolicy {
            circuit: CircuitPolicy::default(),
            pace: unlimited,
            warmup: None,
            destinations: destinations.iter().map(|d| (d.name.clone(), configured)).collect(),
        };
        Sim {
            policy,
            says_account: false,
            destinations,
            chance: Chance(seed),
            known: Known::default(),
            views: vec![Known::default(); WORKERS],
            tallies: vec![BTreeMap::new(); WORKERS],
            judged_us: 0,
            changes: 0,
        }
    }

    fn rate(&self, worker: usize, destination: usize) -> f64 {
        let d = &self.destinations[destination];
        let policy = &self.policy.destinations[&d.name];
        let learnt = |v: &Known| v.destinations.get(&d.name).copied().unwrap_or_default();
        let own = force(&learnt(&self.views[worker]), policy, None, 0).rate_per_s.unwrap_or(policy.start_per_s);
        let account = force(&self.views[worker].account, &self.policy.pace, None, 0).rate_per_s;
        own.min(account.unwrap_or(f64::MAX)).min(d.demand_per_s)
    }

    fn run(&mut self, seconds: u64) {
        let mut queue = BinaryHeap::new();
        for destination in 0..self.destinations.len() {
            queue.push(Reverse((T0, Happens::Grant { destination })));
        }
        for worker in 0..WORKERS {
            queue.push(Reverse((T0 + self.chance.below(REPORT_US), Happens::Exchange { worker })));
        }
        while let Some(Reverse((now, what))) = queue.pop() {
            if now >= T0 + seconds * SLOT_US {
                return;
            }
            match what {
                Happens::Grant { destination } => {
                    let worker = self.chance.below(WORKERS as u64) as usize;
                    let rate = self.rate(worker, destination);
                    let took_us = 40_000 + self.chance.below(260_000);
                    let arrives = now + 5_000 + self.chance.below(30_000);
                    let d = &mut self.destinations[destination];
                    d.next_us = now + (1e6 / rate) as u64;
                    queue.push(Reverse((d.next_us, Happens::Grant { destination })));
                    let ok = d.takes(arrives);
                    let result = Happens::Result { worker, destination, granted_us: now, ok, took_us };
                    queue.push(Reverse((now + took_us, result)));
                }
                Happens::Result { worker, destination, granted_us, ok, took_us } => {
                    let mut counts = Counts { busy_ms: took_us / 1_000, ..Counts::default() };
                    match ok {
                        true => (counts.accepted, counts.passed) = (1, 1),
                        false if self.says_account => (counts.answered, counts.throttled_account) = (1, 1),
                        false => (counts.answered, counts.throttled) = (1, 1),
                    }
                    *self.tallies[worker].entry((destination, granted_us / SLOT_US)).or_default() += counts;
                }
                Happens::Exchange { worker } => {
                    let news = std::mem::take(&mut self.tallies[worker]);
                    let gap = if news.is_empty() { IDLE_US } else { REPORT_US };
                    for ((destination, slot), counts) in news {
                        let name = self.destinations[destination].name.clone();
                        self.known.evidence.entry(name).or_default().add(slot, counts);
                    }
                    if now >= self.judged_us + 500_000 {
                        self.judged_us = now;
                        self.known.evidence.values_mut().for_each(|e| e.forget(now - 130 * SLOT_US));
                        for change in judge(&self.known, &self.policy, now) {
                            self.changes += 1;
                            match change.destination {
                                Some(d) => drop(self.known.destinations.insert(d, change.to)),
                                None => self.known.account = change.to,
                            }
                        }
                    }
                    self.views[worker] = Known { evidence: BTreeMap::new(), ..self.known.clone() };
                    queue.push(Reverse((now + gap, Happens::Exchange { worker })));
                }
            }
        }
    }
}

fn pace(start: f64, ceiling: f64) -> PacePolicy {
    PacePolicy { start_per_s: start, ceiling_per_s: ceiling, concurrency: None }
}

#[test]
fn a_hidden_limit_is_found_kept_to_and_followed_when_it_rises() {
    for says_account in [false, true] {
        for burst in [10.0, 50.0, 200.0] {
            for seed in 0..3 {
                let hidden = [Allows { from_s: 0, per_s: 50.0, burst }, Allows { from_s: 300, per_s: 200.0, burst }];
                let open = [Allows { from_s: 0, per_s: 1e5, burst: 1e5 }];
                let both = vec![Destination::new("google", &hidden, 1e4), Destination::new("yahoo", &open, 40.0)];
                let mut sim = Sim::new(seed, pace(500.0, 500.0), both);
                sim.policy.destinations.insert("google".into(), pace(500.0, 500.0));
                sim.says_account = says_account;
                sim.run(300);
                let google = &sim.destinations[0];
                let (rate, share) = (google.accepted(120, 300) / 180.0, google.refused_share(120, 300));
                assert!(rate >= 45.0 && share < 0.03, "{says_account} {burst} {seed}: {rate}/s, {share} refused");
                assert!(sim.destinations[1].accepted(10, 300) >= 39.9 * 290.0, "the other destination is left alone");
            }
        }
    }
}

#[test]
fn a_limit_that_rises_is_followed() {
    for burst in [10.0, 50.0, 200.0] {
        for seed in 0..3 {
            let hidden = [Allows { from_s: 0, per_s: 50.0, burst }, Allows { from_s: 300, per_s: 200.0, burst }];
            let mut sim = Sim::new(seed, pace(200.0, 200.0), vec![Destination::new("google", &hidden, 1e4)]);
            sim.run(600);
            let google = &sim.destinations[0];
            let (rate, share) = (google.accepted(540, 600) / 60.0, google.refused_share(300, 600));
            assert!(rate >= 180.0 && share < 0.03, "burst {burst} seed {seed}: {rate}/s, {share} refused");
        }
    }
}

#[test]
fn one_message_a_second_to_a_sender_without_limits() {
    for burst in [1.0, 2.0, 10.0] {
        for seed in 0..3 {
            let strict = [Allows { from_s: 0, per_s: 1.0, burst }];
            let mut sim = Sim::new(seed, pace(1e6, 1e6), vec![Destination::new("small", &strict, 100.0)]);
            sim.run(3_600);
            let small = &sim.destinations[0];
            let (rate, share) = (small.accepted(600, 3_600) / 3_000.0, small.refused_share(0, 3_600));
            assert!(rate >= 0.7 && share < 0.1, "burst {burst} seed {seed}: {rate}/s, {share} deferred");
            let settled = small.refused_share(600, 3_600);
            assert!(settled < 0.05, "burst {burst} seed {seed}: {settled} once settled");
        }
    }
}

#[test]
fn a_limit_that_falls_is_kept_to_again() {
    for seed in 0..3 {
        let hidden = [Allows { from_s: 0, per_s: 400.0, burst: 40.0 }, Allows { from_s: 120, per_s: 20.0, burst: 40.0 }];
        let mut sim = Sim::new(seed, pace(300.0, 300.0), vec![Destination::new("google", &hidden, 1e4)]);
        sim.run(300);
        let google = &sim.destinations[0];
        assert!(google.refused(0, 119) == 0.0 && google.accepted(0, 119) > 35_000.0);
        let (rate, share) = (google.accepted(180, 300) / 120.0, google.refused_share(180, 300));
        assert!(rate >= 17.0 && share < 0.03, "seed {seed}: {rate}/s, {share} refused");
    }
}

#[test]
fn without_refusals_nothing_changes() {
    let open = [Allows { from_s: 0, per_s: 1e5, burst: 1e5 }];
    let mut sim = Sim::new(1, pace(100.0, 100.0), vec![Destination::new("google", &open, 1e4)]);
    sim.run(120);
    assert_eq!(sim.changes, 1, "the account's first mail");
    assert_eq!(sim.known.destinations.len(), 0);
}
