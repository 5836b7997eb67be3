//! What a provider says later reaches the workers: who bounced is not mailed again. Nothing of it is lost with the broker.
#![expect(clippy::unwrap_used, reason = "helpers of a scenario fail by panicking")]

use std::time::Duration;

use paceline_tests::{Fleet, Mail, Plan, Pod, publish, until};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const LONG: Duration = Duration::from_secs(120);
/// `events:s3cret`
const CREDENTIALS: &str = "Basic ZXZlbnRzOnMzY3JldA==";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_bounced_is_not_mailed_again() {
    let plan = Plan {
        account: "rate = \"5000/s\"\n[account.feedback]\nprovider = \"postmark\"\nusername = \"events\"\npassword = \"s3cret\"",
        more: "[tail]\nrate = \"5000/s\"\n",
        ..Plan::default()
    };
    let fleet = Fleet::start(plan).await;
    let controls = [fleet.pod("control", "c1").await, fleet.pod("control", "c2").await];
    let worker = fleet.worker("w1").await;

    let bounce = json!({"RecordType": "Bounce", "ID": 42, "Type": "HardBounce", "MessageID": "m1", "Email": "gone@one.example",
        "Metadata": {"paceline_id": "order-1"}, "Details": "smtp;550 5.1.1 <gone@one.example> unknown"});
    // Postmark may well repeat itself, and to another process.
    for control in [&controls[0], &controls[0], &controls[1]] {
        assert_eq!(post(control, "main", CREDENTIALS, &bounce).await, 200);
    }
    assert_eq!(post(&controls[0], "main", "Basic ZXZlbnRzOmd1ZXNz", &bounce).await, 401);
    assert_eq!(post(&controls[0], "other", CREDENTIALS, &bounce).await, 404);
    knows(&worker, 1.0).await;
    let listed = fleet.ask(&["suppress", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!((&listed[0]["address"], &listed[0]["reason"]), (&json!("gone@one.example"), &json!("bounce")));
    assert_eq!((&listed[0]["kind"], &listed[0]["source"]), (&json!("hard"), &json!("main")));

    publish(&*fleet.broker(), [Mail::new("gone", "high", "gone@one.example"), Mail::new("fine", "high", "u@one.example")]).await;
    fleet.accepted(1, LONG).await;
    fleet.settled(LONG).await;
    let letters = fleet.dead_letters().await;
    assert_eq!((letters.len(), &letters[0]["message_id"], &letters[0]["reason"]), (1, &json!("gone"), &json!("suppressed")));

    // While the broker is away the provider is asked to come again, and then nothing is missing.
    fleet.rabbitmq.stop().await;
    let mut complaint = json!({"RecordType": "SpamComplaint", "ID": 43, "MessageID": "m2", "Email": "angry@one.example"});
    assert_eq!(post(&controls[0], "main", CREDENTIALS, &complaint).await, 503);
    fleet.rabbitmq.start_again().await;
    until("the event is taken", LONG, async || post(&controls[0], "main", CREDENTIALS, &complaint).await == 200).await;
    knows(&worker, 2.0).await;
    complaint["Email"] = "nobody".into();
    complaint["ID"] = 44.into();
    assert_eq!(post(&controls[0], "main", CREDENTIALS, &complaint).await, 200, "asking again would bring the same");
    let metrics = controls[0].metrics().await;
    let counted = |kind: &str| metrics.sum("paceline_feedback_events_total", |l| l.contains(&format!("kind=\"{kind}\"")));
    assert_eq!((counted("hard_bounce"), counted("complained")), (1.0, 1.0));
    assert_eq!((counted("duplicate"), counted("unreadable")), (1.0, 1.0));
    let refused = |why: &str| metrics.sum("paceline_feedback_refused_total", |l| l.contains(&format!("why=\"{why}\"")));
    assert_eq!((refused("signature"), refused("unknown_account")), (1.0, 1.0));
    assert!(refused("broker") >= 1.0);

    for pod in controls.iter().chain([&worker]) {
        pod.assert_sound();
        let telling = |line: &String| ["gone@", "angry@", "s3cret", "ZXZlbnRz"].iter().any(|word| line.contains(word));
        let lines: Vec<_> = pod.process.stderr_lines().into_iter().filter(telling).collect();
        assert!(lines.is_empty(), "addresses or credentials in the log: {lines:#?}");
    }
}

/// The status of a POST of an event; 0 where there is no answer.
async fn post(control: &Pod, account: &str, authorization: &str, event: &serde_json::Value) -> u16 {
    let body = event.to_string();
    let request = format!(
        "POST /v1/feedback/{account} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(control.addr()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.is_ok_and(|read| read.is_ok());
    if read { answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0) } else { 0 }
}

/// Waits until the worker knows of so many listed addresses.
async fn knows(worker: &Pod, count: f64) {
    let what = format!("{} knows of {count}", worker.name);
    until(&what, LONG, async || worker.metrics().await.total("paceline_suppressed_addresses") == count).await;
}
