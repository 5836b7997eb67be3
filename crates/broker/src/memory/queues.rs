//! Queues, exchanges and channels as plain data behind one lock, and how messages move through them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::{Traffic, routing::topic_matches};
use crate::{
    End, Properties,
    topology::{Argument, ExchangeKind, Manifest},
};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) body: Bytes,
    pub(super) properties: Properties,
    pub(super) redelivered: bool,
}

/// A message on its way to a consumer.
pub(super) struct Handed {
    pub(super) queue: Arc<str>,
    pub(super) tag: u64,
    pub(super) message: Stored,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) exchanges: HashMap<String, ExchangeState>,
    pub(super) queues: HashMap<String, QueueState>,
    channels: HashMap<u64, ChannelState>,
    pub(super) next_id: u64,
    pub(super) traffic: Traffic,
    pub(super) applied: Manifest,
}

pub(super) struct ExchangeState {
    pub(super) kind: ExchangeKind,
    pub(super) alternate: Option<String>,
    /// By key, or by pattern.
    pub(super) bindings: BTreeMap<String, Vec<String>>,
}

pub(super) struct QueueState {
    pub(super) name: Arc<str>,
    pub(super) arguments: BTreeMap<&'static str, Argument>,
    /// Released mail, ahead of the rest.
    pub(super) returned: VecDeque<Stored>,
    pub(super) ready: VecDeque<Stored>,
    /// Channels that consume, in turn.
    pub(super) consumers: VecDeque<u64>,
    /// Deleted with its only consumer.
    pub(super) temporary: bool,
}

struct ChannelState {
    connection: u64,
    queue: String,
    prefetch: usize,
    /// Deliveries since the last resize count towards the prefetch: those from this tag on, `credited` of them unsettled.
    credited_from: u64,
    credited: usize,
    unsettled: BTreeMap<u64, Stored>,
    inbox: VecDeque<u64>,
    next_tag: u64,
    end: Option<End>,
    waker: Option<Waker>,
}

impl ChannelState {
    fn has_room(&self) -> bool {
        self.prefetch == 0 || self.credited < self.prefetch
    }
}

impl QueueState {
    fn number(&self, argument: &str) -> Option<i64> {
        match self.arguments.get(argument) {
            Some(Argument::Int(n)) => Some(*n),
            _ => None,
        }
    }
}

impl Inner {
    /// The queues a key reaches, by alternates where nothing is bound.
    pub(super) fn routes(&self, exchange: &str, key: &str) -> Vec<String> {
        if exchange.is_empty() {
            return self.queues.contains_key(key).then(|| key.to_owned()).into_iter().collect();
        }
        let mut next = Some(exchange);
        while let Some(state) = next.and_then(|name| self.exchanges.get(name)) {
            let found: Vec<String> = match state.kind {
                ExchangeKind::Direct => state.bindings.get(key).cloned().unwrap_or_default(),
                ExchangeKind::Fanout => state.bindings.values().flatten().cloned().collect(),
                ExchangeKind::Topic => {
                    let matching = state.bindings.iter().filter(|(pattern, _)| topic_matches(pattern, key));
                    let mut queues: Vec<_> = matching.flat_map(|(_, queues)| queues.iter().cloned()).collect();
                    queues.sort_unstable();
                    queues.dedup();
                    queues
                }
            };
            if !found.is_empty() {
                return found;
            }
            next = state.alternate.as_deref();
        }
        Vec::new()
    }

