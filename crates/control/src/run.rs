//! The control process, put together.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use paceline_broker::{Broker, State, Topology};
use paceline_core::Reason;
use paceline_dlq::{AutoSuppress, Runner, Writer, WriterState};
use paceline_store::Store;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    BearerToken, Check, Readiness, SharedRegistry, StoreHealth,
    depth::Depths,
    feedback::Feedback,
    guarded, health_router,
    lanes::{self, Lanes},
    retention, serve,
};

/// What the control process stands on.
pub struct Deps {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    /// Names the queues to watch.
    pub topology: Topology,
    /// Where HTTP is served.
    pub listener: TcpListener,
    pub registry: SharedRegistry,
    /// Further checks for `/readyz`, such as the limits' state.
    pub also: Option<Arc<dyn Readiness>>,
    /// A worker shares the process and `registry`, and counts the dead letters itself.
    pub with_worker: bool,
    /// How long dead letters are kept; for ever without.
    pub retention: Option<Duration>,
    /// Whose events are taken, and what they have an effect on.
    pub feedback: Feedback,
    /// Puts refused recipients on the suppression list; `None`: only operators do.
    pub auto_suppress: Option<AutoSuppress>,
    /// What of the lanes can be seen.
    pub lanes: Lanes,
    /// What callers of `/v1` show; without one there is no `/v1` but the events of providers.
    pub token: Option<BearerToken>,
}

/// Runs until `shutdown`, or until HTTP cannot be served. Starts with broker and store away, and works once they are
/// there; `/readyz` says what is missing.
pub async fn run(deps: Deps, shutdown: CancellationToken) -> io::Result<()> {
    let Deps { broker, store, topology, listener, registry, also, with_worker, retention, auto_suppress, feedback, lanes, token } =
        deps;
    let (dead_letters, depths, (events, feedback)) = {
        let mut registry = registry.write().unwrap_or_else(PoisonError::into_inner);
        let counted: Family<ReasonLabels, Counter> = Family::default();
        if !with_worker {
            registry.register("paceline_dead_letters", "Dead letters stored", counted.clone());
        }
        let feedback = feedback.parts(broker.clone(), topology.names.feedback(), &mut registry);
        (counted, Depths::new(&topology, lanes.clone(), &mut registry), feedback)
    };
    for reason in Reason::ALL {
        // Each is there from the start, so that its first increase is seen as one.
        dead_letters.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc_by(0);
    }
    let options = paceline_dlq::Options::new(topology.names.dead());
    let writer = Writer::new(broker.clone(), store.clone(), options, move |reason| {
        dead_letters.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    });
    let writer = writer.suppressing(auto_suppress);
    let store_health = Arc::new(StoreHealth::new());
    let readiness = ControlReadiness { broker: broker.state(), store: store_health.clone(), writer: writer.state(), also };
    // Events come without the bearer token: each provider's own scheme tells who sends them.
    let mut router = health_router(Arc::new(readiness), registry).merge(events);
    if let Some(token) = token {
        router = router.merge(guarded(lanes::router(lanes), token));
    }

    // One part's end is the end of all.
    let ending = shutdown.child_token();
    let http = async {
        let served = serve(listener, router, ending.clone()).await;
        ending.cancel();
        served
    };
    let replays = Runner::run(store.clone(), broker.clone(), ending.clone());
    let work = async { tokio::join!(writer.run(ending.clone()), replays, feedback.run(ending.clone()), http).3 };
    let retaining = async {
        match retention {
            Some(keep) => retention::enforce(store.clone(), keep).await,
            None => std::future::pending().await,
        }
    };
    let watching = async { tokio::join!(store_health.watch(store.clone()), depths.watch(broker), retaining) };
    tokio::select! {
        served = work => served,
        // The watches have no end of their own.
        _ = watching => Ok(()),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

struct ControlReadiness {
    broker: watch::Receiver<State>,
    store: Arc<StoreHealth>,
    writer: watch::Receiver<WriterState>,
    also: Option<Arc<dyn Readiness>>,
}

impl Readiness for ControlReadiness {
    fn checks(&self) -> Vec<Check> {
        let broker = match &*self.broker.borrow() {
            State::Up => Check::ok("broker"),
            // Dead letters still flow.
            State::Blocked { why, .. } => Check { detail: Some(why.clone()), ..Check::ok("broker") },
            State::Down { why, .. } => Check::failing("broker", why.clone()),
        };
        let writer = match &*self.writer.borrow() {
            WriterState::Writing => Check::ok("dead_letters"),
            WriterState::Starting => Check::failing("dead_letters", "the queue is not consumed yet"),
            WriterState::Waiting(why) => Check::failing("dead_letters", why.clone()),
        };
        let mut checks = vec![broker, self.store.check(), writer];
        checks.extend(self.also.iter().flat_map(|also| also.checks()));
        checks
    }
}
