//! The worker pipeline: takes, runs, settles.
//!
//! [`Worker::start`] consumes every lane; each message then walks through `lane` (consume), `intake` (read, classify),
//! `engine` (wait for limits), `pipeline` (claim, send, decide) and `settle` (publish or record, then acknowledge).
//!
//! Promises: a message is acknowledged only after what follows from it is recorded or confirmed elsewhere; a call is
//! made only under a claim and not before its grant's date; a drain ends within its grace period and leaves everything
//! that was not sent in the broker.

mod board;
mod company;
mod context;
mod dead;
mod directives;
mod engine;
mod flows;
mod generation;
mod gentle;
mod intake;
mod item;
mod keeper;
mod lane;
mod lanes;
mod limits;
mod metrics;
mod note;
mod pipeline;
mod prefetch;
mod routing;
mod settings;
mod settle;
mod signals;
mod slots;
mod standing;
mod suppress;
mod turns;
mod view;
mod words;
mod world;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use paceline_broker::Broker;
use paceline_classifier::Classifier;
use paceline_core::{CancelSet, Class, Directives, Lane, SuppressionSet, lane::TAIL, lanes::WorkerReport};
use paceline_limiter::{Limiter, fleet::Fleet, ledger::Ledger, signals::Signals};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    board::Board,
    context::Context,
    directives::Follower,
    engine::{Engine, Input},
    flows::{Flows, Labels},
    gentle::Gentle,
    intake::Intake,
    keeper::Keeper,
    lanes::Lanes,
    limits::{Limits, Rates},
    routing::Routing,
    settle::Settler,
    signals::{Learning, Tally},
    slots::Slots,
    turns::Lines,
};
pub use crate::{
    metrics::Metrics,
    settings::{Account, Destination, FlowSettings, Limit, Named, Settings},
    signals::{Keep, KeepError, Kept},
    world::World,
};

/// What a worker works with.
pub struct Deps {
    pub broker: Arc<dyn Broker>,
    pub limiter: Arc<dyn Limiter>,
    pub ledger: Arc<dyn Ledger>,
    pub fleet: Arc<dyn Fleet>,
    /// What the fleet learns together.
    pub signals: Arc<dyn Signals>,
    /// Where that outlives a loss; `None`: nowhere.
    pub keep: Option<Arc<dyn Keep>>,
    pub classifier: Arc<Classifier>,
    /// Operators' orders not to send; a change takes effect at once.
    pub cancels: watch::Receiver<Arc<CancelSet>>,
    /// Recipients that must not be mailed; a change takes effect at once.
    pub suppressions: watch::Receiver<Arc<SuppressionSet>>,
    /// What operators have ordered: pauses, and limits in place of the configured ones; a change takes effect at once.
    pub directives: watch::Receiver<Arc<Directives>>,
    pub metrics: Metrics,
    /// Time of day and chance; [`World::default`] is the real one.
    pub world: World,
    pub settings: Settings,
}

/// A running worker.
pub struct Worker {
    cx: Arc<Context>,
    fleet: Arc<dyn Fleet>,
    lanes: Arc<Lanes>,
    keeper: JoinHandle<()>,
    engine: JoinHandle<()>,
    learning: JoinHandle<()>,
    following: JoinHandle<()>,
    heartbeat: CancellationToken,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Calls still under way when the grace period ended; what became of them is uncertain.
    pub unfinished: usize,
}

const HEARTBEAT: Duration = Duration::from_secs(2);
const HEARTBEAT_LIFE: Duration = Duration::from_secs(10);

impl Worker {
    /// Starts consuming. The topology must be there; services that are away are waited for.
    pub fn start(deps: Deps) -> Worker {
        let Deps { broker, limiter, ledger, fleet, signals, keep, classifier, cancels, suppressions, directives, .. } = deps;
        let (metrics, world, settings) = (deps.metrics, deps.world, Arc::new(deps.settings));
        let limits = Arc::new(Limits::ordered(&settings, &Rates::new(), 0));
        let (limits_sender, limits_receiver) = watch::channel(limits.clone());
        let standing = watch::Sender::default();
        let routing = Routing::new(&settings, limits_receiver.clone(), classifier.clone(), standing.subscribe());
        let routing = Arc::new(routing);
        let current = watch::Sender::new(settings.clone());
        let intake = Arc::new(Intake {
            classifier: classifier.clone(),
            routing: routing.clone(),
            labels: Labels::new(&settings),
            max_message_bytes: settings.max_message_bytes,
            current: current.subscribe(),
            cancels: cancels.clone(),
            suppressions: suppressions.clone(),
        });
        let (to_engine, inputs) = mpsc::unbounded_channel();
        let (flows, requests) = Flows::new(&settings);
        let concurrency = settings.accounts.iter().map(|a| a.concurrency);
        let slots = Slots::new(settings.concurrency, concurrency, settings.held_bytes.saturating_mul(6));
        let settler = Settler { broker: broker.clone(), metrics: metrics.clone() };
        let cx = Arc::new(Context {
            classifier: classifier.clone(),
            broker,
            ledger,
            settler,
            metrics,
            board: Board::new(),
            slots,
            cancels,
            suppressions,
            engine: to_engine,
            flows,
            tasks: TaskTracker::new(),
            present: Mutex::new(HashSet::new()),
            clock: RwLock::new(None),
            standing,
            tally: Tally::default(),
            gentle: Gentle::default(),
            world,
            config: watch::Sender::new(limits.digest.clone()),
            limits_fault: watch::Sender::new(Some("not asked yet".to_owned())),
            current,
            settings,
        });

        let engine = Engine::new(cx.clone(), limiter, limits, routing, Lines::new(fleet.clone()));
        let engine = tokio::spawn(engine.run(inputs));
        // Before any mail is taken.
        let mut follower = Follower::new(cx.clone(), directives, limits_sender);
        follower.apply();
        let following = tokio::spawn(follower.run());

        let (workers_sender, workers) = watch::channel(1);
        let heartbeat = CancellationToken::new();
        tokio::spawn(beat(cx.clone(), fleet.clone(), workers_sender, heartbeat.clone()));
        let learning = tokio::spawn(Learning::new(cx.clone(), signals, keep, limits_receiver.clone()).run(heartbeat.clone()));
        let lanes = Arc::new(Lanes::new(cx.clone(), intake, limits_receiver, fleet.clone(), workers));
        for destination in classifier.destinations().names().iter().cloned().chain([TAIL.into()]) {
            Class::ALL.into_iter().for_each(|class| drop(lanes.open(Some(Lane::new(class, destination.clone())))));
        }
        lanes.open(None);
        let keeper = Keeper { lanes: lanes.clone(), requests, odd: HashSet::new(), settled: false };
        let keeper = tokio::spawn(keeper.run());
        Worker { cx, fleet, lanes, keeper, engine, learning, following, heartbeat }
    }

