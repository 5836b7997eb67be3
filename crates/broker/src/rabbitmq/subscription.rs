//! A consumer of one queue on a channel of its own.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures_util::{StreamExt, task::noop_waker_ref};
use lapin::{
    message::Delivery as Received,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};

use super::{
    CONNECT_LIMIT,
    channel::{Channels, Holder},
    convert::{body, properties_in, reason, short},
    link::{Link, Live, bounded},
};
use crate::{BrokerError, Consumer, Delivery, End, Settle, consumer::Subscription};

/// What a listener to events may have in hand.
const LISTENER_PREFETCH: u16 = 1000;

pub(super) async fn consume(link: &Link, channels: &Channels, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
    let live = link.live(CONNECT_LIMIT).await.map_err(BrokerError::Unreachable)?;
    let channel = live.channel().await?;
    start(&live, channels, channel, queue, prefetch).await.map_err(|error| match error {
        BrokerError::Missing(_) => BrokerError::Missing(format!("queue {queue}")),
        other => other,
    })
}

/// Consumes a queue of its own that ends with the channel.
pub(super) async fn listen(link: &Link, channels: &Channels, exchange: &str, pattern: &str) -> Result<Consumer, BrokerError> {
    let live = link.live(CONNECT_LIMIT).await.map_err(BrokerError::Unreachable)?;
    let channel = live.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = bounded(channel.queue_declare("".into(), options, FieldTable::default())).await?;
    let name = queue.name().clone();
    let bind =
        channel.queue_bind(name.clone(), named(exchange)?, named(pattern)?, QueueBindOptions::default(), FieldTable::default());
    bounded(bind).await?;
    start(&live, channels, channel, name.as_str(), LISTENER_PREFETCH).await
}

pub(super) fn named(name: &str) -> Result<ShortString, BrokerError> {
    short(name).ok_or_else(|| BrokerError::Refused("a name is longer than 255 bytes".to_owned()))
}

async fn start(
    live: &Live,
    channels: &Channels,
    channel: lapin::Channel,
    queue: &str,
    prefetch: u16,
) -> Result<Consumer, BrokerError> {
    let mut subscription = RabbitSubscription {
        queue: queue.into(),
        name: named(queue)?,
        holder: channels.tend(channel.clone(), live.lost(), prefetch),
        channel,
        streams: VecDeque::new(),
        subscribed: 0,
        cancelled: false,
    };
    subscription.subscribe(prefetch).await?;
    Ok(Consumer::new(Box::new(subscription)))
}

struct RabbitSubscription {
    queue: Arc<str>,
    name: ShortString,
    channel: lapin::Channel,
    holder: Arc<Holder>,
    /// The current subscription last; before it, those that a resize has ended and that still have deliveries.
    streams: VecDeque<lapin::Consumer>,
    /// Counts subscriptions: each has its own tag.
    subscribed: u32,
    cancelled: bool,
}

impl RabbitSubscription {
    fn tag(&self) -> ShortString {
        format!("c{}", self.subscribed).into()
    }

    async fn subscribe(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        bounded(self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        self.subscribed += 1;
        let options = BasicConsumeOptions::default();
        let consume = self.channel.basic_consume(self.name.clone(), self.tag(), options, FieldTable::default());
        self.streams.push_back(bounded(consume).await?);
        Ok(())
    }

    async fn unsubscribe(&mut self) -> Result<(), BrokerError> {
        bounded(self.channel.basic_cancel(self.tag(), BasicCancelOptions::default())).await
    }

    /// The reason lapin gave, among deliveries that are void by now.
    fn why_lost(&mut self) -> String {
        let mut cx = Context::from_waker(noop_waker_ref());
        for stream in &mut self.streams {
            while let Poll::Ready(Some(next)) = stream.poll_next_unpin(&mut cx) {
                if let Err(error) = next {
                    return reason(&error);
                }
            }
        }
        self.holder.core().poll_lost(noop_waker_ref()).unwrap_or_else(|| "the channel was closed".to_owned())
    }

    fn delivery(&self, received: Received) -> Delivery {
        let Received { delivery_tag, routing_key, redelivered, properties, data, .. } = received;
        Delivery {
            queue: self.queue.clone(),
            routing_key: routing_key.into(),
            body: body(data),
            properties: properties_in(&properties),
            redelivered,
            settle: Settle::new(delivery_tag, self.holder.clone()),
        }
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery, End>> {
        // What a lost channel had delivered comes again elsewhere: it is not handed out.
        if !self.channel.status().connected() {
            let why = self.why_lost();
            self.holder.core().lose(why.clone());
            return Poll::Ready(Err(End::Lost(why)));
        }
        while let Some(stream) = self.streams.front_mut() {
            match stream.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(received))) => return Poll::Ready(Ok(self.delivery(received))),
                Poll::Ready(Some(Err(error))) => {
                    let why = reason(&error);
                    self.holder.core().lose(why.clone());
                    return Poll::Ready(Err(End::Lost(why)));
                }
                Poll::Ready(None) => drop(self.streams.pop_front()),
                // lapin's stream ends with its channel; should it not, the channel's watch says so.
                Poll::Pending => {
                    return match self.holder.core().poll_lost(cx.waker()) {
                        Some(why) => Poll::Ready(Err(End::Lost(why))),
                        None => Poll::Pending,
                    };
                }
            }
        }
        Poll::Ready(Err(if self.cancelled {
            End::Cancelled
        } else {
            End::Lost("the broker cancelled the consumer: its queue is gone".to_owned())
        }))
    }

    async fn cancel(&mut self) {
        self.cancelled = true;
        if let Err(error) = self.unsubscribe().await {
            self.holder.core().lose(error.to_string());
        }
    }

    async fn resize(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.holder.core().set_prefetch(prefetch);
        // One after the other, so that deliveries stay in order.
        self.unsubscribe().await?;
        self.subscribe(prefetch).await
    }

    async fn flush(&mut self) {
        self.holder.core().flush().await;
    }
}
