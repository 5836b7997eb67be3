//! What this process holds of each queue, and who consumes it: plain data behind one lock.
//!
//! Only the consuming process has anything here. A queue is read from its head on; what was read is with a consumer,
//! or has been given back and goes out again before anything new, or is acked and about to be deleted. Nothing of
//! this is on disk: after a crash every message that was not deleted is at its place again.

mod channel;
mod inner;
mod queue;

use std::{
    collections::HashSet,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::lines::{parts, place};
use crate::{End, Properties};
use channel::Channel;
use inner::{Inner, Rung};
use queue::QueueState;

pub(super) use queue::{Known, Plan};

/// A message as read from the file.
pub(super) struct Row {
    pub(super) number: i64,
    pub(super) key: String,
    pub(super) properties: Properties,
    pub(super) body: Bytes,
    pub(super) redelivered: bool,
}

/// What a plan yielded.
pub(super) struct Found {
    /// In order.
    pub(super) rows: Vec<Row>,
    /// Of those asked for by number, the ones there was no room for.
    pub(super) unread: Vec<(i64, bool)>,
    /// Everything up to here has been read.
    pub(super) cursor: i64,
}

/// A message on its way to a consumer.
pub(super) struct Handed {
    pub(super) queue: std::sync::Arc<str>,
    pub(super) tag: u64,
    pub(super) row: Row,
}

/// Two threads and the consumers meet here.
#[derive(Default)]
pub(super) struct Hub {
    inner: Mutex<Inner>,
    /// For the reader: there is something to read.
    hungry: Condvar,
    /// Odd while a commit is under way: what the file says and what is held here may not fit together.
    commits: AtomicU64,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere does not make plain data unusable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, inner: MutexGuard<'_, Inner>) {
        let wake = !inner.hungry.is_empty();
        drop(inner);
        if wake {
            self.hungry.notify_one();
        }
    }

    // For consumers.

    /// Adds a consumer of a queue; `None` while that queue is being removed. The writer has something to do then.
    pub(super) fn subscribe(&self, known: &Known, prefetch: u16) -> Option<u64> {
        let mut inner = self.lock();
        let queue = inner.queues.entry(known.id).or_insert_with(|| QueueState::new(known));
        if queue.removing {
            return None;
        }
        queue.tail = queue.tail.max(known.tail);
        inner.next_channel += 1;
        let id = inner.next_channel;
        inner.queue(known.id).consumers.push_back(id);
        let mut channel = Channel::new(known.id, prefetch);
        channel.end = inner.closed.clone().map(End::Lost);
        inner.channels.insert(id, channel);
        inner.mark(known.id);
        inner.pump(known.id);
        self.notify(inner);
        Some(id)
    }

    pub(super) fn unsubscribe(&self, id: u64) {
        self.lock().unsubscribe(id);
    }

    pub(super) fn resize(&self, id: u64, prefetch: u16) -> bool {
        let mut inner = self.lock();
        let Some(channel) = inner.channels.get_mut(&id).filter(|c| c.end.is_none()) else { return false };
        channel.resize(prefetch);
        let queue = channel.queue;
        inner.pump(queue);
        self.notify(inner);
        true
    }

    /// Whether the writer must be told that there is something to do.
    #[must_use]
    pub(super) fn ack(&self, id: u64, tag: u64) -> bool {
        let mut inner = self.lock();
        let Some((queue, number)) = inner.channels.get_mut(&id).and_then(|c| c.settle(tag)) else { return false };
        let first = inner.acked.is_empty();
        inner.acked.push(place(queue, number));
        inner.pump(queue);
        self.notify(inner);
        first
    }

    pub(super) fn release(&self, id: u64, tag: u64) {
        let mut inner = self.lock();
        let Some((queue, number)) = inner.channels.get_mut(&id).and_then(|c| c.settle(tag)) else { return };
        inner.queue(queue).give_back(number, true);
        inner.pump(queue);
        self.notify(inner);
    }

    /// Everything still held goes back.
    pub(super) fn close_channel(&self, id: u64) {
        let mut inner = self.lock();
        inner.unsubscribe(id);
        let Some(channel) = inner.channels.remove(&id) else { return };
        let queue = inner.queue(channel.queue);
        channel.held().for_each(|number| queue.give_back(number, true));
        inner.pump(channel.queue);
        self.notify(inner);
    }

    pub(super) fn poll_next(&self, id: u64, cx: &Context<'_>) -> Poll<Result<Handed, End>> {
        let mut inner = self.lock();
        let Inner { channels, queues, .. } = &mut *inner;
        let Some(channel) = channels.get_mut(&id) else {
            return Poll::Ready(Err(End::Lost("the consumer is closed".to_owned())));
        };
        if let Some((tag, row)) = channel.inbox.pop_front() {
            let name = queues.get(&channel.queue).map(|queue| queue.name.clone()).unwrap_or_default();
            return Poll::Ready(Ok(Handed { queue: name, tag, row }));
        }
        if let Some(end) = &channel.end {
            return Poll::Ready(Err(end.clone()));
        }
        channel.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Consumers end; what they hold stays undeleted. What was acked before is still deleted.
    pub(super) fn close(&self, why: &str) {
        let mut inner = self.lock();
        inner.closed = Some(why.to_owned());
        for channel in inner.channels.values_mut() {
            channel.lose(why);
        }
        // After an orderly end it is known exactly what has been handed out.
        let marks: Vec<_> = inner.queues.iter().map(|(id, queue)| (*id, queue.exact_mark())).collect();
        inner.marks.extend(marks);
        drop(inner);
        self.hungry.notify_all();
    }

    // For the writer.

    /// Adds what is to be deleted and written down with the next commit.
    pub(super) fn take_settled(&self, acked: &mut Vec<i64>, marks: &mut Vec<(i64, i64)>) {
        let mut inner = self.lock();
        acked.append(&mut inner.acked);
        marks.append(&mut inner.marks);
    }

    pub(super) fn committing(&self) {
        self.commits.fetch_or(1, Ordering::AcqRel);
    }

    /// Queues with their latest message, acks deleted per queue, marks, and rungs that have been looked through.
    pub(super) fn committed(
        &self,
        tails: impl Iterator<Item = (i64, i64)>,
        settled: &[(i64, usize)],
        marks: &[(i64, i64)],
        expired: impl Iterator<Item = i64>,
    ) {
        let mut inner = self.lock();
        inner.grant(marks);
        for (queue, count) in settled {
            let queue = inner.queue(*queue);
            queue.absent = queue.absent.saturating_sub(*count);
        }
        for (id, tail) in tails {
            inner.reached(id, tail);
        }
        inner.looked_through(expired);
        self.commits.fetch_add(1, Ordering::AcqRel);
        self.notify(inner);
    }

    /// On a disk that cannot be written, marks are not waited for: mail that is there goes out.
    pub(super) fn rolled_back(&self, marks: &[(i64, i64)], expired: impl Iterator<Item = i64>) {
        let mut inner = self.lock();
        inner.grant(marks);
        inner.looked_through(expired);
        self.notify(inner);
        // To the next even number, if a commit was under way at all.
        let _ = self.commits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n % 2 == 1).then_some(n + 1));
    }

    /// Messages of `queue` that are not to be had: held, or acked and not yet deleted.
    pub(super) fn taken(&self, queue: i64) -> HashSet<i64> {
        let inner = self.lock();
        let held = inner.channels.values().filter(|c| c.queue == queue).flat_map(Channel::held);
        held.chain(inner.acked.iter().map(|id| parts(*id)).filter(|(q, _)| *q == queue).map(|(_, number)| number)).collect()
    }

    // For whoever removes or empties queues.

    /// Nothing is read from `queue` until [`Hub::resume`]; `false` while a read is still under way.
    pub(super) fn pause(&self, known: &Known) -> bool {
        let mut inner = self.lock();
        let queue = inner.queues.entry(known.id).or_insert_with(|| QueueState::new(known));
        queue.paused = true;
        !queue.reading
    }

    /// `moved`, which is sorted, are elsewhere now.
    pub(super) fn moved(&self, queue: i64, moved: &[i64]) {
        let mut inner = self.lock();
        let queue = inner.queue(queue);
        queue.returned.retain(|number, _| moved.binary_search(number).is_err());
    }

    pub(super) fn resume(&self, queue: i64) {
        let mut inner = self.lock();
        if let Some(queue) = inner.queues.get_mut(&queue) {
            queue.paused = false;
        }
        inner.pump(queue);
        self.notify(inner);
    }

    /// This process consumes no more than it did: what was noted of `queue` may be out of date when it next looks.
    pub(super) fn forget(&self, queue: i64) {
        self.lock().queues.remove(&queue);
    }

    /// Whether nobody consumes or holds anything of `queue`; if so, nobody can from now on.
    pub(super) fn begin_removal(&self, queue: i64) -> bool {
        let mut inner = self.lock();
        let idle = inner.channels.values().all(|c| c.queue != queue);
        let state = inner.queue(queue);
        state.removing = idle && state.absent == 0;
        state.removing
    }

    pub(super) fn end_removal(&self, queue: i64, removed: bool) {
        let mut inner = self.lock();
        if removed {
            inner.queues.remove(&queue);
            inner.rungs.remove(&queue);
        } else if let Some(queue) = inner.queues.get_mut(&queue) {
            queue.removing = false;
        }
    }

    // For depths.

    /// An even number while the file and [`Hub::absent`] fit together; another one after each commit.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// Messages of `queue` that are stored but not ready.
    pub(super) fn absent(&self, queue: i64) -> usize {
        self.lock().queues.get(&queue).map_or(0, |q| q.absent)
    }

    // For the reader.

    /// Waits for something to read, no longer than `limit`; `Err` when closed.
    pub(super) fn next_plan(&self, limit: Duration) -> Result<Option<Plan>, ()> {
        let mut inner = self.lock();
        if inner.hungry.is_empty() && inner.closed.is_none() {
            inner = self.hungry.wait_timeout(inner, limit).unwrap_or_else(PoisonError::into_inner).0;
        }
        if inner.closed.is_some() {
            return Err(());
        }
        while let Some(id) = inner.hungry.pop_front() {
            if let Some(plan) = inner.plan(id) {
                return Ok(Some(plan));
            }
        }
        Ok(None)
    }

    /// Whether what may wait has waited long enough.
    pub(super) fn feed_all(&self) {
        let mut inner = self.lock();
        let peckish = std::mem::take(&mut inner.peckish);
        inner.hungry.extend(peckish);
    }

    /// Gives consumers what was read of `queue`.
    pub(super) fn deliver(&self, queue: i64, found: Found) {
        let mut inner = self.lock();
        inner.deliver(queue, found);
        inner.mark(queue);
        inner.pump(queue);
        self.notify(inner);
    }

    /// Nothing could be read.
    pub(super) fn undeliverable(&self, plan: Plan) {
        let mut inner = self.lock();
        let queue = inner.queue(plan.queue);
        queue.reading = false;
        queue.returned.extend(plan.again);
        inner.peckish.push(plan.queue);
        inner.queue(plan.queue).hungry = true;
    }

    /// What other processes may have done: each queue's latest message, and whether it is a rung.
    pub(super) fn found(&self, queues: &[(i64, i64, bool)]) {
        let mut inner = self.lock();
        for (id, tail, rung) in queues {
            if *rung {
                inner.rungs.entry(*id).or_insert_with(|| Rung { look: true, ..Rung::default() });
            }
            inner.reached(*id, *tail);
        }
        self.notify(inner);
    }

    /// Rungs whose head is not known.
    pub(super) fn rungs_to_look_at(&self) -> Vec<i64> {
        let mut inner = self.lock();
        let rungs = inner.rungs.iter_mut().filter(|(_, rung)| rung.look && !rung.moving);
        rungs
            .map(|(id, rung)| {
                rung.look = false;
                *id
            })
            .collect()
    }

    pub(super) fn rung_head(&self, rung: i64, due_us: Option<i64>) {
        if let Some(rung) = self.lock().rungs.get_mut(&rung) {
            rung.due_us = due_us;
        }
    }

    /// Rungs whose head is due; each is moved once at a time.
    pub(super) fn rungs_due(&self, now_us: i64) -> Vec<i64> {
        let mut inner = self.lock();
        let due = inner.rungs.iter_mut().filter(|(_, rung)| !rung.moving && rung.due_us.is_some_and(|due| due <= now_us));
        due.map(|(id, rung)| {
            (rung.moving, rung.due_us) = (true, None);
            *id
        })
        .collect()
    }

    /// Whether something should be written down soon.
    pub(super) fn has_marks(&self) -> bool {
        !self.lock().marks.is_empty()
    }
}
