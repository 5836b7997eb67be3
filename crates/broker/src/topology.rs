//! The exchanges, queues and bindings as data, and their names. Pure.
//!
//! Producers publish to `<prefix>` with `<class>.<recipient-domain>`; each domain of a destination is bound straight to
//! its lanes, other domains fall to `<prefix>.tail` by alternate exchange, and what names no class to `<prefix>.intake`.
//! Nothing is unroutable: every exchange that mail is published to ends, by alternates, in a queue.
//!
//! Queue arguments cannot change once declared, so these are chosen to hold on RabbitMQ 3.10 to 4.x alike.

mod manifest;
mod names;

use std::{collections::BTreeMap, fmt};

use paceline_core::{
    Class, Lane,
    lane::{RUNGS_S, TAIL, flow_key},
};

pub(crate) use manifest::Manifest;
pub use names::Names;

/// Above any count a message reaches. A limit must be set: without one, returned messages go to the tail on 3.x, and
/// after an upgrade to 4.x a limit of 20 would apply; with one, they return to the head.
const DELIVERY_LIMIT: i64 = 2_000_000_000;

/// What a rung holds at most before it answers no. At-least-once dead-lettering demands a refusing queue; the figure
/// only bounds the broker's memory, about 100 bytes a message.
const RUNG_MAX_MESSAGES: i64 = 5_000_000;

/// Kinds of exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    Direct,
    Fanout,
    Topic,
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    pub name: String,
    pub kind: ExchangeKind,
    /// Where messages go that no binding takes.
    pub alternate: Option<String>,
}

/// A queue argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    Int(i64),
    Text(String),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Argument::Text(text.to_owned())
    }
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    pub arguments: BTreeMap<&'static str, Argument>,
}

/// What `key` published to `exchange` reaches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    pub exchange: String,
    pub queue: String,
    pub key: String,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "binding of {} to {} by `{}`", self.queue, self.exchange, self.key)
    }
}

/// Everything that must exist on the broker. Exchanges are listed with alternates before those that name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub names: Names,
    pub exchanges: Vec<Exchange>,
    pub queues: Vec<Queue>,
    pub bindings: Vec<Binding>,
    /// The queues that are lanes.
    pub lanes: Vec<String>,
}

impl Topology {
    /// The topology for these destinations, each with its recipient domains in lower case; `tail` is always there.
    pub fn new<N, D>(prefix: &str, destinations: impl IntoIterator<Item = (N, D)>) -> Topology
    where
        N: AsRef<str>,
        D: IntoIterator,
        D::Item: AsRef<str>,
    {
        let names = Names::new(prefix);
        let mut t =
            Topology { names: names.clone(), exchanges: Vec::new(), queues: Vec::new(), bindings: Vec::new(), lanes: Vec::new() };
        t.intake();
        t.exchange(names.tail(), ExchangeKind::Topic, Some(names.intake()));
        t.exchange(names.producers(), ExchangeKind::Direct, Some(names.tail()));
        // A lane that is no longer there must not swallow what comes back from the ladder.
        t.exchange(names.lanes(), ExchangeKind::Direct, Some(names.intake()));
        t.exchange(names.events(), ExchangeKind::Topic, None);
        t.destination(TAIL, std::iter::empty::<&str>());
        for class in Class::ALL {
            let queue = names.lane(&Lane::new(class, TAIL));
            t.bind(names.tail(), queue, format!("{class}.#"));
        }
        for (name, domains) in destinations {
            t.destination(name.as_ref(), domains);
        }
        for rung_s in RUNGS_S {
            t.rung(rung_s);
        }
        t.queues.push(waiting_queue(names.dead()));
        t.queues.push(waiting_queue(names.feedback()));
        t.queues.push(refusing_queue(names.refuse()));
        t
    }

    fn exchange(&mut self, name: String, kind: ExchangeKind, alternate: Option<String>) {
        self.exchanges.push(Exchange { name, kind, alternate });
    }

    fn bind(&mut self, exchange: String, queue: String, key: String) {
        self.bindings.push(Binding { exchange, queue, key });
    }

    fn intake(&mut self) {
        let name = self.names.intake();
        self.exchange(name.clone(), ExchangeKind::Fanout, None);
        self.queues.push(waiting_queue(name.clone()));
        self.bind(name.clone(), name, String::new());
    }

