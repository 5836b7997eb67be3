//! What the hub's lock protects.

use std::collections::{HashMap, VecDeque};

use super::{Found, Plan, channel::Channel, queue::QueueState};
use crate::End;

#[derive(Default)]
pub(super) struct Inner {
    pub(super) queues: HashMap<i64, QueueState>,
    pub(super) channels: HashMap<u64, Channel>,
    pub(super) rungs: HashMap<i64, Rung>,
    pub(super) next_channel: u64,
    /// Queues to read at once, and those that may wait until more can be read together.
    pub(super) hungry: VecDeque<i64>,
    pub(super) peckish: Vec<i64>,
    pub(super) acked: Vec<i64>,
    pub(super) marks: Vec<(i64, i64)>,
    pub(super) closed: Option<String>,
}

/// A queue whose messages leave when their time is over.
#[derive(Default)]
pub(super) struct Rung {
    /// Its head may have changed.
    pub(super) look: bool,
    pub(super) moving: bool,
    pub(super) tail: i64,
    pub(super) due_us: Option<i64>,
}

impl Inner {
    /// The state of a queue that this process has seen.
    pub(super) fn queue(&mut self, id: i64) -> &mut QueueState {
        self.queues.entry(id).or_default()
    }

    pub(super) fn unsubscribe(&mut self, id: u64) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.end(End::Cancelled);
        if let Some(queue) = self.queues.get_mut(&channel.queue) {
            queue.consumers.retain(|consumer| *consumer != id);
        }
    }

    /// A queue's latest message is (at least) this one.
    pub(super) fn reached(&mut self, id: i64, tail: i64) {
        if let Some(rung) = self.rungs.get_mut(&id)
            && rung.tail < tail
        {
            rung.tail = tail;
            // Only the first message of an empty rung changes its head.
            rung.look |= rung.due_us.is_none();
        }
        if let Some(queue) = self.queues.get_mut(&id)
            && queue.tail < tail
        {
            queue.tail = tail;
            self.pump(id);
        }
    }

    /// Asks for the next mark of a queue in time.
    pub(super) fn mark(&mut self, id: i64) {
        let mark = self.queue(id).mark();
        self.marks.extend(mark.map(|number| (id, number)));
    }

    pub(super) fn grant(&mut self, marks: &[(i64, i64)]) {
        for (id, number) in marks {
            if let Some(queue) = self.queues.get_mut(id) {
                queue.granted = queue.granted.max(*number);
                self.pump(*id);
            }
        }
    }

    pub(super) fn looked_through(&mut self, expired: impl Iterator<Item = i64>) {
        for id in expired {
            if let Some(rung) = self.rungs.get_mut(&id) {
                (rung.moving, rung.look) = (false, true);
            }
        }
    }

    /// Messages that the consumers of a queue would take now, and all that they could hold.
    pub(super) fn room(&self, queue: &QueueState) -> (usize, usize) {
        let channels = queue.consumers.iter().filter_map(|id| self.channels.get(id));
        channels.fold((0, 0), |(room, most), c| (room + c.room(), most + c.prefetch))
    }

    /// Puts a queue on the reader's list if there is something to read and somebody to take it.
    pub(super) fn pump(&mut self, id: i64) {
        let Some(queue) = self.queues.get(&id) else { return };
        if queue.reading || queue.paused || self.closed.is_some() || !queue.has_more() {
            return;
        }
        let (room, most) = self.room(queue);
        if room == 0 {
            return;
        }
        // Reading one by one costs more than reading some together a little later.
        let at_once = room >= most.div_ceil(8);
        let known_hungry = queue.hungry;
        if at_once && !self.hungry.contains(&id) {
            self.hungry.push_back(id);
        } else if !at_once && !known_hungry {
            self.peckish.push(id);
        }
        self.queue(id).hungry = true;
    }

    pub(super) fn plan(&mut self, id: i64) -> Option<Plan> {
        let queue = self.queues.get(&id)?;
        let (room, _) = self.room(queue);
        let queue = self.queue(id);
        queue.hungry = false;
        if queue.reading || queue.paused || room == 0 || !queue.has_more() {
            return None;
        }
        Some(queue.plan(id, room))
    }

    /// Hands rows to consumers with room, one each in turn; what nobody takes goes back.
    pub(super) fn deliver(&mut self, id: i64, found: Found) {
        let Inner { queues, channels, .. } = self;
        let queue = queues.entry(id).or_default();
        queue.reading = false;
        queue.cursor = queue.cursor.max(found.cursor);
        queue.returned.extend(found.unread);
        let mut woken = Vec::new();
        for row in found.rows {
            let mut taker = None;
            for _ in 0..queue.consumers.len() {
                queue.consumers.rotate_left(1);
                taker = queue.consumers.back().copied().filter(|id| channels.get(id).is_some_and(|c| c.room() > 0));
                if taker.is_some() {
                    break;
                }
            }
            match taker.and_then(|id| channels.get_mut(&id)) {
                Some(channel) => {
                    queue.absent += 1;
                    channel.give(row);
                    woken.extend(channel.waker.take());
                }
                None => drop(queue.returned.insert(row.number, row.redelivered)),
            }
        }
        woken.into_iter().for_each(std::task::Waker::wake);
    }
}
