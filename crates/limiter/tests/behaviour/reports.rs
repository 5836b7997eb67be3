//! One suite for all places where workers report.

use std::time::Duration;

use paceline_limiter::{
    fleet::{FileReports, LocalReports, MAX_REPORT_BYTES, RedisReports, Reports},
    redis::RedisClient,
};
use paceline_testkit::Redis;

const MINUTE: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::from_millis(1);

/// What holds for one worker.
async fn alone(reports: &dyn Reports) {
    assert_eq!(reports.reports().await.unwrap(), Vec::<String>::new());
    reports.report("w1", "first", MINUTE).await.unwrap();
    reports.report("w1", "{\"second\": \"ü\\n\"}\n", MINUTE).await.unwrap();
    assert_eq!(reports.reports().await.unwrap(), ["{\"second\": \"ü\\n\"}\n"]);
    assert!(reports.report("w1", &"x".repeat(MAX_REPORT_BYTES + 1), MINUTE).await.is_err());
    assert_eq!(reports.reports().await.unwrap().len(), 1, "the one before still counts");
    reports.withdraw("w1").await.unwrap();
    assert_eq!(reports.reports().await.unwrap(), Vec::<String>::new());
    reports.withdraw("w1").await.unwrap();
    reports.report("w1", "brief", NOW).await.unwrap();
    until_empty(reports).await;
}

pub(crate) async fn together(reports: &dyn Reports) {
    alone(reports).await;
    reports.report("w2", "two", MINUTE).await.unwrap();
    reports.report("w1", "one", MINUTE).await.unwrap();
    assert_eq!(reports.reports().await.unwrap(), ["one", "two"]);
    reports.report("w1", "gone soon", NOW).await.unwrap();
    while reports.reports().await.unwrap() != ["two"] {
        tokio::time::sleep(NOW).await;
    }
    reports.withdraw("w2").await.unwrap();
    assert_eq!(reports.reports().await.unwrap(), Vec::<String>::new());
}

async fn until_empty(reports: &dyn Reports) {
    while !reports.reports().await.unwrap().is_empty() {
        tokio::time::sleep(NOW).await;
    }
}

#[tokio::test]
async fn local() {
    together(&LocalReports::new()).await;
}

#[tokio::test]
async fn file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lanes.json");
    alone(&FileReports::at(&path)).await;
    for torn in ["", "17", "17\nx", "99999999999999999999999999999999999999999999999\nx", "x\n\u{1}"] {
        std::fs::write(&path, torn).unwrap();
        assert_eq!(FileReports::at(&path).reports().await.unwrap(), Vec::<String>::new(), "{torn:?}");
    }
}

#[tokio::test]
async fn redis() {
    let redis = Redis::start().await;
    together(&RedisReports::new(RedisClient::new(&redis.url(), "fleet").unwrap())).await;
}
