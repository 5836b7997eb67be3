//! Queues, exchanges and channels as plain data behind one lock.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::routing::topic_matches;
use crate::{
    Applied, BrokerError, Drift, End, Properties, Topology,
    topology::{Argument, Binding, ExchangeKind, Manifest, Queue},
};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) body: Bytes,
    pub(super) properties: Properties,
    pub(super) redelivered: bool,
}

#[derive(Default)]
pub(super) struct Inner {
    exchanges: HashMap<String, ExchangeState>,
    queues: HashMap<String, QueueState>,
    channels: HashMap<u64, ChannelState>,
    next_id: u64,
    applied: Manifest,
}

struct ExchangeState {
    kind: ExchangeKind,
    alternate: Option<String>,
    /// By key, or by pattern.
    bindings: BTreeMap<String, Vec<String>>,
}

struct QueueState {
    name: Arc<str>,
    arguments: BTreeMap<&'static str, Argument>,
    /// Released mail, ahead of the rest.
    returned: VecDeque<Stored>,
    ready: VecDeque<Stored>,
    /// Channels that consume, in turn.
    consumers: VecDeque<u64>,
    /// Deleted with its only consumer.
    temporary: bool,
}

struct ChannelState {
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
    pub(super) fn apply(&mut self, topology: &Topology) -> Result<(Applied, Vec<(String, Vec<Stored>)>), BrokerError> {
        let different = self.check(topology).into_iter().find_map(|drift| match drift {
            Drift::Different { name, detail } => Some(BrokerError::Different { name, detail }),
            Drift::Missing(_) | Drift::Unnamed(_) => None,
        });
        if let Some(error) = different {
            return Err(error);
        }
        let mut applied = Applied::default();
        let mut note = |new: bool, what: String| if new { applied.created.push(what) } else { applied.present += 1 };
        for exchange in &topology.exchanges {
            let new = !self.exchanges.contains_key(&exchange.name);
            if new {
                let state =
                    ExchangeState { kind: exchange.kind, alternate: exchange.alternate.clone(), bindings: BTreeMap::new() };
                self.exchanges.insert(exchange.name.clone(), state);
            }
            note(new, format!("exchange {}", exchange.name));
        }
        for queue in &topology.queues {
            note(self.declare(queue), format!("queue {}", queue.name));
        }
        let wanted = Manifest::of(topology);
        for stale in self.applied.stale_bindings(&wanted) {
            self.unbind(&stale);
            applied.removed.push(stale.to_string());
        }
        let mut note = |new: bool, what: String| if new { applied.created.push(what) } else { applied.present += 1 };
        for binding in &topology.bindings {
            note(self.bind(binding), binding.to_string());
        }
        let stale = self.applied.stale_lanes(&wanted).into_iter().filter_map(|lane| {
            let queue = self.queues.get_mut(&lane)?;
            let mail = queue.returned.drain(..).chain(queue.ready.drain(..)).collect();
            Some((lane, mail))
        });
        let stale = stale.collect();
        Ok((applied, stale))
    }

    /// Records what now holds; lanes that could not be removed yet are looked at again next time.
    pub(super) fn remember(&mut self, mut manifest: Manifest, left: &[String]) {
        manifest.lanes.extend(left.iter().cloned());
        self.applied = manifest;
    }

    pub(super) fn check(&self, topology: &Topology) -> Vec<Drift> {
        let mut drift = Vec::new();
        for wanted in &topology.exchanges {
            match self.exchanges.get(&wanted.name) {
                None => drift.push(Drift::Missing(format!("exchange {}", wanted.name))),
                Some(e) if e.kind != wanted.kind || e.alternate != wanted.alternate => {
                    let detail = format!("kind {:?}, alternate {:?}", e.kind, e.alternate);
                    drift.push(Drift::Different { name: format!("exchange {}", wanted.name), detail });
                }
                Some(_) => {}
            }
        }
        for wanted in &topology.queues {
            match self.queues.get(&wanted.name) {
                None => drift.push(Drift::Missing(format!("queue {}", wanted.name))),
                Some(q) if q.arguments != wanted.arguments => {
                    let detail = format!("arguments {:?}", q.arguments);
                    drift.push(Drift::Different { name: format!("queue {}", wanted.name), detail });
                }
                Some(_) => {}
            }
        }
        let missing = topology.bindings.iter().filter(|b| !self.applied.has(b));
        drift.extend(missing.map(|b| Drift::Missing(b.to_string())));
        let wanted = Manifest::of(topology);
        drift.extend(self.applied.stale_bindings(&wanted).iter().map(|b| Drift::Unnamed(b.to_string())));
        drift.extend(self.applied.stale_lanes(&wanted).into_iter().map(|lane| Drift::Unnamed(format!("queue {lane}"))));
        drift
    }

