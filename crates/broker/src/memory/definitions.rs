//! Declaring, binding, comparing and removing queues and exchanges.

use std::collections::{BTreeMap, VecDeque};

use super::queues::{ExchangeState, Inner, QueueState, Stored};
use crate::{
    Applied, BrokerError, Drift, Topology,
    topology::{Argument, Binding, Manifest, Queue},
};

/// The mail of a lane that is no longer named.
pub(super) struct Leftover {
    pub(super) lane: String,
    pub(super) mail: Vec<Stored>,
}

impl Inner {
    pub(super) fn apply(&mut self, topology: &Topology) -> Result<(Applied, Vec<Leftover>), BrokerError> {
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
            Some(Leftover { lane, mail })
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
                    let differs = |(name, value): &(&&str, &Argument)| q.arguments.get(**name) != Some(*value);
                    let named = wanted.arguments.iter().find(differs).map_or("another", |(name, _)| name);
                    let detail = format!("inequivalent arg '{named}'");
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

    pub(super) fn exists(&self, queue: &str) -> bool {
        self.queues.contains_key(queue)
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

    pub(super) fn bind(&mut self, binding: &Binding) -> bool {
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

    pub(super) fn delete(&mut self, queue: &str) {
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
}
