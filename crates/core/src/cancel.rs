//! Operators' orders not to send what waits: by message, tag, tenant or stream, until a time.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{Journey, Message, Timestamp};

/// Which mail an order is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum Selector {
    Id(String),
    Tag(String),
    Tenant(String),
    Stream(String),
}

impl Selector {
    /// `id`, `tag`, `tenant` or `stream`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Selector::Id(_) => "id",
            Selector::Tag(_) => "tag",
            Selector::Tenant(_) => "tenant",
            Selector::Stream(_) => "stream",
        }
    }

    pub fn value(&self) -> &str {
        match self {
            Selector::Id(v) | Selector::Tag(v) | Selector::Tenant(v) | Selector::Stream(v) => v,
        }
    }

    /// The inverse of [`Selector::kind`] and [`Selector::value`].
    pub fn new(kind: &str, value: String) -> Option<Selector> {
        Some(match kind {
            "id" => Selector::Id(value),
            "tag" => Selector::Tag(value),
            "tenant" => Selector::Tenant(value),
            "stream" => Selector::Stream(value),
            _ => return None,
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.value())
    }
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    pub selector: Selector,
    /// When it was given.
    pub since: Timestamp,
    /// Not in force from this time on.
    pub until: Timestamp,
}

/// The orders in force, ready to be asked for each message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CancelSet {
    orders: HashMap<Selector, (Timestamp, Timestamp)>,
}

impl CancelSet {
    /// Several orders with one selector count as one: given with the last of them, in force until the last has ended.
    pub fn new(orders: impl IntoIterator<Item = Cancel>) -> CancelSet {
        let mut set = CancelSet::default();
        for Cancel { selector, since, until } in orders {
            let known = set.orders.entry(selector).or_insert((since, until));
            *known = (known.0.max(since), known.1.max(until));
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// Whether `message` is not to be sent at `now`. What an operator replayed after the order was given goes out: the
    /// replay is the later word.
    pub fn covers(&self, message: &Message, journey: &Journey, now: Timestamp) -> bool {
        if self.orders.is_empty() {
            return false;
        }
        let holds = |selector: Selector| {
            self.orders
                .get(&selector)
                .is_some_and(|(since, until)| now < *until && !(journey.replay.is_some() && journey.enqueued_at > *since))
        };
        holds(Selector::Id(message.id.clone()))
            || message.tags.iter().any(|tag| holds(Selector::Tag(tag.clone())))
            || message.tenant.as_ref().is_some_and(|tenant| holds(Selector::Tenant(tenant.clone())))
            || message.stream.as_ref().is_some_and(|stream| holds(Selector::Stream(stream.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + s)
    }

    fn message() -> Message {
        let json = br#"{"id":"m1","from":"a@example.com","to":["b@example.com"],"text":"x",
            "tags":["spring","eu"],"tenant":"acme","stream":"digest"}"#;
        Message::parse(json, None, 10_000).unwrap()
    }

    fn set(selector: Selector) -> CancelSet {
        CancelSet::new([Cancel { selector, since: at(10), until: at(100) }])
    }

    #[test]
    fn each_selector_finds_its_mail_and_no_other() {
        let journey = Journey::starting(at(0));
        for kind_value in [("id", "m1"), ("tag", "eu"), ("tag", "spring"), ("tenant", "acme"), ("stream", "digest")] {
            let selector = Selector::new(kind_value.0, kind_value.1.to_owned()).unwrap();
            assert_eq!((selector.kind(), selector.value()), kind_value);
            assert!(set(selector).covers(&message(), &journey, at(50)), "{kind_value:?}");
        }
        for kind_value in [("id", "acme"), ("tag", "m1"), ("tenant", "eu"), ("stream", "spring"), ("id", "M1")] {
            let selector = Selector::new(kind_value.0, kind_value.1.to_owned()).unwrap();
            assert!(!set(selector).covers(&message(), &journey, at(50)), "{kind_value:?}");
        }
        assert_eq!(Selector::new("subject", "x".into()), None);
    }

    #[test]
    fn an_order_ends_and_covers_mail_that_came_after_it() {
        let set = set(Selector::Tag("eu".into()));
        assert!(set.covers(&message(), &Journey::starting(at(0)), at(99)));
        assert!(set.covers(&message(), &Journey::starting(at(60)), at(99)));
        assert!(!set.covers(&message(), &Journey::starting(at(0)), at(100)));
    }

    #[test]
    fn a_replay_made_after_the_order_goes_out() {
        let set = set(Selector::Tag("eu".into()));
        let replayed = |s| Journey { replay: Some("r-1".into()), ..Journey::starting(at(s)) };
        assert!(set.covers(&message(), &replayed(5), at(50)));
        assert!(!set.covers(&message(), &replayed(11), at(50)));
    }

    #[test]
    fn the_latest_of_several_orders_counts() {
        let order = |since, until| Cancel { selector: Selector::Id("m1".into()), since: at(since), until: at(until) };
        let set = CancelSet::new([order(10, 200), order(50, 100)]);
        assert!(set.covers(&message(), &Journey::starting(at(0)), at(150)));
        let replayed = Journey { replay: Some("r-1".into()), ..Journey::starting(at(20)) };
        assert!(set.covers(&message(), &replayed, at(150)));
    }
}
