//! Mailgun's webhooks: an HMAC of a timestamp and a one-time token, in the body. It does not cover the event itself, so a
//! token is taken once.

use std::time::Duration;

use paceline_core::{
    Timestamp,
    feedback::{Kind, Source, basic_code},
};
use ring::hmac;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Refusal,
    read::{Batch, Carried, Draft, Object, Text, epoch_seconds, fresh, from_hex},
};

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    signature: Object<Signature>,
    #[serde(default, borrow, rename = "event-data")]
    event_data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Signature {
    #[serde(default)]
    timestamp: Text,
    #[serde(default)]
    token: Text,
    #[serde(default)]
    signature: Text,
}

/// A body whose signature holds.
pub(super) struct Signed<'a> {
    /// To be taken once.
    pub(super) token: String,
    event: &'a str,
}

/// Whether `key` has signed the token, near enough to now.
pub(super) fn verify<'a>(body: &'a [u8], key: &hmac::Key, now: Timestamp, tolerance: Duration) -> Result<Signed<'a>, Refusal> {
    // What cannot be read shows no signature.
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|_| Refusal::Unsigned)?;
    let Signature { timestamp, token, signature } = &*envelope.signature;
    let (Some(_), Some(token), Some(signature)) = (timestamp.given(), token.given(), signature.given()) else {
        return Err(Refusal::Unsigned);
    };
    // Ten digits, so that nobody can shift the token's first digits into the timestamp: the two are signed as one text.
    let signed_at = epoch_seconds(timestamp).ok_or(Refusal::Signature)?;
    let signature = from_hex(signature).ok_or(Refusal::Signature)?;
    let signed = [timestamp.as_bytes(), token.as_bytes()].concat();
    hmac::verify(key, &signed, &signature).map_err(|_| Refusal::Signature)?;
    if !fresh(signed_at, now, tolerance) {
        return Err(Refusal::Timestamp);
    }
    Ok(Signed { token: token.to_owned(), event: envelope.event_data.map_or("null", RawValue::get) })
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Event {
    #[serde(default)]
    id: Text,
    #[serde(default)]
    event: Text,
    #[serde(default)]
    timestamp: Text,
    #[serde(default)]
    severity: Text,
    #[serde(default)]
    reason: Text,
    #[serde(default)]
    recipient: Text,
    #[serde(default)]
    message: Object<Sent>,
    #[serde(default)]
    user_variables: Object<UserVariables>,
    #[serde(default)]
    delivery_status: Object<Status>,
}

#[derive(Default, Deserialize)]
struct Sent {
    #[serde(default)]
    headers: Object<SentHeaders>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SentHeaders {
    #[serde(default)]
    message_id: Text,
}

type UserVariables = Carried;

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    #[serde(default)]
    code: Text,
    #[serde(default)]
    enhanced_code: Text,
    #[serde(default)]
    message: Text,
    #[serde(default)]
    description: Text,
}

/// Reads the one event of a body.
pub(super) fn read(account: &str, signed: &Signed<'_>, now: Timestamp) -> Result<Batch, Refusal> {
    Batch::one(signed.event.as_bytes(), |batch, event: Event| {
        let Some((kind, source)) = meaning(&event) else {
            batch.ignored += 1;
            return;
        };
        let status = &event.delivery_status;
        batch.add(
            account,
            now,
            Draft {
                // Without an id of its own it is told by the token, which is another one for each request.
                id: event.id.given().unwrap_or(&signed.token).to_owned(),
                kind,
                source,
                recipient: &event.recipient,
                message_id: event.user_variables.paceline_id.given(),
                provider_id: event.message.headers.message_id.given().map(|id| id.trim_matches(['<', '>'])),
                code: event.reason.given().unwrap_or(&event.event),
                status: basic_code(&status.code),
                enhanced_status: status.enhanced_code.given(),
                words: status.message.given().unwrap_or(&status.description),
                at: event.timestamp.time(),
            },
        );
    })
}

