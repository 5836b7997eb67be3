//! One suite for both fleets.

use std::time::Duration;

use paceline_limiter::{
    fleet::{Fleet, LocalFleet, RedisFleet},
    redis::RedisClient,
};
use paceline_testkit::Redis;

const MINUTE: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::from_millis(1);

async fn conformance(fleet: &dyn Fleet) {
    assert_eq!(fleet.heartbeat("w1", MINUTE).await, Ok(1));
    assert_eq!(fleet.heartbeat("w2", MINUTE).await, Ok(2));
    assert_eq!(fleet.heartbeat("w1", MINUTE).await, Ok(2));
    fleet.leave("w2").await.unwrap();
    fleet.leave("nobody").await.unwrap();
    assert_eq!(fleet.heartbeat("w1", MINUTE).await, Ok(1));
    fleet.heartbeat("brief", NOW).await.unwrap();
    until(async || fleet.heartbeat("w1", MINUTE).await == Ok(1)).await;

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

/// Until the server's clock has moved on; the runner's time-out is the limit.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::time::sleep(NOW).await;
    }
}

#[tokio::test]
async fn local() {
    conformance(&LocalFleet::new()).await;
}

#[tokio::test]
async fn redis() {
    let redis = Redis::start().await;
    conformance(&RedisFleet::new(RedisClient::new(&redis.url(), "fleet").unwrap())).await;
}
