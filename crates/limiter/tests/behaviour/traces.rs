//! One arithmetic: Redis and the reference answer the same trace with the same integers.
//!
//! `PACELINE_TRACES=1000` replays more traces than the default.

use std::sync::Arc;

use paceline_core::Class;
use paceline_limiter::{
    Ask, BucketSpec, LaneAsk, LimiterError, Reply,
    redis::{RedisClient, RedisLimiter},
    rules::{State, decide},
};
use paceline_testkit::Redis;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::sim::START_US;

const KEYS: [&str; 9] = ["account:a", "account:b", "a@google", "a@b.c", "b@google", "fleet:google", "x", "{x}:*", "💌\n"];
const NAMES: [&str; 6] = ["google", "microsoft", "tail", "1", "", "destination with spaces"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_traces_agree() {
    let traces = std::env::var("PACELINE_TRACES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let redis = Redis::start().await;
    for seed in 0..traces {
        let client = RedisClient::new(&redis.url(), &format!("trace{seed}")).unwrap();
        replay(seed, &RedisLimiter::new(client)).await;
    }
}

async fn replay(seed: u64, shared: &RedisLimiter) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut state = State::new();
    let mut now = START_US;
    let mut specs: Vec<BucketSpec> = KEYS.iter().map(|k| random_spec(&mut rng, k)).collect();
    let since = Ask::default();
    assert_eq!(shared.ask_at(&since, now).await, decide(&mut state, &since, now));
    now += [0, 1_000, 60_000_000][rng.random_range(0..3)];
    for step in 0..rng.random_range(10..60) {
        now = match rng.random_range(0..40) {
            // Clocks step back, and workers sleep.
            0 => now - rng.random_range(0..50_000),
            1 => now + rng.random_range(0..30_000_000),
            _ => now + rng.random_range(0..40_000),
        };
        if rng.random_range(0..12) == 0 {
            let i = rng.random_range(0..specs.len());
            specs[i] = random_spec(&mut rng, KEYS[i]);
        }
        let ask = random_ask(&mut rng, &specs, now);
        let there = shared.ask_at(&ask, now).await;
        let here = decide(&mut state, &ask, now);
        assert_eq!(there, here, "seed {seed}, step {step}: {ask:#?}");
    }
}

fn random_spec(rng: &mut StdRng, key: &str) -> BucketSpec {
    let interval_us = match rng.random_range(0..4) {
        0 => rng.random_range(1..100),
        1 => rng.random_range(100..20_000),
        2 => rng.random_range(20_000..15_000_000),
        _ => 1_u64 << rng.random_range(0..36),
    };
    let burst = [1, 2, 5, 20, 100, 1_000][rng.random_range(0..6)];
    let reserve = rng.random_range(0..burst.min(30));
    BucketSpec { key: key.into(), interval_us, burst, reserve, shared: rng.random_range(0..4) == 0 }
}

fn random_ask(rng: &mut StdRng, specs: &[BucketSpec], now: u64) -> Ask {
    let mut ask = Ask::default();
    let mut position = vec![None; specs.len()];
    for lane in 0..rng.random_range(1..14) {
        let mut buckets = Vec::new();
        let account = rng.random_range(0..2);
        let mut wanted = vec![account];
        wanted.extend((0..rng.random_range(0..4)).map(|_| rng.random_range(0..specs.len())));
        for b in wanted {
            let at = *position[b].get_or_insert_with(|| {
                ask.buckets.push(specs[b].clone());
                ask.buckets.len() - 1
            });
            if !buckets.contains(&at) {
                buckets.push(at);
            }
        }
        let big = rng.random_range(0..3) == 0;
        let cost = |rng: &mut StdRng| if big { [1, 1, 2, 7, 50][rng.random_range(0..5)] } else { 1 };
        ask.lanes.push(LaneAsk {
            class: Class::ALL[rng.random_range(0..4)],
            destination: NAMES[rng.random_range(0..NAMES.len())].into(),
            buckets,
            costs: (0..rng.random_range(1..20)).map(|_| cost(rng)).collect(),
            since_us: if rng.random() { now - rng.random_range(0..300_000) } else { 0 },
            id: format!("w{}.{lane}", rng.random_range(0..3)).into(),
            seq: rng.random_range(1..4),
        });
    }
    ask
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
    let bucket = BucketSpec { key: "account:a".into(), interval_us: 100_000, burst: 50, reserve: 0, shared: false };
    let lane = LaneAsk {
        class: Class::Critical,
        destination: "google".into(),
        buckets: vec![0],
        costs: vec![1; heads],
        since_us: 0,
        id: "w.1".into(),
        seq: 1,
    };
    Ask { buckets: vec![bucket], lanes: vec![lane] }
}

/// Half the rate, half the tokens an hour from now; what was there stays there.
#[test]
fn a_change_of_rate_keeps_the_level() {
    let mut state = State::new();
    decide(&mut state, &Ask::default(), START_US).unwrap();
    let now = START_US + 100_000_000;
    let spend = |state: &mut State, interval_us: u64, heads: usize, now: u64| {
        let mut ask = one_lane(heads);
        ask.buckets[0].interval_us = interval_us;
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
    broken(&|a| a.lanes[0].costs[1] = 0);
    broken(&|a| a.lanes[0].costs.clear());
    broken(&|a| a.lanes[0].buckets.clear());
    broken(&|a| a.lanes[0].buckets = vec![1]);
    broken(&|a| a.lanes[0].buckets = vec![0, 0]);
    broken(&|a| a.buckets[0].burst = 0);
    broken(&|a| a.buckets[0].reserve = 50);
    broken(&|a| a.buckets[0].interval_us = u64::MAX);
    broken(&|a| a.lanes[0].costs = vec![1; 10_001]);
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
    ask.buckets[0].burst = 5_000;
    let reply = limiter.ask_at(&ask, START_US + 1_000_000_000).await.unwrap();
    assert_eq!(reply.lanes.iter().filter(|l| l.dates_us.len() == 1).count(), 4_000);
}