    fn destination<D: AsRef<str>>(&mut self, destination: &str, domains: impl IntoIterator<Item = D>) {
        let lanes = Class::ALL.map(|class| Lane::new(class, destination));
        for lane in &lanes {
            let queue = self.names.lane(lane);
            self.queues.push(waiting_queue(queue.clone()));
            self.lanes.push(queue.clone());
            self.bind(self.names.lanes(), queue, lane.to_string());
        }
        for domain in domains {
            for lane in &lanes {
                let key = format!("{}.{}", lane.class, domain.as_ref());
                self.bind(self.names.producers(), self.names.lane(lane), key);
            }
        }
    }

    fn rung(&mut self, rung_s: u32) {
        let name = self.names.delay(rung_s);
        self.exchange(name.clone(), ExchangeKind::Fanout, None);
        // No dead-letter routing key: the message keeps the one that names its lane.
        let arguments = BTreeMap::from([
            ("x-queue-type", "quorum".into()),
            ("x-message-ttl", Argument::Int(i64::from(rung_s) * 1000)),
            ("x-overflow", "reject-publish".into()),
            ("x-max-length", Argument::Int(RUNG_MAX_MESSAGES)),
            ("x-dead-letter-strategy", "at-least-once".into()),
            ("x-dead-letter-exchange", Argument::Text(self.names.lanes())),
        ]);
        self.queues.push(Queue { name: name.clone(), arguments });
        self.bind(name.clone(), name, String::new());
    }
}

/// A quorum queue that messages wait in and return to the head of: lanes, intake, dead letters, feedback. Without a
/// length limit: a full lane would hold back every other message on the ladder's rungs.
pub fn waiting_queue(name: String) -> Queue {
    let arguments = BTreeMap::from([("x-queue-type", "quorum".into()), ("x-delivery-limit", Argument::Int(DELIVERY_LIMIT))]);
    Queue { name, arguments }
}

/// A flow's queue and what leads to it from [`Names::lanes`], to be declared on demand.
///
/// Not with `x-expires`: RabbitMQ would delete it with what it holds when no worker has been there for that long. Workers
/// remove it ([`crate::Broker::close_flow`]) once it is empty and long unused.
pub fn flow(names: &Names, class: Class, flow: &str) -> (Queue, Binding) {
    let queue = waiting_queue(names.flow(class, flow));
    let binding = Binding { exchange: names.lanes(), queue: queue.name.clone(), key: flow_key(class, flow) };
    (queue, binding)
}

/// `<class>.<flow>` taken apart.
pub(crate) fn flow_parts(name: &str) -> Option<(Class, String)> {
    let (class, flow) = name.split_once('.')?;
    Some((class.parse().ok()?, flow.to_owned()))
}

/// Answers no to every message. Bound to a producer's key, it makes the broker refuse that key.
fn refusing_queue(name: String) -> Queue {
    let arguments = BTreeMap::from([("x-max-length", Argument::Int(0)), ("x-overflow", "reject-publish".into())]);
    Queue { name, arguments }
}

/// One difference between the broker and a topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// An exchange, queue or binding that is not there.
    Missing(String),
    /// It exists with another kind or other arguments.
    Different { name: String, detail: String },
    /// A lane or binding applied earlier that the topology no longer names.
    Unnamed(String),
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Drift::Missing(what) => write!(f, "{what} is missing"),
            Drift::Different { name, detail } => write!(f, "{name} differs: {detail}"),
            Drift::Unnamed(what) => write!(f, "{what} is no longer named by the configuration"),
        }
    }
}

/// What applying a topology did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Exchanges, queues and bindings that were made.
    pub created: Vec<String>,
    /// How many were there already.
    pub present: usize,
    /// Bindings and queues that are no longer named and were removed.
    pub removed: Vec<String>,
    /// Lanes that are no longer named, with the messages moved out of each.
    pub drained: Vec<(String, u64)>,
    /// Lanes that are no longer named but still have consumers or mail; apply again later.
    pub left: Vec<String>,
}

impl Applied {
    /// Whether the broker already was as it should be.
    pub fn nothing_changed(&self) -> bool {
        self.created.is_empty() && self.removed.is_empty() && self.drained.is_empty()
    }
}

#[cfg(test)]
mod tests;
