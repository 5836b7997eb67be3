//! What every task of a worker shares.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use paceline_broker::{Broker, Outgoing, Properties, Purpose, Route};
use paceline_classifier::Classifier;
use paceline_core::{CancelSet, Lane, Outcome, SuppressionSet, Timestamp, event::Event};
use paceline_limiter::{LimiterError, clock::ServerClock, ledger::Ledger};
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use crate::{
    board::Board,
    engine::Input,
    flows::Flows,
    gentle::Gentle,
    item::Item,
    metrics::{AccountLabels, Metrics},
    settings::Settings,
    settle::Settler,
    signals::Tally,
    slots::Slots,
    standing::Standing,
    world::World,
};

pub(crate) struct Context {
    /// As the worker was started.
    pub(crate) settings: Arc<Settings>,
    /// The same with the limits and policies that the configuration has now.
    pub(crate) current: watch::Sender<Arc<Settings>>,
    pub(crate) classifier: Arc<Classifier>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) settler: Settler,
    pub(crate) metrics: Metrics,
    pub(crate) board: Arc<Board>,
    pub(crate) slots: Slots,
    pub(crate) engine: UnboundedSender<Input>,
    pub(crate) flows: Flows,
    /// Whatever handles a message; a drain waits for it.
    pub(crate) tasks: TaskTracker,
    /// Ids of the messages whose handler runs.
    pub(crate) present: Mutex<HashSet<Arc<str>>>,
    /// Operators' orders not to send.
    pub(crate) cancels: watch::Receiver<Arc<CancelSet>>,
    /// Recipients that must not be mailed.
    pub(crate) suppressions: watch::Receiver<Arc<SuppressionSet>>,
    /// What keeps the limiter or the ledger from answering, if anything does.
    pub(crate) limits_fault: watch::Sender<Option<String>>,
    /// The limiter's clock, once it has answered.
    pub(crate) clock: RwLock<Option<ServerClock>>,
    /// Digest of the limits this worker is configured to; a change is told to the fleet at once.
    pub(crate) config: watch::Sender<Arc<str>>,
    /// What is in force beside what is configured; only the engine writes it.
    pub(crate) standing: watch::Sender<Arc<Standing>>,
    /// What came of calls, until it is reported.
    pub(crate) tally: Tally,
    /// Room at destinations that have not taken much yet.
    pub(crate) gentle: Gentle,
    pub(crate) world: World,
}

/// This message's handler runs.
pub(crate) struct Present {
    cx: Arc<Context>,
    id: Arc<str>,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.cx.present.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Context {
    pub(crate) fn now(&self) -> Timestamp {
        self.world.now()
    }

    /// The limiter's time, or `None` before it has answered.
    pub(crate) fn limiter_now_us(&self) -> Option<u64> {
        let clock = *self.clock.read().unwrap_or_else(PoisonError::into_inner);
        clock.map(|c| c.now_us(Instant::now().into_std()))
    }

    /// The limits and policies that are configured now.
    pub(crate) fn current(&self) -> Arc<Settings> {
        self.current.borrow().clone()
    }

    /// From now until that moment of the limiter's clock.
    pub(crate) fn until(&self, until_us: u64) -> Duration {
        Duration::from_micros(self.limiter_now_us().map_or(1_000_000, |now| until_us.saturating_sub(now)))
    }

    /// Marks the message as handled here; `None` while another handler has it.
    pub(crate) fn enter(self: &Arc<Self>, id: &Arc<str>) -> Option<Present> {
        let new = self.present.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        new.then(|| Present { cx: self.clone(), id: id.clone() })
    }

    /// Notes whether limiter and ledger answer, for readiness and metrics.
    pub(crate) fn note_limits<T>(&self, answer: &Result<T, LimiterError>) {
        let fault = answer.as_ref().err().map(ToString::to_string);
        if fault.is_some() {
            self.metrics.limiter_errors.inc();
        }
        self.limits_fault.send_if_modified(|now| {
            let changed = now.is_some() != fault.is_some();
            if changed {
                *now = fault;
            }
            changed
        });
    }

    pub(crate) fn to_engine(&self, input: Input) {
        // The engine outlives every other task; after it, a message unsettled goes back to its queue by itself.
        let _ = self.engine.send(input);
    }

    /// Takes note of what came of a call that was granted at `granted_us`.
    pub(crate) fn observe(&self, item: &Item, outcome: &Outcome, granted_us: u64, took: Duration) {
        if let Some(seconds) = &self.metrics.send_seconds {
            let account = self.settings.accounts[item.account].name.clone();
            seconds.get_or_create(&AccountLabels { account }).observe(took.as_secs_f64());
        }
        self.welcomed(item, outcome);
        self.learn(item, outcome, granted_us, took);
    }

    /// Publishes an event, at most once.
    pub(crate) fn emit(&self, event: &Event<'_>, lane: &Lane) {
        let key = format!("{}.{lane}", event.event.as_str());
        if !self.broker.heard(&key) {
            return;
        }
        let Ok(body) = serde_json::to_vec(event) else { return };
        self.broker.emit(Outgoing {
            to: Route::Events,
            key,
            body: Bytes::from(body),
            properties: Properties::default(),
            purpose: Purpose::Event,
        });
    }
}
