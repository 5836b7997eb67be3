//! Postmark's webhooks, which show the credentials of the URL they were given.

use paceline_core::{
    Timestamp,
    feedback::{Kind, Source},
};
use serde::Deserialize;

use super::{
    Refusal,
    read::{Batch, Carried, Draft, Object, Text, id_of},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    record_type: Text,
    /// Of a bounce or a complaint.
    #[serde(default, rename = "ID")]
    id: Text,
    #[serde(default, rename = "Type")]
    kind: Text,
    #[serde(default, rename = "MessageID")]
    message_id: Text,
    #[serde(default)]
    metadata: Object<Carried>,
    #[serde(default)]
    recipient: Text,
    #[serde(default)]
    email: Text,
    #[serde(default)]
    details: Text,
    #[serde(default)]
    description: Text,
    #[serde(default)]
    delivered_at: Text,
    #[serde(default)]
    bounced_at: Text,
}

/// Reads the one event of a body.
pub(super) fn read(account: &str, body: &[u8], now: Timestamp) -> Result<Batch, Refusal> {
    Batch::one(body, |batch, event: Event| {
        let Some((kind, source)) = meaning(&event) else {
            batch.ignored += 1;
            return;
        };
        let recipient = event.recipient.given().unwrap_or(&event.email);
        let id = match event.id.given() {
            Some(id) => format!("{}/{id}", &*event.record_type),
            None => id_of(&format!("{}/{}", &*event.record_type, &*event.message_id), recipient),
        };
        batch.add(
            account,
            now,
            Draft {
                id,
                kind,
                source,
                recipient,
                message_id: event.metadata.paceline_id.given(),
                provider_id: event.message_id.given(),
                code: event.kind.given().unwrap_or(&event.record_type),
                status: None,
                enhanced_status: None,
                words: event.details.given().unwrap_or(&event.description),
                at: event.delivered_at.time().or(event.bounced_at.time()),
            },
        );
    })
}

fn meaning(event: &Event) -> Option<(Kind, Source)> {
    Some(match (&*event.record_type, &*event.kind) {
        ("Delivery", _) => (Kind::Delivered, Source::Receiver),
        ("SpamComplaint", _) | ("Bounce", "SpamComplaint") => (Kind::Complained, Source::Receiver),
        ("Bounce", "HardBounce" | "BadEmailAddress") => (Kind::HardBounce, Source::Receiver),
        ("Bounce", "ManuallyDeactivated") => (Kind::HardBounce, Source::Provider),
        ("Bounce", "Transient") => (Kind::Deferred, Source::Receiver),
        ("Bounce", "SMTPApiError" | "TemplateRenderingFailed" | "Unconfirmed") => (Kind::SoftBounce, Source::Provider),
        // Answers of the recipient, not of the server.
        (
            "Bounce",
            "Subscribe"
            | "Unsubscribe"
            | "AutoResponder"
            | "AddressChange"
            | "ChallengeVerification"
            | "OpenRelayTest"
            | "InboundError",
        ) => return None,
        ("Bounce", _) => (Kind::SoftBounce, Source::Receiver),
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
            let mut all =
                json!({"MessageID": "m1", "ServerID": 23, "Metadata": {"paceline_id": "order-1", "a": "b"}, "Tag": "t"});
            all.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
            let batch = read("main", all.to_string().as_bytes(), NOW).unwrap();
            assert_eq!(batch.unreadable, 0);
            batch.events.into_iter().next()
        };
        let bounce = |kind: &str| {
            json!({"RecordType": "Bounce", "ID": 42, "Type": kind, "TypeCode": 1, "Email": "jo@x.org", "Inactive": true,
                "Details": "smtp;550 5.1.1 unknown", "BouncedAt": "2027-01-15T02:00:00.1234567-05:00"})
        };
        for (event, kind, source, code, id) in [
            (bounce("HardBounce"), Kind::HardBounce, Source::Receiver, "HardBounce", "Bounce/42"),
            (bounce("SoftBounce"), Kind::SoftBounce, Source::Receiver, "SoftBounce", "Bounce/42"),
            (bounce("SpamNotification"), Kind::SoftBounce, Source::Receiver, "SpamNotification", "Bounce/42"),
            (bounce("Transient"), Kind::Deferred, Source::Receiver, "Transient", "Bounce/42"),
            (bounce("ManuallyDeactivated"), Kind::HardBounce, Source::Provider, "ManuallyDeactivated", "Bounce/42"),
            (
                json!({"RecordType": "SpamComplaint", "ID": 7, "Type": "SpamComplaint", "Email": "jo@x.org"}),
                Kind::Complained,
                Source::Receiver,
                "SpamComplaint",
                "SpamComplaint/7",
            ),
            (
                json!({"RecordType": "Delivery", "Recipient": "jo@x.org", "DeliveredAt": "2027-01-15T07:00:00Z", "Details": "250 OK"}),
                Kind::Delivered,
                Source::Receiver,
                "Delivery",
                id_of("Delivery/m1", "jo@x.org").as_str(),
            ),
        ] {
            let got = of(event.clone()).unwrap();
            assert_eq!(
                (got.kind, got.source, got.answer.code.as_str(), got.event_id.as_str()),
                (kind, source, code, id),
                "{event}"
            );
            assert_eq!((got.message_id.as_deref(), got.provider_id.as_deref()), (Some("order-1"), Some("m1")));
        }
        assert_eq!(of(bounce("HardBounce")).unwrap().enhanced_status.as_deref(), Some("5.1.1"));
        for ignored in
            [json!({"RecordType": "Open"}), json!({"RecordType": "SubscriptionChange"}), json!({}), bounce("AutoResponder")]
        {
            assert_eq!(of(ignored.clone()), None, "{ignored}");
        }
    }
}
