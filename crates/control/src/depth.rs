//! How much waits in the lanes, and for the dead-letter writer.

use std::{sync::Arc, time::Duration};

use paceline_broker::{Broker, State, Topology};
use paceline_core::{Class, Lane};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tracing::debug;

/// How long after a round the queues are asked again.
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

/// `paceline_lane_depth{class,destination}`, and `paceline_queue_depth{queue}` for what is no lane. Messages that
/// consumers hold are not counted. What cannot be asked has no value rather than an old one.
pub(crate) struct Depths {
    lanes: Vec<(String, LaneLabels)>,
    lane_depth: Family<LaneLabels, Gauge>,
    queues: Vec<(String, QueueLabels)>,
    queue_depth: Family<QueueLabels, Gauge>,
}

impl Depths {
    pub(crate) fn new(topology: &Topology, registry: &mut Registry) -> Depths {
        let lane_depth = Family::default();
        let help = "Messages that wait in a lane, without those that workers hold";
        registry.register("paceline_lane_depth", help, lane_depth.clone());
        let queue_depth = Family::default();
        let help = "Messages that wait for classification (intake), for the store (dead), or events to be worked off (feedback)";
        registry.register("paceline_queue_depth", help, queue_depth.clone());
        let names = &topology.names;
        Depths {
            lanes: topology.lanes.iter().filter_map(|queue| Some((queue.clone(), labels(topology, queue)?))).collect(),
            lane_depth,
            queues: [(names.dead(), "dead"), (names.intake(), "intake"), (names.feedback(), "feedback")]
                .map(|(name, queue)| (name, QueueLabels { queue }))
                .into(),
            queue_depth,
        }
    }

    /// Asks for ever; to be dropped with the process's work.
    pub(crate) async fn watch(&self, broker: Arc<dyn Broker>) {
        loop {
            if matches!(*broker.state().borrow(), State::Down { .. }) {
                self.lane_depth.clear();
                self.queue_depth.clear();
            } else {
                ask(&*broker, &self.lanes, &self.lane_depth).await;
                ask(&*broker, &self.queues, &self.queue_depth).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

async fn ask<L>(broker: &dyn Broker, queues: &[(String, L)], depths: &Family<L, Gauge>)
where
    L: Clone + std::hash::Hash + Eq,
{
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

fn labels(topology: &Topology, queue: &str) -> Option<LaneLabels> {
    Class::ALL.into_iter().find_map(|class| {
        let before = topology.names.lane(&Lane::new(class, ""));
        let destination = queue.strip_prefix(&before)?.to_owned();
        Some(LaneLabels { class: class.as_str(), destination })
    })
}