    /// Whether it was not there before.
    pub(super) fn declare(&mut self, queue: &Queue) -> bool {
        if self.queues.contains_key(&queue.name) {
            return false;
        }
        let state = QueueState {
            name: queue.name.as_str().into(),
            arguments: queue.arguments.clone(),
            returned: VecDeque::new(),
            ready: VecDeque::new(),
            consumers: VecDeque::new(),
            temporary: false,
        };
        self.queues.insert(queue.name.clone(), state);
        true
    }

    pub(super) fn declare_listener(&mut self, exchange: &str, pattern: &str) -> String {
        self.next_id += 1;
        let name = format!("listener-{}", self.next_id);
        self.declare(&Queue { name: name.clone(), arguments: BTreeMap::new() });
        if let Some(queue) = self.queues.get_mut(&name) {
            queue.temporary = true;
        }
        self.bind(&Binding { exchange: exchange.to_owned(), queue: name.clone(), key: pattern.to_owned() });
        name
    }

    fn bind(&mut self, binding: &Binding) -> bool {
        let Some(exchange) = self.exchanges.get_mut(&binding.exchange) else { return false };
        let queues = exchange.bindings.entry(binding.key.clone()).or_default();
        let new = !queues.contains(&binding.queue);
        if new {
            queues.push(binding.queue.clone());
        }
        new
    }

    fn unbind(&mut self, binding: &Binding) {
        if let Some(exchange) = self.exchanges.get_mut(&binding.exchange)
            && let Some(queues) = exchange.bindings.get_mut(&binding.key)
        {
            queues.retain(|queue| *queue != binding.queue);
        }
    }

    fn delete(&mut self, queue: &str) {
        self.queues.remove(queue);
        for exchange in self.exchanges.values_mut() {
            exchange.bindings.values_mut().for_each(|queues| queues.retain(|q| q != queue));
        }
    }

    /// Deletes a queue nobody consumes and that holds nothing, settled or not.
    pub(super) fn remove_if_idle(&mut self, queue: &str) -> bool {
        let idle = self.depth(queue).unwrap_or(0) == 0
            && self.held(queue) == 0
            && self.queues.get(queue).is_none_or(|q| q.consumers.is_empty());
        if idle {
            self.delete(queue);
        }
        idle
    }

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
        self.queues.get(queue).is_some_and(|q| {
            q.number("x-max-length").is_some_and(|max| q.ready.len() as i64 >= max)
        })
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

    pub(super) fn held(&self, queue: &str) -> usize {
        self.channels.values().filter(|c| c.queue == queue).map(|c| c.unsettled.len()).sum()
    }

    pub(super) fn subscribe(&mut self, queue: &str, prefetch: u16) -> Option<u64> {
        self.next_id += 1;
        let id = self.next_id;
        self.queues.get_mut(queue)?.consumers.push_back(id);
        let state = ChannelState {
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

    pub(super) fn lose_channels(&mut self, why: &str) {
        let mut lost: Vec<_> = self.channels.keys().copied().collect();
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
        if let Some(state) = self.queues.get_mut(queue) {
            state.consumers.retain(|consumer| *consumer != id);
            state.returned.extend(unsettled.into_values().map(|m| Stored { redelivered: true, ..m }));
        }
        self.pump(queue);
    }

    pub(super) fn poll_next(&mut self, id: u64, cx: &Context<'_>) -> Poll<Result<(Arc<str>, u64, Stored), End>> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Poll::Ready(Err(End::Lost("the channel is closed".to_owned())));
        };
        while let Some(tag) = channel.inbox.pop_front() {
            if let Some(message) = channel.unsettled.get(&tag) {
                let name = self.queues.get(&channel.queue).map_or_else(|| channel.queue.as_str().into(), |q| q.name.clone());
                return Poll::Ready(Ok((name, tag, message.clone())));
            }
        }
        if let Some(end) = &channel.end {
            return Poll::Ready(Err(end.clone()));
        }
        channel.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
