//! What arrives: read, checked, classified, and sent where it belongs. No call to a provider, no limit yet.

use std::{sync::Arc, time::Duration};

use paceline_broker::{Delivery, Properties, header_text};
use paceline_classifier::Classifier;
use paceline_core::{
    CancelSet, Domain, InvalidMessage, Journey, Lane, Message, Reason, SuppressionSet, Timestamp, lane::HOLD_MAX,
};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    flows::Labels,
    item::{End, Item, KEEP_PARSED, Origin},
    lane::LaneHandle,
    limits,
    routing::{Charges, Routing},
};

/// What to do with a delivery.
pub(crate) enum Verdict {
    /// Waits for its limits here.
    Ready(Box<Item>),
    /// As `Ready`, in a moment: too short a wait for the ladder.
    Soon(Box<Item>, Timestamp),
    /// Not due yet: to the ladder.
    NotYet(Box<Item>),
    /// In the wrong queue.
    Reroute(Box<Item>),
    /// Its time is over.
    Over(Box<Item>, Reason),
    /// An operator has ordered not to send it.
    Cancelled(Box<Item>),
    /// None of its recipients may be mailed.
    Suppressed(Box<Item>),
    /// Not a message.
    Invalid(Box<Invalid>),
}

/// A delivery that is not a message.
pub(crate) struct Invalid {
    pub(crate) delivery: Delivery,
    pub(crate) journey: Journey,
    pub(crate) problem: InvalidMessage,
    /// Where that much could be read.
    pub(crate) id: Option<String>,
}

/// What reading a delivery needs to know.
pub(crate) struct Intake {
    pub(crate) classifier: Arc<Classifier>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) labels: Labels,
    pub(crate) max_message_bytes: usize,
    pub(crate) cancels: watch::Receiver<Arc<CancelSet>>,
    pub(crate) suppressions: watch::Receiver<Arc<SuppressionSet>>,
}

impl Intake {
    /// Judges one delivery, consumed from the queue `from`.
    pub(crate) fn judge(
        &self,
        delivery: Delivery,
        from: &LaneHandle,
        origin: Origin,
        now: Timestamp,
        limiter_now_us: u64,
    ) -> Verdict {
        let journey = journey_of(&delivery.properties, now);
        let message_id = delivery.properties.message_id.as_deref();
        let message = match Message::parse(&delivery.body, message_id, self.max_message_bytes) {
            Ok(message) => message,
            Err(problem) => {
                let id = message_id.map(str::to_owned);
                return Verdict::Invalid(Box::new(Invalid { delivery, journey, problem, id }));
            }
        };
        let classified = self.classifier.classify(&message, &delivery.routing_key);
        let choices = match self.routing.choices(&message, &classified.lane, &journey) {
            Ok(choices) => choices,
            Err(problem) => {
                let id = Some(message.id);
                return Verdict::Invalid(Box::new(Invalid { delivery, journey, problem, id }));
            }
        };
        let (account, charges, limits) = self.routing.choose(&choices, &message, classified.class, limiter_now_us);
        let tenant = message.tenant.as_deref().map(|tenant| self.labels.of_tenant(tenant));
        if let Some(quota) = limits::too_large_for(&charges) {
            let problem = format!("more recipients than the quota {quota} ever allows");
            let (problem, id) = (InvalidMessage::new("to", problem), Some(message.id));
            return Verdict::Invalid(Box::new(Invalid { delivery, journey, problem, id }));
        }
        let suppressed = self.suppressions.borrow().holds_back_all(&message, classified.lane.class, now);
        let end = End::of(&message, &journey, limits.max_age(classified.lane.class));
        let turn = classified.spread.filter(|_| journey.attempts == 0).map(|s| turn_within(s, &message.id, &journey, end));
        let not_before = journey.not_before.max(message.not_before).max(turn);
        let mut item = self.item(delivery, origin, classified.lane, (journey, end), (choices, account, charges), message);
        item.limits = limits.version;
        item.tenant = tenant;
        item.flow.clone_from(&from.flow);
        item.suit_its_flow();
        if let Some(reason) = item.over(now) {
            return Verdict::Over(item, reason);
        }
        if item.cancelled(&self.cancels.borrow(), self.max_message_bytes, now) {
            return Verdict::Cancelled(item);
        }
        // Without waiting for a turn, and without taking one from mail that goes out.
        if suppressed {
            return Verdict::Suppressed(item);
        }
        if from.lane.as_ref() != Some(&item.lane) {
            return Verdict::Reroute(item);
        }
        match not_before {
            Some(due) if due > now => {
                item.journey.not_before = Some(due);
                let look = due.min(item.end.at);
                if look.since(now) > HOLD_MAX { Verdict::NotYet(item) } else { Verdict::Soon(item, look) }
            }
            _ => Verdict::Ready(item),
        }
    }

