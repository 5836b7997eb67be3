//! Confirmed publishing: many callers, few channels, a bounded window.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    CONNECT_LIMIT,
    confirm::{ConfirmChannel, Frame},
    convert::{properties_out, short},
    link::{Link, Live},
};
use crate::{Counters, Names, Outgoing, PublishError, Route};

/// A channel is one process in the broker; two keep both cores of a small one busy.
const SHARED_CHANNELS: usize = 2;
/// Messages under way at most.
const WINDOW: u32 = 1000;
/// A large message counts as several: lapin holds a copy of each body until it is written.
const BYTES_PER_PERMIT: usize = 32 * 1024;
/// Channels that take one message at a time; some 400 a second each.
const LONE_CHANNELS: usize = 8;
/// How long a publish waits while the broker takes none.
const BLOCKED_LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Publisher {
    names: Names,
    link: Arc<Link>,
    counters: Arc<Counters>,
    window: Semaphore,
    shared: [Slot; SHARED_CHANNELS],
    turn: AtomicUsize,
    lone: Mutex<Vec<ConfirmChannel>>,
    lone_turns: Semaphore,
}

#[derive(Default)]
struct Slot {
    current: Mutex<Option<Arc<ConfirmChannel>>>,
    /// Held by whoever opens a channel.
    opening: tokio::sync::Mutex<()>,
}

impl Publisher {
    pub(super) fn new(names: Names, link: Arc<Link>, counters: Arc<Counters>) -> Publisher {
        Publisher {
            names,
            link,
            counters,
            window: Semaphore::new(WINDOW as usize),
            shared: Default::default(),
            turn: AtomicUsize::new(0),
            lone: Mutex::default(),
            lone_turns: Semaphore::new(LONE_CHANNELS),
        }
    }

    pub(super) async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let purpose = message.purpose;
        let result = self.try_publish(message).await;
        match &result {
            Ok(()) => self.counters.count_published(purpose),
            Err(_) => self.counters.count_failed(),
        }
        result
    }

    async fn try_publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let Outgoing { to, key, body, properties, purpose: _ } = message;
        let (exchange, key) = self.names.resolve(&to, &key);
        let too_long = || PublishError::Invalid("its exchange or routing key is longer than 255 bytes".to_owned());
        let (exchange, key) = (short(&exchange).ok_or_else(too_long)?, short(&key).ok_or_else(too_long)?);
        let properties = properties_out(properties, true).map_err(PublishError::Invalid)?;
        let live = self.link.live(CONNECT_LIMIT).await.map_err(PublishError::Unreachable)?;
        self.link.unblocked(BLOCKED_LIMIT).await.map_err(PublishError::Blocked)?;
        let _window = self.window(body.len()).await?;
        let frame = Frame { exchange, key, properties, body: &body };
        match to {
            Route::Producers | Route::Lanes | Route::Intake | Route::Delay { .. } | Route::Events => {
                self.shared(&live).await?.send(frame, false).await
            }
            // The default exchange has no alternate: a queue that is not there must not swallow mail.
            Route::Dead | Route::Feedback | Route::Queue(_) => self.send_alone(&live, frame).await,
        }
    }

    async fn window(&self, bytes: usize) -> Result<SemaphorePermit<'_>, PublishError> {
        let permits = u32::try_from(1 + bytes / BYTES_PER_PERMIT).unwrap_or(WINDOW).min(WINDOW);
        self.window.acquire_many(permits).await.map_err(|_| closed())
    }

    async fn send_alone(&self, live: &Live, frame: Frame<'_>) -> Result<(), PublishError> {
        let _turn = self.lone_turns.acquire().await.map_err(|_| closed())?;
        let free = self.lone().pop().filter(|channel| channel.usable(live));
        let channel = match free {
            Some(channel) => channel,
            None => ConfirmChannel::open(live).await?,
        };
        let result = channel.send(frame, true).await;
        // One whose answer is still out would pair it with the next message: such a channel is not used again, nor is
        // one whose caller gave up.
        if !matches!(result, Err(PublishError::Unconfirmed(_))) {
            self.lone().push(channel);
        }
        result
    }

    fn lone(&self) -> MutexGuard<'_, Vec<ConfirmChannel>> {
        self.lone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn shared(&self, live: &Live) -> Result<Arc<ConfirmChannel>, PublishError> {
        let slot = &self.shared[self.turn.fetch_add(1, Ordering::Relaxed) % SHARED_CHANNELS];
        if let Some(channel) = slot.usable(live) {
            return Ok(channel);
        }
        let _opening = slot.opening.lock().await;
        if let Some(channel) = slot.usable(live) {
            return Ok(channel);
        }
        let channel = Arc::new(ConfirmChannel::open(live).await?);
        *slot.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel.clone());
        Ok(channel)
    }
}

impl Slot {
    fn usable(&self, live: &Live) -> Option<Arc<ConfirmChannel>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|channel| channel.usable(live)).cloned()
    }
}

fn closed() -> PublishError {
    PublishError::Unreachable("closed".to_owned())
}
