//! One arithmetic: Redis and the reference answer the same trace with the same integers.
//!
//! `PACELINE_TRACES=1000` replays more traces than the default.

use std::sync::Arc;

use paceline_core::Class;
use paceline_limiter::{
    Ask, BucketSpec, Change, Cost, FOREVER_US, Held, Kind, LaneAsk, LimiterError, Reply, Seed, Why,
    redis::{RedisClient, RedisLimiter},
    rules::{State, decide, tell},
};
use paceline_testkit::Redis;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::sim::START_US;

const RATES: [&str; 9] = ["account:a", "account:b", "a@google", "a@b.c", "b@google", "fleet:google", "x", "{x}:*", "💌\n"];
const WINDOWS: [&str; 4] = ["account:a/h", "account:b/h", "a@google/d", "tenant:x/min"];
const SLOTS: [&str; 3] = ["account:a slots", "account:b slots", "a@google slots"];
const GENERATIONS: [u64; 3] = [START_US - 3_000_000, START_US - 2_000_000, START_US - 1_000_000];
const NAMES: [&str; 6] = ["google", "microsoft", "tail", "1", "", "destination with spaces"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_traces_agree() {
    let traces = std::env::var("PACELINE_TRACES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let redis = Redis::start().await;
    let mut seen = Seen::default();
    for seed in 0..traces {
        let client = RedisClient::new(&redis.url(), &format!("trace{seed}")).unwrap();
        Trace::new(seed).replay(&redis, &RedisLimiter::new(client), &mut seen).await;
    }
    // The traces are worth nothing where they do not go everywhere.
    for why in [Why::Date, Why::Turn, Why::Ticket, Why::Gap, Why::Quota, Why::Concurrency, Why::Closed] {
        let times = seen.denied.get(&why).copied().unwrap_or(0);
        assert!(times > traces, "{why:?} {times} times in {traces} traces");
    }
    assert!(seen.lost > traces && seen.told > traces / 4 && seen.granted > traces * 50, "{seen:?}");
    assert!(seen.older > traces, "{seen:?}");
}

#[derive(Debug, Default)]
struct Seen {
    denied: std::collections::HashMap<Why, u64>,
    granted: u64,
    lost: u64,
    told: u64,
    /// Asks of workers with an older configuration.
    older: u64,
}

/// A random history of one fleet's limiter.
struct Trace {
    seed: u64,
    rng: StdRng,
    specs: Vec<BucketSpec>,
    /// Other configurations of the same limits, the oldest first; `specs` is the last.
    older: Vec<Vec<BucketSpec>>,
    /// Calls under way by worker and bucket of slots, as the worker counts them.
    held: std::collections::HashMap<(usize, usize), u32>,
    now: u64,
    /// How fast time goes: some traces see windows end.
    pace: u64,
}

impl Trace {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let specs = (0..RATES.len() + WINDOWS.len() + SLOTS.len()).map(|i| random_spec(&mut rng, i)).collect();
        let older = (0..2)
            .map(|_| (0..RATES.len() + WINDOWS.len() + SLOTS.len()).map(|i| random_spec(&mut rng, i)).collect())
            .map(|old: Vec<BucketSpec>| {
                old.iter().zip(&specs).map(|(a, b): (&BucketSpec, &BucketSpec)| same_sort(a, b)).collect()
            })
            .collect();
        let pace = [1, 1, 20, 400][rng.random_range(0..4)];
        Trace { seed, rng, specs, older, held: Default::default(), now: START_US, pace }
    }

    async fn replay(mut self, redis: &Redis, shared: &RedisLimiter, seen: &mut Seen) {
        let mut state = State::new();
        let seed = self.seed;
        // A fleet that begins, or one that has seen an older state.
        let first = Ask { epoch_us: [0, START_US - 5][self.rng.random_range(0..2)], ..Ask::default() };
        let here = decide(&mut state, &first, self.now);
        assert_eq!(shared.ask_at(&first, self.now).await, here);
        let mut epoch = here.unwrap().epoch_us;
        if seed.is_multiple_of(3) {
            // Somebody knows an older state than this one.
            epoch -= 1_000;
        }
        self.now += [0, 1_000, 60_000_000][self.rng.random_range(0..3)];
        for step in 0..self.rng.random_range(10..60) {
            let rng = &mut self.rng;
            let hop = rng.random_range(0..6) == 0 && self.pace > 1;
            self.now = match rng.random_range(0..40) {
                _ if hop => edge(rng, &self.specs, self.now),
                // Clocks step back, and workers sleep.
                0 => self.now - rng.random_range(0..50_000),
                1 => self.now + rng.random_range(0..30_000_000) * self.pace,
                _ => self.now + rng.random_range(0..40_000) * self.pace,
            };
            if rng.random_range(0..12) == 0 {
                let i = rng.random_range(0..self.specs.len());
                self.specs[i] = random_spec(rng, i);
            }
            if rng.random_range(0..15) == 0 {
                let (past, complete) = self.past();
                let there = shared.seed_at(&past, complete, self.now).await;
                assert_eq!(there, tell(&mut state, &past, complete, self.now), "seed {seed}, step {step}: {past:#?}");
                seen.told += 1;
            }
            if self.rng.random_range(0..15) == 0 {
                let newest = [0, 1, GENERATIONS[0], GENERATIONS[1], GENERATIONS[2]][self.rng.random_range(0..5)];
                state.set_newest_generation(newest);
                assert_eq!(redis.command(&format!("SET {{trace{seed}}}:generation {newest}")), "OK");
            }
            let worker = self.rng.random_range(0..3);
            let mut ask = self.ask(worker);
            self.configure(&mut ask, seen);
            ask.epoch_us = [0, epoch][self.rng.random_range(0..2)];
            let there = shared.ask_at(&ask, self.now).await;
            let here = decide(&mut state, &ask, self.now);
            assert_eq!(there, here, "seed {seed}, step {step}: {ask:#?}");
            self.note(worker, &ask, &here.unwrap(), seen);
        }
    }

    /// Keeps what was granted, sometimes not: answers get lost.
    fn note(&mut self, worker: usize, ask: &Ask, reply: &Reply, seen: &mut Seen) {
        seen.lost += u64::from(reply.lost);
        for (lane, answer) in ask.lanes.iter().zip(&reply.lanes) {
            seen.granted += answer.dates_us.len() as u64;
            if let Some(denied) = answer.denied {
                *seen.denied.entry(denied.why).or_default() += 1;
            }
            for &b in &lane.buckets {
                let at = self.specs.iter().position(|s| s.key == ask.buckets[b].key).unwrap();
                if self.rng.random_range(0..8) > 0 {
                    *self.held.entry((worker, at)).or_default() += answer.dates_us.len() as u32;
                }
            }
        }
        for calls in self.held.values_mut() {
            *calls -= self.rng.random_range(0..=*calls);
        }
    }

    fn ask(&mut self, worker: usize) -> Ask {
        let rng = &mut self.rng;
        let mut ask = Ask { worker: format!("w{worker}").into(), ..Ask::default() };
        let mut position = vec![None; self.specs.len()];
        let limited = rng.random_range(0..3) > 0;
        for lane in 0..rng.random_range(1..14) {
            let mut buckets = Vec::new();
            let account = rng.random_range(0..2);
            let mut wanted = vec![account];
            wanted.extend((0..rng.random_range(0..4)).map(|_| rng.random_range(0..RATES.len())));
            if limited {
                wanted.extend((0..rng.random_range(0..4)).map(|_| rng.random_range(RATES.len()..self.specs.len())));
            }
            for b in wanted {
                let at = *position[b].get_or_insert_with(|| {
                    ask.buckets.push(self.specs[b].clone());
                    let bucket = ask.buckets.len() - 1;
                    if let (Kind::Slots { .. }, Some(&calls)) = (self.specs[b].kind, self.held.get(&(worker, b))) {
                        ask.held.push(Held { bucket, calls });
                    }
                    bucket
                });
                if !buckets.contains(&at) {
                    buckets.push(at);
                }
            }
            let kind = rng.random_range(0..4);
            let some = |rng: &mut StdRng| [1, 1, 2, 7, 50][rng.random_range(0..5)];
            let cost = |rng: &mut StdRng, buckets: usize| match kind {
                0 => Cost::All(some(rng)),
                1 if rng.random() => Cost::Each((0..buckets).map(|_| some(rng)).collect()),
                _ => Cost::All(1),
            };
            ask.lanes.push(LaneAsk {
                class: Class::ALL[rng.random_range(0..4)],
                destination: NAMES[rng.random_range(0..NAMES.len())].into(),
                weight: [1, 1, 2, 7, 1_000][rng.random_range(0..5)],
                costs: (0..rng.random_range(1..20)).map(|_| cost(rng, buckets.len())).collect(),
                buckets,
                since_us: if rng.random() { self.now - rng.random_range(0..300_000) } else { 0 },
                id: format!("w{worker}.{lane}").into(),
                seq: rng.random_range(1..4),
            });
        }
        ask
    }

    /// Whose configuration it asks with, and what it has heard of since.
    fn configure(&mut self, ask: &mut Ask, seen: &mut Seen) {
        let rng = &mut self.rng;
        let of = rng.random_range(0..4);
        if of < GENERATIONS.len() {
            ask.generation_us = GENERATIONS[of];
        }
        if let Some(older) = self.older.get(of) {
            seen.older += 1;
            for bucket in &mut ask.buckets {
                if let Some(at) = self.specs.iter().position(|s| s.key == bucket.key) {
                    *bucket = older[at].clone();
                }
            }
        }
        for bucket in 0..ask.buckets.len() {
            if rng.random_range(0..12) > 0 {
                continue;
            }
            let since_us = [0, 1, 2, self.now - 1_000, self.now][rng.random_range(0..5)];
            let until = [0, 1, self.now + 50_000, self.now + 3_000_000, self.now + 400_000_000, FOREVER_US];
            let closed_until_us = if since_us == 0 { 0 } else { until[rng.random_range(0..until.len())] };
            ask.changes.push(Change { bucket, since_us, closed_until_us });
        }
    }

    fn past(&mut self) -> (Vec<Seed>, bool) {
        let rng = &mut self.rng;
        let mut past = Vec::new();
        for spec in self.specs.iter().filter(|s| matches!(s.kind, Kind::Window { .. })) {
            if rng.random() {
                let length = length_of(spec);
                let grants = (0..rng.random_range(0..30)).map(|_| {
                    let date = self.now + 50_000 - rng.random_range(0..length + length / 10);
                    (date, rng.random_range(0..20))
                });
                past.push(Seed { window: spec.clone(), spent: grants.collect() });
            }
        }
        (past, rng.random_range(0..4) == 0)
    }
}

/// `spec` with what makes it the same bucket as `like`: a window's length.
fn same_sort(spec: &BucketSpec, like: &BucketSpec) -> BucketSpec {
    let kind = match (spec.kind, like.kind) {
        (Kind::Window { limit, reserve, .. }, Kind::Window { length_us, .. }) => Kind::Window { length_us, limit, reserve },
        (kind, _) => kind,
    };
    BucketSpec { kind, ..spec.clone() }
}

/// A moment at which a window's slot or a lease ends, give or take a microsecond.
fn edge(rng: &mut StdRng, specs: &[BucketSpec], now: u64) -> u64 {
    let limited: Vec<_> = specs[RATES.len()..].iter().map(|s| s.kind).collect();
    let at = match limited[rng.random_range(0..limited.len())] {
        Kind::Window { length_us, .. } => {
            let width = length_us.div_ceil(200);
            (now / width + [1, 2, 199, 200, 201, 202][rng.random_range(0..6)]) * width
        }
        Kind::Slots { life_us, .. } => now + [life_us / 2, life_us][rng.random_range(0..2)],
        Kind::Rate { .. } => now,
    };
    at - 1 + rng.random_range(0..3)
}

fn length_of(spec: &BucketSpec) -> u64 {
    match spec.kind {
        Kind::Window { length_us, .. } => length_us,
        _ => 0,
    }
}

fn random_spec(rng: &mut StdRng, i: usize) -> BucketSpec {
    if let Some(i) = i.checked_sub(RATES.len() + WINDOWS.len()) {
        let (limit, life_us) = (rng.random_range(1..12), [50_000, 1_000_000, 35_000_000][rng.random_range(0..3)]);
        return of(SLOTS[i], Kind::Slots { limit, life_us });
    }
    if let Some(i) = i.checked_sub(RATES.len()) {
        let length_us = [1_000_000, 1_000_003, 60_000_000, 3_600_000_000, 86_400_000_000][rng.random_range(0..5)];
        let limit = [1, 3, 20, 300, 10_000][rng.random_range(0..5)];
        let reserve = [0, limit / 20, limit / 3, limit - 1][rng.random_range(0..4)];
        return of(WINDOWS[i], Kind::Window { length_us, limit, reserve });
    }
    let interval_us = match rng.random_range(0..4) {
        0 => rng.random_range(1..100),
        1 => rng.random_range(100..20_000),
        2 => rng.random_range(20_000..15_000_000),
        _ => 1_u64 << rng.random_range(0..36),
    };
    let burst = [1, 2, 5, 20, 100, 1_000][rng.random_range(0..6)];
    let reserve = rng.random_range(0..burst.min(30));
    rate(RATES[i], interval_us, burst, reserve, rng.random_range(0..4) == 0)
}

fn of(key: &str, kind: Kind) -> BucketSpec {
    BucketSpec { key: key.into(), kind, narrow: false }
}

fn rate(key: &str, interval_us: u64, burst: u32, reserve: u32, shared: bool) -> BucketSpec {
    of(key, Kind::Rate { interval_us, burst, reserve, shared })
}

/// What a bucket holds after `age` without state: nothing at the beginning, never more than its burst.
#[test]
fn nothing_starts_full() {
    for (age_s, granted) in [(0, 0), (1, 10), (3, 30), (100, 50)] {
        let mut state = State::new();
        decide(&mut state, &Ask::default(), START_US).unwrap();
        let reply = decide(&mut state, &one_lane(100), START_US + age_s * 1_000_000).unwrap();
        assert_eq!(at_once(&reply), granted, "after {age_s} s");
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_does_not_start_full() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "empty").unwrap());
    limiter.ask_at(&Ask::default(), START_US).await.unwrap();
    let now = START_US + 100_000_000;
    assert_eq!(at_once(&limiter.ask_at(&one_lane(100), now).await.unwrap()), 50);
    assert_eq!(redis.command("FLUSHALL"), "OK");
    assert_eq!(at_once(&limiter.ask_at(&one_lane(100), now + 1_000).await.unwrap()), 0);
    assert_eq!(at_once(&limiter.ask_at(&one_lane(100), now + 2_001_000).await.unwrap()), 19, "one was dated ahead");
}

