//! Confirmed publishing: many callers, few channels, a bounded window.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use lapin::{
    Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    CONNECT_LIMIT,
    convert::{properties_out, reason, short},
    link::{Link, Live, bounded},
};
use crate::{BrokerError, Counters, Names, Outgoing, PublishError};

/// A channel is one process in the broker; two keep both cores of a small one busy.
const CHANNELS: usize = 2;
/// Messages under way at most.
const WINDOW: u32 = 1000;
/// A large message counts as several: lapin holds a copy of each body until it is written.
const BYTES_PER_PERMIT: usize = 32 * 1024;
/// How long the broker may take to confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);
/// How long a publish waits while the broker takes none.
const BLOCKED_LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Publisher {
    names: Names,
    link: Arc<Link>,
    counters: Arc<Counters>,
    window: Semaphore,
    channels: [Slot; CHANNELS],
    turn: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    current: Mutex<Option<Arc<ConfirmChannel>>>,
    /// Held by whoever opens a channel.
    opening: tokio::sync::Mutex<()>,
}

struct ConfirmChannel {
    channel: lapin::Channel,
    generation: u64,
    /// lapin numbers a publish and queues its frames in two steps; in between no other publish may come, or the two
    /// get each other's confirm.
    order: Mutex<()>,
}

impl Publisher {
    pub(super) fn new(names: Names, link: Arc<Link>, counters: Arc<Counters>) -> Publisher {
        Publisher {
            names,
            link,
            counters,
            window: Semaphore::new(WINDOW as usize),
            channels: Default::default(),
            turn: AtomicUsize::new(0),
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
        let _permits = self.window(body.len()).await?;
        let live = self.link.live(CONNECT_LIMIT).await.map_err(PublishError::Unreachable)?;
        self.link.unblocked(BLOCKED_LIMIT).await.map_err(PublishError::Blocked)?;
        let channel = self.channel(&live).await?;

        let mut sending = pin!(channel.channel.basic_publish(exchange, key, BasicPublishOptions::default(), &body, properties));
        // The first poll queues the frames.
        let queued = poll_fn(|cx| {
            let _order = channel.order.lock().unwrap_or_else(PoisonError::into_inner);
            Poll::Ready(sending.as_mut().poll(cx))
        })
        .await;
        let confirmed = async {
            let confirm = match queued {
                Poll::Ready(Err(error)) => return Err(PublishError::Unreachable(reason(&error))),
                Poll::Ready(Ok(confirm)) => confirm,
                Poll::Pending => sending.await.map_err(unconfirmed)?,
            };
            match confirm.await.map_err(unconfirmed)? {
                Confirmation::Ack(_) => Ok(()),
                Confirmation::Nack(_) => Err(PublishError::Refused),
                Confirmation::NotRequested => Err(PublishError::Unconfirmed("the channel does not confirm".to_owned())),
            }
        };
        match timeout(CONFIRM_LIMIT, confirmed).await {
            Ok(result) => result,
            Err(_) => Err(PublishError::Unconfirmed("no answer in 30 s".to_owned())),
        }
    }

    async fn window(&self, bytes: usize) -> Result<SemaphorePermit<'_>, PublishError> {
        let permits = u32::try_from(1 + bytes / BYTES_PER_PERMIT).unwrap_or(WINDOW).min(WINDOW);
        let closed = |_| PublishError::Unreachable("closed".to_owned());
        self.window.acquire_many(permits).await.map_err(closed)
    }

    async fn channel(&self, live: &Live) -> Result<Arc<ConfirmChannel>, PublishError> {
        let slot = &self.channels[self.turn.fetch_add(1, Ordering::Relaxed) % CHANNELS];
        if let Some(channel) = slot.usable(live) {
            return Ok(channel);
        }
        let _opening = slot.opening.lock().await;
        if let Some(channel) = slot.usable(live) {
            return Ok(channel);
        }
        let opened = async {
            let channel = live.channel().await?;
            bounded(channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok(channel)
        };
        let channel = opened.await.map_err(|error: BrokerError| PublishError::Unreachable(error.to_string()))?;
        let channel = Arc::new(ConfirmChannel { channel, generation: live.generation, order: Mutex::new(()) });
        *slot.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel.clone());
        Ok(channel)
    }
}

impl Slot {
    fn usable(&self, live: &Live) -> Option<Arc<ConfirmChannel>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|c| c.generation == live.generation && c.channel.status().connected()).cloned()
    }
}

fn unconfirmed(error: lapin::Error) -> PublishError {
    PublishError::Unconfirmed(reason(&error))
}
