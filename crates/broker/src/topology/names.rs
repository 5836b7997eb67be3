//! The names of everything on the broker.

use std::sync::Arc;

use paceline_core::{Class, Lane};

use crate::Route;

/// Names under one prefix, `paceline` unless configured otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: Arc<str>,
}

impl Names {
    pub fn new(prefix: &str) -> Names {
        Names { prefix: prefix.into() }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn under(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }

    /// The exchange producers publish to.
    pub fn producers(&self) -> String {
        self.prefix.to_string()
    }

    /// The exchange for domains that no destination names.
    pub fn tail(&self) -> String {
        self.under("tail")
    }

    /// Exchange and queue for what names no class.
    pub fn intake(&self) -> String {
        self.under("intake")
    }

    /// The exchange by which workers and the ladder reach a lane.
    pub fn lanes(&self) -> String {
        self.under("lanes")
    }

    /// A lane's queue.
    pub fn lane(&self, lane: &Lane) -> String {
        format!("{}.lane.{lane}", self.prefix)
    }

    /// A flow's queue.
    pub fn flow(&self, class: Class, flow: &str) -> String {
        format!("{}.flow.{class}.{flow}", self.prefix)
    }

    /// What the name of every flow's queue begins with.
    pub(crate) fn flows(&self) -> String {
        self.under("flow.")
    }

    /// Exchange and queue of a rung of the delay ladder.
    pub fn delay(&self, rung_s: u32) -> String {
        format!("{}.delay.{rung_s}s", self.prefix)
    }

    /// The queue of dead letters.
    pub fn dead(&self) -> String {
        self.under("dead")
    }

    /// The queue of providers' events.
    pub fn feedback(&self) -> String {
        self.under("feedback")
    }

    /// The exchange of events.
    pub fn events(&self) -> String {
        self.under("events")
    }

    /// The queue that refuses everything.
    pub fn refuse(&self) -> String {
        self.under("refuse")
    }

    /// The queue that holds the record of the topology applied last.
    pub(crate) fn manifest(&self) -> String {
        self.under("topology")
    }

    /// Held by whoever is applying a topology.
    pub(crate) fn lock(&self) -> String {
        self.under("topology.lock")
    }

    /// Exchange and routing key for a message on this route.
    pub(crate) fn resolve<'a>(&self, route: &'a Route, key: &'a str) -> (String, std::borrow::Cow<'a, str>) {
        match route {
            Route::Producers => (self.producers(), key.into()),
            Route::Lanes => (self.lanes(), key.into()),
            Route::Intake => (self.intake(), key.into()),
            Route::Delay { rung_s } => (self.delay(*rung_s), key.into()),
            Route::Events => (self.events(), key.into()),
            // The default exchange routes by queue name.
            Route::Dead => (String::new(), self.dead().into()),
            Route::Feedback => (String::new(), self.feedback().into()),
            Route::Queue(name) => (String::new(), name.as_ref().into()),
        }
    }
}