/// Windows are closed then, until somebody tells them what they had granted.
#[tokio::test]
async fn a_redis_that_comes_back_empty_is_told_the_past() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "lost").unwrap());
    let day = of("account:a/d", Kind::Window { length_us: 86_400_000_000, limit: 100, reserve: 0 });
    let known = limiter.ask_at(&Ask::default(), START_US).await.unwrap().epoch_us;
    let ask = |epoch_us: u64| {
        let mut ask = Ask { epoch_us, ..one_lane(30) };
        ask.buckets.push(day.clone());
        ask.lanes[0].buckets.push(1);
        ask
    };
    let now = START_US + 100_000_000;
    let reply = limiter.ask_at(&ask(known), now).await.unwrap();
    assert_eq!((at_once(&reply), reply.lost), (30, false));

    assert_eq!(redis.command("FLUSHALL"), "OK");
    let now = now + 1_000_000;
    limiter.ask_at(&Ask { epoch_us: known, ..Ask::default() }, now).await.unwrap();
    let now = now + 100_000_000;
    let reply = limiter.ask_at(&ask(0), now).await.unwrap();
    assert_eq!((at_once(&reply), reply.lost), (0, true), "whoever asks, and whatever the buckets hold");
    assert_eq!(reply.lanes[0].denied.unwrap().why, Why::Quota);

    limiter
        .seed_at(&[Seed { window: day.clone(), spent: vec![(START_US + 100_000_000, 30), (now, 60)] }], true, now)
        .await
        .unwrap();
    let reply = limiter.ask_at(&ask(reply.epoch_us), now).await.unwrap();
    assert_eq!((at_once(&reply), reply.lost), (10, false));
}

