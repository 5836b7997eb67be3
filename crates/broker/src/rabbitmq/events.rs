//! Events: published without confirm from a task of their own, and not at all where nobody listens.
//!
//! Each is published with `mandatory`, so the broker returns one that reaches no queue. That key then counts as unheard
//! for a while, after which one event tries again. Returns are used on this channel only, which asks for no confirms:
//! paired with pipelined confirms they cannot be trusted.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use lapin::options::BasicPublishOptions;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    convert::{properties_out, short},
    link::{Link, Live},
    poll_once,
};
use crate::{Counters, Outgoing};

/// Events that may wait to be written.
const BUFFER: usize = 4096;
/// Written together.
const BATCH: usize = 256;
/// Events gather this long.
const GATHER: Duration = Duration::from_millis(2);
/// An unheard key is not tried for this long …
const UNHEARD_FOR: Duration = Duration::from_millis(40);
/// … and then with one event, whose return is awaited for this long before others follow. Together the 50 ms that a
/// new listener may miss.
const TRIAL: Duration = Duration::from_millis(10);
/// How long after an event its return is looked for.
const RETURNS_FOR: Duration = Duration::from_millis(500);
/// How long closing waits for events to be written.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long a batch may take to be written before more is queued behind it.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Events {
    queue: mpsc::Sender<Outgoing>,
    unheard: Arc<Unheard>,
    counters: Arc<Counters>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Events {
    pub(super) fn start(exchange: String, link: Arc<Link>, counters: Arc<Counters>) -> Events {
        let (queue, incoming) = mpsc::channel(BUFFER);
        let unheard = Arc::new(Unheard::default());
        let task = Sender { exchange, link, counters: counters.clone(), unheard: unheard.clone() };
        let task = tokio::spawn(task.run(incoming));
        Events { queue, unheard, counters, task: Mutex::new(Some(task)) }
    }

    pub(super) fn heard(&self, key: &str) -> bool {
        !self.unheard.drops(key, Instant::now())
    }

    pub(super) fn emit(&self, event: Outgoing) {
        if !self.unheard.passes(&event.key, Instant::now()) {
            self.counters.count_unheard();
        } else if self.queue.try_send(event).is_err() {
            self.counters.count_dropped();
        }
    }

    /// Lets what waits be written, for a moment.
    pub(super) async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return };
        let until = Instant::now() + CLOSE_LIMIT;
        while self.queue.capacity() < BUFFER && Instant::now() < until {
            sleep(GATHER).await;
        }
        sleep(GATHER).await;
        task.abort();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// The keys that nobody listens to, as far as is known.
#[derive(Default)]
struct Unheard {
    keys: Mutex<HashMap<String, Silence>>,
}

#[derive(Clone, Copy)]
enum Silence {
    Until(Instant),
    /// One event is out to see; if it has not come back by then, somebody listens.
    Trying(Instant),
}

impl Unheard {
    fn keys(&self) -> std::sync::MutexGuard<'_, HashMap<String, Silence>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an event with this key would be dropped.
    fn drops(&self, key: &str, now: Instant) -> bool {
        matches!(self.keys().get(key), Some(Silence::Until(end) | Silence::Trying(end)) if now < *end)
    }

    /// Whether an event with this key may be sent now; after a silence, the first may.
    fn passes(&self, key: &str, now: Instant) -> bool {
        let mut keys = self.keys();
        match keys.get_mut(key) {
            None => true,
            Some(Silence::Until(end) | Silence::Trying(end)) if now < *end => false,
            Some(silence @ Silence::Until(_)) => {
                *silence = Silence::Trying(now + TRIAL);
                true
            }
            Some(Silence::Trying(_)) => {
                keys.remove(key);
                true
            }
        }
    }

    fn returned(&self, key: &str, now: Instant) {
        let until = Silence::Until(now + UNHEARD_FOR);
        let mut keys = self.keys();
        match keys.get_mut(key) {
            Some(silence) => *silence = until,
            None => drop(keys.insert(key.to_owned(), until)),
        }
    }
}

