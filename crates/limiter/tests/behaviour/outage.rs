//! Redis goes away and comes back: prompt errors that say what to do, and the same object works again.

use std::time::{Duration, Instant};

use paceline_core::Class;
use paceline_limiter::{
    Ask, LaneAsk, Limiter, LimiterError,
    local::LocalLimiter,
    redis::{RedisClient, RedisLimiter},
};
use paceline_testkit::Redis;

use crate::sim::bucket;

fn one_head() -> Ask {
    let lane = LaneAsk {
        class: Class::Normal,
        destination: "google".into(),
        weight: 1,
        buckets: vec![0],
        costs: vec![1.into()],
        since_us: 0,
        id: "w.1".into(),
        seq: 1,
    };
    Ask { buckets: vec![bucket("a", "100/s", 100)], lanes: vec![lane], ..Ask::default() }
}

#[tokio::test]
async fn stop_and_start() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "p").unwrap());
    assert!(limiter.ask(&one_head()).await.is_ok());
    assert!(limiter.now_us().await.unwrap() > 1_700_000_000_000_000);

    redis.stop().await;
    let begun = Instant::now();
    let error = limiter.ask(&one_head()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = limiter.ask(&one_head()).await.unwrap_err();
    assert!(matches!(error, LimiterError::Unreachable { .. }), "{error}");
    assert!(!error.to_string().contains(&redis.port().to_string()), "an address in {error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "errors must be prompt");

    redis.start_again().await;
    while limiter.ask(&one_head()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(limiter.calls() >= 4);
}

#[tokio::test]
async fn a_frozen_server_times_out() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "p").unwrap());
    limiter.ask(&one_head()).await.unwrap();
    redis.freeze();
    let error = limiter.ask(&one_head()).await.unwrap_err();
    assert!(matches!(error, LimiterError::TimedOut { .. }), "{error}");
    redis.thaw();
    while limiter.ask(&one_head()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again() {
    let redis = Redis::start().await;
    let limiter = RedisLimiter::new(RedisClient::new(&redis.url(), "p").unwrap());
    limiter.ask(&one_head()).await.unwrap();
    assert_eq!(redis.command("SCRIPT FLUSH"), "OK");
    limiter.ask(&one_head()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_a_url_is_not_repeated() {
    for url in ["", "http://user:hunter2@host", "redis://user:hunter2@ho st:99999999"] {
        let error = RedisClient::new(url, "p").unwrap_err();
        assert!(matches!(&error, LimiterError::Refused { .. }), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

/// The embedded limiter starts empty and fills at its rate.
#[tokio::test]
async fn the_local_limiter_grants_in_its_own_time() {
    let limiter = LocalLimiter::new();
    let now = limiter.now_us().await.unwrap();
    let mut granted = Vec::new();
    while granted.len() < 3 {
        let reply = limiter.ask(&one_head()).await.unwrap();
        granted.extend(reply.lanes[0].dates_us.iter().copied());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(granted[0] >= now + 10_000 && granted.windows(2).all(|w| w[1] >= w[0] + 10_000), "{granted:?} from {now}");
    assert!(limiter.calls() >= 3);
}
