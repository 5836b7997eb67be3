//! What is counted of feedback.

use std::collections::BTreeMap;

use paceline_core::feedback::{Event, Kind, Source};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{Refusal, Scheme};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    account: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    account: String,
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabels {
    destination: String,
    kind: &'static str,
    source: &'static str,
}

/// `paceline_feedback_events_total{account,kind}`, `paceline_feedback_refused_total{account,why}` and
/// `paceline_feedback_by_destination_total{destination,kind,source}`.
#[derive(Clone, Default)]
pub(super) struct Metrics {
    events: Family<EventLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    destinations: Family<DestinationLabels, Counter>,
    unreadable: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry, accounts: &BTreeMap<String, Scheme>) -> Metrics {
        let metrics = Metrics::default();
        let help = "Events taken from providers, by what they say; duplicate, ignored and unreadable ones go no further";
        registry.register("paceline_feedback_events", help, metrics.events.clone());
        let help = "Requests with events that were refused, by reason";
        registry.register("paceline_feedback_refused", help, metrics.refused.clone());
        let help = "Events worked off, by the recipient's destination and by whose word it is";
        registry.register("paceline_feedback_by_destination", help, metrics.destinations.clone());
        let help = "Messages of the feedback queue that are no events";
        registry.register("paceline_feedback_queue_unreadable", help, metrics.unreadable.clone());
        // Each is there from the start, so that its first increase is seen as one.
        for account in accounts.keys() {
            for kind in Kind::ALL.map(Kind::as_str).into_iter().chain(["duplicate", "ignored", "unreadable"]) {
                metrics.count(account, kind, 0);
            }
            for why in Refusal::ALL.into_iter().filter(|why| *why != Refusal::UnknownAccount) {
                metrics.refused(account, why, 0);
            }
        }
        metrics.refused("", Refusal::UnknownAccount, 0);
        metrics
    }

    fn count(&self, account: &str, kind: &'static str, n: usize) {
        self.events.get_or_create(&EventLabels { account: account.to_owned(), kind }).inc_by(n as u64);
    }

    pub(super) fn taken(&self, account: &str, kind: Kind) {
        self.count(account, kind.as_str(), 1);
    }

    pub(super) fn passed_over(&self, account: &str, duplicates: usize, ignored: usize, unreadable: usize) {
        self.count(account, "duplicate", duplicates);
        self.count(account, "ignored", ignored);
        self.count(account, "unreadable", unreadable);
    }

    pub(super) fn refused(&self, account: &str, why: Refusal, n: u64) {
        self.refused.get_or_create(&RefusedLabels { account: account.to_owned(), why: why.as_str() }).inc_by(n);
    }

    pub(super) fn worked_off(&self, event: &Event, destination: &str) {
        let source = match event.source {
            Source::Receiver => "receiver",
            Source::Provider => "provider",
        };
        let labels = DestinationLabels { destination: destination.to_owned(), kind: event.kind.as_str(), source };
        self.destinations.get_or_create(&labels).inc();
    }

    pub(super) fn unreadable(&self) {
        self.unreadable.inc();
    }
}
