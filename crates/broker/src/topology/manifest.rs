//! The record of the topology applied last, kept on the broker itself.
//!
//! AMQP can neither list queues nor bindings. Without a record, a domain that moves from one destination to another
//! would stay bound to both lanes and every message to it would be sent twice; and nobody would know of a lane that
//! configuration has dropped.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Binding, Topology};

/// One JSON message in the queue `<prefix>.topology`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// (exchange, queue, key)
    pub(crate) bindings: BTreeSet<(String, String, String)>,
    pub(crate) lanes: BTreeSet<String>,
    /// `<class>.<flow>`; no part of any topology.
    #[serde(default)]
    pub(crate) flows: BTreeSet<String>,
}

impl Manifest {
    pub(crate) fn of(topology: &Topology) -> Manifest {
        Manifest {
            bindings: topology.bindings.iter().map(|b| (b.exchange.clone(), b.queue.clone(), b.key.clone())).collect(),
            lanes: topology.lanes.iter().cloned().collect(),
            flows: BTreeSet::new(),
        }
    }

    /// Two records, where an apply was interrupted: both may hold.
    pub(crate) fn merge(&mut self, other: Manifest) {
        self.bindings.extend(other.bindings);
        self.lanes.extend(other.lanes);
        self.flows.extend(other.flows);
    }

    pub(crate) fn has(&self, b: &Binding) -> bool {
        self.bindings.contains(&(b.exchange.clone(), b.queue.clone(), b.key.clone()))
    }

    /// Bindings of this record that `wanted` no longer has.
    pub(crate) fn stale_bindings(&self, wanted: &Manifest) -> Vec<Binding> {
        let stale = self.bindings.difference(&wanted.bindings).cloned();
        stale.map(|(exchange, queue, key)| Binding { exchange, queue, key }).collect()
    }

    /// Lanes of this record that `wanted` no longer has.
    pub(crate) fn stale_lanes(&self, wanted: &Manifest) -> Vec<String> {
        self.lanes.difference(&wanted.lanes).cloned().collect()
    }
}
