use bytes::Bytes;
use paceline_broker::{HeaderValue, Headers, Outgoing, Properties, Route};
use paceline_core::Timestamp;

use crate::stage::{Stage, message, next, submit, take};

pub(crate) async fn by_domain_tail_and_intake(stage: &dyn Stage) {
    let broker = stage.applied().await;
    for (key, queue) in [
        ("critical.gmail.com", "paceline.lane.critical.google"),
        ("low.googlemail.com", "paceline.lane.low.google"),
        ("normal.yahoo.com", "paceline.lane.normal.yahoo"),
        ("high.example.org", "paceline.lane.high.tail"),
        ("normal", "paceline.lane.normal.tail"),
        ("urgent.gmail.com", "paceline.intake"),
        ("gmail.com", "paceline.intake"),
        ("", "paceline.intake"),
    ] {
        submit(&*broker, key, key.to_owned()).await;
        assert_eq!(take(&*broker, queue, 1).await, [(key.to_owned(), Bytes::from(key))], "{key}");
    }
}

pub(crate) async fn within_paceline(stage: &dyn Stage) {
    let broker = stage.applied().await;
    for (route, key, queue) in [
        (Route::Lanes, "high.google", "paceline.lane.high.google"),
        (Route::Lanes, "low.tail", "paceline.lane.low.tail"),
        // A lane that is not there.
        (Route::Lanes, "low.aol", "paceline.intake"),
        (Route::Intake, "anything", "paceline.intake"),
        (Route::Dead, "", "paceline.dead"),
        (Route::Feedback, "", "paceline.feedback"),
        (Route::Queue("paceline.lane.low.yahoo".into()), "", "paceline.lane.low.yahoo"),
    ] {
        broker.publish(message(route.clone(), key, "x")).await.unwrap();
        assert_eq!(take(&*broker, queue, 1).await.len(), 1, "{route:?}");
    }
}

pub(crate) async fn properties_and_headers_pass(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let headers = Headers::from([
        ("x-paceline-attempts".to_owned(), HeaderValue::Int(3)),
        ("x-paceline-last-error".to_owned(), "{\"code\":\"ä\"}".into()),
        ("flag".to_owned(), HeaderValue::Bool(true)),
        ("raw".to_owned(), HeaderValue::Bytes(Bytes::from_static(b"\xff\x00"))),
    ]);
    let properties = Properties {
        message_id: Some("m-1".to_owned()),
        content_type: Some("text/plain".to_owned()),
        timestamp: Some(Timestamp::from_secs(1_800_000_000)),
        headers: headers.clone(),
    };
    let mut death = properties.clone();
    death.headers.insert("x-death".to_owned(), "no".into());
    death.headers.insert("x-first-death-queue".to_owned(), "no".into());
    broker.publish(Outgoing { properties: death, ..message(Route::Lanes, "high.google", "x") }).await.unwrap();
    broker.publish(message(Route::Lanes, "high.google", "")).await.unwrap();

    let mut consumer = broker.consume("paceline.lane.high.google", 10).await.unwrap();
    let first = next(&mut consumer).await;
    assert_eq!(first.properties, properties);
    assert_eq!((&*first.queue, first.routing_key.as_str()), ("paceline.lane.high.google", "high.google"));
    assert!(!first.redelivered);
    let plain = next(&mut consumer).await;
    let json = Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
    assert_eq!(plain.properties, json);
    assert!(plain.body.is_empty());
}

pub(crate) async fn a_body_of_10_mb_passes(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let body: Bytes = (0..10 * 1024 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    submit(&*broker, "low.gmail.com", body.clone()).await;
    let (_, got) = take(&*broker, "paceline.lane.low.google", 1).await.remove(0);
    assert!(got == body, "{} bytes of {}", got.len(), body.len());
}
