//! SendGrid's Signed Event Webhook: ECDSA over P-256 of the timestamp header and the body.

use std::time::Duration;

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{
    Timestamp,
    feedback::{Kind, Source, basic_code},
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;

use super::{
    Refusal,
    read::{Batch, Draft, Text, epoch_seconds, fresh},
    scheme::{BadKey, header},
};

pub(super) const SIGNATURE: &str = "x-twilio-email-event-webhook-signature";
pub(super) const TIMESTAMP: &str = "x-twilio-email-event-webhook-timestamp";

/// What stands before the point in the key of a curve P-256 as SendGrid shows it (RFC 5480).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A verification key.
#[derive(Debug, Clone)]
pub(super) struct Key(UnparsedPublicKey<Vec<u8>>);

impl Key {
    /// From base64 as SendGrid shows it, or PEM.
    pub(super) fn new(text: &str) -> Result<Key, BadKey> {
        let bare: String = text.lines().filter(|line| !line.starts_with("-----")).flat_map(|l| l.trim().chars()).collect();
        let der = STANDARD.decode(bare).map_err(|_| BadKey::VerificationKey)?;
        match der.strip_prefix(P256.as_slice()) {
            // A point that is not compressed.
            Some(point) if point.len() == 65 && point[0] == 4 => {
                Ok(Key(UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point.to_vec())))
            }
            _ => Err(BadKey::VerificationKey),
        }
    }
}

/// Whether one of `keys` has signed this, near enough to now.
pub(super) fn verify(headers: &HeaderMap, body: &[u8], keys: &[Key], now: Timestamp, tolerance: Duration) -> Result<(), Refusal> {
    let (signature, timestamp) = (header(headers, SIGNATURE)?, header(headers, TIMESTAMP)?);
    let signature = STANDARD.decode(signature).map_err(|_| Refusal::Signature)?;
    let signed_at = epoch_seconds(timestamp).ok_or(Refusal::Signature)?;
    let signed = [timestamp.as_bytes(), body].concat();
    if !keys.iter().any(|key| key.0.verify(&signed, &signature).is_ok()) {
        return Err(Refusal::Signature);
    }
    if fresh(signed_at, now, tolerance) { Ok(()) } else { Err(Refusal::Timestamp) }
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    event: Text,
    #[serde(default)]
    email: Text,
    #[serde(default)]
    timestamp: Text,
    #[serde(default)]
    sg_event_id: Text,
    #[serde(default)]
    sg_message_id: Text,
    #[serde(default)]
    paceline_id: Text,
    /// Of a bounce: `bounce` or `blocked`.
    #[serde(default, rename = "type")]
    bounce: Text,
    #[serde(default)]
    bounce_classification: Text,
    #[serde(default)]
    status: Text,
    #[serde(default)]
    reason: Text,
    #[serde(default)]
    response: Text,
}

/// Reads a batch.
pub(super) fn read(account: &str, body: &[u8], now: Timestamp) -> Result<Batch, Refusal> {
    Batch::each(body, |batch, event: Event| {
        let Some((kind, source, code)) = meaning(&event) else {
            batch.ignored += 1;
            return;
        };
        let id = event.sg_event_id.given().map(str::to_owned);
        batch.add(
            account,
            now,
            Draft {
                id: id.unwrap_or_else(|| format!("{}/{}/{}", &*event.event, &*event.sg_message_id, &*event.timestamp)),
                kind,
                source,
                recipient: &event.email,
                message_id: event.paceline_id.given(),
                provider_id: event.sg_message_id.given().map(accepted_as),
                code,
                status: basic_code(&event.status),
                enhanced_status: event.status.given(),
                words: event.reason.given().unwrap_or(&event.response),
                at: event.timestamp.time(),
            },
        );
    })
}

fn meaning(event: &Event) -> Option<(Kind, Source, &str)> {
    let class = event.bounce_classification.given();
    Some(match &*event.event {
        "delivered" => (Kind::Delivered, Source::Receiver, "delivered"),
        "deferred" => (Kind::Deferred, Source::Receiver, "deferred"),
        "spamreport" => (Kind::Complained, Source::Receiver, "spamreport"),
        "bounce" => {
            // SendGrid never again sends to whom it calls `bounce`; the words say whether the recipient is why.
            let lasting = &*event.bounce != "blocked"
                && !event.status.starts_with('4')
                && matches!(class, None | Some("Invalid Address" | "Unclassified"));
            let kind = if lasting { Kind::HardBounce } else { Kind::SoftBounce };
            (kind, Source::Receiver, class.unwrap_or(&event.bounce))
        }
        "dropped" => {
            let lasting = ["Bounced Address", "Spam Reporting Address", "Invalid"].contains(&&*event.reason);
            let kind = if lasting { Kind::HardBounce } else { Kind::SoftBounce };
            (kind, Source::Provider, "dropped")
        }
        _ => return None,
    })
}

