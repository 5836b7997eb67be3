use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_control::feedback::Scheme;
use paceline_core::feedback::Kind;
use ring::hmac;

use crate::stage::{Stage, changed, seconds};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const BODY: &[u8] = br#"{"type":"email.complained","created_at":"2026-01-15T07:00:00.000Z","data":{"email_id":"m1",
    "to":["jo@gmail.com"],"tags":{"paceline_id":"order-1"}}}"#;

fn sign(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap();
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    format!("v1,{}", STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed)))
}

fn headers<'a>(id: &'a str, timestamp: &'a str, signature: &'a str) -> Vec<(&'static str, &'a str)> {
    vec![("svix-id", id), ("svix-timestamp", timestamp), ("svix-signature", signature)]
}

#[tokio::test]
async fn genuine_events_are_taken_once_and_others_refused() {
    let stage = Stage::start([("main", Scheme::resend(SECRET).unwrap())], None).await;
    let now = seconds(0);
    let genuine = sign(SECRET, "msg_1", &now, BODY);
    // While a secret is being replaced there are two signatures.
    let both = format!("{} {genuine}", sign(OTHER, "msg_1", &now, BODY));
    for signature in [&genuine, &both] {
        assert_eq!(stage.post("main", &headers("msg_1", &now, signature), BODY).await, 200);
    }
    let events = stage.events(1).await;
    let event = &events[0].event;
    assert_eq!((event.kind, event.event_id.as_str()), (Kind::Complained, "msg_1"));
    assert_eq!((event.message_id.as_deref(), event.provider_id.as_deref()), (Some("order-1"), Some("m1")));
    assert_eq!(stage.counted("main", "duplicate").await, 1);

    let (past, future) = (seconds(-600), seconds(600));
    let strange = sign(OTHER, "msg_2", &now, BODY);
    let many = format!("{}{genuine}", format!("{strange} ").repeat(100));
    for (what, headers, body, status, why) in [
        ("a changed byte", headers("msg_1", &now, &genuine), changed(BODY), 401, "signature"),
        ("another id", headers("msg_2", &now, &genuine), BODY.into(), 401, "signature"),
        ("another time", headers("msg_1", &past, &genuine), BODY.into(), 401, "signature"),
        ("another key", headers("msg_2", &now, &strange), BODY.into(), 401, "signature"),
        ("more signatures than are looked at", headers("msg_1", &now, &many), BODY.into(), 401, "signature"),
        ("another version", headers("msg_1", &now, &genuine.replace("v1,", "v2,")), BODY.into(), 401, "signature"),
        ("no signature", vec![("svix-id", "msg_1"), ("svix-timestamp", now.as_str())], BODY.into(), 401, "unsigned"),
        ("nothing", vec![], BODY.into(), 401, "unsigned"),
        ("an old time", headers("msg_2", &past, &sign(SECRET, "msg_2", &past, BODY)), BODY.into(), 403, "timestamp"),
        ("a time to come", headers("msg_2", &future, &sign(SECRET, "msg_2", &future, BODY)), BODY.into(), 403, "timestamp"),
        ("no JSON", headers("msg_2", &now, &sign(SECRET, "msg_2", &now, b"{")), b"{".to_vec(), 400, "malformed"),
    ] {
        let before = stage.refused("main", why).await;
        assert_eq!(stage.post("main", &headers, &body).await, status, "{what}");
        assert_eq!(stage.refused("main", why).await, before + 1, "{what}");
    }
    stage.events(1).await;
    stage.end().await;
}
