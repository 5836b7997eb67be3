//! RabbitMQ 3.10 to 4.x, through lapin.
//!
//! Two connections: one to consume (a channel for each consumer) and to administer, one to publish (confirmed mail on
//! a few channels, events on another), because RabbitMQ stops reading a connection that publishes while an alarm is
//! on, acks included. Each is kept up by a task of its own over the given addresses; lapin's own recovery is off: it
//! does not cover channels.

mod acks;
mod address;
mod admin;
mod channel;
mod confirm;
mod convert;
mod declare;
mod drain;
mod events;
mod flows;
mod link;
mod publisher;
mod subscription;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use paceline_core::Class;
use tokio::sync::watch;

use crate::{Applied, Broker, BrokerError, Consumer, Counters, Drift, Names, Outgoing, PublishError, State, Topology};
use address::Address;
pub use address::BadAddress;
use admin::Admin;
use channel::Channels;
use events::Events;
use link::Link;
use publisher::Publisher;

/// How long one administrative round trip may take.
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// How long a call waits for a connection that is down before it says so.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Where the broker is and what this process is called there.
#[derive(Clone)]
pub struct Options {
    /// `amqp://` or `amqps://`, with credentials and virtual host; tried in turn, from a random one on. With `amqps`
    /// the server's certificate is verified against the system's roots.
    pub urls: Vec<String>,
    /// Of every name on the broker, see [`Names`].
    pub prefix: String,
    /// Shown in RabbitMQ's list of connections, e.g. `paceline worker 7f3a`.
    pub name: String,
}

/// A RabbitMQ broker, or cluster.
pub struct RabbitMq {
    names: Names,
    consuming: Arc<Link>,
    publishing: Arc<Link>,
    publisher: Publisher,
    events: Events,
    channels: Arc<Channels>,
    admin: Admin,
    counters: Arc<Counters>,
    state: watch::Receiver<State>,
}

impl RabbitMq {
    /// Starts connecting and returns at once; [`Broker::wait_until_up`] waits. Needs a tokio runtime.
    pub fn start(options: Options) -> Result<RabbitMq, BadAddress> {
        let addresses = options.urls.iter().map(|url| Address::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(BadAddress::none());
        }
        let names = Names::new(&options.prefix);
        let counters = Arc::new(Counters::default());
        let consuming = Link::start(addresses.clone(), format!("{} consume", options.name));
        let publishing = Link::start(addresses, format!("{} publish", options.name));
        let state = link::combined_state(&consuming, &publishing);
        let publisher = Publisher::new(names.clone(), publishing.clone(), counters.clone());
        let events = Events::start(names.events(), publishing.clone(), counters.clone());
        let channels = Arc::new(Channels::default());
        let admin = Admin::new(names.clone(), consuming.clone());
        Ok(RabbitMq { names, consuming, publishing, publisher, events, channels, admin, counters, state })
    }
}

#[async_trait]
impl Broker for RabbitMq {
    async fn apply(&self, topology: &Topology) -> Result<Applied, BrokerError> {
        admin::apply(self, topology).await
    }

    async fn check(&self, topology: &Topology) -> Result<Vec<Drift>, BrokerError> {
        admin::check(self, topology).await
    }

    async fn open_flow(&self, class: Class, flow: &str) -> Result<(), BrokerError> {
        flows::open(self, class, flow).await
    }

    async fn flows(&self) -> Result<Vec<(Class, String)>, BrokerError> {
        flows::list(self).await
    }

    async fn close_flow(&self, class: Class, flow: &str) -> Result<bool, BrokerError> {
        flows::close(self, class, flow).await
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.publisher.publish(message).await
    }

    fn emit(&self, message: Outgoing) {
        self.events.emit(message);
    }

    fn heard(&self, key: &str) -> bool {
        self.events.heard(key)
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        subscription::consume(&self.consuming, &self.channels, queue, prefetch).await
    }

    async fn listen(&self, pattern: &str) -> Result<Consumer, BrokerError> {
        subscription::listen(&self.consuming, &self.channels, &self.names.events(), pattern).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        self.admin.depth(queue).await
    }

    fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    async fn close(&self) {
        self.channels.settle_down().await;
        self.events.close().await;
        self.publishing.close().await;
        self.consuming.close().await;
    }
}

/// The first poll of a lapin call queues its frames on the connection; the call completes once they are written.
async fn poll_once<F: Future + Unpin>(call: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *call).poll(cx))).await
}
