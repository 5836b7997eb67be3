//! Jobs that nobody runs, run on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use paceline_broker::Broker;
use paceline_store::{Job, Jobs};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Deps, Ended, Progress, owner, run};

/// How often the store is asked for jobs that nobody holds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A job that was under way is left to the operator who had it for this long, to resume or to cancel.
const GRACE: Duration = Duration::from_secs(10);
/// Jobs run at a time; a slow one holds up no other below this.
const AT_ONCE: usize = 8;

/// Runs on what a process that ended left, and what was ordered to run in the background: an operator approved each when
/// it was made, so that nothing is decided here.
#[derive(Debug, Clone, Copy)]
pub struct Runner;

impl Runner {
    /// Runs until `shutdown`; then jobs under way are given back, for others to run on.
    pub async fn run(store: Arc<dyn Jobs>, broker: Arc<dyn Broker>, shutdown: CancellationToken) {
        let deps = Deps::new(store, broker, owner(&format!("control {}", std::process::id())));
        let mut running: JoinSet<()> = JoinSet::new();
        let mut under_way: HashMap<Id, String> = HashMap::new();
        let mut seen = Seen::default();
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = running.join_next_with_id(), if !running.is_empty() => {
                    let id = match &ended {
                        Ok((id, ())) => *id,
                        Err(e) => e.id(),
                    };
                    under_way.remove(&id);
                }
                _ = ticks.tick() => {
                    // An outage is for the dead-letter writer to complain about.
                    let Ok(abandoned) = deps.store.abandoned(100).await else { continue };
                    for job in seen.due(abandoned, Instant::now()) {
                        let busy = under_way.len() >= AT_ONCE || under_way.values().any(|id| *id == job.id);
                        if !busy {
                            let id = job.id.clone();
                            let task = running.spawn(run_one(job, deps.clone(), shutdown.clone()));
                            under_way.insert(task.id(), id);
                        }
                    }
                }
            }
        }
        while running.join_next().await.is_some() {}
    }
}

async fn run_one(job: Job, deps: Deps, shutdown: CancellationToken) {
    let progress = watch::Sender::new(Progress { job: job.clone(), waiting: None });
    if let Ended::Unknown = run(&job, &deps, &progress, &shutdown).await {
        warn!(job = job.id, "the job is gone from the store");
    }
}

/// Since when each job is known to be nobody's.
#[derive(Debug, Default)]
struct Seen(HashMap<String, Instant>);

impl Seen {
    /// Those whose time has come: at once where nothing was done yet and nobody ever held it, else after [`GRACE`].
    fn due(&mut self, abandoned: Vec<Job>, now: Instant) -> Vec<Job> {
        let ids: HashSet<&str> = abandoned.iter().map(|job| job.id.as_str()).collect();
        self.0.retain(|id, _| ids.contains(id.as_str()));
        let due = |job: &Job| {
            let since = *self.0.entry(job.id.clone()).or_insert(now);
            let untouched = job.left() == job.total && job.leased_until.is_none();
            untouched || now.duration_since(since) >= GRACE
        };
        let mut due_now = abandoned;
        due_now.retain(due);
        due_now
    }
}
