//! A channel whose publishes the broker confirms.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use lapin::{
    BasicProperties, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::time::timeout;

use super::{
    convert::reason,
    link::{Live, bounded},
};
use crate::{BrokerError, PublishError};

/// How long the broker may take to confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct ConfirmChannel {
    channel: lapin::Channel,
    generation: u64,
    /// lapin numbers a publish and queues its frames in two steps; in between no other publish may come, or the two
    /// get each other's confirm.
    order: Mutex<()>,
}

/// One message, in lapin's terms.
pub(super) struct Frame<'a> {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: &'a [u8],
}

impl ConfirmChannel {
    pub(super) async fn open(live: &Live) -> Result<ConfirmChannel, PublishError> {
        let opened = async {
            let channel = live.channel().await?;
            bounded(channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok(channel)
        };
        let channel = opened.await.map_err(|error: BrokerError| PublishError::Unreachable(error.to_string()))?;
        Ok(ConfirmChannel { channel, generation: live.generation, order: Mutex::new(()) })
    }

    pub(super) fn usable(&self, live: &Live) -> bool {
        self.generation == live.generation && self.channel.status().connected()
    }

    /// Publishes, and returns with the broker's confirm. With `mandatory`, a message that reaches no queue is an error;
    /// that only holds while no other publish is under way on this channel, as lapin pairs returns by time.
    pub(super) async fn send(&self, frame: Frame<'_>, mandatory: bool) -> Result<(), PublishError> {
        let Frame { exchange, key, properties, body } = frame;
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        let mut sending = pin!(self.channel.basic_publish(exchange, key, options, body, properties));
        // The first poll queues the frames.
        let queued = poll_fn(|cx| {
            let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
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
                Confirmation::Ack(Some(returned)) if mandatory => {
                    let missing = BrokerError::Missing(format!("queue {}", returned.delivery.routing_key));
                    Err(PublishError::Unreachable(missing.to_string()))
                }
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
}

fn unconfirmed(error: lapin::Error) -> PublishError {
    PublishError::Unconfirmed(reason(&error))
}
