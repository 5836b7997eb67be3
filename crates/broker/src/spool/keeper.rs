//! What the writer thread does: publishes, acks, the ladder's returns and changes of the topology, many in one commit.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use paceline_sqlite::{
    Work, WriteError,
    rusqlite::{Connection, Result},
};
use tokio::sync::oneshot;

use super::{
    health::Health,
    hub::Hub,
    lines::{Lines, Message, last_place, parts, place},
    room::Room,
    routes::Routes,
};
use crate::{BrokerError, PublishError};

/// Messages that leave a rung in one job.
const EXPIRED_AT_ONCE: i64 = 500;

/// The system's clock when the process began, counted on by one that never goes back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    start_us: i64,
}

impl Clock {
    pub(super) fn new() -> Clock {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Clock { start: Instant::now(), start_us: i64::try_from(since.as_micros()).unwrap_or(0) }
    }

    /// Microseconds since 1970.
    pub(super) fn now_us(&self) -> i64 {
        self.start_us.saturating_add(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

pub(super) enum Job {
    Publish(Publish),
    Admin(Admin),
    /// Whatever is due at the head of this rung leaves.
    Expire(i64),
    /// Answers when the acks made so far are stored.
    Flush(oneshot::Sender<()>),
}

pub(super) struct Publish {
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) properties: Vec<u8>,
    pub(super) body: Bytes,
    /// It takes the place of another message, so it may use the last of the disk.
    pub(super) within: bool,
    /// Set while running, sent when committed.
    pub(super) refused: Option<PublishError>,
    pub(super) answer: oneshot::Sender<std::result::Result<(), PublishError>>,
}

/// May be run again after it was rolled back.
pub(super) type Change = Box<dyn FnMut(&mut Transaction<'_>) -> Result<()> + Send>;

/// A change of the topology, or of much mail.
pub(super) struct Admin {
    pub(super) run: Change,
    pub(super) done: oneshot::Sender<std::result::Result<(), WriteError>>,
}

/// What an [`Admin`] job sees.
pub(super) struct Transaction<'a> {
    pub(super) db: &'a Connection,
    pub(super) routes: &'a mut Routes,
    pub(super) lines: &'a mut Lines,
    pub(super) hub: &'a Hub,
    /// Queues removed, for which [`Hub::begin_removal`] was called.
    pub(super) removed: &'a mut Vec<i64>,
    pub(super) now_us: i64,
}

impl Transaction<'_> {
    /// To be called after a change of queues, exchanges or bindings.
    pub(super) fn topology_changed(&mut self) -> Result<()> {
        let version = self.db.query_row("UPDATE topology SET version = version + 1 RETURNING version", [], |row| row.get(0))?;
        *self.routes = Routes::load(self.db, version)?;
        Ok(())
    }
}

pub(super) struct Keeper {
    hub: Arc<Hub>,
    health: Arc<Health>,
    clock: Clock,
    routes: Routes,
    lines: Lines,
    /// Acked, to be deleted by this or the next commit; sorted while running.
    acked: Vec<i64>,
    /// Up to which number each queue has been handed out, to be written down.
    marks: Vec<(i64, i64)>,
    removed: Vec<i64>,
    room: Room,
}

impl Keeper {
    pub(super) fn new(path: PathBuf, hub: Arc<Hub>, health: Arc<Health>, clock: Clock) -> Keeper {
        let (routes, lines, room) = (Routes::default(), Lines::default(), Room::new(path));
        Keeper { hub, health, clock, routes, lines, acked: Vec::new(), marks: Vec::new(), removed: Vec::new(), room }
    }

    fn refresh(&mut self, db: &Connection) -> Result<()> {
        let version = db.prepare_cached("SELECT version FROM topology")?.query_row([], |row| row.get(0))?;
        if version != self.routes.version {
            self.routes = Routes::load(db, version)?;
        }
        Ok(())
    }

    fn publish(&mut self, db: &Connection, publish: &mut Publish, now_us: i64) -> Result<()> {
        publish.refused = None;
        let queues = match self.routes.targets(&publish.exchange, &publish.key) {
            Ok(queues) => queues,
            Err(what) => {
                publish.refused = Some(PublishError::Unreachable(BrokerError::Missing(what).to_string()));
                return Ok(());
            }
        };
        for queue in &*queues {
            if self.lines.refuses(db, &self.routes, *queue)? {
                publish.refused = Some(PublishError::Refused);
                return Ok(());
            }
        }
        if !publish.within
            && let Err(why) = self.room.take(publish.body.len() + publish.properties.len())
        {
            publish.refused = Some(PublishError::Blocked(why));
            return Ok(());
        }
        let message = Message { key: &publish.key, properties: &publish.properties, body: &publish.body, now_us };
        queues.iter().try_for_each(|queue| self.lines.append(db, &self.routes, *queue, &message))
    }

