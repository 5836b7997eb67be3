//! A subscription to one queue.

use std::{
    fmt,
    future::poll_fn,
    task::{Context, Poll},
};

use async_trait::async_trait;

use crate::{BrokerError, Delivery};

/// Why a consumer yields no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// [`Consumer::cancel`] was called.
    Cancelled,
    /// The channel, the connection or the queue is gone, and with it every delivery that was not settled: they come
    /// again. Consume anew.
    Lost(String),
}

/// What an adapter supplies.
#[async_trait]
pub(crate) trait Subscription: Send {
    /// The next delivery, or why there is none. After an end it may be polled again and ends again.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery, End>>;
    async fn cancel(&mut self);
    async fn resize(&mut self, prefetch: u16) -> Result<(), BrokerError>;
    async fn flush(&mut self);
}

/// A subscription to one queue, on a channel of its own.
///
/// The channel closes when this and every [`crate::Settle`] of its deliveries are gone.
pub struct Consumer {
    subscription: Box<dyn Subscription>,
    ended: Option<End>,
}

impl Consumer {
    pub(crate) fn new(subscription: Box<dyn Subscription>) -> Consumer {
        Consumer { subscription, ended: None }
    }

    /// The next delivery, in queue order; `None` once ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Consumer::next`] for hand-written futures.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        self.subscription.poll_next(cx).map(|next| match next {
            Ok(delivery) => Some(delivery),
            Err(end) => {
                self.ended = Some(end);
                None
            }
        })
    }

    /// Why [`Consumer::next`] returned `None`; `None` while it has not.
    pub fn ended(&self) -> Option<&End> {
        self.ended.as_ref()
    }

    /// Stops deliveries. [`Consumer::next`] still yields what had arrived, then `None`. What is held stays held, and can
    /// be acked or released.
    pub async fn cancel(&mut self) {
        self.subscription.cancel().await;
    }

    /// Changes the prefetch without giving anything back: what was delivered before counts no more towards the new
    /// prefetch, so for a while more may be held.
    pub async fn resize(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.subscription.resize(prefetch).await
    }

    /// Returns once every ack and release made so far has been written to the broker.
    pub async fn flush(&mut self) {
        self.subscription.flush().await;
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("ended", &self.ended).finish_non_exhaustive()
    }
}