    fn item(
        &self,
        delivery: Delivery,
        origin: Origin,
        lane: Lane,
        (journey, end): (Journey, End),
        (choices, account, (buckets, cost)): (Arc<[usize]>, usize, Charges),
        message: Message,
    ) -> Box<Item> {
        let domain: Domain = message.domain().clone();
        Box::new(Item {
            origin,
            arrived: tokio::time::Instant::now(),
            settle: delivery.settle,
            id: message.id.as_str().into(),
            lane,
            domain,
            digest: journey.digest.unwrap_or_else(|| xxh3_64(&delivery.body)),
            journey,
            end,
            choices,
            account,
            refused_by: None,
            unclaimed: 0,
            pinned: message.account.is_some(),
            tenant: None,
            flow: None,
            counted: None,
            buckets,
            limits: 0,
            cost,
            recipients: message.recipient_count(),
            parsed: (delivery.body.len() <= KEEP_PARSED).then(|| Box::new(message)),
            body: delivery.body,
            properties: delivery.properties,
        })
    }
}

/// When a message goes whose stream is spread: anywhere in that time, always the same, and not as late as its time is over.
fn turn_within(spread: Duration, id: &str, journey: &Journey, end: End) -> Timestamp {
    let arrived = journey.enqueued_at;
    let life = end.at.since(arrived).mul_f64(0.9);
    let place = xxh3_64(id.as_bytes()) as f64 / u64::MAX as f64;
    arrived + spread.min(life).mul_f64(place.min(1.0))
}

/// The journey so far, from the travelling headers.
pub(crate) fn journey_of(properties: &Properties, now: Timestamp) -> Journey {
    if properties.headers.is_empty() {
        return Journey::starting(properties.timestamp.unwrap_or(now).min(now));
    }
    Journey::from_headers(|name| header_text(&properties.headers, name), properties.timestamp, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_stream_goes_evenly_over_its_time() {
        let arrived = Timestamp::from_secs(1_800_000_000);
        let journey = Journey::starting(arrived);
        let turn = |id: usize, extra: &str, max_age_s| {
            let body = format!(r#"{{"id":"campaign-{id}","from":"a@b.org","to":["u@gmail.com"],"text":"x"{extra}}}"#);
            let message = Message::parse(body.as_bytes(), None, 10_000).unwrap();
            let end = End::of(&message, &journey, Duration::from_secs(max_age_s));
            turn_within(Duration::from_secs(1_000), &message.id, &journey, end).since(arrived).as_millis()
        };
        let mut by_tenth = [0; 10];
        (0..10_000).for_each(|id| by_tenth[(turn(id, "", 10_000) / 100_001) as usize] += 1);
        assert!(by_tenth.iter().all(|n| (900..1_100).contains(n)), "{by_tenth:?}");
        assert_eq!(turn(7, "", 10_000), turn(7, "", 10_000));
        // 100 s after it arrived.
        let expires = r#","expires_at":"2027-01-15T08:01:40Z""#;
        assert!((0..1_000).all(|id| turn(id, expires, 10_000) <= 90_000));
        assert!((0..1_000).all(|id| turn(id, "", 200) <= 180_000), "nor as late as it is too old");
    }
}
