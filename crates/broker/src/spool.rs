//! The embedded broker: queues in a SQLite file on this machine, durable, without a service.
//!
//! One B-tree holds all messages in queue order, so that publishing appends, consuming reads ahead from the head, and
//! an ack deletes. Each process writes from one thread, many operations a commit; a publish is answered when its commit
//! is on disk. Acks go with the next commit, or with one of their own a few milliseconds later, which then does not
//! wait for the disk: what a power cut undoes is delivered again.
//!
//! - Any number of processes may publish, ask for depths and apply topologies. One at a time may consume, from its
//!   first [`Broker::consume`] on: an advisory lock on `<path>.lock`, which the kernel releases when that process ends.
//!   It also moves what is due on the ladder. Mail from other processes is noticed within about 10 ms.
//! - What consumers hold is known to the consuming process alone. After a crash everything that was not acked is at its
//!   place again; what may have been delivered before says so. For another process, held messages count as ready.
//! - Events reach listeners of the same process only and are never written.
//! - The last of the disk is kept for working off what is queued: new mail is refused before it is full. On a full disk
//!   every publish fails and says so, acks wait in memory, and everything goes on when there is room again. Deleted
//!   messages make room within the file; the file itself does not shrink.

mod admin;
mod codec;
mod events;
mod health;
mod hub;
mod keeper;
mod lines;
mod reader;
mod room;
mod routes;
mod shared;
mod subscription;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use paceline_core::Class;
pub use paceline_sqlite::OpenError;
use paceline_sqlite::{Schema, Writer, open, reader};
use tokio::sync::{Semaphore, watch};

use crate::{
    Applied, Broker, BrokerError, Consumer, Counters, Drift, Names, Outgoing, PublishError, Route, State, Topology,
    topology::{self, Queue},
};
use health::Health;
use hub::Hub;
use keeper::{Clock, Keeper, Transaction};
use shared::Shared;

const SCHEMA: Schema = Schema {
    what: "spool",
    application_id: 0x5061_6365,
    migrations: &[include_str!("../../../migrations/spool/0001_spool.sql")],
    page_size: 8192,
};

/// Publishes under way at once; further ones wait for their turn.
const UNDER_WAY: usize = 1_000;

/// Where the spool is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The SQLite file; made if it is not there, beside it `-wal`, `-shm` and `.lock`. On a local disk.
    pub path: PathBuf,
    /// Of every exchange and queue.
    pub prefix: String,
}

/// The embedded broker. Clones share one handle; dropping the last one, and every consumer and settle, closes it.
#[derive(Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

impl Spool {
    /// Opens the spool, making the file if it is not there. It is usable at once; [`Broker::apply`] declares its queues.
    pub fn open(options: Options) -> Result<Spool, OpenError> {
        let db = open(&options.path, &SCHEMA)?;
        let query = reader(&options.path)?;
        let (hub, health, clock) = (Arc::<Hub>::default(), Arc::new(Health::new()), Clock::new());
        let writer = Writer::start("spool-writer", db, Keeper::new(options.path.clone(), hub.clone(), health.clone(), clock));
        let writer = writer.map_err(|error| failed(&options.path, &error.to_string()))?;
        let shared = Shared {
            names: Names::new(&options.prefix),
            path: options.path,
            hub,
            health,
            writer: Arc::new(writer),
            query: Arc::new(Mutex::new(query)),
            consuming: tokio::sync::Mutex::default(),
            consumption: Mutex::default(),
            under_way: Semaphore::new(UNDER_WAY),
            events: Arc::default(),
            counters: Counters::default(),
            clock,
        };
        Ok(Spool { shared: Arc::new(shared) })
    }

    /// Becomes the process that consumes now, not with the first [`Broker::consume`]: a second worker is refused at its
    /// start.
    pub async fn take_over(&self) -> Result<(), BrokerError> {
        self.shared.reach()?;
        self.shared.take_over().await
    }

    /// Adds a queue outside the topology, such as a flow's; one that is there already stays as it is.
    pub async fn declare(&self, queue: &Queue) -> Result<(), BrokerError> {
        let queue = queue.clone();
        self.shared
            .admin(move |t| {
                if admin::declare_queue(t.db, &queue)? {
                    t.topology_changed()?;
                }
                Ok(())
            })
            .await
    }
}

fn failed(path: &Path, reason: &str) -> OpenError {
    OpenError::Failed { path: path.display().to_string(), reason: reason.to_owned() }
}

