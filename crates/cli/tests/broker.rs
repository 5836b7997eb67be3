//! `topology` and `send` against a RabbitMQ of their own.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Duration;

use paceline_broker::{
    Broker, header_text,
    rabbitmq::{Options, RabbitMq},
};
use paceline_testkit as testkit;
use serde_json::json;
use support::{Said, ops, paceline_in};

/// Runs in `ops/` with this broker, off the runtime's thread.
async fn paceline(url: &str, arguments: &[&str], input: &str) -> Said {
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    let (url, input) = (url.to_owned(), input.to_owned());
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        paceline_in(&ops(), &arguments, &[("PACELINE__BROKER__URL", &url), ("PACELINE__BROKER__PREFIX", "cli")], &input)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn topology_and_send() {
    let rabbitmq = testkit::RabbitMq::start().await;
    let url = rabbitmq.vhost().await;

    // Nothing is there yet: both say so, and what to do.
    let said = paceline(&url, &["topology", "check", "--output", "json"], "").await;
    assert_eq!(said.status, 1, "{said:?}");
    assert!(
        said.json().as_array().unwrap().iter().any(|d| d["kind"] == "missing" && d["name"].to_string().contains("cli.lanes"))
    );
    assert!(said.stderr.contains("topology apply"), "{said:?}");
    let said = paceline(&url, &["send", "examples/messages.ndjson"], "").await;
    assert!(said.status == 1 && said.stderr.contains("run `paceline topology apply`"), "{said:?}");

    let said = paceline(&url, &["topology", "apply", "--output", "json"], "").await;
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.json()["created"].as_array().unwrap().len() > 100);
    let said = paceline(&url, &["topology", "apply"], "").await;
    assert!(said.status == 0 && said.stdout.starts_with("0 created"), "{said:?}");
    let said = paceline(&url, &["topology", "check"], "").await;
    assert_eq!((said.status, said.stdout.as_str()), (0, "The broker is as configured.\n"), "{said:?}");

    // Good lines go out although bad ones stand between them.
    let good = std::fs::read_to_string(ops().join("examples/messages.ndjson")).unwrap();
    let bad = std::fs::read_to_string(ops().join("examples/refused.ndjson")).unwrap();
    let mixed: String = good.lines().zip(bad.lines()).map(|(g, b)| format!("{b}\n{g}\n")).collect();
    let said = paceline(&url, &["send", "-", "--output", "json"], &mixed).await;
    assert_eq!((said.status, said.stderr.as_str()), (1, ""), "{said:?}");
    let summary = said.json();
    assert_eq!((&summary["published"], &summary["refused_count"]), (&json!(10), &json!(10)));
    let lines: Vec<_> = summary["refused"].as_array().unwrap().iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]);
    assert_eq!(summary["refused"][7]["field"], "to[1]");

    let broker = RabbitMq::start(Options { urls: vec![url.clone()], prefix: "cli".into(), name: "test".into() }).unwrap();
    broker.wait_until_up(Duration::from_secs(20)).await.unwrap();
    for (lane, count) in [("critical.google", 1), ("critical.tail", 1), ("high.google", 1), ("normal.tail", 5), ("low.tail", 2)] {
        assert_eq!(broker.depth(&format!("cli.lane.{lane}")).await.unwrap(), count, "{lane}");
    }
    let mut consumer = broker.consume("cli.lane.high.google", 1).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    assert_eq!(&delivery.body[..], good.lines().nth(2).unwrap().as_bytes(), "published as written");
    assert_eq!(delivery.properties.message_id.as_deref(), Some("receipt-1"));
    assert_eq!(delivery.properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(delivery.routing_key, "high.gmail.com");
    let stamp = header_text(&delivery.properties.headers, "x-paceline-enqueued-at").unwrap();
    assert!(stamp.parse::<paceline_core::Timestamp>().is_ok(), "{stamp}");
    delivery.settle.ack();
    broker.close().await;

    // All good: exit 0, and words for people; paced as told, which ten at a thousand a second does not slow down.
    let said = paceline(&url, &["send", "--rate", "1000/s", "examples/messages.ndjson"], "").await;
    assert!(said.status == 0 && said.stdout.starts_with("10 published in "), "{said:?}");
}
