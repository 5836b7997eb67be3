use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_control::feedback::Scheme;
use paceline_core::feedback::Kind;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::json;

use crate::stage::{Stage, changed, seconds};

struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Signer {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Signer(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    /// As SendGrid shows it.
    fn key(&self) -> String {
        let before = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgA=").unwrap();
        STANDARD.encode([&before, self.0.public_key().as_ref()].concat())
    }

    fn sign(&self, timestamp: &str, body: &[u8]) -> String {
        let signed = [timestamp.as_bytes(), body].concat();
        STANDARD.encode(self.0.sign(&SystemRandom::new(), &signed).unwrap())
    }
}

fn headers<'a>(signature: &'a str, timestamp: &'a str) -> [(&'static str, &'a str); 2] {
    [("X-Twilio-Email-Event-Webhook-Signature", signature), ("X-Twilio-Email-Event-Webhook-Timestamp", timestamp)]
}

fn body(id: &str) -> Vec<u8> {
    let event = |kind: &str, id: String| {
        json!({"event": kind, "email": "jo@gmail.com", "timestamp": 1_700_000_000, "sg_event_id": id, "sg_message_id": "m.filter1",
            "paceline_id": "order-1", "type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 unknown"})
    };
    json!([event("bounce", format!("{id}-1")), event("open", format!("{id}-2")), event("delivered", format!("{id}-3"))])
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn genuine_events_are_taken_once_and_others_refused() {
    let (old, new, stranger) = (Signer::new(), Signer::new(), Signer::new());
    let stage = Stage::start([("main", Scheme::sendgrid(&[old.key(), new.key()]).unwrap())], None).await;
    let now = seconds(0);
    for signer in [&old, &new] {
        // The second time they are duplicates.
        assert_eq!(stage.post("main", &headers(&signer.sign(&now, &body("a")), &now), &body("a")).await, 200);
    }
    let events = stage.events(2).await;
    let mut kinds: Vec<_> = events.iter().map(|e| e.event.kind).collect();
    kinds.sort();
    assert_eq!(kinds, [Kind::Delivered, Kind::HardBounce]);
    for received in &events {
        let event = &received.event;
        assert_eq!((event.account.as_str(), &*received.destination), ("main", "google"));
        assert_eq!((event.recipient.to_string().as_str(), event.message_id.as_deref()), ("jo@gmail.com", Some("order-1")));
    }
    for (kind, n) in [("hard_bounce", 1), ("delivered", 1), ("ignored", 2), ("duplicate", 2), ("complained", 0)] {
        assert_eq!(stage.counted("main", kind).await, n, "{kind}");
    }

    let genuine = new.sign(&now, &body("b"));
    let (past, future) = (seconds(-3600), seconds(3600));
    let strange = stranger.sign(&now, &body("b"));
    let (before, ahead) = (new.sign(&past, &body("b")), new.sign(&future, &body("b")));
    let cases = [
        ("a changed byte", headers(&genuine, &now).to_vec(), changed(&body("b")), 401, "signature"),
        ("another time", headers(&genuine, &past).to_vec(), body("b"), 401, "signature"),
        ("another key", headers(&strange, &now).to_vec(), body("b"), 401, "signature"),
        ("no base64", headers("!", &now).to_vec(), body("b"), 401, "signature"),
        ("no time at all", headers(&genuine, "now").to_vec(), body("b"), 401, "signature"),
        ("no signature", vec![], body("b"), 401, "unsigned"),
        ("half of it", vec![headers(&genuine, &now)[0]], body("b"), 401, "unsigned"),
        ("an old time", headers(&before, &past).to_vec(), body("b"), 403, "timestamp"),
        ("a time to come", headers(&ahead, &future).to_vec(), body("b"), 403, "timestamp"),
    ];
    for (what, headers, body, status, why) in cases {
        let before = stage.refused("main", why).await;
        assert_eq!(stage.post("main", &headers, &body).await, status, "{what}");
        assert_eq!(stage.refused("main", why).await, before + 1, "{what}");
    }
    // Signed, and yet no list of events.
    assert_eq!(stage.post("main", &headers(&new.sign(&now, b"{}"), &now), b"{}").await, 400);
    assert_eq!(stage.events(2).await.len(), 2, "nothing came of what was refused");
    stage.end().await;
}
