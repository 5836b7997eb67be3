//! Resend's webhooks, as Svix signs them: an HMAC of id, timestamp and body, with several signatures while a secret is
//! being replaced.

use std::time::Duration;

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{
    Timestamp,
    feedback::{Kind, Source},
};
use ring::hmac;
use serde::Deserialize;

use super::{
    Refusal,
    read::{Batch, Draft, Object, Text, epoch_seconds, fresh, id_of},
    scheme::{BadKey, header},
};

pub(super) const ID: &str = "svix-id";
pub(super) const TIMESTAMP: &str = "svix-timestamp";
pub(super) const SIGNATURE: &str = "svix-signature";

/// Signatures looked at.
const MAX_SIGNATURES: usize = 16;
/// Recipients of one message that are told apart.
const MAX_RECIPIENTS: usize = 50;

/// The key in a secret such as `whsec_…`.
pub(super) fn key(secret: &str) -> Result<hmac::Key, BadKey> {
    let bytes = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).map_err(|_| BadKey::WebhookSecret)?;
    if bytes.len() < 16 {
        return Err(BadKey::WebhookSecret);
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The request's id, where `key` has signed it near enough to now.
pub(super) fn verify<'a>(
    headers: &'a HeaderMap,
    body: &[u8],
    key: &hmac::Key,
    now: Timestamp,
    tolerance: Duration,
) -> Result<&'a str, Refusal> {
    let (id, timestamp, signatures) = (header(headers, ID)?, header(headers, TIMESTAMP)?, header(headers, SIGNATURE)?);
    let signed_at = epoch_seconds(timestamp).ok_or(Refusal::Signature)?;
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let holds = |signature: &str| {
        let tag = signature.strip_prefix("v1,").and_then(|tag| STANDARD.decode(tag).ok());
        tag.is_some_and(|tag| hmac::verify(key, &signed, &tag).is_ok())
    };
    if !signatures.split(' ').take(MAX_SIGNATURES).any(holds) {
        return Err(Refusal::Signature);
    }
    if fresh(signed_at, now, tolerance) { Ok(id) } else { Err(Refusal::Timestamp) }
}

#[derive(Deserialize)]
struct Event {
    #[serde(default, rename = "type")]
    kind: Text,
    #[serde(default)]
    created_at: Text,
    #[serde(default)]
    data: Object<Data>,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    email_id: Text,
    #[serde(default)]
    to: Vec<Text>,
    #[serde(default)]
    tags: Tags,
    #[serde(default)]
    bounce: Object<Reason>,
    #[serde(default)]
    failed: Object<Reason>,
    #[serde(default)]
    suppressed: Object<Reason>,
}

/// Of a bounce, a failure, a suppression: whatever of this it has.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reason {
    #[serde(default, rename = "type")]
    kind: Text,
    #[serde(default)]
    sub_type: Text,
    #[serde(default)]
    message: Text,
    #[serde(default)]
    reason: Text,
    #[serde(default)]
    diagnostic_code: Lines,
}

/// One text or a list of them: the first.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "serde_json::Value")]
struct Lines(Option<String>);

impl From<serde_json::Value> for Lines {
    fn from(value: serde_json::Value) -> Lines {
        let first = if value.is_array() { &value[0] } else { &value };
        Lines(first.as_str().map(str::to_owned))
    }
}

/// Our id among the tags, which are told as an object or as a list of names and values.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "serde_json::Value")]
struct Tags(Option<String>);

impl From<serde_json::Value> for Tags {
    fn from(value: serde_json::Value) -> Tags {
        let key = paceline_core::feedback::ID_KEY;
        let listed = || value.as_array()?.iter().find(|tag| tag["name"] == key)?["value"].as_str();
        Tags(value[key].as_str().or_else(listed).map(str::to_owned))
    }
}

/// Reads the one event of a body. `id` is the request's.
pub(super) fn read(account: &str, id: &str, body: &[u8], now: Timestamp) -> Result<Batch, Refusal> {
    Batch::one(body, |batch, event: Event| {
        let Some((kind, source, reason)) = meaning(&event) else {
            batch.ignored += 1;
            return;
        };
        let data = &*event.data;
        let (kind, recipients) = match (kind, data.to.as_slice()) {
            (_, []) => {
                batch.unreadable += 1;
                return;
            }
            // Which of several recipients it was is not said: nobody is held to it for good.
            (Kind::HardBounce, several @ [_, _, ..]) => (Kind::SoftBounce, several),
            (Kind::Complained, [_, _, ..]) => {
                batch.unreadable += 1;
                return;
            }
            (kind, recipients) => (kind, recipients),
        };
        for recipient in recipients.iter().take(MAX_RECIPIENTS) {
            let code = reason.and_then(|r| r.sub_type.given().or(r.kind.given()).or(r.reason.given()));
            batch.add(
                account,
                now,
                Draft {
                    id: if recipients.len() == 1 { id.to_owned() } else { id_of(id, recipient) },
                    kind,
                    source,
                    recipient,
                    message_id: data.tags.0.as_deref(),
                    provider_id: data.email_id.given(),
                    code: code.unwrap_or(&event.kind),
                    status: None,
                    enhanced_status: None,
                    words: reason.map_or("", |r| r.diagnostic_code.0.as_deref().unwrap_or(&r.message)),
                    at: event.created_at.time(),
                },
            );
        }
    })
}

