//! `not_before` and `expires_at`: mail is neither sent too early nor at all once it is too late.

use std::time::{Duration, SystemTime};

use paceline_core::Timestamp;
use paceline_tests::{Fleet, Mail, Plan, Report, publish};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_waits_for_its_time_and_dies_past_it() {
    let mut report = Report::new("times");
    let fleet = Fleet::start(Plan {
        // One of these a second: the last expire while they wait for the limit.
        more: "[tail]\nrate = \"1000/s\"\n[[destination]]\nname = \"google\"\nrate = \"1/s\"\nburst = 1\n\
               [[rule]]\nstream = \"campaign-*\"\nspread = \"12s\"\n",
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let worker = fleet.worker("w").await;
    let now = Timestamp::from(SystemTime::now());
    let after = |ms: u64| now + Duration::from_millis(ms);
    let mut mails = Vec::new();
    let mut due = Vec::new();
    for (i, ms) in [700, 1500, 2500, 4000, 5200, 7300].into_iter().enumerate() {
        due.push(after(ms));
        let fields = [("not_before", json!(after(ms)))];
        mails.push(Mail::with(&format!("later-{i}"), "normal", &format!("u{i}@one.example"), &fields));
    }
    let gone = now - Duration::from_secs(1);
    for i in 0..10 {
        mails.push(Mail::with(&format!("gone-{i}"), "high", &format!("u{i}@one.example"), &[("expires_at", json!(gone))]));
    }
    for i in 0..20 {
        mails.push(Mail::with(&format!("soon-{i}"), "normal", &format!("u{i}@gmail.com"), &[("expires_at", json!(after(6000)))]));
    }
    // Would be due when it is dead already.
    mails.push(Mail::with(
        "never-0",
        "normal",
        "u@one.example",
        &[("not_before", json!(after(6000))), ("expires_at", json!(after(3000)))],
    ));
    for i in 0..60 {
        mails.push(Mail::with(&format!("spread-{i}"), "low", &format!("u{i}@two.example"), &[("stream", json!("campaign-9"))]));
    }
    publish(&*fleet.broker(), mails).await;
    fleet.settled(Duration::from_secs(120)).await;

    let arrivals = fleet.arrivals().await;
    let letters = fleet.dead_letters().await;
    let at = |id: &str| arrivals.iter().find(|a| a.id() == id).map(|a| a.at_us as i64);
    for (i, due) in due.iter().enumerate() {
        let late_ms = at(&format!("later-{i}")).map(|at| (at - due.as_micros()) / 1000);
        let holds = late_ms.is_some_and(|ms| ms >= 0);
        report.check(&format!("later-{i}: after its time, ms"), format!("{late_ms:?}"), "≥ 0", holds);
        let wait_ms = (due.as_micros() - now.as_micros()) / 1000;
        let most = (wait_ms / 10).max(1000) + 100;
        report.timing(
            &format!("later-{i}: late, ms"),
            format!("{late_ms:?}"),
            format!("≤ {most}"),
            late_ms.is_some_and(|ms| ms <= most),
        );
    }
    let expired = |prefix: &str| {
        let is = |l: &&serde_json::Value| {
            l["reason"] == "expired" && l["message_id"].as_str().is_some_and(|id| id.starts_with(prefix))
        };
        letters.iter().filter(is).count()
    };
    let arrived = |prefix: &str| arrivals.iter().filter(|a| a.id().starts_with(prefix)).count();
    report.check("expired before they came: sent", arrived("gone"), 0, arrived("gone") == 0);
    report.check("expired before they came: dead-lettered", expired("gone"), 10, expired("gone") == 10);
    let (sent, died) = (arrived("soon"), expired("soon"));
    report.check(
        "expiring while they wait: sent or dead-lettered",
        format!("{sent} + {died}"),
        20,
        sent + died == 20 && died > 0,
    );
    let last = arrivals.iter().filter(|a| a.id().starts_with("soon")).map(|a| a.at_us as i64).max().unwrap_or(0);
    // The date is looked at before the call is made; the sandbox writes the time at which it had read it.
    let late_ms = (last - after(6000).as_micros()) / 1000;
    report.timing("expiring while they wait: last one sent, ms after its date", late_ms, "≤ 50", late_ms <= 50);
    let died_at = "select max(extract(epoch from died_at))::float8 from dead_letters where message_id like 'soon-%'";
    let died_at: f64 = fleet.postgres.sql(&fleet.postgres.url(), died_at).await.trim().parse().unwrap_or(0.0);
    let late_s = died_at - after(6000).as_micros() as f64 / 1e6;
    report.timing("expiring while they wait: last dead letter, s after its date", format!("{late_s:.1}"), "≤ 2", late_s <= 2.0);
    // Which of them come early is in their ids: about half before half of the time, and none much later than all of it.
    let spread: Vec<i64> = arrivals.iter().filter(|a| a.id().starts_with("spread")).map(|a| a.at_us as i64).collect();
    report.check("spread: arrived", spread.len(), 60, spread.len() == 60);
    let late = spread.iter().filter(|at| **at > after(6000).as_micros()).count();
    report.check("spread: in the second half of their time, or later", late, "≥ 15", late >= 15);
    let early = 60 - late;
    report.timing("spread: in the first half", early, "≥ 15", early >= 15);
    let never = (arrived("never"), expired("never"));
    report.check("due only when expired: sent, dead-lettered", format!("{never:?}"), "(0, 1)", never == (0, 1));
    report.check("dead letters in all", letters.len(), 11 + died, letters.len() == 11 + died);
    worker.assert_sound();
    control.assert_sound();
    report.finish();
}