fn meaning(event: &Event) -> Option<(Kind, Source)> {
    let reason = &*event.reason;
    // Codes from 600 up are Mailgun's own: it did not try.
    let ours = reason.starts_with("suppress-") || event.delivery_status.code.starts_with('6');
    let source = if ours { Source::Provider } else { Source::Receiver };
    Some(match (&*event.event, &*event.severity) {
        ("delivered", _) => (Kind::Delivered, Source::Receiver),
        ("complained", _) => (Kind::Complained, Source::Receiver),
        ("failed", "temporary") => (Kind::Deferred, source),
        ("failed", _) if matches!(reason, "bounce" | "suppress-bounce" | "suppress-complaint") => (Kind::HardBounce, source),
        ("failed", _) => (Kind::SoftBounce, source),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn events() {
        let of = |event: serde_json::Value| {
            let mut all = json!({"id": "e1", "timestamp": 1_799_999_000.5, "recipient": "jo@x.org", "log-level": "error",
                "user-variables": {"paceline_id": "order-1"}, "message": {"headers": {"message-id": "1@mg.b.org"}}});
            all.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
            let signed = Signed { token: "t".into(), event: &all.to_string() };
            let batch = read("main", &signed, NOW).unwrap();
            assert_eq!(batch.unreadable, 0);
            batch.events.into_iter().next()
        };
        let failed = |severity: &str, reason: &str, code: u16| {
            json!({"event": "failed", "severity": severity, "reason": reason,
                "delivery-status": {"code": code, "enhanced-code": "5.1.1", "message": "said so", "attempt-no": 1}})
        };
        for (event, kind, source, code, status) in [
            (
                json!({"event": "delivered", "delivery-status": {"code": 250, "message": "OK"}}),
                Kind::Delivered,
                Source::Receiver,
                "delivered",
                Some(250),
            ),
            (failed("temporary", "generic", 421), Kind::Deferred, Source::Receiver, "generic", Some(421)),
            (failed("permanent", "bounce", 550), Kind::HardBounce, Source::Receiver, "bounce", Some(550)),
            (failed("permanent", "espblock", 550), Kind::SoftBounce, Source::Receiver, "espblock", Some(550)),
            (failed("permanent", "old", 602), Kind::SoftBounce, Source::Provider, "old", None),
            (failed("permanent", "suppress-bounce", 605), Kind::HardBounce, Source::Provider, "suppress-bounce", None),
            (failed("permanent", "suppress-unsubscribe", 606), Kind::SoftBounce, Source::Provider, "suppress-unsubscribe", None),
            (json!({"event": "complained"}), Kind::Complained, Source::Receiver, "complained", None),
        ] {
            let got = of(event.clone()).unwrap();
            assert_eq!(
                (got.kind, got.source, got.answer.code.as_str(), got.answer.status),
                (kind, source, code, status),
                "{event}"
            );
            assert_eq!((got.message_id.as_deref(), got.provider_id.as_deref()), (Some("order-1"), Some("1@mg.b.org")));
            assert_eq!((got.event_id.as_str(), got.at), ("e1", Timestamp::from_micros(1_799_999_000_500_000)));
        }
        for ignored in ["accepted", "opened", "clicked", "unsubscribed", "stored", ""] {
            assert_eq!(of(json!({"event": ignored})), None, "{ignored}");
        }
    }

    #[test]
    fn a_token_cannot_lend_its_digits_to_the_timestamp() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"k");
        let tag = hmac::sign(&key, b"1800000000123abc");
        let signature: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let of = |timestamp: &str, token: &str| {
            let body = json!({"signature": {"timestamp": timestamp, "token": token, "signature": signature}}).to_string();
            verify(body.as_bytes(), &key, NOW, Duration::from_secs(60)).map(|signed| signed.token)
        };
        assert_eq!(of("1800000000", "123abc").as_deref(), Ok("123abc"));
        for (timestamp, token) in
            [("18000000001", "23abc"), ("180000000", "0123abc"), ("1800000000", "23abc"), ("", "1800000000123abc")]
        {
            assert!(matches!(of(timestamp, token), Err(Refusal::Signature | Refusal::Unsigned)), "{timestamp} {token}");
        }
    }
}
