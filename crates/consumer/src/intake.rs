//! What arrives: read, checked, classified, and sent where it belongs. No call to a provider, no limit yet.

use std::sync::Arc;

use paceline_broker::{Delivery, Properties, header_text};
use paceline_classifier::Classifier;
use paceline_core::{Domain, InvalidMessage, Journey, Lane, Message, Reason, Timestamp, lane::HOLD_MAX};
use paceline_limiter::BucketSpec;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    item::{Item, KEEP_PARSED, Origin},
    limits::Limits,
};

/// What to do with a delivery.
pub(crate) enum Verdict {
    /// Waits for its limits here.
    Ready(Item),
    /// As `Ready`, in a moment: too short a wait for the ladder.
    Soon(Item, Timestamp),
    /// Not due yet: to the ladder.
    NotYet(Item),
    /// In the wrong queue.
    Reroute(Item),
    /// Given up on before any call.
    Dead(Item, Reason),
    /// Not a message.
    Invalid(Delivery, Journey, InvalidMessage),
}

/// What reading a delivery needs to know.
pub(crate) struct Intake {
    pub(crate) classifier: Arc<Classifier>,
    pub(crate) limits: Arc<Limits>,
    /// Account names, in the order of preference.
    pub(crate) accounts: Vec<Arc<str>>,
    pub(crate) max_message_bytes: usize,
}

impl Intake {
    /// Judges one delivery. `lane` is the lane it was consumed from, `None` for the intake queue.
    pub(crate) fn judge(&self, delivery: Delivery, lane: Option<&Lane>, origin: Origin, now: Timestamp) -> Verdict {
        let journey = journey_of(&delivery.properties, now);
        let message_id = delivery.properties.message_id.as_deref();
        let message = match Message::parse(&delivery.body, message_id, self.max_message_bytes) {
            Ok(message) => message,
            Err(problem) => return Verdict::Invalid(delivery, journey, problem),
        };
        let account = match &message.account {
            None => 0,
            Some(name) => match self.accounts.iter().position(|a| **a == **name) {
                Some(found) => found,
                None => {
                    return Verdict::Invalid(delivery, journey, InvalidMessage::new("account", "no such account is configured"));
                }
            },
        };
        let classified = self.classifier.classify(&message, &delivery.routing_key);
        let buckets = self.limits.buckets(account, &message, &self.classifier);
        let not_before = journey.not_before.max(message.not_before);
        let mut item = self.item(delivery, origin, classified.lane, journey, account, buckets, message);
        if item.expired(now) {
            return Verdict::Dead(item, Reason::Expired);
        }
        if lane != Some(&item.lane) {
            return Verdict::Reroute(item);
        }
        match not_before {
            Some(due) if due > now => {
                item.journey.not_before = Some(due);
                if due.since(now) > HOLD_MAX { Verdict::NotYet(item) } else { Verdict::Soon(item, due) }
            }
            _ => Verdict::Ready(item),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "gathers what was found out, once")]
    fn item(
        &self,
        delivery: Delivery,
        origin: Origin,
        lane: Lane,
        journey: Journey,
        account: usize,
        buckets: Arc<[BucketSpec]>,
        message: Message,
    ) -> Item {
        let domain: Domain = message.domain().clone();
        Item {
            origin,
            arrived: tokio::time::Instant::now(),
            settle: delivery.settle,
            id: message.id.as_str().into(),
            lane,
            domain,
            digest: journey.digest.unwrap_or_else(|| xxh3_64(&delivery.body)),
            journey,
            expires_at: message.expires_at,
            account,
            buckets,
            cost: u32::try_from(message.recipient_count()).unwrap_or(u32::MAX),
            parsed: (delivery.body.len() <= KEEP_PARSED).then(|| Box::new(message)),
            body: delivery.body,
            properties: delivery.properties,
        }
    }
}

/// The journey so far, from the travelling headers.
pub(crate) fn journey_of(properties: &Properties, now: Timestamp) -> Journey {
    if properties.headers.is_empty() {
        return Journey::starting(properties.timestamp.unwrap_or(now).min(now));
    }
    Journey::from_headers(|name| header_text(&properties.headers, name), properties.timestamp, now)
}
