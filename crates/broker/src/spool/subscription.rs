//! A consumer of one queue.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{hub::Handed, keeper::Job, shared::Shared};
use crate::{BrokerError, Consumer, Delivery, End, Settle, consumer::Subscription, message::Settlements};

pub(super) fn consumer(shared: Arc<Shared>, id: u64) -> Consumer {
    Consumer::new(Box::new(SpoolSubscription { channel: Arc::new(Held { shared, id }) }))
}

/// Shared by a consumer and the settles of its deliveries; what is still held returns when the last of them goes.
struct Held {
    shared: Arc<Shared>,
    id: u64,
}

impl Settlements for Held {
    fn ack(&self, tag: u64) {
        if self.shared.hub.ack(self.id, tag) {
            self.shared.writer.poke();
        }
    }

    fn release(&self, tag: u64) {
        self.shared.hub.release(self.id, tag);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.hub.close_channel(self.id);
    }
}

struct SpoolSubscription {
    channel: Arc<Held>,
}

#[async_trait]
impl Subscription for SpoolSubscription {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery, End>> {
        // What has been read is there at once: without this a busy lane would not let others run.
        let progress = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        let next = self.channel.shared.hub.poll_next(self.channel.id, cx);
        if next.is_ready() {
            progress.made_progress();
        }
        next.map_ok(|Handed { queue, tag, row }| Delivery {
            queue,
            routing_key: row.key,
            body: row.body,
            properties: row.properties,
            redelivered: row.redelivered,
            settle: Settle::new(tag, self.channel.clone()),
        })
    }

    async fn cancel(&mut self) {
        self.channel.shared.hub.unsubscribe(self.channel.id);
    }

    async fn resize(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        if self.channel.shared.hub.resize(self.channel.id, prefetch) {
            Ok(())
        } else {
            Err(BrokerError::Unreachable("the consumer has ended".to_owned()))
        }
    }

    async fn flush(&mut self) {
        let (done, flushed) = oneshot::channel();
        if self.channel.shared.writer.put(Job::Flush(done)).is_ok() {
            // When the writer ends, it has done what it could.
            let _ = flushed.await;
        }
    }
}

impl Drop for SpoolSubscription {
    fn drop(&mut self) {
        self.channel.shared.hub.unsubscribe(self.channel.id);
    }
}
