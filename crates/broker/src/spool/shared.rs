//! What all clones of a handle share, and how they ask the two threads.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use paceline_sqlite::{
    Lock, LockError, WriteError, Writer, reader,
    rusqlite::{self, Connection},
};
use tokio::sync::{Semaphore, oneshot};

use super::{
    admin, codec,
    events::Events,
    health::Health,
    hub::{Hub, Known},
    keeper::{Admin, Clock, Job, Keeper, Publish, Transaction},
    reader::Reader,
};
use crate::{BrokerError, Counters, Names, Outgoing, PublishError, Purpose, Route};

/// SQLite takes no row beyond 1 GB.
const MOST_BYTES: usize = 512 * 1024 * 1024;
/// How long a consumer waits for one that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Shared {
    pub(super) names: Names,
    pub(super) path: PathBuf,
    pub(super) hub: Arc<Hub>,
    pub(super) health: Arc<Health>,
    pub(super) writer: Arc<Writer<Keeper>>,
    /// For depths and the like.
    pub(super) query: Arc<Mutex<Connection>>,
    pub(super) consuming: tokio::sync::Mutex<()>,
    pub(super) consumption: Mutex<Option<Consumption>>,
    pub(super) under_way: Semaphore,
    pub(super) events: Arc<Events>,
    pub(super) counters: Counters,
    pub(super) clock: Clock,
}

/// What makes this the process that consumes. The reader ends before the lock is released.
pub(super) struct Consumption {
    pub(super) reader: JoinHandle<()>,
    pub(super) lock: Lock,
}

impl Shared {
    pub(super) fn reach(&self) -> Result<(), BrokerError> {
        if self.health.closed() { Err(BrokerError::Unreachable("closed".to_owned())) } else { Ok(()) }
    }

