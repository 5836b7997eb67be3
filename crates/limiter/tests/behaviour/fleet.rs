//! One suite for both fleets.

use std::time::Duration;

use paceline_limiter::{
    fleet::{Fleet, LocalFleet, RedisFleet, Turns},
    local::LocalClock,
    redis::RedisClient,
};
use paceline_testkit::Redis;

const MINUTE: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::from_millis(1);

pub(crate) async fn conformance(fleet: &dyn Fleet) {
    let alive = async |worker: &str| fleet.heartbeat(worker, "a", 0, MINUTE).await.unwrap().workers;
    assert_eq!(alive("w1").await, 1);
    assert_eq!(alive("w2").await, 2);
    assert_eq!(alive("w1").await, 2);
    fleet.leave("w2").await.unwrap();
    fleet.leave("nobody").await.unwrap();
    assert_eq!(alive("w1").await, 1);
    fleet.heartbeat("brief", "a", 0, NOW).await.unwrap();
    until(async || alive("w1").await == 1).await;
    generations(fleet).await;

    assert_eq!(fleet.lease("low.google", "w1", MINUTE).await, Ok(true));
    assert_eq!(fleet.lease("low.google", "w2", MINUTE).await, Ok(false));
    assert_eq!(fleet.lease("low.google", "w1", MINUTE).await, Ok(true), "renewed");
    assert_eq!(fleet.lease("low.yahoo", "w2", MINUTE).await, Ok(true));
    fleet.release("low.google", "w2").await.unwrap();
    assert_eq!(fleet.lease("low.google", "w2", MINUTE).await, Ok(false), "not theirs to release");
    fleet.release("low.google", "w1").await.unwrap();
    assert_eq!(fleet.lease("low.google", "w2", MINUTE).await, Ok(true));

    assert_eq!(fleet.lease("low.apple", "w1", NOW).await, Ok(true));
    until(async || fleet.lease("low.apple", "w2", MINUTE).await == Ok(true)).await;
}

/// The newest configuration is the one that came to the live workers last.
async fn generations(fleet: &dyn Fleet) {
    let beat = async |worker: &str, config: &str, known_us: u64| {
        fleet.heartbeat(worker, config, known_us, MINUTE).await.unwrap().generation_us
    };
    let old = beat("w1", "a", 0).await;
    let new = beat("w2", "b", 0).await;
    assert!(old > 0 && new > old, "{old} {new}");
    assert_eq!(beat("w3", "a", 0).await, old, "a restarted pod of the old one makes it no newer");
    fleet.leave("w3").await.unwrap();
    fleet.leave("w1").await.unwrap();
    // Nobody has the old one any more: it comes back as a rollback, or with one who had it all the time.
    assert_eq!(beat("w1", "a", old).await, old, "one that was away");
    fleet.leave("w1").await.unwrap();
    let again = beat("w4", "a", 0).await;
    assert!(again > new, "{new} {again}");
    assert_eq!(beat("w2", "b", new).await, new);
    // The same worker, another configuration.
    assert!(beat("w4", "c", 0).await > again);
    assert!(beat("w4", "a", 0).await > again, "nobody had it in between");
    for worker in ["w2", "w4"] {
        fleet.leave(worker).await.unwrap();
    }
}

pub(crate) async fn lists(fleet: &dyn Fleet) {
    let names = async |used: &[&str]| {
        let used: Vec<_> = used.iter().map(|name| (*name).into()).collect();
        let mut noted = fleet.note("flows", &used).await.unwrap();
        noted.sort();
        noted
    };
    assert_eq!(names(&[]).await, []);
    let first = names(&["b", "a"]).await;
    assert_eq!(first.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a", "b"]);
    let idle = async |name: &str| names(&[]).await.into_iter().find(|(n, _)| **n == *name).map(|(_, idle)| idle);
    until(async || idle("a").await > Some(NOW * 20)).await;
    names(&["b"]).await;
    assert!(idle("b").await < idle("a").await, "used since");
    fleet.strike("flows", "b", MINUTE).await.unwrap();
    assert!(idle("b").await.is_some(), "in use");
    fleet.strike("flows", "a", NOW).await.unwrap();
    fleet.strike("flows", "nobody", NOW).await.unwrap();
    assert_eq!((idle("a").await, fleet.note("others", &[]).await), (None, Ok(vec![])));
}

/// One after another, whoever asks, and none beyond what was asked for.
async fn turns(fleet: &dyn Fleet, now_us: u64) {
    let begins = async |line: &str, from_us, takes_us, before_us| {
        let wanted = [Turns { line: line.into(), from_us, takes_us, before_us }];
        fleet.turns(&wanted).await.unwrap()[0]
    };
    let at = |s: u64| now_us + s * 1_000_000;
    assert_eq!(begins("a", at(10), 30_000_000, at(600)).await, at(10));
    assert_eq!(begins("a", at(10), 30_000_000, at(600)).await, at(40));
    assert_eq!(begins("a", at(100), 5_000_000, at(600)).await, at(100), "not before it is asked for");
    assert_eq!(begins("b", at(1), 5_000_000, at(600)).await, at(1), "another line");
    assert_eq!(begins("a", at(10), 600_000_000, at(600)).await, at(105));
    assert_eq!(begins("a", at(10), 1_000_000, at(600)).await, at(600), "nothing is left");
    assert_eq!(begins("a", at(10), 1_000_000, at(900)).await, at(600), "so nothing was taken");
    assert_eq!(begins("brief", now_us, 1, at(600)).await, now_us);
    until(async || begins("brief", now_us, 1, at(600)).await == now_us).await;
    let wanted = ["c", "d"].map(|line| Turns { line: line.into(), from_us: at(1), takes_us: 1, before_us: at(2) });
    assert_eq!(fleet.turns(&wanted).await.unwrap(), [at(1), at(1)]);
}

/// Until the server's clock has moved on; the runner's time-out is the limit.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::time::sleep(NOW).await;
    }
}

#[tokio::test]
async fn local() {
    conformance(&LocalFleet::new()).await;
    lists(&LocalFleet::new()).await;
    let clock = LocalClock::new();
    turns(&LocalFleet::new().with_clock(clock), clock.now_us()).await;
}

#[tokio::test]
async fn redis() {
    let redis = Redis::start().await;
    let client = RedisClient::new(&redis.url(), "fleet").unwrap();
    let fleet = RedisFleet::new(client.clone());
    conformance(&fleet).await;
    lists(&fleet).await;
    turns(&fleet, client.now_us().await.unwrap()).await;
}
