//! Watches the run from outside: the arrivals file, the store, the queues.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use paceline_broker::Broker;
use paceline_control::SharedRegistry;
use paceline_core::Timestamp;
use paceline_sandbox::Stats;
use paceline_store::{Filter, Store};
use tokio::time::{Instant, sleep};

use super::{
    Cast,
    arrivals::Tail,
    books::{Account, Books},
    frame::{Frame, Queues},
    gauges::{self, Metrics},
    plan::Plan,
    producers::Published,
    report::Told,
    stage::Figures,
};
use crate::exit::Failure;

/// For the last lines of the arrivals file: the sandbox writes them out within a tenth of a second.
const FLUSHED_WITHIN: Duration = Duration::from_secs(5);

/// Everything that is looked at.
pub(crate) struct Observer {
    pub(crate) books: Books,
    figures: Figures,
    tail: Tail,
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    registry: SharedRegistry,
    prefix: String,
    queues: Queues,
    publishes: u64,
    stored: u64,
    started_us: u64,
}

/// Microseconds of the Unix epoch.
pub(crate) fn now_us() -> u64 {
    Timestamp::from(SystemTime::now()).as_micros().unsigned_abs()
}

impl Observer {
    pub(crate) fn new(plan: &Plan, figures: Figures, arrivals: &Path, cast: &Cast) -> io::Result<Observer> {
        let node = &cast.node;
        Ok(Observer {
            books: Books::new(&plan.mail),
            figures,
            tail: Tail::open(arrivals)?,
            store: node.store().clone(),
            broker: node.broker().clone(),
            registry: node.registry().clone(),
            prefix: cast.prefix.clone(),
            queues: Queues::default(),
            publishes: 0,
            stored: 0,
            started_us: now_us(),
        })
    }

    pub(crate) fn published(&mut self, batch: impl IntoIterator<Item = Published>) {
        for Published { index, at_us } in batch {
            self.publishes += 1;
            self.books.published(index, at_us);
        }
    }

    /// Reads on in the arrivals file.
    pub(crate) fn look(&mut self) -> Result<(), Failure> {
        let arrivals = self.tail.read().map_err(|e| Failure::failed(format!("the arrivals file cannot be read: {e}")))?;
        arrivals.iter().for_each(|arrival| self.books.arrived(arrival));
        Ok(())
    }

    /// Asks broker and store.
    pub(crate) async fn ask(&mut self) -> Result<(), Failure> {
        self.queues = gauges::queues(&*self.broker, &self.prefix, &Metrics::read(&self.registry)).await?;
        self.count_dead().await
    }

    /// Reads to the end of what the sandbox has counted.
    pub(crate) async fn close(&mut self, sandbox: &Stats) -> Result<(), Failure> {
        let until = Instant::now() + FLUSHED_WITHIN;
        loop {
            self.look()?;
            if self.books.seen.calls >= sandbox.requests || Instant::now() > until {
                return self.count_dead().await;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks the store for every dead letter.
    async fn count_dead(&mut self) -> Result<(), Failure> {
        let dead = self.store.list(&Filter::default()).await?;
        self.stored = dead.len() as u64;
        self.books.buried(dead.iter().map(|d| (d.entry.message_id.as_deref(), d.entry.reason)));
        Ok(())
    }

    /// Changes with everything that happens to a message.
    pub(crate) fn progress(&self) -> (u64, u64, u64) {
        (self.publishes, self.books.seen.calls, self.stored)
    }

    /// Every message published is accounted for, and nothing is under way any more.
    pub(crate) fn is_over(&self) -> bool {
        let open = |e: &super::books::Entry| e.copies > 0 && e.account() == Account::Missing;
        self.queues.are_empty() && !self.books.entries().iter().any(open)
    }

    /// All mail has had its first call, or has been given up on.
    pub(crate) fn only_retries_are_left(&self) -> bool {
        self.books.entries().iter().all(|e| e.calls > 0 || !e.dead.is_empty())
    }

    pub(crate) fn frame(&self, phase: &'static str) -> Frame {
        Frame::new(&self.books, self.figures, &self.queues, phase, (self.started_us, now_us()))
    }

    /// What the others say, to be compared with the books.
    pub(crate) fn told(&self, sandbox: &Stats) -> Told {
        let metrics = Metrics::read(&self.registry);
        Told {
            worker_calls: metrics.sum("paceline_attempts_total", &[]),
            worker_dead: metrics.sum("paceline_dead_letters_total", &[]),
            sandbox_calls: sandbox.requests,
            sandbox_accepted: sandbox.accepted,
            stored_dead: self.stored,
        }
    }
}
