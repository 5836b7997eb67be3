//! What travels: deliveries in, publishes out.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use paceline_core::Timestamp;

/// A header's value. Kinds that have no place here (tables, arrays, floats) are dropped on arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    Bool(bool),
    Int(i64),
    Text(String),
    Bytes(Bytes),
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        HeaderValue::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        HeaderValue::Text(text)
    }
}

/// Headers by name.
pub type Headers = BTreeMap<String, HeaderValue>;

/// A header as text: numbers and booleans in decimal and words, bytes where they are UTF-8.
pub fn header_text<'a>(headers: &'a Headers, name: &str) -> Option<Cow<'a, str>> {
    match headers.get(name)? {
        HeaderValue::Text(text) => Some(Cow::Borrowed(text)),
        HeaderValue::Int(number) => Some(Cow::Owned(number.to_string())),
        HeaderValue::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
        HeaderValue::Bytes(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
    }
}

/// Whether the broker writes this header itself. Such headers never pass through: a republished `x-death` makes
/// RabbitMQ 3.x take the next expiry for a cycle and keep the message for ever.
pub fn is_broker_header(name: &str) -> bool {
    name.starts_with("x-death")
        || name.starts_with("x-first-death")
        || name.starts_with("x-last-death")
        || matches!(name, "x-delivery-count" | "x-acquired-count" | "CC" | "BCC")
}

/// The properties that are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pub message_id: Option<String>,
    pub content_type: Option<String>,
    /// Whole seconds, as AMQP has it.
    pub timestamp: Option<Timestamp>,
    pub headers: Headers,
}

/// A message that arrived and waits to be settled.
#[derive(Debug)]
pub struct Delivery {
    pub queue: Arc<str>,
    /// As last published: `<class>.<recipient-domain>` from a producer, `<class>.<destination>` within Paceline.
    pub routing_key: String,
    pub body: Bytes,
    pub properties: Properties,
    /// It was delivered before, to somebody.
    pub redelivered: bool,
    pub settle: Settle,
}

/// Where settled tags go: one per channel.
pub(crate) trait Settlements: Send + Sync {
    fn ack(&self, tag: u64);
    fn release(&self, tag: u64);
}

/// The right to settle one delivery, once.
///
/// Dropped unused, the message stays held until its consumer and every other `Settle` of it are gone, then it goes
/// back to its queue. After the connection or channel was lost both calls do nothing: the message is back already.
pub struct Settle {
    tag: u64,
    channel: Arc<dyn Settlements>,
}

impl Settle {
    pub(crate) fn new(tag: u64, channel: Arc<dyn Settlements>) -> Settle {
        Settle { tag, channel }
    }

    /// Done: the broker may forget the message. Returns at once; acks leave in batches within a few milliseconds.
    pub fn ack(self) {
        self.channel.ack(self.tag);
    }

    /// Back to the head of its queue. Call [`crate::Consumer::cancel`] first and release in delivery order, or others
    /// may overtake.
    pub fn release(self) {
        self.channel.release(self.tag);
    }
}

impl fmt::Debug for Settle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settle").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// Where a message is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The exchange producers use; key `<class>.<recipient-domain>`.
    Producers,
    /// To the lane that the key `<class>.<destination>` names.
    Lanes,
    /// For classification.
    Intake,
    /// Waits `rung_s` (one of [`paceline_core::lane::RUNGS_S`]) and comes back through [`Route::Lanes`] with its key.
    Delay {
        rung_s: u32,
    },
    Dead,
    Feedback,
    Events,
    /// Straight into the queue of this name; the key is not used.
    Queue(Arc<str>),
}

/// Why a message is published: the label of `paceline_broker_publishes_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// New mail, by `send`, the API or a test.
    Submit,
    /// From a wrong lane or the intake to the right lane.
    Reroute,
    /// Another attempt after a failed one.
    Retry,
    /// A wait that is not a retry: `not_before`, greylisting, a tail domain's turn.
    Delay,
    /// To the dead letters.
    Dead,
    /// To a flow's lane.
    Flow,
    /// A dead letter or spilled message brought back.
    Replay,
    /// Mail of a lane that configuration no longer names.
    Drain,
    Feedback,
    Event,
}

impl Purpose {
    pub const ALL: [Purpose; 10] = [
        Purpose::Submit,
        Purpose::Reroute,
        Purpose::Retry,
        Purpose::Delay,
        Purpose::Dead,
        Purpose::Flow,
        Purpose::Replay,
        Purpose::Drain,
        Purpose::Feedback,
        Purpose::Event,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Purpose::Submit => "submit",
            Purpose::Reroute => "reroute",
            Purpose::Retry => "retry",
            Purpose::Delay => "delay",
            Purpose::Dead => "dead",
            Purpose::Flow => "flow",
            Purpose::Replay => "replay",
            Purpose::Drain => "drain",
            Purpose::Feedback => "feedback",
            Purpose::Event => "event",
        }
    }
}

/// A message to publish. It is made persistent; without a content type it is JSON.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub to: Route,
    /// Routing key, at most 255 bytes.
    pub key: String,
    pub body: Bytes,
    pub properties: Properties,
    pub purpose: Purpose,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_text() {
        let headers = Headers::from([
            ("n".to_owned(), HeaderValue::Int(-3)),
            ("b".to_owned(), HeaderValue::Bool(true)),
            ("t".to_owned(), "x".into()),
            ("u".to_owned(), HeaderValue::Bytes(Bytes::from_static(b"\xff"))),
        ]);
        let text = |name| header_text(&headers, name);
        assert_eq!(text("n").as_deref(), Some("-3"));
        assert_eq!(text("b").as_deref(), Some("true"));
        assert_eq!(text("t").as_deref(), Some("x"));
        assert_eq!(text("u"), None);
        assert_eq!(text("absent"), None);
    }

    #[test]
    fn the_brokers_own_headers_are_known() {
        for name in ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC"] {
            assert!(is_broker_header(name), "{name}");
        }
        for name in ["x-paceline-attempts", "cc", "x-deal"] {
            assert!(!is_broker_header(name), "{name}");
        }
    }
}
