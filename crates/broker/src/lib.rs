//! The message broker port, its adapters, and the topology as data.
//!
//! [`Broker`] is what the rest of Paceline knows of a broker: queues that are consumed with a prefetch, settled by
//! [`Settle`], and published to with a confirm. [`rabbitmq`] is the real one, [`spool`] the embedded
//! one in a file, [`memory`] keeps everything in the process. [`topology`] says which exchanges, queues and bindings there
//! are, and nothing else in the code base does.
//!
//! Promises, kept by every adapter and checked by one conformance suite:
//! - [`Broker::publish`] returns `Ok` only when the broker has taken responsibility for the message.
//! - A delivery that is not acked comes back, whatever happens to this process.
//! - [`Consumer::cancel`] followed by [`Settle::release`] in delivery order puts mail back at the *head* of its queue,
//!   in that order.
//! - Nothing waits for a broker that is away: calls fail within seconds and the adapter reconnects by itself.

mod consumer;
mod counters;
mod error;
pub mod memory;
mod message;
pub mod rabbitmq;
pub mod spool;
pub mod topology;

use std::time::Duration;

use async_trait::async_trait;
use paceline_core::{Class, Timestamp};
use tokio::sync::watch;

pub use consumer::{Consumer, End};
pub use counters::Counters;
pub use error::{BrokerError, PublishError};
pub use message::{Delivery, HeaderValue, Headers, Outgoing, Properties, Purpose, Route, Settle, header_text, is_broker_header};
pub use topology::{Applied, Drift, Names, Topology};

/// A message broker.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Declares what is missing, moves the mail of lanes that are no longer named to where it now belongs, and
    /// removes those lanes once empty. Running it twice changes nothing the second time.
    async fn apply(&self, topology: &Topology) -> Result<Applied, BrokerError>;

    /// How the broker differs from `topology`; empty when it does not. Changes nothing.
    async fn check(&self, topology: &Topology) -> Result<Vec<Drift>, BrokerError>;

    /// Makes sure that a flow has its queue, and that [`Route::Lanes`] with [`paceline_core::lane::flow_key`] leads there.
    /// Until it does, such a key leads to the intake, as that of a lane does which is not there.
    async fn open_flow(&self, class: Class, flow: &str) -> Result<(), BrokerError>;

    /// Every flow that was opened and not closed since, by whomever.
    async fn flows(&self) -> Result<Vec<(Class, String)>, BrokerError>;

    /// Removes a flow's queue if it holds nothing and nobody consumes it; whether it is gone. What is published to it
    /// meanwhile reaches the intake.
    async fn close_flow(&self, class: Class, flow: &str) -> Result<bool, BrokerError>;

    /// Publishes and returns once the broker has confirmed. Calls may run concurrently and share channels; about a
    /// thousand are under way at most, further ones wait for their turn. Straight into a queue ([`Route::Dead`],
    /// [`Route::Feedback`], [`Route::Queue`]) it also makes sure that there is such a queue, at some 3,000 a second.
    async fn publish(&self, message: Outgoing) -> Result<(), PublishError>;

    /// Publishes at most once, without waiting or confirming: for events. Dropped (and counted) under pressure, while
    /// disconnected, and for 50 ms after the broker said that nobody listens to that key.
    fn emit(&self, message: Outgoing);

    /// Whether an event with this key would be sent now: `false` while nobody is known to listen. Spares the work of
    /// writing it.
    fn heard(&self, key: &str) -> bool {
        let _ = key;
        true
    }

    /// Starts consuming `queue`, holding at most `prefetch` messages that are not settled.
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError>;

    /// Listens to events whose key matches `pattern` (`*` is one word, `#` any number), from now on. Nothing is kept for
    /// a listener that has gone.
    async fn listen(&self, pattern: &str) -> Result<Consumer, BrokerError>;

    /// Messages ready in `queue`. What consumers hold is not counted.
    async fn depth(&self, queue: &str) -> Result<u64, BrokerError>;

    /// Whether the broker can be used, and why not.
    fn state(&self) -> watch::Receiver<State>;

    /// Waits until the broker can be used; after `limit` says why it cannot.
    async fn wait_until_up(&self, limit: Duration) -> Result<(), BrokerError> {
        let mut state = self.state();
        let up = tokio::time::timeout(limit, state.wait_for(State::is_up)).await.is_ok_and(|state| state.is_ok());
        match &*state.borrow() {
            State::Up => Ok(()),
            _ if up => Ok(()),
            State::Blocked { why, .. } | State::Down { why, .. } => Err(BrokerError::Unreachable(why.clone())),
        }
    }

    /// What has been published and dropped so far.
    fn counters(&self) -> &Counters;

    /// Sends the acks that are still waiting and disconnects. Consumers end; later calls fail.
    async fn close(&self);
}

/// Whether the broker can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Up,
    /// Reachable, but it takes no publishes for now (memory or disk alarm). Deliveries and acks still flow.
    Blocked {
        since: Timestamp,
        why: String,
    },
    Down {
        since: Timestamp,
        why: String,
    },
}

impl State {
    /// Whether messages can be consumed and published.
    pub fn is_up(&self) -> bool {
        matches!(self, State::Up)
    }
}