fn meaning(event: &Event) -> Option<(Kind, Source, Option<&Reason>)> {
    let data = &*event.data;
    Some(match &*event.kind {
        "email.delivered" => (Kind::Delivered, Source::Receiver, None),
        "email.delivery_delayed" => (Kind::Deferred, Source::Receiver, None),
        "email.complained" => (Kind::Complained, Source::Receiver, None),
        "email.bounced" => {
            let listed = ["Suppressed", "OnAccountSuppressionList"].contains(&&*data.bounce.sub_type);
            let lasting = listed || (&*data.bounce.kind == "Permanent" && lasting(&data.bounce.sub_type));
            let kind = if lasting { Kind::HardBounce } else { Kind::SoftBounce };
            (kind, if listed { Source::Provider } else { Source::Receiver }, Some(&*data.bounce))
        }
        "email.suppressed" => (Kind::HardBounce, Source::Provider, Some(&*data.suppressed)),
        "email.failed" => (Kind::SoftBounce, Source::Provider, Some(&*data.failed)),
        _ => return None,
    })
}

/// Whether a permanent bounce of this kind is about the recipient.
fn lasting(sub_type: &str) -> bool {
    !["MessageTooLarge", "ContentRejected", "AttachmentRejected", "MailboxFull"].contains(&sub_type)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn read_value(kind: &str, data: serde_json::Value) -> Batch {
        let mut all = json!({"email_id": "m1", "to": ["jo@x.org"], "from": "a@b.org", "tags": {"paceline_id": "order-1"}});
        all.as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
        let body = json!({"type": kind, "created_at": "2027-01-15T07:00:00.000Z", "data": all});
        read("main", "msg_1", body.to_string().as_bytes(), NOW).unwrap()
    }

    #[test]
    fn events() {
        let bounce = |kind: &str, sub: &str| json!({"bounce": {"type": kind, "subType": sub, "message": "said so"}});
        for (kind, data, want, source, code) in [
            ("email.delivered", json!({}), Kind::Delivered, Source::Receiver, "email.delivered"),
            ("email.delivery_delayed", json!({}), Kind::Deferred, Source::Receiver, "email.delivery_delayed"),
            ("email.complained", json!({}), Kind::Complained, Source::Receiver, "email.complained"),
            ("email.bounced", bounce("Permanent", "General"), Kind::HardBounce, Source::Receiver, "General"),
            ("email.bounced", bounce("Permanent", "Suppressed"), Kind::HardBounce, Source::Provider, "Suppressed"),
            ("email.bounced", bounce("Transient", "MailboxFull"), Kind::SoftBounce, Source::Receiver, "MailboxFull"),
            ("email.bounced", bounce("Undetermined", ""), Kind::SoftBounce, Source::Receiver, "Undetermined"),
            (
                "email.suppressed",
                json!({"suppressed": {"type": "OnAccountSuppressionList", "message": "m"}}),
                Kind::HardBounce,
                Source::Provider,
                "OnAccountSuppressionList",
            ),
            (
                "email.failed",
                json!({"failed": {"reason": "reached_daily_quota"}}),
                Kind::SoftBounce,
                Source::Provider,
                "reached_daily_quota",
            ),
        ] {
            let batch = read_value(kind, data.clone());
            let [got] = batch.events.as_slice() else { panic!("{kind} {data}: {batch:?}") };
            assert_eq!((got.kind, got.source, got.answer.code.as_str()), (want, source, code), "{kind} {data}");
            assert_eq!((got.message_id.as_deref(), got.provider_id.as_deref()), (Some("order-1"), Some("m1")));
            assert_eq!((got.event_id.as_str(), got.at), ("msg_1", Timestamp::from_secs(1_799_996_400)));
        }
        for ignored in ["email.sent", "email.opened", "email.clicked", "contact.created", "domain.updated"] {
            assert_eq!(read_value(ignored, json!({})).ignored, 1, "{ignored}");
        }
    }

    #[test]
    fn the_servers_words_and_listed_tags() {
        let batch = read_value(
            "email.bounced",
            json!({"tags": [{"name": "a", "value": "b"}, {"name": "paceline_id", "value": "order-2"}],
                "bounce": {"type": "Permanent", "diagnosticCode": ["smtp; 550 5.1.1 unknown"]}}),
        );
        let got = &batch.events[0];
        assert_eq!((got.answer.status, got.enhanced_status.as_deref()), (Some(550), Some("5.1.1")));
        assert_eq!(got.message_id.as_deref(), Some("order-2"));
    }

    #[test]
    fn nobody_of_several_is_held_to_a_bounce_for_good() {
        let several = json!({"to": ["a@x.org", "b@x.org"], "bounce": {"type": "Permanent", "subType": "General"}});
        let batch = read_value("email.bounced", several);
        let got: Vec<_> = batch.events.iter().map(|e| (e.kind, e.recipient.local())).collect();
        assert_eq!(got, [(Kind::SoftBounce, "a"), (Kind::SoftBounce, "b")]);
        assert_ne!(batch.events[0].event_id, batch.events[1].event_id);
        let complained = read_value("email.complained", json!({"to": ["a@x.org", "b@x.org"]}));
        assert_eq!((complained.events.len(), complained.unreadable), (0, 1));
        assert_eq!(read_value("email.delivered", json!({"to": []})).unreadable, 1);
    }

    #[test]
    fn secrets() {
        assert!(key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_ok());
        for bad in ["", "whsec_", "whsec_AAAA", "not base64!"] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_example_of_svixs_documentation_holds() {
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (ID, "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            (TIMESTAMP, "1614265330"),
            (SIGNATURE, "v1,AAAA v2,x v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let at = Timestamp::from_secs(1_614_265_330);
        let minute = Duration::from_secs(60);
        assert_eq!(verify(&headers, br#"{"test": 2432232314}"#, &key, at, minute), Ok("msg_p5jXN8AQM9LWM0D4loKWxJek"));
        assert_eq!(verify(&headers, br#"{"test": 2432232315}"#, &key, at, minute), Err(Refusal::Signature));
    }
}
