//! The other end of the queue: sinks, counts, and what producers are told.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_broker::{Broker, Outgoing, Properties, Purpose, Route};
use paceline_control::feedback::Scheme;
use paceline_core::{feedback::Event, suppression};
use paceline_store::{Order, SuppressionFilter, Suppressions};
use serde_json::json;

use crate::stage::Stage;

async fn publish(stage: &Stage, body: &str) {
    let message = Outgoing {
        to: Route::Feedback,
        key: String::new(),
        body: body.to_owned().into(),
        properties: Properties::default(),
        purpose: Purpose::Feedback,
    };
    stage.broker.publish(message).await.unwrap();
}

fn event(id: &str, kind: &str, recipient: &str) -> String {
    json!({"event_id": id, "account": "relay", "kind": kind, "recipient": recipient, "at": "2026-01-15T07:00:00Z", "message_id": "order-1",
        "answer": {"code": "unknown_user", "status": 550, "message": "550 <jo@gmail.com> unknown"}})
    .to_string()
}

#[tokio::test]
async fn events_of_others_are_worked_off_and_told_without_addresses() {
    let stage = Stage::start([], None).await;
    let mut heard = stage.broker.listen("#").await.unwrap();
    publish(&stage, &event("1", "hard_bounce", "jo@gmail.com")).await;
    publish(&stage, "no event").await;
    publish(&stage, &"x".repeat(100_000)).await;
    publish(&stage, &event("2", "complained", "jo@elsewhere.example")).await;
    let events = stage.events(2).await;
    let seen: Vec<_> = events.iter().map(|e| (e.event.event_id.as_str(), &*e.destination)).collect();
    assert_eq!(seen, [("1", "google"), ("2", "tail")]);
    assert_eq!(events[0].event, Event::parse(event("1", "hard_bounce", "jo@gmail.com").as_bytes()).unwrap());

    for series in [
        "paceline_feedback_by_destination_total{destination=\"google\",kind=\"hard_bounce\",source=\"receiver\"}",
        "paceline_feedback_by_destination_total{destination=\"tail\",kind=\"complained\",source=\"receiver\"}",
    ] {
        assert_eq!(stage.metric(series).await, 1, "{series}");
    }
    assert_eq!(stage.metric("paceline_feedback_queue_unreadable_total").await, 2);
    for (key, kind) in [("bounced.unknown.google", "hard_bounce"), ("complained.unknown.tail", "complained")] {
        let told = tokio::time::timeout(Duration::from_secs(60), heard.next()).await.unwrap().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!((told.routing_key.as_str(), &body["kind"], &body["id"]), (key, &json!(kind), &json!("order-1")));
        assert!(!body.to_string().contains("jo@"), "{body}");
    }
    stage.end().await;
}

#[tokio::test]
async fn nothing_is_lost_while_a_sink_is_away() {
    let stage = Stage::start([("main", Scheme::postmark("jo", "pw").unwrap())], None).await;
    *stage.taken.away.lock().unwrap() = true;
    let authorization = format!("Basic {}", STANDARD.encode("jo:pw"));
    for i in 0..300 {
        let body = json!({"RecordType": "Delivery", "MessageID": format!("m{i}"), "Recipient": "jo@gmail.com"}).to_string();
        assert_eq!(stage.post("main", &[("Authorization", &authorization)], body.as_bytes()).await, 200);
    }
    // A lost connection brings what is held again; that is no new event for anyone but the sink.
    stage.broker.lose("unplugged");
    stage.broker.restore();
    assert_eq!(stage.counted("main", "delivered").await, 300);
    let delivered = "paceline_feedback_by_destination_total{destination=\"google\",kind=\"delivered\",source=\"receiver\"}";
    assert!(!stage.metrics().await.contains(delivered), "nothing is worked off yet");
    *stage.taken.away.lock().unwrap() = false;
    for _ in 0..1200 {
        if stage.broker.depth("paceline.feedback").await.unwrap() == 0 && stage.broker.held("paceline.feedback") == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ids = stage.taken.ids();
    assert_eq!(ids.len(), 300);
    stage.end().await;
}

#[tokio::test]
async fn who_bounces_for_good_or_complains_is_not_mailed_again() {
    let stage = Stage::start([], None).await;
    for (id, kind, recipient) in [
        ("1", "hard_bounce", "gone@gmail.com"),
        ("2", "complained", "angry@gmail.com"),
        ("3", "soft_bounce", "full@gmail.com"),
        ("4", "deferred", "slow@gmail.com"),
        ("5", "delivered", "glad@gmail.com"),
        // Twice is no more than once.
        ("1", "hard_bounce", "gone@gmail.com"),
    ] {
        publish(&stage, &event(id, kind, recipient)).await;
    }
    let mut policy: serde_json::Value = serde_json::from_str(&event("6", "hard_bounce", "wary@gmail.com")).unwrap();
    policy["enhanced_status"] = "5.7.1".into();
    publish(&stage, &policy.to_string()).await;
    stage.events(7).await;
    let listed = stage.store.suppressions(&SuppressionFilter::default(), Order::Earliest, None, 100).await.unwrap();
    let mut seen: Vec<_> = listed.iter().map(|s| (s.address.as_str(), s.kind, s.reason.as_str(), s.source.as_deref())).collect();
    seen.sort_by_key(|entry| entry.0);
    assert_eq!(
        seen,
        [
            ("angry@gmail.com", suppression::Kind::Hard, "complaint", Some("relay")),
            ("gone@gmail.com", suppression::Kind::Hard, "bounce", Some("relay")),
        ]
    );
    stage.end().await;
}

#[tokio::test]
async fn what_is_not_worked_off_stays_in_the_queue() {
    let stage = Stage::start([], None).await;
    *stage.taken.away.lock().unwrap() = true;
    publish(&stage, &event("1", "deferred", "jo@gmail.com")).await;
    let broker = stage.broker.clone();
    for _ in 0..1200 {
        if broker.held("paceline.feedback") == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(broker.held("paceline.feedback"), 1);
    stage.end().await;
    assert_eq!((broker.held("paceline.feedback"), broker.depth("paceline.feedback").await.unwrap()), (0, 1));
}
