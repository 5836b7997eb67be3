//! The scripts say the same as the reference.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use paceline_core::Class;
use paceline_testkit::Redis;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Beat, Book, Guarded, Mode, WHOLE};
use crate::{
    Ask, BucketSpec, Kind, LaneAsk, Limiter, Spent,
    redis::{RedisClient, RedisLimiter},
    rules::{self, State},
};

const HOUR_US: u64 = 3_600_000_000;

fn client(redis: &Redis, prefix: &str) -> RedisClient {
    RedisClient::new(&redis.url(), prefix).unwrap()
}

/// Nobody beats in the time of these tests but the test.
fn idle(client: RedisClient) -> Guarded {
    let guarded = Guarded::start(client, "idle", Duration::ZERO, None);
    guarded.task.abort();
    guarded
}

#[tokio::test]
async fn the_census_of_redis_is_that_of_the_book() {
    let redis = Redis::start().await;
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let guarded = idle(client(&redis, &format!("c{seed}")));
        let mut book = Book::default();
        // Share, version, and when the two states began.
        let mut known: Vec<(u64, u64, u64, u64)> = vec![(0, 0, 0, 0); 6];
        for n in 0..60_u64 {
            let w = rng.random_range(0..known.len());
            let worker: Arc<str> = format!("w{w}").into();
            if rng.random_bool(0.1) {
                book.leave(&worker);
                guarded.inner.census(&["leave".to_owned(), worker.to_string()]).await.unwrap();
                known[w] = (0, 0, 0, 0);
                continue;
            }
            let beat = Beat {
                worker,
                // Lost at once, or for as long as the test takes.
                life_us: if rng.random_bool(0.3) { 0 } else { HOUR_US },
                away_us: if rng.random_bool(0.2) { 0 } else { HOUR_US },
                expected_us: 0,
                late_us: 0,
                since_us: if n < 3 { 1 } else { known[w].2 },
                believes: known[w].0,
                version: known[w].1,
                saw_us: rng.random_range(0..5),
                stale: rng.random_bool(0.5),
                members: vec![("w9".into(), 100_000), ("w1".into(), 50_000)],
            };
            let theirs = guarded.inner.beat(&beat).await.unwrap();
            let ours = book.beat(&Beat { since_us: if n < 3 { 1 } else { known[w].3 }, ..beat }, 1_000_000 + n);
            let told = |c: &super::Census| {
                let mut members = c.members.clone();
                members.sort();
                (c.late, c.version, c.live, c.lost, c.share, c.gone.len(), c.saw_us, c.untold, members)
            };
            assert_eq!(told(&theirs), told(&ours), "seed {seed}, beat {n}");
            known[w] = (ours.share, ours.version, theirs.since_us, ours.since_us);
        }
        let late = Beat { expected_us: 1, late_us: 1, ..beat_of("w1") };
        assert!(guarded.inner.beat(&late).await.unwrap().late);
    }
}

fn beat_of(worker: &str) -> Beat {
    Beat {
        worker: worker.into(),
        life_us: HOUR_US,
        away_us: HOUR_US,
        expected_us: 0,
        late_us: 0,
        since_us: 0,
        believes: WHOLE,
        version: 0,
        saw_us: 0,
        stale: false,
        members: vec![],
    }
}