    fn expire(&mut self, db: &Connection, rung: i64, now_us: i64) -> Result<()> {
        let Some(exchange) = self.routes.rules(rung).and_then(|rules| rules.expired_to.clone()) else { return Ok(()) };
        let mut heads =
            db.prepare_cached("SELECT id, key FROM message WHERE id BETWEEN ? AND ? AND due_us <= ? ORDER BY id LIMIT ?")?;
        let heads = heads.query_map([place(rung, 0), last_place(rung), now_us, EXPIRED_AT_ONCE], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        for head in heads.collect::<Result<Vec<_>>>()? {
            // What leads nowhere stays: an exchange that is declared again will have it.
            let Ok(queues) = self.routes.targets(&exchange, &head.1) else { continue };
            self.lines.move_to(db, &self.routes, head.0, &queues, now_us)?;
        }
        Ok(())
    }
}

impl Work for Keeper {
    type Job = Job;

    fn weight(job: &Job) -> usize {
        match job {
            Job::Publish(publish) => publish.body.len() + publish.properties.len(),
            Job::Expire(_) => 1024 * 1024,
            Job::Admin(_) | Job::Flush(_) => 0,
        }
    }

    /// An ack that a power cut undoes is a redelivery, and an undone return from the ladder happens again.
    fn durable(&self, jobs: &[Job]) -> bool {
        jobs.iter().any(|job| matches!(job, Job::Publish(_) | Job::Admin(_)))
    }

    fn run(&mut self, db: &Connection, jobs: &mut [Job]) -> Result<()> {
        self.lines.clear();
        self.refresh(db)?;
        self.room.look(db)?;
        let now_us = self.clock.now_us();
        self.hub.take_settled(&mut self.acked, &mut self.marks);
        self.acked.sort_unstable();
        self.lines.delete(db, &self.acked)?;
        for job in jobs {
            match job {
                Job::Publish(publish) => self.publish(db, publish, now_us)?,
                Job::Admin(admin) => {
                    let Keeper { hub, routes, lines, removed, .. } = self;
                    (admin.run)(&mut Transaction { db, routes, lines, hub, removed, now_us })?;
                }
                Job::Expire(rung) => self.expire(db, *rung, now_us)?,
                Job::Flush(_) => {}
            }
        }
        self.lines.save(db)?;
        for (queue, number) in &self.marks {
            db.prepare_cached("UPDATE queue SET handed = ? WHERE id = ?")?.execute([number, queue])?;
        }
        self.hub.committing();
        Ok(())
    }

    fn committed(&mut self, jobs: Vec<Job>) {
        let mut settled: Vec<(i64, usize)> = Vec::new();
        for id in self.acked.drain(..) {
            let queue = parts(id).0;
            match settled.last_mut() {
                Some((last, count)) if *last == queue => *count += 1,
                _ => settled.push((queue, 1)),
            }
        }
        let expired = jobs.iter().filter_map(|job| if let Job::Expire(rung) = job { Some(*rung) } else { None });
        self.health.room(self.room.blocked());
        self.hub.committed(self.lines.tails(), &settled, &self.marks, expired);
        self.lines.clear();
        self.marks.clear();
        self.removed.drain(..).for_each(|queue| self.hub.end_removal(queue, true));
        for job in jobs {
            // Whoever asked may have gone.
            match job {
                Job::Publish(publish) => drop(publish.answer.send(publish.refused.map_or(Ok(()), Err))),
                Job::Admin(admin) => drop(admin.done.send(Ok(()))),
                Job::Flush(done) => drop(done.send(())),
                Job::Expire(_) => {}
            }
        }
    }

    fn failed(&mut self, jobs: Vec<Job>, error: &WriteError) -> Vec<Job> {
        self.lines.clear();
        // They may show what was rolled back.
        self.routes = Routes::default();
        let expired = jobs.iter().filter_map(|job| if let Job::Expire(rung) = job { Some(*rung) } else { None });
        self.hub.rolled_back(&self.marks, expired);
        self.removed.drain(..).for_each(|queue| self.hub.end_removal(queue, false));
        for job in jobs {
            match job {
                Job::Publish(publish) => drop(publish.answer.send(Err(refusal(error)))),
                Job::Admin(admin) => drop(admin.done.send(Err(error.clone()))),
                Job::Flush(done) => drop(done.send(())),
                Job::Expire(_) => {}
            }
        }
        // The acks stay here, and go with the next commit.
        Vec::new()
    }

    fn again_in(&self) -> Option<Duration> {
        self.room.again_in()
    }

    fn health(&mut self, error: Option<&WriteError>) {
        self.health.writer(error.map(ToString::to_string));
    }
}

fn refusal(error: &WriteError) -> PublishError {
    match error {
        WriteError::Full { .. } | WriteError::Busy { .. } => PublishError::Blocked(error.to_string()),
        WriteError::Unusable { uncertain: true, .. } => PublishError::Unconfirmed(error.to_string()),
        WriteError::Unusable { .. } | WriteError::Closed { .. } => PublishError::Unreachable(error.to_string()),
        WriteError::Refused { reason } => PublishError::Invalid(reason.clone()),
    }
}