    pub(super) fn refuses(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|q| q.number("x-max-length").is_some_and(|max| q.ready.len() as i64 >= max))
    }

    /// Appends, and says after which time the head must be expired.
    pub(super) fn push(&mut self, queue: &str, message: Stored) -> Option<Duration> {
        let state = self.queues.get_mut(queue)?;
        state.ready.push_back(message);
        let ttl = state.number("x-message-ttl").and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        self.pump(queue);
        ttl
    }

    /// Takes the head of a queue whose time has come, with the exchange it goes to.
    pub(super) fn expire(&mut self, queue: &str) -> Option<(String, Stored)> {
        let state = self.queues.get_mut(queue)?;
        let message = state.ready.pop_front()?;
        match state.arguments.get("x-dead-letter-exchange") {
            Some(Argument::Text(exchange)) => Some((exchange.clone(), message)),
            _ => None,
        }
    }

    pub(super) fn depth(&self, queue: &str) -> Option<u64> {
        self.queues.get(queue).map(|q| (q.returned.len() + q.ready.len()) as u64)
    }

    pub(super) fn ids(&self) -> Vec<String> {
        let queued = self.queues.values().flat_map(|q| q.returned.iter().chain(&q.ready));
        let held = self.channels.values().flat_map(|c| c.unsettled.values());
        queued.chain(held).filter_map(|m| m.properties.message_id.clone()).collect()
    }

    pub(super) fn held(&self, queue: &str) -> usize {
        self.channels.values().filter(|c| c.queue == queue).map(|c| c.unsettled.len()).sum()
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn subscribe(&mut self, connection: u64, queue: &str, prefetch: u16) -> Option<u64> {
        let id = self.new_id();
        self.traffic.consumes += 1;
        self.queues.get_mut(queue)?.consumers.push_back(id);
        let state = ChannelState {
            connection,
            queue: queue.to_owned(),
            prefetch: usize::from(prefetch),
            credited_from: 0,
            credited: 0,
            unsettled: BTreeMap::new(),
            inbox: VecDeque::new(),
            next_tag: 1,
            end: None,
            waker: None,
        };
        self.channels.insert(id, state);
        self.pump(queue);
        Some(id)
    }

    pub(super) fn resize(&mut self, id: u64, prefetch: u16) -> bool {
        let Some(channel) = self.channels.get_mut(&id).filter(|c| c.end.is_none()) else { return false };
        channel.prefetch = usize::from(prefetch);
        channel.credited_from = channel.next_tag;
        channel.credited = 0;
        let queue = channel.queue.clone();
        self.pump(&queue);
        true
    }

    pub(super) fn unsubscribe(&mut self, id: u64) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.end.get_or_insert(End::Cancelled);
        if let Some(waker) = channel.waker.take() {
            waker.wake();
        }
        let queue = channel.queue.clone();
        if let Some(state) = self.queues.get_mut(&queue) {
            state.consumers.retain(|consumer| *consumer != id);
            if state.temporary {
                self.delete(&queue);
            }
        }
    }

    /// Hands ready mail to consumers with room, one each in turn.
    fn pump(&mut self, queue: &str) {
        let Some(state) = self.queues.get_mut(queue) else { return };
        let mut without_room = 0;
        while without_room < state.consumers.len() && !(state.returned.is_empty() && state.ready.is_empty()) {
            state.consumers.rotate_left(1);
            let taker = state.consumers.back().and_then(|id| self.channels.get_mut(id)).filter(|c| c.has_room());
            let Some(channel) = taker else {
                without_room += 1;
                continue;
            };
            without_room = 0;
            let Some(message) = state.returned.pop_front().or_else(|| state.ready.pop_front()) else { return };
            let tag = channel.next_tag;
            channel.next_tag += 1;
            channel.credited += 1;
            self.traffic.deliveries += 1;
            channel.unsettled.insert(tag, message);
            channel.inbox.push_back(tag);
            if let Some(waker) = channel.waker.take() {
                waker.wake();
            }
        }
    }

    pub(super) fn settle(&mut self, id: u64, tag: u64, release: bool) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let Some(message) = channel.unsettled.remove(&tag) else { return };
        if tag >= channel.credited_from {
            channel.credited -= 1;
        }
        let counted = if release { &mut self.traffic.returns } else { &mut self.traffic.acks };
        *counted += 1;
        let queue = channel.queue.clone();
        if release && let Some(state) = self.queues.get_mut(&queue) {
            state.returned.push_back(Stored { redelivered: true, ..message });
        }
        self.pump(&queue);
    }

    /// Everything still held goes back, in order.
    pub(super) fn close_channel(&mut self, id: u64) {
        let Some(channel) = self.channels.remove(&id) else { return };
        self.give_back(id, &channel.queue, channel.unsettled);
    }

    pub(super) fn lose_channels(&mut self, connection: u64, why: &str) {
        let mut lost: Vec<_> = self.channels.iter().filter(|(_, c)| c.connection == connection).map(|(id, _)| *id).collect();
        lost.sort_unstable();
        for id in lost {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            if channel.end != Some(End::Cancelled) || !channel.unsettled.is_empty() {
                channel.end = Some(End::Lost(why.to_owned()));
            }
            channel.inbox.clear();
            let unsettled = std::mem::take(&mut channel.unsettled);
            if let Some(waker) = channel.waker.take() {
                waker.wake();
            }
            let queue = channel.queue.clone();
            self.give_back(id, &queue, unsettled);
        }
    }

    fn give_back(&mut self, id: u64, queue: &str, unsettled: BTreeMap<u64, Stored>) {
        self.traffic.returns += unsettled.len() as u64;
        if let Some(state) = self.queues.get_mut(queue) {
            state.consumers.retain(|consumer| *consumer != id);
            state.returned.extend(unsettled.into_values().map(|m| Stored { redelivered: true, ..m }));
        }
        self.pump(queue);
    }

    pub(super) fn poll_next(&mut self, id: u64, cx: &Context<'_>) -> Poll<Result<Handed, End>> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Poll::Ready(Err(End::Lost("the channel is closed".to_owned())));
        };
        while let Some(tag) = channel.inbox.pop_front() {
            if let Some(message) = channel.unsettled.get(&tag) {
                let name = self.queues.get(&channel.queue).map_or_else(|| channel.queue.as_str().into(), |q| q.name.clone());
                return Poll::Ready(Ok(Handed { queue: name, tag, message: message.clone() }));
            }
        }
        if let Some(end) = &channel.end {
            return Poll::Ready(Err(end.clone()));
        }
        channel.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
