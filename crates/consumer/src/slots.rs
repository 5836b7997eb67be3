//! How many calls may be under way, and how much they may hold in memory.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use paceline_core::Class;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::{gentle::Guest, item::KEEP_PARSED};

/// A large message is held about four times while it is sent: body, parsed form, request, and what the client buffers.
const COPIES: usize = 4;

/// Room for calls: over all accounts, per account, and by memory for large messages.
pub(crate) struct Slots {
    concurrency: usize,
    all: Arc<Semaphore>,
    /// For critical mail only: slow calls of other classes cannot take every place.
    critical: Arc<Semaphore>,
    accounts: Vec<Arc<Semaphore>>,
    /// How many of each.
    sizes: Vec<AtomicUsize>,
    /// In KiB.
    memory: Arc<Semaphore>,
    memory_kib: u32,
    turnover: Arc<Turnover>,
}

/// Messages between grant and the end of their call.
#[derive(Default)]
struct Turnover {
    under_way: AtomicUsize,
    ended: AtomicU64,
    freed: Notify,
}

/// A granted message, counted until its call has ended or it is given back.
pub(crate) struct Granted {
    turnover: Arc<Turnover>,
    lease: Option<Lease>,
    guest: Option<Guest>,
}

/// What to do with the fleet's slots that a granted message holds, when it is done.
pub(crate) type Lease = Box<dyn FnOnce() + Send>;

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(give_back) = self.lease.take() {
            give_back();
        }
        drop(self.guest.take());
        self.turnover.under_way.fetch_sub(1, Ordering::Relaxed);
        self.turnover.ended.fetch_add(1, Ordering::Relaxed);
        self.turnover.freed.notify_one();
    }
}

/// A place for one call; free again when dropped.
pub(crate) struct Slot {
    _permits: [Option<OwnedSemaphorePermit>; 3],
    /// Of the other messages of the same call.
    _guests: Vec<Guest>,
    // Last: the place is free before it is counted so.
    granted: Granted,
}

impl Slot {
    /// Holds the room of messages that travel in this call until it has ended.
    pub(crate) fn with(self, guests: Vec<Guest>) -> Slot {
        Slot { _guests: guests, ..self }
    }

    /// What gives the fleet's slots back, if it holds any: they stay taken when the place itself is free.
    pub(crate) fn keep_lease(&mut self) -> Option<Lease> {
        self.granted.lease.take()
    }
}

impl Granted {
    /// It travels in the call of another message: all that it took is free, but for its room at its destination.
    pub(crate) fn joins(mut self) -> Option<Guest> {
        self.guest.take()
    }
}

impl Slots {
    pub(crate) fn new(concurrency: usize, accounts: impl Iterator<Item = usize>, memory: u64) -> Slots {
        let sizes: Vec<usize> = accounts.collect();
        let memory_kib = u32::try_from(memory / 1024).unwrap_or(u32::MAX).max(1);
        Slots {
            concurrency,
            all: Arc::new(Semaphore::new(concurrency)),
            critical: Arc::new(Semaphore::new((concurrency / 4).max(1))),
            accounts: sizes.iter().map(|n| Arc::new(Semaphore::new(*n))).collect(),
            sizes: sizes.into_iter().map(AtomicUsize::new).collect(),
            memory: Arc::new(Semaphore::new(memory_kib as usize)),
            memory_kib,
            turnover: Arc::default(),
        }
    }

    /// So many places for calls through an account from now on; where they are fewer, calls under way finish.
    pub(crate) fn resize(&self, account: usize, to: usize) {
        let (places, before) = (self.accounts[account].clone(), self.sizes[account].swap(to, Ordering::Relaxed));
        if to > before {
            places.add_permits(to - before);
        } else if let Some(fewer) = u32::try_from(before - to).ok().filter(|fewer| *fewer > 0) {
            tokio::spawn(async move {
                if let Ok(permits) = places.acquire_many_owned(fewer).await {
                    permits.forget();
                }
            });
        }
    }