/// The `X-Message-Id` of the answer that accepted the message: what stands before the filter's own part.
fn accepted_as(id: &str) -> &str {
    let end = [".filter", ".recvd"].iter().filter_map(|part| id.find(part)).min();
    &id[..end.or_else(|| id.find('.')).unwrap_or(id.len())]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn events() {
        let of = |event: serde_json::Value| {
            let mut all = json!({"email": "jo@x.org", "timestamp": 1_799_999_000, "sg_event_id": "e1", "sg_message_id": "m1.filter0001.1.2-0",
                "paceline_id": "order-1", "smtp-id": "<x@y>", "category": ["a"]});
            all.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
            let batch = read("main", json!([all]).to_string().as_bytes(), NOW).unwrap();
            assert_eq!(batch.unreadable, 0);
            batch.events.into_iter().next()
        };
        for (event, kind, source, code, status, enhanced) in [
            (
                json!({"event": "delivered", "response": "250 2.0.0 OK 1"}),
                Kind::Delivered,
                Source::Receiver,
                "delivered",
                Some(250),
                Some("2.0.0"),
            ),
            (
                json!({"event": "deferred", "response": "421 4.7.0 try again", "attempt": "5"}),
                Kind::Deferred,
                Source::Receiver,
                "deferred",
                Some(421),
                Some("4.7.0"),
            ),
            (
                json!({"event": "bounce", "type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 unknown",
                    "bounce_classification": "Invalid Address"}),
                Kind::HardBounce,
                Source::Receiver,
                "Invalid Address",
                Some(550),
                Some("5.1.1"),
            ),
            (
                json!({"event": "bounce", "type": "bounce", "reason": "500 unknown recipient", "status": "5.0.0"}),
                Kind::HardBounce,
                Source::Receiver,
                "bounce",
                Some(500),
                Some("5.0.0"),
            ),
            (
                json!({"event": "bounce", "type": "blocked", "reason": "550 5.7.1 listed", "bounce_classification": "Reputation"}),
                Kind::SoftBounce,
                Source::Receiver,
                "Reputation",
                Some(550),
                Some("5.7.1"),
            ),
            (
                json!({"event": "bounce", "type": "bounce", "status": "4.2.2", "reason": "full", "bounce_classification": "Unclassified"}),
                Kind::SoftBounce,
                Source::Receiver,
                "Unclassified",
                None,
                Some("4.2.2"),
            ),
            (json!({"event": "dropped", "reason": "Bounced Address"}), Kind::HardBounce, Source::Provider, "dropped", None, None),
            (
                json!({"event": "dropped", "reason": "Unsubscribed Address"}),
                Kind::SoftBounce,
                Source::Provider,
                "dropped",
                None,
                None,
            ),
            (json!({"event": "spamreport"}), Kind::Complained, Source::Receiver, "spamreport", None, None),
        ] {
            let got = of(event.clone()).unwrap();
            let seen = (got.kind, got.source, got.answer.code.as_str(), got.answer.status, got.enhanced_status.as_deref());
            assert_eq!(seen, (kind, source, code, status, enhanced), "{event}");
            assert_eq!((got.message_id.as_deref(), got.provider_id.as_deref()), (Some("order-1"), Some("m1")));
            assert_eq!((got.event_id.as_str(), got.at), ("e1", Timestamp::from_secs(1_799_999_000)));
        }
        for ignored in ["processed", "open", "click", "unsubscribe", "account_status_change", ""] {
            assert_eq!(of(json!({"event": ignored})), None, "{ignored}");
        }
    }

    #[test]
    fn one_bad_event_holds_up_no_other() {
        let good = json!({"event": "delivered", "email": "jo@x.org", "sg_event_id": "e"});
        let bad = json!({"event": "delivered", "email": "nobody"});
        // What is of another kind counts as left out, however deep it goes.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!(
            "[{bad},{good},7,null,{{\"event\":\"bounce\",\"email\":\"jo@x.org\",\"type\":{deep}}},{{\"event\":\"open\"}}]"
        );
        let batch = read("main", body.as_bytes(), NOW).unwrap();
        assert_eq!((batch.events.len(), batch.unreadable, batch.ignored), (2, 3, 1));
        for malformed in ["", "{}", "null", "[1,", "[}", "\u{0}"] {
            assert_eq!(read("main", malformed.as_bytes(), NOW), Err(Refusal::Malformed), "{malformed}");
        }
        let many = format!("[{}1]", "1,".repeat(super::super::MAX_EVENTS));
        assert_eq!(read("main", many.as_bytes(), NOW), Err(Refusal::TooLarge));
    }

    #[test]
    fn keys() {
        let good = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEIk4VFSeXGXYtq7L5NWHXwgfHL9/lOR34NADTWCrZBdDdOHaeaRI6dVJzcLWvtgvYRZjEeHaiPVeQmOYAl4/ALA==";
        assert!(Key::new(good).is_ok());
        assert!(
            Key::new(&format!("-----BEGIN PUBLIC KEY-----\n{}\n{}\n-----END PUBLIC KEY-----\n", &good[..64], &good[64..]))
                .is_ok()
        );
        for bad in ["", "SG.key", "AAAA", &good[..80], &good.replace("MFkw", "MFkx")] {
            assert!(Key::new(bad).is_err(), "{bad}");
        }
    }
}
