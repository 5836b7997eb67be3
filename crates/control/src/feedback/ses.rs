//! Events of Amazon SES, as they stand in the message of an SNS notification.

use paceline_core::{
    Timestamp,
    feedback::{Kind, Source},
};
use serde::Deserialize;

use super::{
    Refusal,
    read::{Batch, Draft, Object, Text},
};

/// Recipients of one message that are told apart.
const MAX_RECIPIENTS: usize = 50;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    /// Of a configuration set's destination.
    #[serde(default)]
    event_type: Text,
    /// Of an identity's notifications.
    #[serde(default)]
    notification_type: Text,
    #[serde(default)]
    mail: Object<Mail>,
    #[serde(default)]
    bounce: Object<Bounce>,
    #[serde(default)]
    complaint: Object<Complaint>,
    #[serde(default)]
    delivery: Object<Delivery>,
    #[serde(default)]
    delivery_delay: Object<Delay>,
    #[serde(default)]
    reject: Object<Reject>,
    #[serde(default)]
    failure: Object<Failure>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mail {
    #[serde(default)]
    message_id: Text,
    #[serde(default)]
    timestamp: Text,
    #[serde(default)]
    destination: Vec<Text>,
    #[serde(default)]
    tags: Object<Tags>,
}

#[derive(Default, Deserialize)]
struct Tags {
    #[serde(default)]
    paceline_id: Vec<Text>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bounce {
    #[serde(default)]
    bounce_type: Text,
    #[serde(default)]
    bounce_sub_type: Text,
    #[serde(default)]
    bounced_recipients: Vec<Recipient>,
    #[serde(default)]
    timestamp: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recipient {
    #[serde(default)]
    email_address: Text,
    #[serde(default)]
    status: Text,
    #[serde(default)]
    diagnostic_code: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complaint {
    #[serde(default)]
    complained_recipients: Vec<Recipient>,
    #[serde(default)]
    complaint_feedback_type: Text,
    #[serde(default)]
    complaint_sub_type: Text,
    #[serde(default)]
    timestamp: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delivery {
    #[serde(default)]
    recipients: Vec<Text>,
    #[serde(default)]
    smtp_response: Text,
    #[serde(default)]
    timestamp: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delay {
    #[serde(default)]
    delay_type: Text,
    #[serde(default)]
    delayed_recipients: Vec<Recipient>,
    #[serde(default)]
    timestamp: Text,
}

#[derive(Default, Deserialize)]
struct Reject {
    #[serde(default)]
    reason: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    #[serde(default)]
    error_message: Text,
}

/// Reads the one event of a notification, for each recipient it is about. `id` is the notification's.
pub(super) fn read(account: &str, id: &str, message: &str, now: Timestamp) -> Result<Batch, Refusal> {
    let about = |batch: &mut Batch, event: Event| {
        let Some(told) = told(&event) else {
            batch.ignored += 1;
            return;
        };
        if told.recipients.is_empty() {
            batch.unreadable += 1;
        }
        for (i, (recipient, status, words)) in told.recipients.into_iter().take(MAX_RECIPIENTS).enumerate() {
            let draft = Draft {
                id: format!("{id}/{i}"),
                kind: told.kind,
                source: told.source,
                recipient,
                message_id: event.mail.tags.paceline_id.first().and_then(Text::given),
                provider_id: event.mail.message_id.given(),
                code: told.code,
                status: None,
                enhanced_status: status,
                words,
                at: told.at.time().or(event.mail.timestamp.time()),
            };
            batch.add(account, now, draft);
        }
    };
    // Amazon tests a new subscription with a message that is a sentence.
    if !message.trim_start().starts_with('{') {
        return Ok(Batch { ignored: 1, ..Batch::default() });
    }
    match Batch::one(message.as_bytes(), about) {
        // The notification itself is genuine: asking for it again would bring the same.
        Err(Refusal::Malformed) => Ok(Batch { unreadable: 1, ..Batch::default() }),
        read => read,
    }
}

struct Told<'a> {
    kind: Kind,
    source: Source,
    code: &'a str,
    /// Each with its enhanced status and the server's words.
    recipients: Vec<(&'a str, Option<&'a str>, &'a str)>,
    at: &'a Text,
}

fn told(event: &Event) -> Option<Told<'_>> {
    fn each(recipients: &[Recipient]) -> Vec<(&str, Option<&str>, &str)> {
        recipients.iter().map(|r| (&r.email_address as &str, r.status.given(), &r.diagnostic_code as &str)).collect()
    }
    fn all<'a>(recipients: &'a [Text], words: &'a str) -> Vec<(&'a str, Option<&'a str>, &'a str)> {
        recipients.iter().map(|r| (r as &str, None, words)).collect()
    }
    let mail = &*event.mail;
    Some(match event.event_type.given().unwrap_or(&event.notification_type) {
        "Delivery" => Told {
            kind: Kind::Delivered,
            source: Source::Receiver,
            code: "Delivery",
            recipients: all(&event.delivery.recipients, &event.delivery.smtp_response),
            at: &event.delivery.timestamp,
        },
        "DeliveryDelay" => Told {
            kind: Kind::Deferred,
            source: Source::Receiver,
            code: &event.delivery_delay.delay_type,
            recipients: each(&event.delivery_delay.delayed_recipients),
            at: &event.delivery_delay.timestamp,
        },
        "Bounce" => {
            let (kind, source) = bounced(&event.bounce);
            let code = event.bounce.bounce_sub_type.given().unwrap_or(&event.bounce.bounce_type);
            Told { kind, source, code, recipients: each(&event.bounce.bounced_recipients), at: &event.bounce.timestamp }
        }
        // A report that a mail is no spam, and Amazon's own refusal to send to who complained once, are no complaints.
        "Complaint" if &*event.complaint.complaint_feedback_type == "not-spam" => return None,
        "Complaint" => {
            let listed = &*event.complaint.complaint_sub_type == "OnAccountSuppressionList";
            Told {
                kind: if listed { Kind::HardBounce } else { Kind::Complained },
                source: if listed { Source::Provider } else { Source::Receiver },
                code: event.complaint.complaint_feedback_type.given().unwrap_or("Complaint"),
                recipients: each(&event.complaint.complained_recipients),
                at: &event.complaint.timestamp,
            }
        }
        "Reject" => Told {
            kind: Kind::SoftBounce,
            source: Source::Provider,
            code: "Reject",
            recipients: all(&mail.destination, &event.reject.reason),
            at: &mail.timestamp,
        },
        "Rendering Failure" => Told {
            kind: Kind::SoftBounce,
            source: Source::Provider,
            code: "Rendering Failure",
            recipients: all(&mail.destination, &event.failure.error_message),
            at: &mail.timestamp,
        },
        _ => return None,
    })
}

fn bounced(bounce: &Bounce) -> (Kind, Source) {
    match (&*bounce.bounce_type, &*bounce.bounce_sub_type) {
        ("Permanent", "OnAccountSuppressionList" | "Suppressed") => (Kind::HardBounce, Source::Provider),
        // The mail is at fault, not the recipient.
        ("Permanent", "MessageTooLarge" | "ContentRejected" | "AttachmentRejected") => (Kind::SoftBounce, Source::Receiver),
        ("Permanent", _) => (Kind::HardBounce, Source::Receiver),
        _ => (Kind::SoftBounce, Source::Receiver),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn read_value(event: serde_json::Value) -> Batch {
        let mut all = json!({"mail": {"messageId": "m1", "timestamp": "2027-01-15T07:00:00.000Z", "destination": ["jo@x.org"],
            "tags": {"ses:configuration-set": ["c"], "paceline_id": ["order-1"]}, "headers": [{"name": "To", "value": "jo@x.org"}]}});
        all.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        read("main", "n1", &all.to_string(), NOW).unwrap()
    }

    #[test]
    fn events() {
        let bounce = |kind: &str, sub: &str| {
            json!({"eventType": "Bounce", "bounce": {"bounceType": kind, "bounceSubType": sub, "timestamp": "2027-01-15T07:00:01Z",
                "bouncedRecipients": [{"emailAddress": "\"Jo\" <jo@x.org>", "action": "failed", "status": "5.1.1",
                    "diagnosticCode": "smtp; 550 5.1.1 user unknown"}]}})
        };
        let complaint = |more: serde_json::Value| {
            let mut complaint =
                json!({"complainedRecipients": [{"emailAddress": "jo@x.org"}], "timestamp": "2027-01-15T07:00:01Z"});
            complaint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"notificationType": "Complaint", "complaint": complaint})
        };
        for (event, kind, source, code, status) in [
            (
                json!({"eventType": "Delivery", "delivery": {"recipients": ["jo@x.org"], "smtpResponse": "250 2.6.0 Message received"}}),
                Kind::Delivered,
                Source::Receiver,
                "Delivery",
                Some("2.6.0"),
            ),
            (
                json!({"eventType": "DeliveryDelay", "deliveryDelay": {"delayType": "TransientCommunicationFailure",
                    "delayedRecipients": [{"emailAddress": "jo@x.org", "status": "4.4.1", "diagnosticCode": "smtp; 421 4.4.1 later"}]}}),
                Kind::Deferred,
                Source::Receiver,
                "TransientCommunicationFailure",
                Some("4.4.1"),
            ),
            (bounce("Permanent", "General"), Kind::HardBounce, Source::Receiver, "General", Some("5.1.1")),
            (
                bounce("Permanent", "OnAccountSuppressionList"),
                Kind::HardBounce,
                Source::Provider,
                "OnAccountSuppressionList",
                Some("5.1.1"),
            ),
            (bounce("Transient", "MailboxFull"), Kind::SoftBounce, Source::Receiver, "MailboxFull", Some("5.1.1")),
            (bounce("Transient", "ContentRejected"), Kind::SoftBounce, Source::Receiver, "ContentRejected", Some("5.1.1")),
            (bounce("Undetermined", "Undetermined"), Kind::SoftBounce, Source::Receiver, "Undetermined", Some("5.1.1")),
            (complaint(json!({"complaintFeedbackType": "abuse"})), Kind::Complained, Source::Receiver, "abuse", None),
            (complaint(json!({"complaintSubType": null})), Kind::Complained, Source::Receiver, "Complaint", None),
            (
                complaint(json!({"complaintSubType": "OnAccountSuppressionList"})),
                Kind::HardBounce,
                Source::Provider,
                "Complaint",
                None,
            ),
            (
                json!({"eventType": "Reject", "reject": {"reason": "Bad content"}}),
                Kind::SoftBounce,
                Source::Provider,
                "Reject",
                None,
            ),
        ] {
            let batch = read_value(event.clone());
            let [got] = batch.events.as_slice() else { panic!("{event}: {batch:?}") };
            let seen = (got.kind, got.source, got.answer.code.as_str(), got.enhanced_status.as_deref());
            assert_eq!(seen, (kind, source, code, status), "{event}");
            assert_eq!((got.message_id.as_deref(), got.provider_id.as_deref()), (Some("order-1"), Some("m1")));
            assert_eq!((got.recipient.to_string().as_str(), got.event_id.as_str()), ("jo@x.org", "n1/0"));
        }
        for ignored in [
            json!({"eventType": "Send"}),
            json!({"eventType": "Open"}),
            json!({"notificationType": "AmazonSnsSubscriptionSucceeded"}),
            complaint(json!({"complaintFeedbackType": "not-spam"})),
        ] {
            assert_eq!(read_value(ignored.clone()).ignored, 1, "{ignored}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_counted() {
        let count = |message: &str| {
            let batch = read("main", "n1", message, NOW).unwrap();
            (batch.events.len(), batch.ignored, batch.unreadable)
        };
        assert_eq!(count("Successfully validated SNS topic for Amazon SES event publishing."), (0, 1, 0));
        for bad in
            [r#"{"eventType":"Bounce""#, r#"{"eventType":"Bounce"}"#, r#"{"eventType":"Delivery","delivery":{"recipients":7}}"#]
        {
            assert_eq!(count(bad), (0, 0, 1), "{bad}");
        }
    }
}
