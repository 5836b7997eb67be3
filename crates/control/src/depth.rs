//! How much waits in the lanes, and for the dead-letter writer.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use paceline_broker::{Broker, State, Topology};
use paceline_core::lanes::{LaneState, LaneStatus};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tracing::debug;

use crate::lanes::Lanes;

/// How long after a round everything is asked again.
const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    class: &'static str,
    destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

/// `paceline_lane_depth{class,destination}` and what else is seen of the lanes, and `paceline_queue_depth{queue}` for what
/// is no lane. What cannot be asked has no value rather than an old one.
pub(crate) struct Depths {
    lanes: Lanes,
    depth: Family<LaneLabels, Gauge>,
    oldest: Family<LaneLabels, Gauge>,
    allowed: Family<LaneLabels, Gauge<f64, AtomicU64>>,
    state: Family<LaneLabels, Gauge>,
    queues: Vec<(String, QueueLabels)>,
    queue_depth: Family<QueueLabels, Gauge>,
}

impl Depths {
    pub(crate) fn new(topology: &Topology, lanes: Lanes, registry: &mut Registry) -> Depths {
        let names = &topology.names;
        let queues = [(names.dead(), "dead"), (names.intake(), "intake"), (names.feedback(), "feedback")];
        let of = Depths {
            lanes,
            depth: Family::default(),
            oldest: Family::default(),
            allowed: Family::default(),
            state: Family::default(),
            queues: queues.map(|(name, queue)| (name, QueueLabels { queue })).into(),
            queue_depth: Family::default(),
        };
        let help = "Messages that wait in a lane, those that workers hold included";
        registry.register("paceline_lane_depth", help, of.depth.clone());
        let help = "Age of the oldest message of a lane that a worker has seen";
        registry.register("paceline_oldest_seconds", help, of.oldest.clone());
        let help = "Recipients a second that the limits of a lane allow just now; none where nothing limits it";
        registry.register("paceline_lane_allowed_per_second", help, of.allowed.clone());
        let states: Vec<_> = LaneState::ALL.iter().enumerate().map(|(n, state)| format!("{n} {}", state.as_str())).collect();
        registry.register("paceline_lane_state", format!("What a lane does: {}", states.join(", ")), of.state.clone());
        let help = "Messages that wait for classification (intake), for the store (dead), or events to be worked off (feedback)";
        registry.register("paceline_queue_depth", help, of.queue_depth.clone());
        of
    }

    /// Asks for ever; to be dropped with the process's work.
    pub(crate) async fn watch(&self, broker: Arc<dyn Broker>) {
        loop {
            if matches!(*broker.state().borrow(), State::Down { .. }) {
                self.clear();
                self.queue_depth.clear();
            } else {
                self.show(&self.lanes.look().await.lanes);
                ask(&*broker, &self.queues, &self.queue_depth).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn clear(&self) {
        self.depth.clear();
        self.oldest.clear();
        self.allowed.clear();
        self.state.clear();
    }

    /// Lanes that configuration names: those of flows would be without bound.
    fn show(&self, lanes: &[LaneStatus]) {
        for lane in lanes.iter().filter(|l| l.lane == format!("{}.{}", l.class, l.destination)) {
            let labels = LaneLabels { class: lane.class.as_str(), destination: lane.destination.clone() };
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            match lane.depth {
                Some(depth) => drop(self.depth.get_or_create(&labels).set(whole(depth))),
                None => drop(self.depth.remove(&labels)),
            }
            // Nothing waits: nothing is old.
            match lane.oldest_s.or_else(|| lane.depth.filter(|n| *n == 0)) {
                Some(oldest_s) => drop(self.oldest.get_or_create(&labels).set(whole(oldest_s))),
                None => drop(self.oldest.remove(&labels)),
            }
            match lane.allowed_per_s {
                Some(per_s) => drop(self.allowed.get_or_create(&labels).set(per_s)),
                None => drop(self.allowed.remove(&labels)),
            }
            let state = LaneState::ALL.iter().position(|s| *s == lane.state).unwrap_or(0);
            self.state.get_or_create(&labels).set(whole(state as u64));
        }
    }
}

async fn ask(broker: &dyn Broker, queues: &[(String, QueueLabels)], depths: &Family<QueueLabels, Gauge>) {
    for (queue, labels) in queues {
        match broker.depth(queue).await {
            Ok(depth) => {
                depths.get_or_create(labels).set(i64::try_from(depth).unwrap_or(i64::MAX));
            }
            Err(e) => {
                debug!(error = %e, queue, "the depth of a queue is not known");
                depths.remove(labels);
            }
        }
    }
}
