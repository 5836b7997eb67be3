//! The same id again is sent once; the same id with another body is a dead letter.

use std::time::Duration;

use paceline_tests::{Fleet, Mail, Plan, Report, arrivals, publish};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_sent_once() {
    const IDS: usize = 100;
    let mut report = Report::new("dedup");
    let fleet = Fleet::start(Plan { more: "[tail]\nrate = \"1000/s\"\n", ..Plan::default() }).await;
    let control = fleet.control().await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];
    let mail = |i: usize| Mail::new(&format!("m-{i}"), "normal", &format!("u{i}@one.example"));
    // At once, so that both workers may hold a copy; then again, long after.
    publish(&*fleet.broker(), (0..IDS * 3).map(|i| mail(i % IDS))).await;
    fleet.settled(Duration::from_secs(120)).await;
    publish(&*fleet.broker(), (0..IDS).map(mail)).await;
    // By another key: the body counts, not the way it came.
    publish(&*fleet.broker(), (0..IDS).map(|i| mail(i).keyed("high.outlook.com"))).await;
    fleet.settled(Duration::from_secs(120)).await;
    let arrivals = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    report.check("ids sent", accepted.len(), IDS, accepted.len() == IDS);
    report.check("requests", arrivals.len(), IDS, arrivals.len() == IDS);
    let letters = fleet.dead_letters().await.len();
    report.check("dead letters", letters, 0, letters == 0);

    let other = |i: usize| Mail::with(&format!("m-{i}"), "normal", &format!("u{i}@one.example"), &[("text", json!("Another."))]);
    publish(&*fleet.broker(), (0..10).map(other)).await;
    fleet.settled(Duration::from_secs(120)).await;
    let letters = fleet.dead_letters().await;
    let conflicts = letters.iter().filter(|l| l["reason"] == "id_conflict").count();
    report.check("dead letters as id_conflict", conflicts, 10, conflicts == 10 && letters.len() == 10);
    let requests = fleet.sandbox.stats().requests;
    report.check("requests after", requests, IDS, requests == IDS as u64);
    workers.iter().chain([&control]).for_each(|pod| pod.assert_sound());
    report.finish();
}
