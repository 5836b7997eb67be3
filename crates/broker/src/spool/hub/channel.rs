//! One consumer: what it may hold, and what it holds.

use std::{
    collections::{BTreeMap, VecDeque},
    task::Waker,
};

use super::Row;
use crate::End;

pub(super) struct Channel {
    pub(super) queue: i64,
    pub(super) prefetch: usize,
    /// Deliveries since the last resize count towards the prefetch: those from this tag on, `credited` of them unsettled.
    credited_from: u64,
    credited: usize,
    /// Number within the queue, by tag.
    unsettled: BTreeMap<u64, i64>,
    pub(super) inbox: VecDeque<(u64, Row)>,
    next_tag: u64,
    pub(super) end: Option<End>,
    pub(super) waker: Option<Waker>,
}

impl Channel {
    pub(super) fn new(queue: i64, prefetch: u16) -> Channel {
        Channel {
            queue,
            prefetch: most(prefetch),
            credited_from: 1,
            credited: 0,
            unsettled: BTreeMap::new(),
            inbox: VecDeque::new(),
            next_tag: 1,
            end: None,
            waker: None,
        }
    }

    pub(super) fn resize(&mut self, prefetch: u16) {
        self.prefetch = most(prefetch);
        self.credited_from = self.next_tag;
        self.credited = 0;
    }

    pub(super) fn room(&self) -> usize {
        if self.end.is_some() { 0 } else { self.prefetch.saturating_sub(self.credited) }
    }

    pub(super) fn give(&mut self, row: Row) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.credited += 1;
        self.unsettled.insert(tag, row.number);
        self.inbox.push_back((tag, row));
    }

    /// Queue and number of what was held under this tag.
    pub(super) fn settle(&mut self, tag: u64) -> Option<(i64, i64)> {
        let number = self.unsettled.remove(&tag)?;
        if tag >= self.credited_from {
            self.credited -= 1;
        }
        Some((self.queue, number))
    }

    pub(super) fn held(&self) -> impl Iterator<Item = i64> + '_ {
        self.unsettled.values().copied()
    }

    pub(super) fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What it held is not its own any more.
    pub(super) fn lose(&mut self, why: &str) {
        if self.end != Some(End::Cancelled) || !self.unsettled.is_empty() {
            self.end = None;
        }
        self.inbox.clear();
        self.unsettled.clear();
        self.end(End::Lost(why.to_owned()));
    }
}

/// 0 sets no limit, as in AMQP; then it is the greatest that could be set.
fn most(prefetch: u16) -> usize {
    usize::from(if prefetch == 0 { u16::MAX } else { prefetch })
}