#[tokio::test]
async fn charges_and_levels_are_those_of_the_rules() {
    let redis = Redis::start().await;
    let rate = Kind::Rate { interval_us: 10_000, burst: 50, reserve: 10, shared: false };
    let window = Kind::Window { length_us: 60_000_000, limit: 400, reserve: 20 };
    let spec = |key: &str, kind| BucketSpec { key: key.into(), kind, narrow: false };
    let buckets = vec![spec("account:a", rate), spec("account:a:quota:min", window)];
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (limiter, mut state) = (RedisLimiter::new(client(&redis, &format!("r{seed}"))), State::new());
        let mut now = 1_700_000_000_000_000;
        for n in 0..60_u64 {
            now += rng.random_range(1_000..3_000_000_u64);
            if rng.random_bool(0.3) {
                // Of the window by its slots, some of them too old to count, some not yet begun; or from now.
                let slot = now / (60_000_000 / 200);
                let by_slot = rng.random_bool(0.5).then(|| {
                    let slots: BTreeMap<u64, u64> =
                        (0..6).map(|_| (slot + 2 - rng.random_range(0..220), rng.random_range(0..20))).collect();
                    Spent::Slots(slots.into_iter().collect())
                });
                let window = by_slot.unwrap_or(Spent::Now(rng.random_range(0..70)));
                let rate = Spent::Now(rng.random_range(0..70));
                let spent: Vec<_> = buckets.iter().cloned().zip([rate, window]).collect();
                limiter.charge_at(&spent, 0, Some(now)).await.unwrap();
                rules::charge(&mut state, &spent, 0, now).unwrap();
                continue;
            }
            let lane = LaneAsk {
                class: Class::ALL[rng.random_range(0..4)],
                destination: "x".into(),
                weight: 1,
                buckets: vec![0, 1],
                costs: vec![1.into(); rng.random_range(1..40)],
                since_us: 0,
                id: "w.1".into(),
                seq: n,
            };
            let ask = Ask { buckets: buckets.clone(), lanes: vec![lane], ..Ask::default() };
            let theirs = limiter.ask_at(&ask, now).await.unwrap();
            assert_eq!(theirs, rules::decide(&mut state, &ask, now).unwrap(), "seed {seed}, call {n}");
        }
    }
}

#[tokio::test]
async fn a_worker_alone_sees_what_windows_have_granted() {
    let redis = Redis::start().await;
    let guarded = idle(client(&redis, "p"));
    let window = Kind::Window { length_us: 60_000_000, limit: 400, reserve: 20 };
    let quota = BucketSpec { key: "account:a:quota:min".into(), kind: window, narrow: false };
    guarded.inner.limiter.charge(&[(quota.clone(), Spent::Now(7))], 0).await.unwrap();
    guarded.inner.limiter.charge(&[(quota.clone(), Spent::Now(5))], 0).await.unwrap();
    let keys = [
        guarded.inner.client.key("limit", &quota.key),
        guarded.inner.client.key("limit", "nothing"),
        guarded.inner.client.key("members", ""),
    ];
    let length: &[u8] = b"60000000";
    let bytes = guarded.inner.client.run(&guarded.inner.levels, &keys, &[length, length]).await.unwrap();
    let (now_us, since_us, found, limits): (u64, u64, Vec<Vec<u64>>, Vec<u64>) = crate::wire::decode(&bytes).unwrap();
    assert!(now_us > 0 && since_us == 0 && found[1].is_empty() && limits == [0, 0]);
    assert_eq!(found[0].chunks(2).map(|slot| slot[1]).sum::<u64>(), 12);
}

/// The whole of it over a real Redis: seen, lost, alone, back.
#[tokio::test]
async fn a_worker_goes_through_all_of_it() {
    let redis = Redis::start().await;
    let guarded = Guarded::start(client(&redis, "p"), "w1", Duration::from_secs(60), None);
    let mut mode = guarded.mode();
    mode.wait_for(|m| *m == Mode::Shared).await.unwrap();
    let kind = Kind::Rate { interval_us: 1_000, burst: 100, reserve: 0, shared: false };
    let ask = |n: u64| Ask {
        buckets: vec![BucketSpec { key: "account:a".into(), kind, narrow: false }],
        lanes: vec![LaneAsk {
            class: Class::Normal,
            destination: "x".into(),
            weight: 1,
            buckets: vec![0],
            costs: vec![1.into()],
            since_us: 0,
            id: "w1.1".into(),
            seq: n,
        }],
        ..Ask::default()
    };
    let mut n = 0;
    let mut one = async || loop {
        n += 1;
        let reply = guarded.ask(&ask(n)).await;
        if let Ok(reply) = reply
            && let Some(date) = reply.lanes[0].dates_us.first()
        {
            return *date;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let shared = one().await;
    redis.kill9().await;
    mode.wait_for(|m| *m == Mode::Quiet).await.unwrap();
    mode.wait_for(|m| *m == Mode::Alone).await.unwrap();
    let alone = one().await;
    assert!(alone > shared + super::VIEW_US);
    redis.start_again_empty().await;
    mode.wait_for(|m| *m == Mode::Shared).await.unwrap();
    assert!(one().await > alone);
}
