//! Moving mail out of lanes that are no longer named.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use super::{RabbitMq, declare::Scratch};
use crate::{Applied, Broker, BrokerError, Delivery, Outgoing, PublishError, Purpose, Route};

/// Messages under way at once.
const AT_ONCE: u16 = 100;
/// A lane that has given nothing for this long is taken for empty.
const IDLE: Duration = Duration::from_millis(500);
/// A lane must look idle twice, this far apart, before it is deleted.
pub(super) const SETTLED: Duration = Duration::from_secs(1);

/// Empties lanes to which nothing is bound any more and deletes those that are then idle.
pub(super) async fn drain(
    rabbit: &RabbitMq,
    scratch: &mut Scratch,
    lanes: Vec<String>,
    applied: &mut Applied,
) -> Result<(), BrokerError> {
    let mut idle = Vec::new();
    for lane in lanes {
        match scratch.counts(&lane).await {
            Err(BrokerError::Missing(_)) => continue,
            counts => drop(counts?),
        }
        let moved = move_out(rabbit, &lane).await?;
        if moved > 0 {
            info!(lane, moved, "moved the mail of a lane that is no longer named");
            applied.drained.push((lane.clone(), moved));
        }
        // A consumer may hold deliveries that are not counted as ready: its worker must let go first.
        let counts = scratch.counts(&lane).await?;
        if counts.ready == 0 && counts.consumers == 0 { idle.push(lane) } else { applied.left.push(lane) }
    }
    if idle.is_empty() {
        return Ok(());
    }
    sleep(SETTLED).await;
    for lane in idle {
        let counts = scratch.counts(&lane).await?;
        if counts.ready > 0 || counts.consumers > 0 {
            applied.left.push(lane);
            continue;
        }
        let lost = scratch.delete_queue(&lane).await?;
        if lost > 0 {
            error!(lane, lost, "mail arrived in a lane while it was deleted");
        }
        applied.removed.push(format!("queue {lane}"));
    }
    Ok(())
}

async fn move_out(rabbit: &RabbitMq, lane: &str) -> Result<u64, BrokerError> {
    let mut consumer = rabbit.consume(lane, AT_ONCE).await?;
    let mut moving = FuturesUnordered::new();
    let mut moved = 0;
    loop {
        tokio::select! {
            next = timeout(IDLE, consumer.next()), if moving.len() < usize::from(AT_ONCE) => match next {
                Ok(Some(delivery)) => moving.push(republish(rabbit, delivery)),
                Ok(None) => return Err(BrokerError::Unreachable("the lane's consumer was lost".to_owned())),
                Err(_) if moving.is_empty() => break,
                Err(_) => {}
            },
            Some(result) = moving.next() => moved += u64::from(result?),
        }
    }
    consumer.cancel().await;
    consumer.flush().await;
    Ok(moved)
}

/// Through the producers' exchange with the key it has: a recipient's domain finds its new lane, and what names a
/// dropped destination falls to the tail of its class, where a worker sorts it.
async fn republish(rabbit: &RabbitMq, delivery: Delivery) -> Result<bool, BrokerError> {
    let message = Outgoing {
        to: Route::Producers,
        key: delivery.routing_key,
        body: delivery.body,
        properties: delivery.properties,
        purpose: Purpose::Drain,
    };
    match rabbit.publish(message).await {
        Ok(()) => {
            delivery.settle.ack();
            Ok(true)
        }
        // It stays where it is, and so does its lane.
        Err(PublishError::Refused | PublishError::Invalid(_)) => Ok(false),
        Err(PublishError::Unreachable(why) | PublishError::Blocked(why) | PublishError::Unconfirmed(why)) => {
            Err(BrokerError::Unreachable(why))
        }
    }
}
