//! The last of the disk is not for new mail: with it, what is queued can still be worked off.
//!
//! Deleting takes room too, in the write-ahead log, and a worker must be able to write down what it has sent. So below
//! a margin new mail is refused, unless it fits into what deleted messages have left free within the file.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use paceline_sqlite::{
    Space,
    rusqlite::{Connection, Result},
    space,
};

/// The margin: more than the log and what is written back from it may take at once …
const MARGIN: u64 = 128 * 1024 * 1024;
/// … or this part of a small disk.
const PART: u64 = 8;
/// How long a look holds.
const LOOK: Duration = Duration::from_millis(200);
/// Of the room within the file, for what is not the messages themselves.
const SPARE: u64 = 1024 * 1024;

pub(super) struct Room {
    path: PathBuf,
    looked: Option<Instant>,
    space: Option<Space>,
    /// Bytes that new mail may take in this transaction; `None` while the disk sets no limit.
    left: Option<u64>,
    /// New mail was refused since there last was room.
    refused: bool,
}

impl Room {
    pub(super) fn new(path: PathBuf) -> Room {
        Room { path, looked: None, space: None, left: None, refused: false }
    }

    /// At the beginning of each transaction.
    pub(super) fn look(&mut self, db: &Connection) -> Result<()> {
        if self.looked.is_none_or(|at| at.elapsed() > LOOK) {
            self.looked = Some(Instant::now());
            self.space = space(&self.path);
        }
        self.left = if self.space.is_some_and(is_low) {
            let number = |sql: &str| db.prepare_cached(sql)?.query_row([], |row| row.get::<_, u32>(0)).map(u64::from);
            let free = number("PRAGMA freelist_count")? * number("PRAGMA page_size")?;
            Some(free.saturating_sub(SPARE))
        } else {
            None
        };
        self.refused &= self.left.is_some_and(|left| left == 0);
        Ok(())
    }

    /// Takes room for a new message, or says why there is none.
    pub(super) fn take(&mut self, bytes: usize) -> std::result::Result<(), String> {
        // Half as much again: pages are not filled to the last byte.
        let needed = (bytes as u64).saturating_mul(3) / 2 + 512;
        let Some(left) = self.left.as_mut() else {
            // Once in the log, once in the file; until the next look.
            if let Some(space) = self.space.as_mut() {
                space.free = space.free.saturating_sub(needed.saturating_mul(2));
            }
            return Ok(());
        };
        if *left >= needed {
            *left -= needed;
            return Ok(());
        }
        *left = 0;
        self.refused = true;
        Err(self.why())
    }

    /// Why new mail is refused, while it is.
    pub(super) fn blocked(&self) -> Option<String> {
        self.refused.then(|| self.why())
    }

    /// While new mail is refused, it is looked again whether it still must be.
    pub(super) fn again_in(&self) -> Option<Duration> {
        self.refused.then_some(LOOK)
    }

    fn why(&self) -> String {
        let mib = |bytes: u64| bytes / 1024 / 1024;
        let (free, margin) = self.space.map_or((0, 0), |space| (space.free, margin(space)));
        format!(
            "the disk of {} is nearly full ({} MiB free, {} are kept for the mail already queued): make room",
            self.path.display(),
            mib(free),
            mib(margin)
        )
    }
}

fn margin(space: Space) -> u64 {
    MARGIN.min(space.total / PART)
}

fn is_low(space: Space) -> bool {
    space.free < margin(space)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: u64, db: &Connection) -> Room {
        let space = Some(Space { free, total: 1 << 40 });
        let mut room = Room { space, looked: Some(Instant::now()), ..Room::new(PathBuf::from("/x/spool.db")) };
        room.look(db).unwrap();
        room
    }

    #[test]
    fn below_the_margin_only_what_fits_into_the_file() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(5000000)); DELETE FROM t").unwrap();
        let mut plenty = room(MARGIN, &db);
        assert_eq!(plenty.take(1), Ok(()), "one brings it below");
        plenty.look(&Connection::open_in_memory().unwrap()).unwrap();
        assert!(plenty.take(1).is_err());
        let mut low = room(MARGIN - 1, &db);
        assert_eq!(low.take(2_000_000), Ok(()));
        assert_eq!((low.blocked(), low.again_in()), (None, None));
        let why = low.take(2_000_000).unwrap_err();
        assert!(why.contains("/x/spool.db") && why.contains("127 MiB free"), "{why}");
        assert_eq!(low.blocked(), Some(why));
        assert!(low.again_in().is_some());
        assert!(low.take(1).is_err(), "no small one passes by");
        low.look(&db).unwrap();
        assert_eq!(low.blocked(), None, "there is room in the file again");
        let full = Connection::open_in_memory().unwrap();
        let mut none = room(0, &full);
        assert!(none.take(1).is_err());
        none.look(&full).unwrap();
        assert!(none.blocked().is_some());
        none.space = Some(Space { free: MARGIN, total: 1 << 40 });
        none.look(&full).unwrap();
        assert_eq!(none.blocked(), None);
    }

    #[test]
    fn a_small_disk_has_a_small_margin() {
        assert_eq!(margin(Space { free: 0, total: 16 << 20 }), (16 << 20) / 8);
        assert_eq!(margin(Space { free: 0, total: 1 << 40 }), MARGIN);
    }
}
