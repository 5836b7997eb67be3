//! Flows: queues made on demand. Which there are is part of the record of the topology, since AMQP cannot list queues.

use std::sync::Arc;

use paceline_core::Class;
use tokio::time::sleep;

use super::{
    RabbitMq,
    admin::{Record, write},
    declare::{Counts, Scratch},
    drain::SETTLED,
    link::Live,
};
use crate::{
    BrokerError,
    topology::{self, flow_parts, waiting_queue},
};

/// What is to be done with the record.
enum Change<'a> {
    None,
    Add(&'a str),
    Remove(&'a str),
}

pub(super) async fn open(rabbit: &RabbitMq, class: Class, flow: &str) -> Result<(), BrokerError> {
    let (queue, binding) = topology::flow(&rabbit.names, class, flow);
    let name = format!("{class}.{flow}");
    locked(rabbit, async |live| {
        let mut scratch = Scratch::new(live.clone());
        scratch.ensure_queue(&waiting_queue(rabbit.names.manifest())).await?;
        // On record before it can hold any mail.
        change(rabbit, &live, Change::Add(&name)).await?;
        scratch.ensure_queue(&queue).await?;
        scratch.bind(std::slice::from_ref(&binding)).await
    })
    .await
}

pub(super) async fn list(rabbit: &RabbitMq) -> Result<Vec<(Class, String)>, BrokerError> {
    let names = locked(rabbit, async |live| change(rabbit, &live, Change::None).await).await?;
    Ok(names.iter().filter_map(|name| flow_parts(name)).collect())
}

/// Quorum queues know neither `if-empty` nor `if-unused`. So first nothing may lead there any more; what had been routed
/// before has arrived by the second look.
pub(super) async fn close(rabbit: &RabbitMq, class: Class, flow: &str) -> Result<bool, BrokerError> {
    let (queue, binding) = topology::flow(&rabbit.names, class, flow);
    let idle = |counts: Counts| counts.ready == 0 && counts.consumers == 0;
    locked(rabbit, async |live| {
        let mut scratch = Scratch::new(live.clone());
        match scratch.counts(&queue.name).await {
            Ok(counts) if idle(counts) => {
                scratch.unbind(&binding).await?;
                sleep(SETTLED).await;
                if !idle(scratch.counts(&queue.name).await?) {
                    scratch.bind(std::slice::from_ref(&binding)).await?;
                    return Ok(false);
                }
                let lost = scratch.delete_queue(&queue.name).await?;
                if lost > 0 {
                    tracing::error!(flow, lost, "mail arrived in a flow while it was deleted");
                }
            }
            Ok(_) => return Ok(false),
            Err(BrokerError::Missing(_)) => {}
            Err(other) => return Err(other),
        }
        change(rabbit, &live, Change::Remove(&format!("{class}.{flow}"))).await?;
        Ok(true)
    })
    .await
}

/// With the record in nobody else's hands.
async fn locked<T>(rabbit: &RabbitMq, work: impl AsyncFnOnce(Arc<Live>) -> Result<T, BrokerError>) -> Result<T, BrokerError> {
    let _applying = rabbit.admin.applying.lock().await;
    let live = rabbit.admin.live().await?;
    let lock = rabbit.admin.lock(&live).await?;
    let result = work(live).await;
    lock.release().await;
    result
}

/// The flows on record, after the change.
async fn change(rabbit: &RabbitMq, live: &Live, change: Change<'_>) -> Result<Vec<String>, BrokerError> {
    let queue = rabbit.names.manifest();
    let record = match Record::read(live, &queue).await {
        Ok(record) => record,
        Err(BrokerError::Missing(_)) => return Ok(Vec::new()),
        Err(other) => return Err(other),
    };
    let mut manifest = record.manifest.clone();
    let changed = match change {
        Change::None => false,
        Change::Add(name) => manifest.flows.insert(name.to_owned()),
        Change::Remove(name) => manifest.flows.remove(name),
    };
    if changed {
        // Both are there for a moment; together they say at least what holds.
        write(rabbit, &queue, &manifest).await?;
        record.forget().await?;
    } else {
        record.put_back().await?;
    }
    Ok(manifest.flows.into_iter().collect())
}