    /// The configuration has been read anew. Limits and policies of `settings` are in force from now on; accounts are those
    /// that there were, in their order, and all else stays as it was.
    pub fn reread(&self, settings: Settings) {
        let same = settings.accounts.iter().map(|a| &a.name).eq(self.cx.settings.accounts.iter().map(|a| &a.name));
        debug_assert!(same, "accounts stay the same");
        if !same {
            return tracing::error!("other accounts than at the start: limits stay as they were");
        }
        for (index, account) in settings.accounts.iter().enumerate() {
            self.cx.slots.resize(index, account.concurrency);
        }
        self.cx.current.send_replace(Arc::new(settings));
    }

    /// What keeps limiter or ledger from answering; `None` while they do.
    pub fn limits_fault(&self) -> watch::Receiver<Option<String>> {
        self.cx.limits_fault.subscribe()
    }

    /// Ends at once and settles nothing, as a crash does: for simulations. Calls under way run on, since nobody could tell
    /// them to stop.
    pub fn abandon(self) {
        self.keeper.abort();
        self.lanes.abort();
        self.engine.abort();
        self.learning.abort();
        self.heartbeat.cancel();
    }

    /// What this worker says of its lanes, anew every second; empty before the limiter has answered.
    pub fn lanes(&self) -> watch::Receiver<Arc<WorkerReport>> {
        self.cx.board.report.subscribe()
    }

    /// Stops taking mail, gives back what was not begun, and lets calls under way finish within the grace period.
    pub async fn drain(self) -> Drained {
        let Worker { cx, fleet, lanes, keeper, engine, learning, following, heartbeat } = self;
        let end = Instant::now() + cx.settings.drain_grace;
        let (reply, stopped) = oneshot::channel();
        cx.to_engine(Input::Stop { reply });
        let _ = timeout_at(end, stopped).await;
        // No flow is opened any more; what waits for one goes back to its queue.
        keeper.abort();
        lanes.stop(end).await;
        cx.tasks.close();
        let _ = timeout_at(end, cx.tasks.wait()).await;
        let unfinished = cx.tasks.len();
        // The slots of the last calls must not wait until their leases run out.
        let (reply, told) = oneshot::channel();
        cx.to_engine(Input::Told { reply });
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
        heartbeat.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), learning).await;
        let _ = tokio::time::timeout(Duration::from_secs(1), fleet.leave(&cx.settings.worker_id)).await;
        following.abort();
        engine.abort();
        Drained { unfinished }
    }
}

/// Says that this worker lives, and learns how many do.
async fn beat(cx: Arc<Context>, fleet: Arc<dyn Fleet>, workers: watch::Sender<u64>, stop: CancellationToken) {
    let mut config = cx.config.subscribe();
    // What the fleet said of which configuration.
    let mut known: (Arc<str>, u64) = ("".into(), 0);
    loop {
        let digest = config.borrow_and_update().clone();
        let told_us = if digest == known.0 { known.1 } else { 0 };
        let alive = fleet.heartbeat(&cx.settings.worker_id, &digest, told_us, HEARTBEAT_LIFE).await;
        cx.note_limits(&alive);
        if let Ok(alive) = alive {
            workers.send_if_modified(|n| std::mem::replace(n, alive.workers.max(1)) != alive.workers.max(1));
            if known != (digest.clone(), alive.generation_us) {
                tracing::info!(config = &*digest, generation_us = alive.generation_us, "limits registered with the fleet");
                cx.to_engine(Input::Generation(alive.generation_us));
                known = (digest, alive.generation_us);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // Other limits: the fleet hears of them at once.
            Ok(()) = config.changed() => {}
            () = sleep(HEARTBEAT) => {}
        }
    }
}
