//! A broker within the process: the semantics of the real one, nothing durable. For tests, simulations and trials.
//!
//! Delays use tokio's clock, so they obey paused time. Clones share one broker and one connection to it;
//! [`MemoryBroker::connect`] makes another connection, as another process has, which can be lost by itself.

mod definitions;
mod queues;
pub(crate) mod routing;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use paceline_core::{Class, Timestamp};
use tokio::sync::watch;

use crate::{
    Applied, Broker, BrokerError, Consumer, Counters, Delivery, Drift, End, Names, Outgoing, PublishError, Purpose, Settle,
    State, Topology,
    consumer::Subscription,
    message::{Properties, Settlements, is_broker_header},
    topology::{self, Manifest, Queue},
};
use definitions::Leftover;
use queues::{Handed, Inner, Stored};

/// The in-process broker.
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

struct Shared {
    names: Names,
    inner: Mutex<Inner>,
}

/// One process's way to the broker.
struct Connection {
    id: u64,
    state: watch::Sender<State>,
    counters: Counters,
}

impl Connection {
    fn new(id: u64) -> Arc<Connection> {
        Arc::new(Connection { id, state: watch::Sender::new(State::Up), counters: Counters::default() })
    }
}

/// What consumers have moved so far, over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    pub deliveries: u64,
    pub acks: u64,
    /// Given back one by one, or with their channel.
    pub returns: u64,
    pub consumes: u64,
}

impl MemoryBroker {
    /// An empty broker; [`Broker::apply`] fills it.
    pub fn new(prefix: &str) -> MemoryBroker {
        let shared = Shared { names: Names::new(prefix), inner: Mutex::new(Inner::default()) };
        MemoryBroker { shared: Arc::new(shared), connection: Connection::new(0) }
    }

    /// Another connection to the same queues, with a state and counters of its own.
    #[must_use]
    pub fn connect(&self) -> MemoryBroker {
        let id = self.shared.lock().new_id();
        MemoryBroker { shared: self.shared.clone(), connection: Connection::new(id) }
    }

