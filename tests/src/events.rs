//! What the fleet says of its messages: events, gathered as a producer would.

use std::sync::{Arc, Mutex};

use paceline_broker::Broker;
use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::windows::Use;

/// One event, as far as scenarios look at it.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    pub event: String,
    pub id: String,
    pub class: String,
    pub destination: String,
    pub recipients: u64,
    pub attempts: u32,
    /// Date of the grant, on the limiter's clock.
    pub granted_at_us: Option<u64>,
}

/// Gathers until dropped.
#[derive(Debug)]
pub struct Events {
    heard: Arc<Mutex<Vec<Event>>>,
    task: JoinHandle<()>,
}

impl Events {
    /// Listens to every event from now on.
    pub async fn listen(broker: Arc<dyn Broker>) -> Events {
        let mut consumer = broker.listen("#").await.unwrap_or_else(|e| panic!("cannot listen to events: {e}"));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = heard.clone();
        let task = tokio::spawn(async move {
            while let Some(delivery) = consumer.next().await {
                let event = serde_json::from_slice(&delivery.body).unwrap_or_else(|e| panic!("an event cannot be read: {e}"));
                into.lock().unwrap().push(event);
                delivery.settle.ack();
            }
        });
        Events { heard, task }
    }

    /// What was heard so far.
    pub fn so_far(&self) -> Vec<Event> {
        self.heard.lock().unwrap().clone()
    }

    /// How many were heard so far.
    pub fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The grants behind these events, as uses of a bucket.
pub fn grants<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<Use> {
    events.into_iter().filter_map(|e| Some((e.granted_at_us?, e.recipients))).collect()
}
