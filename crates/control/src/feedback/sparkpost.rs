//! SparkPost's webhooks, set up with basic authentication.

use paceline_core::{
    Timestamp,
    feedback::{Kind, Source, basic_code},
};
use serde::Deserialize;

use super::{
    Refusal,
    read::{Batch, Carried, Draft, Object, Text},
};

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    msys: Object<Msys>,
}

#[derive(Default, Deserialize)]
struct Msys {
    #[serde(default)]
    message_event: Object<Event>,
    #[serde(default)]
    gen_event: Object<Event>,
}

#[derive(Default, Deserialize)]
struct Event {
    #[serde(default, rename = "type")]
    kind: Text,
    #[serde(default)]
    event_id: Text,
    #[serde(default)]
    transmission_id: Text,
    #[serde(default)]
    rcpt_to: Text,
    #[serde(default)]
    raw_rcpt_to: Text,
    #[serde(default)]
    rcpt_meta: Object<Carried>,
    #[serde(default)]
    bounce_class: Text,
    #[serde(default)]
    error_code: Text,
    #[serde(default)]
    raw_reason: Text,
    #[serde(default)]
    reason: Text,
    #[serde(default)]
    timestamp: Text,
}

/// Reads a batch.
pub(super) fn read(account: &str, body: &[u8], now: Timestamp) -> Result<Batch, Refusal> {
    Batch::each(body, |batch, envelope: Envelope| {
        let msys = &*envelope.msys;
        let event = if msys.gen_event.kind.is_empty() { &*msys.message_event } else { &*msys.gen_event };
        let Some((kind, source)) = meaning(event) else {
            batch.ignored += 1;
            return;
        };
        let id = event.event_id.given().map(str::to_owned);
        batch.add(
            account,
            now,
            Draft {
                id: id.unwrap_or_else(|| format!("{}/{}/{}", &*event.kind, &*event.transmission_id, &*event.timestamp)),
                kind,
                source,
                recipient: event.raw_rcpt_to.given().unwrap_or(&event.rcpt_to),
                message_id: event.rcpt_meta.paceline_id.given(),
                provider_id: event.transmission_id.given(),
                code: event.bounce_class.given().unwrap_or(&event.kind),
                status: basic_code(&event.error_code),
                enhanced_status: None,
                words: event.raw_reason.given().unwrap_or(&event.reason),
                at: event.timestamp.time(),
            },
        );
    })
}

fn meaning(event: &Event) -> Option<(Kind, Source)> {
    Some(match &*event.kind {
        "delivery" => (Kind::Delivered, Source::Receiver),
        "delay" => (Kind::Deferred, Source::Receiver),
        "spam_complaint" => (Kind::Complained, Source::Receiver),
        "policy_rejection" | "generation_rejection" | "generation_failure" => (Kind::SoftBounce, Source::Provider),
        "bounce" | "out_of_band" => match &*event.bounce_class {
            // Invalid recipient; no recipient.
            "10" | "30" => (Kind::HardBounce, Source::Receiver),
            // Failed by the account's own settings, such as its suppression list.
            "25" | "26" => (Kind::SoftBounce, Source::Provider),
            // An answer of the recipient: automatic, subscribe, unsubscribe, challenge.
            "60" | "80" | "90" | "100" => return None,
            _ => (Kind::SoftBounce, Source::Receiver),
        },
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
        let of = |class: &str, event: serde_json::Value| {
            let mut all = json!({"event_id": "e1", "message_id": "x", "transmission_id": "t1", "rcpt_to": "jo@x.org",
                "rcpt_meta": {"paceline_id": "order-1"}, "timestamp": "1799999000"});
            all.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
            let mut msys = json!({});
            msys[class] = all;
            let batch = read("main", json!([{"msys": msys}]).to_string().as_bytes(), NOW).unwrap();
            assert_eq!(batch.unreadable, 0);
            batch.events.into_iter().next()
        };
        let bounce = |class: &str| json!({"type": "bounce", "bounce_class": class, "error_code": "550", "raw_reason": "550 5.1.1 unknown", "num_retries": "0"});
        for (class, event, kind, source, code, status) in [
            ("message_event", json!({"type": "delivery"}), Kind::Delivered, Source::Receiver, "delivery", None),
            (
                "message_event",
                json!({"type": "delay", "bounce_class": 21, "error_code": 421}),
                Kind::Deferred,
                Source::Receiver,
                "21",
                Some(421),
            ),
            ("message_event", bounce("10"), Kind::HardBounce, Source::Receiver, "10", Some(550)),
            ("message_event", bounce("22"), Kind::SoftBounce, Source::Receiver, "22", Some(550)),
            ("message_event", bounce("51"), Kind::SoftBounce, Source::Receiver, "51", Some(550)),
            ("message_event", bounce("25"), Kind::SoftBounce, Source::Provider, "25", Some(550)),
            ("message_event", json!({"type": "spam_complaint"}), Kind::Complained, Source::Receiver, "spam_complaint", None),
            (
                "gen_event",
                json!({"type": "generation_rejection", "error_code": "554"}),
                Kind::SoftBounce,
                Source::Provider,
                "generation_rejection",
                Some(554),
            ),
        ] {
            let got = of(class, event.clone()).unwrap();
            assert_eq!(
                (got.kind, got.source, got.answer.code.as_str(), got.answer.status),
                (kind, source, code, status),
                "{event}"
            );
            assert_eq!((got.message_id.as_deref(), got.provider_id.as_deref()), (Some("order-1"), Some("t1")));
            assert_eq!((got.event_id.as_str(), got.at), ("e1", Timestamp::from_secs(1_799_999_000)));
        }
        for (class, event) in [
            ("track_event", json!({"type": "open"})),
            ("message_event", json!({"type": "injection"})),
            ("message_event", bounce("60")),
        ] {
            assert_eq!(of(class, event.clone()), None, "{event}");
        }
        // What SparkPost sends when a webhook is set up.
        assert_eq!(read("main", br#"[{"msys":{}}]"#, NOW).unwrap().ignored, 1);
    }
}
