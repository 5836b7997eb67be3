//! What a worker counts. Labels are bounded: class, destination, account, outcome, reason, purpose.

use std::sync::{Arc, atomic::AtomicU64};

use paceline_broker::{Broker, Purpose};
use paceline_core::Reason;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AttemptLabels {
    pub(crate) class: &'static str,
    pub(crate) destination: Arc<str>,
    pub(crate) account: Arc<str>,
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    pub(crate) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AccountLabels {
    pub(crate) account: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct LaneLabels {
    pub(crate) class: &'static str,
    pub(crate) destination: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ScopeLabels {
    pub(crate) account: Arc<str>,
    /// Empty: the account itself.
    pub(crate) destination: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ChangeLabels {
    pub(crate) account: Arc<str>,
    pub(crate) destination: Arc<str>,
    pub(crate) cause: &'static str,
}

type SendSeconds = Family<AccountLabels, Histogram, fn() -> Histogram>;

/// The worker's metrics, registered once.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) attempts: Family<AttemptLabels, Counter>,
    pub(crate) dead_letters: Family<ReasonLabels, Counter>,
    pub(crate) in_flight: Family<AccountLabels, Gauge>,
    pub(crate) held: Family<LaneLabels, Gauge>,
    pub(crate) deliveries: Counter,
    pub(crate) void_grants: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) limiter_calls: Counter,
    pub(crate) limiter_errors: Counter,
    pub(crate) limiter_wait: Option<Histogram>,
    pub(crate) send_seconds: Option<SendSeconds>,
    pub(crate) circuit_state: Family<ScopeLabels, Gauge>,
    pub(crate) adaptive_rate: Family<ScopeLabels, Gauge<f64, AtomicU64>>,
    pub(crate) limit_changes: Family<ChangeLabels, Counter>,
}

fn send_buckets() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Metrics {
    /// Creates the metrics and names them in `registry`, which carries the prefix `paceline`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let wait = Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0]);
        let send = Family::new_with_constructor(send_buckets as fn() -> Histogram);
        let m = Metrics { limiter_wait: Some(wait.clone()), send_seconds: Some(send.clone()), ..Metrics::default() };
        registry.register("attempts", "Calls to a provider by what came of them", m.attempts.clone());
        registry.register("dead_letters", "Messages given up on by this process", m.dead_letters.clone());
        registry.register("in_flight", "Calls under way", m.in_flight.clone());
        registry.register("held", "Messages this worker holds while they wait for their limits", m.held.clone());
        registry.register("deliveries", "Messages taken from the broker, redeliveries included", m.deliveries.clone());
        registry.register("void_grants", "Grants that came to use too late", m.void_grants.clone());
        registry.register("duplicates", "Deliveries settled without a call, since the ledger knew them", m.duplicates.clone());
        registry.register("limiter_calls", "Calls to the limiter", m.limiter_calls.clone());
        registry.register("limiter_errors", "Calls to the limiter or the ledger without an answer", m.limiter_errors.clone());
        registry.register("limiter_wait_seconds", "From arrival in the worker to the date of the grant", wait);
        let help = "0 closed, 1 half-open, 2 open; without a destination, the account's own";
        registry.register("circuit_state", help, m.circuit_state.clone());
        registry.register("adaptive_rate", "Recipients a second that are allowed, circuits apart", m.adaptive_rate.clone());
        let help = "Changes of circuits and adaptive rates that this worker brought about";
        registry.register("limit_changes", help, m.limit_changes.clone());
        registry.register("send_seconds", "Duration of calls to the provider", send);
        m
    }

    /// Adds what the broker's adapter counts by itself.
    pub fn register_broker(registry: &mut Registry, broker: Arc<dyn Broker>) {
        registry.register_collector(Box::new(BrokerCounters(broker)));
    }

    pub(crate) fn dead(&self, reason: Reason) {
        self.dead_letters.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }
}

struct BrokerCounters(Arc<dyn Broker>);

impl std::fmt::Debug for BrokerCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BrokerCounters")
    }
}

impl Collector for BrokerCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = self.0.counters();
        let constant = |value: u64| prometheus_client::metrics::counter::ConstCounter::new(value);
        let publishes = constant(0);
        let help = "Messages this process published, by purpose";
        let mut family = encoder.encode_descriptor("broker_publishes", help, None, publishes.metric_type())?;
        for purpose in Purpose::ALL {
            let labels = [("purpose", purpose.as_str())];
            constant(counters.published(purpose)).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, value) in [
            ("broker_publish_failures", "Publishes that were not confirmed", counters.failed()),
            ("events_dropped", "Events lost because the broker was away or slow", counters.events_dropped()),
        ] {
            let metric = constant(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}