    /// Runs `job` within a transaction of the writer's.
    pub(super) async fn admin<T, F>(&self, mut job: F) -> Result<T, BrokerError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        self.reach()?;
        let (done, answer) = oneshot::channel();
        let found = Arc::new(Mutex::new(None));
        let result = found.clone();
        let run = Box::new(move |t: &mut Transaction<'_>| {
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(job(t)?);
            Ok(())
        });
        let gone = || BrokerError::Unreachable("closed".to_owned());
        self.writer.put(Job::Admin(Admin { run, done })).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|error| match error {
            WriteError::Refused { reason } => BrokerError::Refused(reason),
            other => BrokerError::Unreachable(other.to_string()),
        })?;
        let found = found.lock().unwrap_or_else(PoisonError::into_inner).take();
        found.ok_or_else(gone)
    }

    /// Reads on a connection of its own, which no writer holds up.
    pub(super) async fn query<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        self.reach()?;
        let db = self.query.clone();
        let result = tokio::task::spawn_blocking(move || f(&db.lock().unwrap_or_else(PoisonError::into_inner))).await;
        let path = || self.path.display();
        match result {
            Ok(result) => result.map_err(|error| BrokerError::Unreachable(format!("{} cannot be read: {error}", path()))),
            Err(_) => Err(BrokerError::Unreachable(format!("reading {} was given up", path()))),
        }
    }

    pub(super) async fn known(&self, queue: &str) -> Result<Known, BrokerError> {
        let name = queue.to_owned();
        let known = self.query(move |db| admin::known(db, &name)).await?;
        known.ok_or_else(|| BrokerError::Missing(format!("queue {queue}")))
    }

    pub(super) fn take_lock(&self) -> Result<Lock, LockError> {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        Lock::take(Path::new(&path))
    }

    pub(super) fn consumption(&self) -> MutexGuard<'_, Option<Consumption>> {
        self.consumption.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this process the one that consumes.
    pub(super) async fn take_over(&self) -> Result<(), BrokerError> {
        let _one_at_a_time = self.consuming.lock().await;
        if self.consumption().is_some() {
            return Ok(());
        }
        let lock = self.lock_patiently().await?;
        let now_us = self.clock.now_us();
        if !self.query(move |db| admin::rungs_ahead(db, now_us)).await?.is_empty() {
            self.admin(admin::mend_dues).await?;
        }
        let unusable = |reason: String| BrokerError::Unreachable(reason);
        let reader = Reader {
            db: reader(&self.path).map_err(|error| unusable(error.to_string()))?,
            hub: self.hub.clone(),
            health: self.health.clone(),
            writer: self.writer.clone(),
            clock: self.clock,
        };
        let thread = std::thread::Builder::new().name("spool-reader".to_owned()).spawn(move || reader.run());
        let reader = thread.map_err(|error| unusable(error.to_string()))?;
        *self.consumption() = Some(Consumption { reader, lock });
        Ok(())
    }

    pub(super) async fn lock_patiently(&self) -> Result<Lock, BrokerError> {
        let until = tokio::time::Instant::now() + LOCK_PATIENCE;
        loop {
            match self.take_lock() {
                Ok(lock) => return Ok(lock),
                Err(LockError::Held { .. }) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(LockError::Held { pid }) => {
                    let (path, pid) = (self.path.display(), pid.map_or_else(|| "another".to_owned(), |pid| pid.to_string()));
                    return Err(BrokerError::Refused(format!(
                        "process {pid} consumes {path} already, and only one can: stop it first, or give this one a spool of its own"
                    )));
                }
                Err(error) => return Err(BrokerError::Unreachable(error.to_string())),
            }
        }
    }

    /// Moves the mail of a lane that is no longer named and removes it. What it moved, and whether the lane is gone.
    pub(super) async fn drain(&self, lane: &str, forget: bool) -> Result<(u64, bool), BrokerError> {
        let known = match self.known(lane).await {
            Err(BrokerError::Missing(_)) => return Ok((0, true)),
            known => known?,
        };
        let _paused = Paused { hub: &self.hub, queue: known.id, forget };
        while !self.hub.pause(&known) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let moved = self.empty(&known).await?;
        let removed = self.admin(move |t| admin::remove(t, known.id)).await?;
        Ok((moved, removed))
    }

    pub(super) async fn empty(&self, queue: &Known) -> Result<u64, BrokerError> {
        let (mut after, mut moved) = (Some(0), 0);
        while let Some(from) = after {
            let (id, exchange) = (queue.id, self.names.producers());
            let step = self.admin(move |t| admin::move_out(t, id, &exchange, from)).await?;
            self.hub.moved(queue.id, &step.numbers);
            step.numbers.iter().for_each(|_| self.counters.count_published(Purpose::Drain));
            moved += step.numbers.len() as u64;
            after = step.next;
        }
        Ok(moved)
    }

    pub(super) async fn submit(&self, message: &Outgoing) -> Result<(), PublishError> {
        let unreachable = || PublishError::Unreachable("closed".to_owned());
        if self.health.closed() {
            return Err(unreachable());
        }
        if message.key.len() > 255 {
            return Err(PublishError::Invalid("its routing key is longer than 255 bytes".to_owned()));
        }
        if message.body.len() > MOST_BYTES {
            return Err(PublishError::Invalid("its body is larger than 512 MiB".to_owned()));
        }
        if message.to == Route::Events {
            self.events.emit(message, &self.counters);
            return Ok(());
        }
        let (exchange, key) = self.names.resolve(&message.to, &message.key);
        let _turn = self.under_way.acquire().await.map_err(|_| unreachable())?;
        let (answer, answered) = oneshot::channel();
        let publish = Publish {
            exchange,
            key: key.into_owned(),
            properties: codec::encode(&message.properties),
            body: message.body.clone(),
            within: !matches!(message.purpose, Purpose::Submit | Purpose::Replay | Purpose::Feedback),
            refused: None,
            answer,
        };
        self.writer.put(Job::Publish(publish)).map_err(|_| unreachable())?;
        answered.await.map_err(|_| PublishError::Unconfirmed("the spool was closed".to_owned()))?
    }

    /// Blocks for about one commit.
    pub(super) fn shut(&self) {
        self.health.close();
        self.hub.close("closed");
        self.events.close("closed");
        let consumption = self.consumption().take();
        // Whoever consumes next must not find what was acked here: the acks are written before the lock goes.
        self.writer.poke();
        self.writer.close();
        if let Some(Consumption { reader, lock }) = consumption {
            let _ = reader.join();
            drop(lock);
        }
    }
}

/// Ends a pause, also when whoever asked for it has gone.
struct Paused<'a> {
    hub: &'a Hub,
    queue: i64,
    forget: bool,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.forget {
            self.hub.forget(self.queue);
        } else {
            self.hub.resume(self.queue);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.shut();
    }
}
