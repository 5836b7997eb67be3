//! The thread that reads: what consumers have room for, what other processes have published, and what is due.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use paceline_sqlite::{
    Writer,
    rusqlite::{self, Connection, Result},
};

use super::{
    codec,
    health::Health,
    hub::{Found, Hub, Plan, Row},
    keeper::{Clock, Job, Keeper},
    lines::{last_place, parts, place},
};
use crate::Properties;

/// How often other processes' mail and the ladder are looked for.
const LOOK: Duration = Duration::from_millis(10);
/// After an error.
const PAUSE: Duration = Duration::from_millis(250);
/// Bodies in one read, beyond the first.
const MOST_BYTES: usize = 4 * 1024 * 1024;

pub(super) struct Reader {
    pub(super) db: Connection,
    pub(super) hub: Arc<Hub>,
    pub(super) health: Arc<Health>,
    pub(super) writer: Arc<Writer<Keeper>>,
    pub(super) clock: Clock,
}

impl Reader {
    /// Until the hub is closed.
    pub(super) fn run(self) {
        let (mut looked, mut version) = (None::<Instant>, 0);
        let mut trouble = false;
        loop {
            let due = looked.map_or(Duration::ZERO, |at| LOOK.saturating_sub(at.elapsed()));
            let Ok(plan) = self.hub.next_plan(due) else { return };
            let read = plan.map_or(Ok(()), |plan| self.serve(plan));
            let look = looked.is_none_or(|at| at.elapsed() >= LOOK);
            let result = if look && read.is_ok() {
                looked = Some(Instant::now());
                self.look(&mut version)
            } else {
                read
            };
            match result {
                Ok(()) if trouble => {
                    trouble = false;
                    self.health.reader(None);
                }
                Ok(()) => {}
                Err(error) => {
                    if !std::mem::replace(&mut trouble, true) {
                        tracing::error!(path = self.db.path(), %error, "cannot read; trying again");
                    }
                    self.health.reader(Some(format!("{} cannot be read: {error}", self.db.path().unwrap_or_default())));
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Reads what a plan asks for and hands it out.
    fn serve(&self, plan: Plan) -> Result<()> {
        match self.read(&plan) {
            Ok(found) => {
                self.hub.deliver(plan.queue, found);
                if self.hub.has_marks() {
                    self.writer.poke();
                }
                Ok(())
            }
            Err(error) => {
                self.hub.undeliverable(plan);
                Err(error)
            }
        }
    }

    fn read(&self, plan: &Plan) -> Result<Found> {
        let mut found = Found { rows: Vec::with_capacity(plan.limit), unread: Vec::new(), cursor: plan.after };
        let mut bytes = 0;
        if !plan.again.is_empty() {
            let mut one = self.db.prepare_cached("SELECT id, key, properties, body FROM message WHERE id = ?")?;
            for (position, (number, redelivered)) in plan.again.iter().enumerate() {
                if bytes > MOST_BYTES {
                    found.unread = plan.again[position..].to_vec();
                    return Ok(found);
                }
                let mut rows = one.query([place(plan.queue, *number)])?;
                if let Some(row) = rows.next()? {
                    found.rows.push(message(row, |_| *redelivered)?);
                    bytes += found.rows.last().map_or(0, |row| row.body.len());
                }
            }
        }
        let room = plan.limit - plan.again.len();
        if room == 0 || plan.after >= plan.tail {
            return Ok(found);
        }
        let sql = "SELECT id, key, properties, body FROM message WHERE id BETWEEN ? AND ? ORDER BY id";
        let mut after = self.db.prepare_cached(sql)?;
        let mut rows = after.query([place(plan.queue, plan.after + 1), place(plan.queue, plan.tail)])?;
        for _ in 0..room {
            if bytes > MOST_BYTES {
                return Ok(found);
            }
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => {
                    found.cursor = plan.tail;
                    return Ok(found);
                }
                // What can be read goes out, also in front of a damaged page.
                Err(_) if !found.rows.is_empty() => return Ok(found),
                Err(error) => return Err(error),
            };
            let row = message(row, |number| number <= plan.old)?;
            (found.cursor, bytes) = (row.number, bytes + row.body.len());
            found.rows.push(row);
        }
        Ok(found)
    }

    /// What others have done, and the ladder.
    fn look(&self, version: &mut i64) -> Result<()> {
        let now: i64 = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if now != *version {
            let mut queues = self.db.prepare_cached("SELECT id, tail, ttl_ms IS NOT NULL FROM queue")?;
            let queues = queues.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            self.hub.found(&queues.collect::<Result<Vec<_>>>()?);
            *version = now;
        }
        self.hub.feed_all();
        for rung in self.hub.rungs_to_look_at() {
            let mut head = self.db.prepare_cached("SELECT due_us FROM message WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1")?;
            let mut head = head.query([place(rung, 0), last_place(rung)])?;
            let due_us = head.next()?.map(|row| row.get::<_, Option<i64>>(0)).transpose()?.flatten();
            self.hub.rung_head(rung, due_us);
        }
        for rung in self.hub.rungs_due(self.clock.now_us()) {
            // When the writer is ending, so are we.
            let _ = self.writer.put(Job::Expire(rung));
        }
        Ok(())
    }
}

fn message(row: &rusqlite::Row<'_>, redelivered: impl FnOnce(i64) -> bool) -> Result<Row> {
    let number = parts(row.get(0)?).1;
    let properties = codec::decode(row.get_ref(2)?.as_blob()?).unwrap_or_else(|| {
        tracing::error!(number, "a message's properties cannot be read; it goes out without them");
        Properties::default()
    });
    let body = Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?);
    Ok(Row { number, key: row.get(1)?, properties, body, redelivered: redelivered(number) })
}
