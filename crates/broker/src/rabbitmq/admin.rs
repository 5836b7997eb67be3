//! Applying and checking a topology, and queue depths.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::{sync::Mutex, time::sleep};

use super::{
    CONNECT_LIMIT, RabbitMq,
    declare::Scratch,
    drain::drain,
    link::{Link, Live, bounded},
    subscription::named,
};
use crate::{
    Applied, Broker, BrokerError, Drift, Names, Outgoing, Properties, PublishError, Purpose, Route, Topology,
    topology::{Manifest, waiting_queue},
};

/// How long to wait for another process that applies a topology.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What administration needs of a link.
pub(super) struct Admin {
    names: Names,
    link: Arc<Link>,
    counting: Mutex<Option<Scratch>>,
    /// The broker's lock is held by a connection, which all of this process share.
    pub(super) applying: Mutex<()>,
}

impl Admin {
    pub(super) fn new(names: Names, link: Arc<Link>) -> Admin {
        Admin { names, link, counting: Mutex::new(None), applying: Mutex::new(()) }
    }

    pub(super) async fn live(&self) -> Result<Arc<Live>, BrokerError> {
        self.link.live(CONNECT_LIMIT).await.map_err(BrokerError::Unreachable)
    }

    pub(super) async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        let live = self.live().await?;
        let mut counting = self.counting.lock().await;
        let scratch = match counting.take() {
            Some(scratch) if scratch.generation() == live.generation => scratch,
            _ => Scratch::new(live),
        };
        counting.insert(scratch).counts(queue).await.map(|counts| counts.ready)
    }

    /// Keeps other processes from applying until dropped.
    pub(super) async fn lock(&self, live: &Live) -> Result<Lock, BrokerError> {
        let started = Instant::now();
        loop {
            match Lock::take(live, &self.names.lock()).await {
                Err(BrokerError::Busy) if started.elapsed() < LOCK_LIMIT => sleep(Duration::from_millis(200)).await,
                other => return other,
            }
        }
    }
}

/// An exclusive queue that goes with its consumer, so that whoever dies or gives up lets go.
pub(super) struct Lock {
    channel: lapin::Channel,
    consumer: lapin::Consumer,
}

impl Lock {
    async fn take(live: &Live, name: &str) -> Result<Lock, BrokerError> {
        let channel = live.channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        bounded(channel.queue_declare(named(name)?, options, FieldTable::default())).await?;
        let consume = channel.basic_consume(named(name)?, "lock".into(), BasicConsumeOptions::default(), FieldTable::default());
        Ok(Lock { consumer: bounded(consume).await?, channel })
    }

    pub(super) async fn release(self) {
        // Should this fail, the connection's end lets go.
        let _ = bounded(self.channel.basic_cancel(self.consumer.tag(), Default::default())).await;
    }
}

/// The records found on the broker, held until settled.
pub(super) struct Record {
    channel: lapin::Channel,
    pub(super) manifest: Manifest,
    messages: u32,
    last_tag: u64,
}

impl Record {
    pub(super) async fn read(live: &Live, queue: &str) -> Result<Record, BrokerError> {
        let channel = live.channel().await?;
        let mut record = Record { channel, manifest: Manifest::default(), messages: 0, last_tag: 0 };
        while let Some(message) = bounded(record.channel.basic_get(named(queue)?, BasicGetOptions::default())).await? {
            record.messages += 1;
            record.last_tag = message.delivery.delivery_tag;
            // One that cannot be read says nothing.
            record.manifest.merge(serde_json::from_slice(&message.delivery.data).unwrap_or_default());
        }
        Ok(record)
    }

    pub(super) async fn forget(self) -> Result<(), BrokerError> {
        if self.last_tag > 0 {
            bounded(self.channel.basic_ack(self.last_tag, BasicAckOptions { multiple: true })).await?;
        }
        bounded(self.channel.close(200, "done".into())).await
    }

    pub(super) async fn put_back(self) -> Result<(), BrokerError> {
        if self.last_tag > 0 {
            let options = BasicNackOptions { multiple: true, requeue: true };
            bounded(self.channel.basic_nack(self.last_tag, options)).await?;
        }
        bounded(self.channel.close(200, "done".into())).await
    }
}

pub(super) async fn write(rabbit: &RabbitMq, queue: &str, manifest: &Manifest) -> Result<(), BrokerError> {
    let body = serde_json::to_vec(manifest).map_err(|error| BrokerError::Refused(error.to_string()))?;
    let message = Outgoing {
        to: Route::Queue(queue.into()),
        key: String::new(),
        body: Bytes::from(body),
        properties: Properties::default(),
        purpose: Purpose::Drain,
    };
    rabbit.publish(message).await.map_err(|error| match error {
        PublishError::Unreachable(why) | PublishError::Blocked(why) | PublishError::Unconfirmed(why) => {
            BrokerError::Unreachable(why)
        }
        PublishError::Refused | PublishError::Invalid(_) => BrokerError::Refused(error.to_string()),
    })
}

