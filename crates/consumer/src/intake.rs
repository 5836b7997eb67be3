//! What arrives: read, checked, classified, and sent where it belongs. No call to a provider, no limit yet.

use std::sync::Arc;

use paceline_broker::{Delivery, Properties, header_text};
use paceline_classifier::Classifier;
use paceline_core::{
    CancelSet, Domain, InvalidMessage, Journey, Lane, Message, Reason, SuppressionSet, Timestamp, lane::HOLD_MAX,
};
use paceline_limiter::{BucketSpec, Cost};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    item::{Item, KEEP_PARSED, Origin},
    limits::{self, Limits},
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
    /// None of its recipients may be mailed.
    Suppressed(Item),
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
    pub(crate) cancels: watch::Receiver<Arc<CancelSet>>,
    pub(crate) suppressions: watch::Receiver<Arc<SuppressionSet>>,
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
        let charges = self.limits.of(account, &message, &self.classifier);
        if let Some(quota) = limits::too_large_for(&charges) {
            let problem = format!("more recipients than the quota {quota} ever allows");
            return Verdict::Invalid(delivery, journey, InvalidMessage::new("to", problem));
        }
        let suppressed = self.suppressions.borrow().holds_back_all(&message, classified.lane.class, now);
        let not_before = journey.not_before.max(message.not_before);
        let mut item = self.item(delivery, origin, classified.lane, journey, account, charges, message);
        if item.expired(now) {
            return Verdict::Dead(item, Reason::Expired);
        }
        if item.cancelled(&self.cancels.borrow(), self.max_message_bytes, now) {
            return Verdict::Dead(item, Reason::Cancelled);
        }
        // Without waiting for a turn, and without taking one from mail that goes out.
        if suppressed {
            return Verdict::Suppressed(item);
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
        (buckets, cost): (Arc<[BucketSpec]>, Cost),
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
            cost,
            recipients: message.recipient_count(),
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
