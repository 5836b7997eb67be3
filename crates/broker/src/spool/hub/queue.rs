//! How far a queue has been read, and what of it has been given back.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Messages in one read.
const MOST: usize = 256;
/// How far ahead of what was handed out the mark on disk is set, and how near the cursor may come to it.
const MARK_AHEAD: i64 = 1_000;
const MARK_NEAR: i64 = 500;

/// A queue as the file has it.
pub(in super::super) struct Known {
    pub(in super::super) id: i64,
    pub(in super::super) name: Arc<str>,
    pub(in super::super) tail: i64,
    /// Messages up to this number may have been delivered before.
    pub(in super::super) handed: i64,
}

#[derive(Default)]
pub(super) struct QueueState {
    pub(super) name: Arc<str>,
    /// Everything up to this number has been read.
    pub(super) cursor: i64,
    /// The latest message known of.
    pub(super) tail: i64,
    /// Read, but with nobody: number, and whether it was delivered before. Ahead of the rest.
    pub(super) returned: BTreeMap<i64, bool>,
    /// Channels that consume, in turn.
    pub(super) consumers: VecDeque<u64>,
    /// Stored but not ready: held, or acked and not yet deleted.
    pub(super) absent: usize,
    /// On one of the reader's lists.
    pub(super) hungry: bool,
    pub(super) reading: bool,
    pub(super) paused: bool,
    pub(super) removing: bool,
    /// Delivered before, perhaps, when this process began.
    old: i64,
    /// The mark asked for, and the one on disk: nothing beyond it is read.
    marked: i64,
    pub(super) granted: i64,
}

/// What to read: some messages by number, then those after the cursor.
pub(in super::super) struct Plan {
    pub(in super::super) queue: i64,
    pub(in super::super) again: Vec<(i64, bool)>,
    pub(in super::super) after: i64,
    pub(in super::super) tail: i64,
    /// Messages in all.
    pub(in super::super) limit: usize,
    /// Up to this number it is a redelivery.
    pub(in super::super) old: i64,
}

impl QueueState {
    pub(super) fn new(known: &Known) -> QueueState {
        let old = known.handed.min(known.tail);
        let (marked, granted) = (known.handed, known.handed);
        QueueState { name: known.name.clone(), tail: known.tail, old, marked, granted, ..QueueState::default() }
    }

    pub(super) fn has_more(&self) -> bool {
        !self.returned.is_empty() || self.cursor < self.tail.min(self.granted)
    }

    pub(super) fn give_back(&mut self, number: i64, redelivered: bool) {
        self.absent = self.absent.saturating_sub(1);
        self.returned.insert(number, redelivered);
    }

    pub(super) fn plan(&mut self, queue: i64, room: usize) -> Plan {
        self.reading = true;
        let limit = room.min(MOST);
        let mut again = Vec::new();
        while again.len() < limit
            && let Some(first) = self.returned.pop_first()
        {
            again.push(first);
        }
        Plan { queue, again, after: self.cursor, tail: self.tail.min(self.granted), limit, old: self.old }
    }

    /// The mark to be set, when the cursor comes near the last one.
    pub(super) fn mark(&mut self) -> Option<i64> {
        (self.cursor + MARK_NEAR > self.marked).then(|| {
            self.marked = self.cursor + MARK_AHEAD;
            self.marked
        })
    }

    /// The mark for an orderly end.
    pub(super) fn exact_mark(&self) -> i64 {
        self.cursor.max(self.old)
    }
}