    /// What has been moved so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.lock().traffic
    }

    /// Makes the broker unreachable from this connection, as a lost connection does: its consumers end, what they held returns to its queues,
    /// and calls fail until [`MemoryBroker::restore`].
    pub fn lose(&self, why: &str) {
        self.connection.state.send_replace(State::Down { since: Timestamp::from(SystemTime::now()), why: why.to_owned() });
        self.shared.lock().lose_channels(self.connection.id, why);
    }

    /// Ends an outage.
    pub fn restore(&self) {
        self.connection.state.send_replace(State::Up);
    }

    /// The ids of all messages that are in some queue or held by some consumer, as their properties have them.
    pub fn ids(&self) -> Vec<String> {
        self.shared.lock().ids()
    }

    /// Messages held by consumers of `queue`, not settled.
    pub fn held(&self, queue: &str) -> usize {
        self.shared.lock().held(queue)
    }

    /// Adds a queue outside the topology, such as a flow's.
    pub fn declare(&self, queue: &Queue) {
        self.shared.lock().declare(queue);
    }

    fn reachable(&self) -> Result<(), String> {
        match &*self.connection.state.borrow() {
            State::Down { why, .. } => Err(why.clone()),
            State::Up | State::Blocked { .. } => Ok(()),
        }
    }

    fn reach(&self) -> Result<(), BrokerError> {
        self.reachable().map_err(BrokerError::Unreachable)
    }

    fn try_publish(&self, message: &Outgoing) -> Result<usize, PublishError> {
        self.reachable().map_err(PublishError::Unreachable)?;
        let (exchange, key) = self.shared.names.resolve(&message.to, &message.key);
        if key.len() > 255 {
            return Err(PublishError::Invalid("its routing key is longer than 255 bytes".to_owned()));
        }
        let straight = exchange.is_empty() && !self.shared.lock().exists(&key);
        if straight {
            let missing = BrokerError::Missing(format!("queue {key}"));
            return Err(PublishError::Unreachable(missing.to_string()));
        }
        let stored = Stored::new(&key, message.body.clone(), message.properties.clone());
        self.shared.route(&exchange, stored)
    }

    fn subscribe(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        self.reach()?;
        let id = self
            .shared
            .lock()
            .subscribe(self.connection.id, queue, prefetch)
            .ok_or_else(|| BrokerError::Missing(queue.to_owned()))?;
        let channel = Arc::new(Channel { shared: self.shared.clone(), id });
        Ok(Consumer::new(Box::new(MemorySubscription { channel })))
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn apply(&self, topology: &Topology) -> Result<Applied, BrokerError> {
        self.reach()?;
        let (mut applied, stale) = self.shared.lock().apply(topology)?;
        for Leftover { lane, mail } in stale {
            let moved = mail.len() as u64;
            for message in mail {
                // Only a refusing queue answers no, and the producers' exchange leads to none of ours.
                let _ = self.shared.route(&self.shared.names.producers(), message);
                self.connection.counters.count_published(Purpose::Drain);
            }
            if moved > 0 {
                applied.drained.push((lane.clone(), moved));
            }
            if self.shared.lock().remove_if_idle(&lane) {
                applied.removed.push(lane);
            } else {
                applied.left.push(lane);
            }
        }
        self.shared.lock().remember(Manifest::of(topology), &applied.left);
        Ok(applied)
    }

    async fn check(&self, topology: &Topology) -> Result<Vec<Drift>, BrokerError> {
        self.reach()?;
        Ok(self.shared.lock().check(topology))
    }

    async fn open_flow(&self, class: Class, flow: &str) -> Result<(), BrokerError> {
        self.reach()?;
        let (queue, binding) = topology::flow(&self.shared.names, class, flow);
        let mut inner = self.shared.lock();
        inner.declare(&queue);
        inner.bind(&binding);
        Ok(())
    }

    async fn flows(&self) -> Result<Vec<(Class, String)>, BrokerError> {
        self.reach()?;
        let prefix = self.shared.names.flows();
        let inner = self.shared.lock();
        let mut flows: Vec<_> = inner.queues.keys().filter_map(|name| name.strip_prefix(&prefix)).collect();
        flows.sort_unstable();
        Ok(flows.into_iter().filter_map(topology::flow_parts).collect())
    }

    async fn close_flow(&self, class: Class, flow: &str) -> Result<bool, BrokerError> {
        self.reach()?;
        Ok(self.shared.lock().remove_if_idle(&self.shared.names.flow(class, flow)))
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let result = self.try_publish(&message);
        match &result {
            Ok(_) => self.connection.counters.count_published(message.purpose),
            Err(_) => self.connection.counters.count_failed(),
        }
        result.map(|_| ())
    }

    fn emit(&self, message: Outgoing) {
        match self.try_publish(&message) {
            Ok(0) => self.connection.counters.count_unheard(),
            Ok(_) => self.connection.counters.count_published(message.purpose),
            Err(_) => self.connection.counters.count_dropped(),
        }
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        self.subscribe(queue, prefetch)
    }

    async fn listen(&self, pattern: &str) -> Result<Consumer, BrokerError> {
        self.reach()?;
        let queue = self.shared.lock().declare_listener(&self.shared.names.events(), pattern);
        self.subscribe(&queue, 1000)
    }

    async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        self.reach()?;
        self.shared.lock().depth(queue).ok_or_else(|| BrokerError::Missing(queue.to_owned()))
    }

    fn state(&self) -> watch::Receiver<State> {
        self.connection.state.subscribe()
    }

    fn counters(&self) -> &Counters {
        &self.connection.counters
    }

    async fn close(&self) {
        self.lose("closed");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere does not make queues of plain data unusable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into every queue that `exchange` leads to, and says how many.
    fn route(self: &Arc<Self>, exchange: &str, message: Stored) -> Result<usize, PublishError> {
        let mut inner = self.lock();
        let queues = inner.routes(exchange, &message.key);
        if queues.iter().any(|queue| inner.refuses(queue)) {
            return Err(PublishError::Refused);
        }
        for queue in &queues {
            if let Some(ttl) = inner.push(queue, message.clone()) {
                self.expire_later(queue.clone(), ttl);
            }
        }
        Ok(queues.len())
    }

    /// The same wait for every message of a rung, so that each timer takes the head.
    fn expire_later(self: &Arc<Self>, queue: String, ttl: Duration) {
        let weak = Arc::downgrade(self);
        let due = tokio::time::Instant::now() + ttl;
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            if let Some(shared) = weak.upgrade() {
                let expired = shared.lock().expire(&queue);
                if let Some((exchange, message)) = expired {
                    // Lanes and their alternates refuse nothing.
                    let _ = shared.route(&exchange, message);
                }
            }
        });
    }
}

impl Stored {
    fn new(key: &str, body: bytes::Bytes, mut properties: Properties) -> Stored {
        properties.headers.retain(|name, _| !is_broker_header(name));
        properties.content_type.get_or_insert_with(|| "application/json".to_owned());
        properties.timestamp = properties.timestamp.map(|t| Timestamp::from_secs(t.as_micros() / 1_000_000));
        Stored { key: key.to_owned(), body, properties, redelivered: false }
    }
}

/// Shared by a consumer and the settles of its deliveries; what is still held returns when the last of them goes.
struct Channel {
    shared: Arc<Shared>,
    id: u64,
}

impl Settlements for Channel {
    fn ack(&self, tag: u64) {
        self.shared.lock().settle(self.id, tag, false);
    }

    fn release(&self, tag: u64) {
        self.shared.lock().settle(self.id, tag, true);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.shared.lock().close_channel(self.id);
    }
}

struct MemorySubscription {
    channel: Arc<Channel>,
}

#[async_trait]
impl Subscription for MemorySubscription {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery, End>> {
        // Queues in memory never make a task wait: without this a busy lane would not let others run.
        let progress = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        let next = self.channel.shared.lock().poll_next(self.channel.id, cx);
        if next.is_ready() {
            progress.made_progress();
        }
        next.map_ok(|Handed { queue, tag, message }| Delivery {
            queue,
            routing_key: message.key,
            body: message.body,
            properties: message.properties,
            redelivered: message.redelivered,
            settle: Settle::new(tag, self.channel.clone()),
        })
    }

    async fn cancel(&mut self) {
        self.channel.shared.lock().unsubscribe(self.channel.id);
    }

    async fn resize(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        if self.channel.shared.lock().resize(self.channel.id, prefetch) {
            Ok(())
        } else {
            Err(BrokerError::Unreachable("the consumer has ended".to_owned()))
        }
    }

    async fn flush(&mut self) {}
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.channel.shared.lock().unsubscribe(self.channel.id);
    }
}