struct Sender {
    exchange: String,
    link: Arc<Link>,
    counters: Arc<Counters>,
    unheard: Arc<Unheard>,
}

impl Sender {
    async fn run(self, mut incoming: mpsc::Receiver<Outgoing>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut open: Option<(u64, lapin::Channel)> = None;
        let mut sent: Option<Instant> = None;
        loop {
            if let Some((_, channel)) = open.as_ref().filter(|_| sent.is_some_and(|at| at.elapsed() < RETURNS_FOR)) {
                self.take_returns(channel).await;
                tokio::select! {
                    received = incoming.recv_many(&mut batch, BATCH) => if received == 0 { return },
                    () = sleep(GATHER) => continue,
                }
            } else if incoming.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            // One that is down is not waited for: events are worth nothing later.
            let live = self.link.live(Duration::ZERO).await.ok();
            let channel = match live {
                Some(live) => self.channel(&mut open, &live).await,
                None => None,
            };
            match channel {
                Some(channel) => {
                    self.send(&channel, &mut batch).await;
                    sent = Some(Instant::now());
                }
                None => batch.drain(..).for_each(|_| self.counters.count_dropped()),
            }
            sleep(GATHER).await;
        }
    }

    async fn channel(&self, open: &mut Option<(u64, lapin::Channel)>, live: &Live) -> Option<lapin::Channel> {
        if let Some((generation, channel)) = open
            && *generation == live.generation
            && channel.status().connected()
        {
            return Some(channel.clone());
        }
        let channel = live.channel().await.ok()?;
        *open = Some((live.generation, channel.clone()));
        Some(channel)
    }

    /// Queues a batch and waits until its last is written.
    async fn send(&self, channel: &lapin::Channel, batch: &mut Vec<Outgoing>) {
        let Some(exchange) = short(&self.exchange) else { return };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut last: Option<Pin<Box<dyn Future<Output = bool> + Send + '_>>> = None;
        for event in batch.drain(..) {
            let (Some(key), Ok(properties)) = (short(&event.key), properties_out(event.properties, false)) else {
                self.counters.count_dropped();
                continue;
            };
            let (exchange, body, purpose) = (exchange.clone(), event.body, event.purpose);
            let mut sending: Pin<Box<dyn Future<Output = bool> + Send + '_>> =
                Box::pin(async move { channel.basic_publish(exchange, key, options, &body, properties).await.is_ok() });
            match poll_once(&mut sending).await {
                Poll::Ready(false) => self.counters.count_dropped(),
                Poll::Ready(true) => self.counters.count_published(purpose),
                Poll::Pending => {
                    self.counters.count_published(purpose);
                    last = Some(sending);
                }
            }
        }
        if let Some(last) = last {
            // While the broker reads nothing the buffer fills up, and then events are dropped.
            let _ = timeout(WRITE_LIMIT, last).await;
        }
    }

    async fn take_returns(&self, channel: &lapin::Channel) {
        // On a channel without confirms there is nothing to wait for: this only hands out what came back.
        let Ok(returned) = channel.wait_for_confirms().await else { return };
        let now = Instant::now();
        for message in returned {
            self.counters.count_unheard();
            self.unheard.returned(message.delivery.routing_key.as_str(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_key_is_silent_then_tried_with_one_event() {
        let (unheard, start) = (Unheard::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(unheard.passes("k", at(0)) && !unheard.drops("k", at(0)));
        unheard.returned("k", at(1));
        assert!(unheard.drops("k", at(2)) && !unheard.passes("k", at(40)));
        assert!(!unheard.drops("k", at(42)));
        assert!(unheard.passes("k", at(42)), "one tries");
        assert!(!unheard.passes("k", at(43)), "others wait for its fate");
        unheard.returned("k", at(44));
        assert!(!unheard.passes("k", at(80)));
        assert!(unheard.passes("k", at(90)));
        assert!(unheard.passes("k", at(101)) && unheard.passes("k", at(101)), "it did not come back: heard");
        assert!(unheard.passes("other", at(2)));
    }
}
