//! The rows of messages, and per queue the counts that go with them.

use std::collections::HashMap;

use paceline_sqlite::rusqlite::{Connection, Result};

use super::routes::Routes;

/// Of a message's id, for its number within the queue.
const NUMBER_BITS: u32 = 40;
const NUMBER_MASK: i64 = (1 << NUMBER_BITS) - 1;
/// No queue's id is greater.
pub(super) const MAX_QUEUE: i64 = (1 << (63 - NUMBER_BITS)) - 1;

/// The id of message `number` of `queue`.
pub(super) fn place(queue: i64, number: i64) -> i64 {
    (queue << NUMBER_BITS) | number
}

/// Queue and number of a message.
pub(super) fn parts(id: i64) -> (i64, i64) {
    (id >> NUMBER_BITS, id & NUMBER_MASK)
}

/// The last id that a queue can have.
pub(super) fn last_place(queue: i64) -> i64 {
    place(queue, NUMBER_MASK)
}

/// What a transaction changes of the queues it touches, written at its end.
#[derive(Default)]
pub(super) struct Lines {
    lines: HashMap<i64, Line>,
}

#[derive(Clone, Copy)]
struct Line {
    tail: i64,
    depth: i64,
}

impl Lines {
    pub(super) fn clear(&mut self) {
        self.lines.clear();
    }

    /// That queue is gone.
    pub(super) fn forget(&mut self, queue: i64) {
        self.lines.remove(&queue);
    }

    /// The queues touched, with the number of the latest message of each.
    pub(super) fn tails(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.lines.iter().map(|(queue, line)| (*queue, line.tail))
    }

    fn line(&mut self, db: &Connection, queue: i64) -> Result<&mut Line> {
        match self.lines.entry(queue) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut statement = db.prepare_cached("SELECT tail, depth FROM queue WHERE id = ?")?;
                let line = statement.query_row([queue], |row| Ok(Line { tail: row.get(0)?, depth: row.get(1)? }))?;
                Ok(entry.insert(line))
            }
        }
    }

    /// Messages stored in `queue`, held ones among them.
    pub(super) fn depth(&mut self, db: &Connection, queue: i64) -> Result<i64> {
        self.line(db, queue).map(|line| line.depth)
    }

    /// Whether `queue` takes no more.
    pub(super) fn refuses(&mut self, db: &Connection, routes: &Routes, queue: i64) -> Result<bool> {
        match routes.rules(queue).and_then(|rules| rules.max_length) {
            Some(max) => Ok(self.depth(db, queue)? >= max),
            None => Ok(false),
        }
    }

    fn next(&mut self, db: &Connection, queue: i64) -> Result<i64> {
        let line = self.line(db, queue)?;
        line.tail += 1;
        line.depth += 1;
        Ok(place(queue, line.tail))
    }

    /// Adds a message at the tail.
    pub(super) fn append(&mut self, db: &Connection, routes: &Routes, queue: i64, message: &Message<'_>) -> Result<()> {
        let id = self.next(db, queue)?;
        let due_us = due(routes, queue, message.now_us);
        let mut insert = db.prepare_cached("INSERT INTO message VALUES (?, ?, ?, ?, ?)")?;
        insert.execute((id, due_us, message.key, message.properties, message.body)).map(drop)
    }

    /// Moves a message to the tails of other queues: at least one.
    pub(super) fn move_to(&mut self, db: &Connection, routes: &Routes, id: i64, queues: &[i64], now_us: i64) -> Result<()> {
        let Some((first, others)) = queues.split_first() else { return Ok(()) };
        for queue in others {
            let copy = self.next(db, *queue)?;
            db.prepare_cached("INSERT INTO message SELECT ?, ?, key, properties, body FROM message WHERE id = ?")?.execute((
                copy,
                due(routes, *queue, now_us),
                id,
            ))?;
        }
        let moved = self.next(db, *first)?;
        db.prepare_cached("UPDATE message SET id = ?, due_us = ? WHERE id = ?")?.execute((
            moved,
            due(routes, *first, now_us),
            id,
        ))?;
        self.line(db, parts(id).0)?.depth -= 1;
        Ok(())
    }

    /// Deletes messages by id; `ids` is sorted. Those that are not there are passed over.
    pub(super) fn delete(&mut self, db: &Connection, ids: &[i64]) -> Result<()> {
        let mut rest = ids;
        while let Some(&first) = rest.first() {
            // What was delivered in a row is mostly acked in a row, too.
            let run = rest.iter().zip(first..).take_while(|(id, wanted)| *id == wanted).count();
            let last = rest.get(run - 1).copied().unwrap_or(first);
            let deleted = db.prepare_cached("DELETE FROM message WHERE id BETWEEN ? AND ?")?.execute([first, last])?;
            // Places in a row are of one queue: no number reaches the end of its bits.
            if deleted > 0 {
                self.line(db, parts(first).0)?.depth -= i64::try_from(deleted).unwrap_or(i64::MAX);
            }
            rest = &rest[run..];
        }
        Ok(())
    }

    /// Writes the counts.
    pub(super) fn save(&self, db: &Connection) -> Result<()> {
        for (queue, line) in &self.lines {
            db.prepare_cached("UPDATE queue SET tail = ?, depth = ? WHERE id = ?")?.execute([line.tail, line.depth, *queue])?;
        }
        Ok(())
    }
}

/// A message to append.
pub(super) struct Message<'a> {
    pub(super) key: &'a str,
    pub(super) properties: &'a [u8],
    pub(super) body: &'a [u8],
    pub(super) now_us: i64,
}

fn due(routes: &Routes, queue: i64, now_us: i64) -> Option<i64> {
    routes.rules(queue).and_then(|rules| rules.ttl_us).map(|ttl_us| now_us.saturating_add(ttl_us))
}