    /// Counts a message as granted.
    pub(crate) fn granted(&self, lease: Option<Lease>, guest: Option<Guest>) -> Granted {
        self.turnover.under_way.fetch_add(1, Ordering::Relaxed);
        Granted { turnover: self.turnover.clone(), lease, guest }
    }

    /// Waits for a place.
    pub(crate) async fn acquire(&self, granted: Granted, account: usize, class: Class, bytes: usize) -> Slot {
        // Semaphores are never closed, so acquiring cannot fail; an absent permit would only widen the limit.
        let memory = if bytes > KEEP_PARSED {
            let kib = u32::try_from(bytes * COPIES / 1024).unwrap_or(u32::MAX).min(self.memory_kib);
            self.memory.clone().acquire_many_owned(kib).await.ok()
        } else {
            None
        };
        let account = self.accounts[account].clone().acquire_owned().await.ok();
        let place = match self.all.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) if class == Class::Critical => tokio::select! {
                biased;
                permit = self.critical.clone().acquire_owned() => permit.ok(),
                permit = self.all.clone().acquire_owned() => permit.ok(),
            },
            Err(_) => self.all.clone().acquire_owned().await.ok(),
        };
        Slot { _permits: [memory, account, place], _guests: Vec::new(), granted }
    }

    /// Messages ended so far.
    pub(crate) fn ended(&self) -> u64 {
        self.turnover.ended.load(Ordering::Relaxed)
    }

    /// Returns when a message has ended since the last call.
    pub(crate) async fn freed(&self) {
        self.turnover.freed.notified().await;
    }

    /// Messages worth asking a grant for, when `recent` of them ended in the last tenth of a second: as many as will
    /// find a place before their grants run out.
    pub(crate) fn wanted(&self, recent: usize) -> usize {
        let free = self.all.available_permits();
        let waiting = self.turnover.under_way.load(Ordering::Relaxed).saturating_sub(self.concurrency - free);
        (free * 2 + recent).saturating_sub(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asks_for_no_more_than_will_find_a_place() {
        let slots = Slots::new(4, [4].into_iter(), 1 << 20);
        assert_eq!(slots.wanted(0), 8);
        let mut held = vec![];
        for _ in 0..4 {
            held.push(slots.acquire(slots.granted(None, None), 0, Class::Normal, 10).await);
        }
        assert_eq!(slots.wanted(0), 0, "all calls hang: grants would run out unused");
        assert_eq!(slots.wanted(100), 100);
        let waiting = slots.granted(None, None);
        assert_eq!(slots.wanted(100), 99);
        drop((waiting, held));
        assert_eq!((slots.wanted(0), slots.ended()), (8, 5));
    }

    #[tokio::test]
    async fn an_account_gets_more_places_or_fewer() {
        let slots = Slots::new(9, [1].into_iter(), 1 << 20);
        slots.resize(0, 3);
        let mut held = vec![];
        for _ in 0..3 {
            held.push(slots.acquire(slots.granted(None, None), 0, Class::Normal, 10).await);
        }
        slots.resize(0, 1);
        tokio::task::yield_now().await;
        held.truncate(1);
        tokio::task::yield_now().await;
        assert_eq!(slots.accounts[0].available_permits(), 0, "two calls ended, and their places with them");
        held.clear();
        assert_eq!(slots.accounts[0].available_permits(), 1);
    }

    #[tokio::test]
    async fn critical_mail_finds_a_place_among_hanging_calls() {
        let slots = Slots::new(4, [9].into_iter(), 1 << 20);
        let mut held = vec![];
        for _ in 0..4 {
            held.push(slots.acquire(slots.granted(None, None), 0, Class::Low, 10).await);
        }
        held.push(slots.acquire(slots.granted(None, None), 0, Class::Critical, 10).await);
        let normal = slots.acquire(slots.granted(None, None), 0, Class::Normal, 10);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), normal).await.is_err());
    }
}