pub(super) async fn apply(rabbit: &RabbitMq, topology: &Topology) -> Result<Applied, BrokerError> {
    let admin = &rabbit.admin;
    let _applying = admin.applying.lock().await;
    let live = admin.live().await?;
    let lock = admin.lock(&live).await?;
    let result = apply_locked(rabbit, live, topology).await;
    lock.release().await;
    result
}

async fn apply_locked(rabbit: &RabbitMq, live: Arc<Live>, topology: &Topology) -> Result<Applied, BrokerError> {
    let manifest_queue = rabbit.names.manifest();
    let mut applied = Applied::default();
    let mut scratch = Scratch::new(live.clone());
    scratch.ensure_queue(&waiting_queue(manifest_queue.clone())).await?;
    let record = Record::read(&live, &manifest_queue).await?;
    let mut wanted = Manifest::of(topology);
    wanted.flows.clone_from(&record.manifest.flows);

    let mut made = Vec::new();
    for exchange in &topology.exchanges {
        if scratch.ensure_exchange(exchange).await? {
            applied.created.push(format!("exchange {}", exchange.name));
            made.push(&exchange.name);
        } else {
            applied.present += 1;
        }
    }
    for queue in &topology.queues {
        if scratch.ensure_queue(queue).await? {
            applied.created.push(format!("queue {}", queue.name));
            made.push(&queue.name);
        } else {
            applied.present += 1;
        }
    }

    // Nothing may be bound that no record knows, or a later apply could not unbind it.
    let known = record.manifest.clone();
    let rewrite = known != wanted || record.messages != 1;
    let mut record = Some(record);
    if rewrite {
        let mut both = known.clone();
        both.merge(wanted.clone());
        write(rabbit, &manifest_queue, &both).await?;
        if let Some(record) = record.take() {
            record.forget().await?;
        }
    }
    // In this order a domain that moves goes to the tail for a moment, not to two lanes.
    for stale in known.stale_bindings(&wanted) {
        scratch.unbind(&stale).await?;
        applied.removed.push(stale.to_string());
    }
    scratch.bind(&topology.bindings).await?;
    for binding in &topology.bindings {
        if known.has(binding) && !made.contains(&&binding.queue) && !made.contains(&&binding.exchange) {
            applied.present += 1;
        } else {
            applied.created.push(binding.to_string());
        }
    }
    drain(rabbit, &mut scratch, known.stale_lanes(&wanted), &mut applied).await?;

    let mut now = wanted;
    // Looked at again next time.
    now.lanes.extend(applied.left.iter().cloned());
    match record {
        Some(record) => record.put_back().await?,
        None => {
            let both = Record::read(&live, &manifest_queue).await?;
            write(rabbit, &manifest_queue, &now).await?;
            both.forget().await?;
        }
    }
    Ok(applied)
}

pub(super) async fn check(rabbit: &RabbitMq, topology: &Topology) -> Result<Vec<Drift>, BrokerError> {
    let admin = &rabbit.admin;
    // Not while an apply has the record in hand.
    let _applying = admin.applying.lock().await;
    let live = admin.live().await?;
    let lock = admin.lock(&live).await?;
    let result = check_locked(rabbit, live, topology).await;
    lock.release().await;
    result
}

async fn check_locked(rabbit: &RabbitMq, live: Arc<Live>, topology: &Topology) -> Result<Vec<Drift>, BrokerError> {
    let mut scratch = Scratch::new(live.clone());
    let mut drift = Vec::new();
    for exchange in &topology.exchanges {
        drift.extend(scratch.compare_exchange(exchange).await?);
    }
    for queue in &topology.queues {
        drift.extend(scratch.compare_queue(queue).await?);
    }
    let known = match Record::read(&live, &rabbit.names.manifest()).await {
        Ok(record) => {
            let known = record.manifest.clone();
            record.put_back().await?;
            known
        }
        Err(BrokerError::Missing(_)) => Manifest::default(),
        Err(other) => return Err(other),
    };
    let wanted = Manifest::of(topology);
    drift.extend(topology.bindings.iter().filter(|b| !known.has(b)).map(|b| Drift::Missing(b.to_string())));
    drift.extend(known.stale_bindings(&wanted).iter().map(|b| Drift::Unnamed(b.to_string())));
    drift.extend(known.stale_lanes(&wanted).into_iter().map(|lane| Drift::Unnamed(format!("queue {lane}"))));
    Ok(drift)
}