#[async_trait]
impl Broker for Spool {
    async fn apply(&self, topology: &Topology) -> Result<Applied, BrokerError> {
        let wanted = topology.clone();
        let (mut applied, stale) = self.shared.admin(move |t| admin::apply(t, &wanted)).await??;
        if stale.is_empty() {
            return Ok(applied);
        }
        // Only the process that consumes knows what is held: lanes are emptied by it, or while there is none.
        let _one_at_a_time = self.shared.consuming.lock().await;
        let lock = if self.shared.consumption().is_some() { None } else { self.shared.take_lock().map(Some).unwrap_or_default() };
        if lock.is_none() && self.shared.consumption().is_none() {
            applied.left = stale;
            return Ok(applied);
        }
        for lane in stale {
            let (moved, removed) = self.shared.drain(&lane, lock.is_some()).await?;
            if moved > 0 {
                tracing::info!(lane, moved, "moved the mail of a lane that is no longer named");
                applied.drained.push((lane.clone(), moved));
            }
            if removed { applied.removed.push(lane) } else { applied.left.push(lane) }
        }
        let (topology, left) = (topology.clone(), applied.left.clone());
        self.shared.admin(move |t| admin::remember(t.db, &topology, &left)).await?;
        Ok(applied)
    }

    async fn check(&self, topology: &Topology) -> Result<Vec<Drift>, BrokerError> {
        let topology = topology.clone();
        self.shared.query(move |db| admin::check(db, &topology)).await
    }

    async fn open_flow(&self, class: Class, flow: &str) -> Result<(), BrokerError> {
        let (queue, binding) = topology::flow(&self.shared.names, class, flow);
        let open = move |t: &mut Transaction<'_>| {
            if admin::declare_queue(t.db, &queue)? | admin::bind(t.db, &binding)? {
                t.topology_changed()?;
            }
            Ok(())
        };
        self.shared.admin(open).await
    }

    async fn flows(&self) -> Result<Vec<(Class, String)>, BrokerError> {
        let prefix = self.shared.names.flows();
        let names = self.shared.query(move |db| admin::names(db, &prefix)).await?;
        Ok(names.iter().filter_map(|name| topology::flow_parts(name)).collect())
    }

    async fn close_flow(&self, class: Class, flow: &str) -> Result<bool, BrokerError> {
        match self.shared.known(&self.shared.names.flow(class, flow)).await {
            Err(BrokerError::Missing(_)) => Ok(true),
            Err(other) => Err(other),
            Ok(known) => self.shared.admin(move |t| admin::remove(t, known.id)).await,
        }
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let result = self.shared.submit(&message).await;
        match &result {
            Ok(()) if message.to == Route::Events => {}
            Ok(()) => self.shared.counters.count_published(message.purpose),
            Err(_) => self.shared.counters.count_failed(),
        }
        result
    }

    fn emit(&self, message: Outgoing) {
        if self.shared.health.closed() {
            self.shared.counters.count_dropped();
        } else {
            self.shared.events.emit(&message, &self.shared.counters);
        }
    }

    fn heard(&self, key: &str) -> bool {
        self.shared.events.heard(key)
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        let known = self.shared.known(queue).await?;
        self.shared.take_over().await?;
        let id = self.shared.hub.subscribe(&known, prefetch).ok_or_else(|| BrokerError::Missing(format!("queue {queue}")))?;
        self.shared.writer.poke();
        let consumer = subscription::consumer(self.shared.clone(), id);
        // It may have been removed between the two.
        self.shared.known(queue).await.map(|_| consumer)
    }

    async fn listen(&self, pattern: &str) -> Result<Consumer, BrokerError> {
        self.shared.reach()?;
        Ok(self.shared.events.listen(pattern))
    }

    async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        let hub = &self.shared.hub;
        for tries in 0.. {
            let before = hub.commits();
            let name = queue.to_owned();
            let found = self.shared.query(move |db| admin::depth(db, &name)).await?;
            let (id, stored) = found.ok_or_else(|| BrokerError::Missing(format!("queue {queue}")))?;
            let ready = stored.saturating_sub(hub.absent(id) as u64);
            // Under load every answer is a moment old.
            if (before.is_multiple_of(2) && before == hub.commits()) || tries == 20 {
                return Ok(ready);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(BrokerError::Busy)
    }

    fn state(&self) -> watch::Receiver<State> {
        self.shared.health.watch()
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    async fn close(&self) {
        let shared = self.shared.clone();
        // The same whether it ends here or there.
        let _ = tokio::task::spawn_blocking(move || shared.shut()).await;
    }
}