#[tokio::test]
async fn a_value_that_is_not_ours_reads_as_an_empty_bucket() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "foreign").unwrap());
    limiter.ask_at(&Ask::default(), START_US).await.unwrap();
    for (step, poison) in ["SET {foreign}:limit:account:a x", "LPUSH {foreign}:limit:account:a x"].iter().enumerate() {
        assert!(!redis.command("DEL {foreign}:limit:account:a").starts_with('-'));
        assert!(!redis.command(poison).starts_with('-'));
        let reply = limiter.ask_at(&one_lane(1), START_US + 100_000_000 * (step as u64 + 1)).await.unwrap();
        // MGET shows a list as missing, and then the epoch speaks.
        assert_eq!(at_once(&reply), step, "{poison}");
    }
}

fn at_once(reply: &Reply) -> usize {
    reply.lanes[0].dates_us.iter().filter(|d| **d == reply.now_us).count()
}

fn one_lane(heads: usize) -> Ask {
    // 10/s, burst 50: the reserve is 0 so that every token shows.
    let bucket = rate("account:a", 100_000, 50, 0, false);
    let lane = LaneAsk {
        class: Class::Critical,
        destination: "google".into(),
        weight: 1,
        buckets: vec![0],
        costs: vec![Cost::All(1); heads],
        since_us: 0,
        id: "w.1".into(),
        seq: 1,
    };
    Ask { buckets: vec![bucket], lanes: vec![lane], ..Ask::default() }
}

