//! Events: within this process only, never written to disk.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;

use super::codec;
use crate::{
    BrokerError, Consumer, Counters, Delivery, End, Outgoing, Settle, consumer::Subscription, memory::routing::topic_matches,
    message::Settlements,
};

/// Events that may wait for one listener; further ones are dropped.
const BUFFER: usize = 4096;

#[derive(Default)]
pub(super) struct Events {
    listeners: Mutex<Vec<Arc<Listener>>>,
}

struct Listener {
    pattern: String,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Outgoing>,
    waker: Option<Waker>,
    end: Option<End>,
}

impl Listener {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        let mut waiting = self.waiting();
        waiting.end.get_or_insert(end);
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }
}

impl Events {
    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Listener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn heard(&self, key: &str) -> bool {
        self.listeners().iter().any(|listener| topic_matches(&listener.pattern, key))
    }

    /// To every listener whose pattern matches.
    pub(super) fn emit(&self, event: &Outgoing, counters: &Counters) {
        let (mut matched, mut taken) = (false, false);
        for listener in self.listeners().iter().filter(|listener| topic_matches(&listener.pattern, &event.key)) {
            matched = true;
            let mut waiting = listener.waiting();
            if waiting.events.len() < BUFFER {
                taken = true;
                // As if it had been written down.
                let properties = codec::decode(&codec::encode(&event.properties)).unwrap_or_default();
                waiting.events.push_back(Outgoing { properties, ..event.clone() });
                if let Some(waker) = waiting.waker.take() {
                    waker.wake();
                }
            }
        }
        match (matched, taken) {
            (false, _) => counters.count_unheard(),
            (true, false) => counters.count_dropped(),
            (true, true) => counters.count_published(event.purpose),
        }
    }

    pub(super) fn listen(self: &Arc<Self>, pattern: &str) -> Consumer {
        let listener = Arc::new(Listener { pattern: pattern.to_owned(), waiting: Mutex::default() });
        self.listeners().push(listener.clone());
        Consumer::new(Box::new(Listening { listener, events: Arc::downgrade(self) }))
    }

    pub(super) fn close(&self, why: &str) {
        let listeners = std::mem::take(&mut *self.listeners());
        listeners.iter().for_each(|listener| listener.end(End::Lost(why.to_owned())));
    }
}

struct Listening {
    listener: Arc<Listener>,
    events: Weak<Events>,
}

impl Listening {
    fn stop(&self) {
        if let Some(events) = self.events.upgrade() {
            events.listeners().retain(|other| !Arc::ptr_eq(other, &self.listener));
        }
        self.listener.end(End::Cancelled);
    }
}

#[async_trait]
impl Subscription for Listening {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery, End>> {
        // Events are always there at once: without this a busy listener would not let others run.
        let progress = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        let mut waiting = self.listener.waiting();
        if let Some(event) = waiting.events.pop_front() {
            progress.made_progress();
            return Poll::Ready(Ok(Delivery {
                queue: "".into(),
                routing_key: event.key,
                body: event.body,
                properties: event.properties,
                redelivered: false,
                settle: Settle::new(0, Arc::new(Settled)),
            }));
        }
        if let Some(end) = &waiting.end {
            return Poll::Ready(Err(end.clone()));
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    async fn cancel(&mut self) {
        self.stop();
    }

    async fn resize(&mut self, _prefetch: u16) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn flush(&mut self) {}
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An event is over once it is heard.
struct Settled;

impl Settlements for Settled {
    fn ack(&self, _tag: u64) {}
    fn release(&self, _tag: u64) {}
}
