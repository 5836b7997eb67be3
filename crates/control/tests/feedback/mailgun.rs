use paceline_control::feedback::Scheme;
use paceline_core::feedback::Kind;
use ring::hmac;
use serde_json::json;

use crate::stage::{Stage, seconds};

const KEY: &str = "mailgun-signing-key";

fn body(key: &str, timestamp: &str, token: &str, id: &str) -> serde_json::Value {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), format!("{timestamp}{token}").as_bytes());
    let signature: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    json!({"signature": {"timestamp": timestamp, "token": token, "signature": signature},
        "event-data": {"id": id, "event": "failed", "severity": "permanent", "reason": "bounce", "recipient": "jo@x.org",
            "timestamp": 1_700_000_000.25, "user-variables": {"paceline_id": "order-1"},
            "delivery-status": {"code": 550, "message": "5.1.1 unknown"}}})
}

async fn post(stage: &Stage, body: &serde_json::Value) -> u16 {
    stage.post("main", &[], body.to_string().as_bytes()).await
}

#[tokio::test]
async fn genuine_events_are_taken_and_tokens_only_once() {
    let stage = Stage::start([("main", Scheme::mailgun(KEY))], None).await;
    let now = seconds(0);
    let genuine = body(KEY, &now, "token-1", "e1");
    assert_eq!(post(&stage, &genuine).await, 200);
    let events = stage.events(1).await;
    assert_eq!((events[0].event.kind, events[0].event.message_id.as_deref()), (Kind::HardBounce, Some("order-1")));
    assert_eq!(&*events[0].destination, "tail");

    let mut forged = genuine.clone();
    forged["event-data"]["recipient"] = "victim@x.org".into();
    let mut moved = body(KEY, &now, "1token", "e2");
    moved["signature"]["timestamp"] = format!("{now}1").into();
    moved["signature"]["token"] = "token".into();
    let mut changed = body(KEY, &now, "token-2", "e2");
    changed["signature"]["token"] = "token-3".into();
    let old = body(KEY, &seconds(-3600), "token-4", "e2");
    for (what, body, status, why) in [
        ("a replayed token", genuine, 403, "replayed"),
        ("a replayed token under another event", forged, 403, "replayed"),
        ("a digit moved from the token to the time", moved, 401, "signature"),
        ("a changed byte", changed, 401, "signature"),
        ("another key", body("other", &now, "token-5", "e2"), 401, "signature"),
        ("no signature", json!({"event-data": {}}), 401, "unsigned"),
        ("a signature of another kind", json!({"signature": [1], "event-data": {}}), 401, "unsigned"),
        ("an old time", old, 403, "timestamp"),
        ("a time to come", body(KEY, &seconds(3600), "token-6", "e2"), 403, "timestamp"),
        ("no object", json!(7), 401, "unsigned"),
    ] {
        let before = stage.refused("main", why).await;
        assert_eq!(post(&stage, &body).await, status, "{what}");
        assert_eq!(stage.refused("main", why).await, before + 1, "{what}");
    }
    // Wherever a byte of it is changed so that it cannot be read any more.
    let whole = body(KEY, &now, "token-8", "e3").to_string().into_bytes();
    let cut = [whole[..whole.len() - 1].to_vec(), [b"x", &whole[1..]].concat()];
    for body in cut {
        assert_eq!(stage.post("main", &[], &body).await, 401, "{}", String::from_utf8_lossy(&body));
    }
    stage.events(1).await;

    // Another request about the same event is a duplicate.
    assert_eq!(post(&stage, &body(KEY, &now, "token-7", "e1")).await, 200);
    assert_eq!(stage.counted("main", "duplicate").await, 1);
    stage.events(1).await;
    stage.end().await;
}

#[tokio::test]
async fn a_token_is_good_again_where_the_broker_was_away() {
    let stage = Stage::start([("main", Scheme::mailgun(KEY))], None).await;
    let genuine = body(KEY, &seconds(0), "token-1", "e1");
    stage.broker.lose("unplugged");
    assert_eq!(post(&stage, &genuine).await, 503);
    assert_eq!(stage.refused("main", "broker").await, 1);
    assert_eq!(stage.counted("main", "hard_bounce").await, 0);
    stage.broker.restore();
    assert_eq!(post(&stage, &genuine).await, 200);
    stage.events(1).await;
    assert_eq!(post(&stage, &genuine).await, 403);
    stage.end().await;
}