/// Half the rate, half the tokens an hour from now; what was there stays there.
#[test]
fn a_change_of_rate_keeps_the_level() {
    let mut state = State::new();
    decide(&mut state, &Ask::default(), START_US).unwrap();
    let now = START_US + 100_000_000;
    let spend = |state: &mut State, interval_us: u64, heads: usize, now: u64| {
        let mut ask = one_lane(heads);
        ask.buckets[0] = rate("account:a", interval_us, 50, 0, false);
        at_once(&decide(state, &ask, now).unwrap())
    };
    assert_eq!(spend(&mut state, 100_000, 30, now), 30);
    assert_eq!(spend(&mut state, 1_000_000, 5, now), 5);
    assert_eq!(spend(&mut state, 10_000, 100, now), 15, "20 were left, 5 went at the slow rate");
}

#[test]
fn a_senseless_ask_is_refused_before_anything_is_touched() {
    let good = one_lane(2);
    let broken = |f: &dyn Fn(&mut Ask)| {
        let mut ask = good.clone();
        f(&mut ask);
        let mut state = State::new();
        assert!(matches!(decide(&mut state, &ask, START_US), Err(LimiterError::Refused { .. })), "{ask:?}");
        assert!(state.is_empty());
    };
    broken(&|a| a.lanes[0].costs[1] = Cost::All(0));
    broken(&|a| a.lanes[0].costs[1] = Cost::Each([].into()));
    broken(&|a| a.lanes[0].costs[1] = Cost::Each([0].into()));
    broken(&|a| a.lanes[0].costs[1] = Cost::Each([1, 1].into()));
    broken(&|a| a.lanes[0].costs.clear());
    broken(&|a| a.lanes[0].buckets.clear());
    broken(&|a| a.lanes[0].buckets = vec![1]);
    broken(&|a| a.lanes[0].buckets = vec![0, 0]);
    broken(&|a| a.buckets[0] = rate("a", 10, 0, 0, false));
    broken(&|a| a.buckets[0] = rate("a", 10, 50, 50, false));
    broken(&|a| a.buckets[0] = rate("a", u64::MAX, 1, 0, false));
    let window = |length_us, limit, reserve| of("q", Kind::Window { length_us, limit, reserve });
    for bad in [window(999_999, 5, 0), window(2_000_000, 0, 0), window(2_000_000, 5, 5), window(u64::MAX, 5, 0)] {
        broken(&|a| a.buckets.push(bad.clone()));
    }
    broken(&|a| a.buckets = vec![window(2_000_000, 5, 0)]);
    let slots = of("s", Kind::Slots { limit: 5, life_us: 1_000 });
    broken(&|a| a.buckets.push(slots.clone()));
    broken(&|a| a.held.push(Held { bucket: 0, calls: 1 }));
    broken(&|a| a.held.push(Held { bucket: 7, calls: 1 }));
    broken(&|a| a.lanes[0].costs = vec![Cost::All(1); 10_001]);
    broken(&|a| a.buckets = vec![a.buckets[0].clone(); 4_001]);
}

/// The largest ask there may be fits into one Lua call, and hostile names are names.
#[tokio::test]
async fn thousands_of_buckets_in_one_call() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "many}{").unwrap());
    limiter.ask_at(&Ask::default(), START_US).await.unwrap();
    let mut ask = one_lane(1);
    let lane = ask.lanes[0].clone();
    for i in 1..4_000 {
        let key: Arc<str> = format!("a@tail-{i}\0\r\n*").into();
        ask.buckets.push(BucketSpec { key, ..ask.buckets[0].clone() });
        ask.lanes.push(LaneAsk { buckets: vec![0, i], destination: "tail".into(), ..lane.clone() });
    }
    ask.buckets[0] = rate("account:a", 100_000, 5_000, 0, false);
    let reply = limiter.ask_at(&ask, START_US + 1_000_000_000).await.unwrap();
    assert_eq!(reply.lanes.iter().filter(|l| l.dates_us.len() == 1).count(), 4_000);
}
