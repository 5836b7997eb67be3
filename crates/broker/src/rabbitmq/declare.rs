//! Declaring and comparing single exchanges, queues and bindings.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{
    ExchangeKind as LapinKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};

use super::{
    link::{Live, bounded},
    subscription::named,
};
use crate::{
    BrokerError, Drift,
    topology::{Argument, Binding, Exchange, ExchangeKind, Queue},
};

/// Bindings under way at once.
const PIPELINED: usize = 64;

/// A channel for calls that may fail: RabbitMQ answers a failure by closing the channel, so it is opened again.
pub(super) struct Scratch {
    live: Arc<Live>,
    channel: Option<lapin::Channel>,
}

/// Ready messages and consumers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ready: u64,
    pub(super) consumers: u64,
}

impl Scratch {
    pub(super) fn new(live: Arc<Live>) -> Scratch {
        Scratch { live, channel: None }
    }

    pub(super) fn generation(&self) -> u64 {
        self.live.generation
    }

    pub(super) async fn channel(&mut self) -> Result<lapin::Channel, BrokerError> {
        if let Some(channel) = self.channel.as_ref().filter(|c| c.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.live.channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// After an error the channel is closed or about to be: nothing may follow on it.
    fn used<T>(&mut self, what: &str, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        result.map_err(|error| {
            self.channel = None;
            match error {
                BrokerError::Missing(_) => BrokerError::Missing(what.to_owned()),
                BrokerError::Different { detail, .. } => BrokerError::Different { name: what.to_owned(), detail },
                other => other,
            }
        })
    }

    async fn exchange(&mut self, wanted: &Exchange, passive: bool) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let kind = match wanted.kind {
            ExchangeKind::Direct => LapinKind::Direct,
            ExchangeKind::Fanout => LapinKind::Fanout,
            ExchangeKind::Topic => LapinKind::Topic,
        };
        let mut arguments = FieldTable::default();
        if let Some(alternate) = &wanted.alternate {
            arguments.insert("alternate-exchange".into(), AMQPValue::LongString(alternate.as_str().into()));
        }
        let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        let result = bounded(channel.exchange_declare(named(&wanted.name)?, kind, options, arguments)).await;
        self.used(&format!("exchange {}", wanted.name), result)
    }

    async fn queue(&mut self, wanted: &Queue, passive: bool) -> Result<Counts, BrokerError> {
        let channel = self.channel().await?;
        let mut arguments = FieldTable::default();
        for (name, value) in &wanted.arguments {
            let value = match value {
                Argument::Int(n) => AMQPValue::LongLongInt(*n),
                Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            };
            arguments.insert((*name).into(), value);
        }
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        let result = bounded(channel.queue_declare(named(&wanted.name)?, options, arguments)).await;
        let counts = result.map(|queue| Counts { ready: queue.message_count().into(), consumers: queue.consumer_count().into() });
        self.used(&format!("queue {}", wanted.name), counts)
    }

    /// Makes sure that an exchange exists; whether it had to be made.
    pub(super) async fn ensure_exchange(&mut self, wanted: &Exchange) -> Result<bool, BrokerError> {
        match self.exchange(wanted, true).await {
            Ok(()) => self.exchange(wanted, false).await.map(|()| false),
            Err(BrokerError::Missing(_)) => self.exchange(wanted, false).await.map(|()| true),
            Err(other) => Err(other),
        }
    }

    /// Makes sure that a queue exists; whether it had to be made.
    pub(super) async fn ensure_queue(&mut self, wanted: &Queue) -> Result<bool, BrokerError> {
        match self.queue(wanted, true).await {
            Ok(_) => self.queue(wanted, false).await.map(|_| false),
            Err(BrokerError::Missing(_)) => self.queue(wanted, false).await.map(|_| true),
            Err(other) => Err(other),
        }
    }

    /// How an exchange differs, without making it.
    pub(super) async fn compare_exchange(&mut self, wanted: &Exchange) -> Result<Option<Drift>, BrokerError> {
        match self.exchange(wanted, true).await {
            Ok(()) => drift(self.exchange(wanted, false).await),
            Err(error) => drift(Err(error)),
        }
    }

    /// How a queue differs, without making it.
    pub(super) async fn compare_queue(&mut self, wanted: &Queue) -> Result<Option<Drift>, BrokerError> {
        match self.queue(wanted, true).await {
            Ok(_) => drift(self.queue(wanted, false).await.map(|_| ())),
            Err(error) => drift(Err(error)),
        }
    }

    pub(super) async fn counts(&mut self, queue: &str) -> Result<Counts, BrokerError> {
        self.queue(&Queue { name: queue.to_owned(), arguments: Default::default() }, true).await
    }

    pub(super) async fn bind(&mut self, bindings: &[Binding]) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let calls = bindings.iter().cloned().map(|binding| bind_one(channel.clone(), binding));
        let result = stream::iter(calls).buffer_unordered(PIPELINED).try_collect::<Vec<()>>().await;
        self.used("a queue or exchange to bind", result).map(drop)
    }

    pub(super) async fn unbind(&mut self, b: &Binding) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let (queue, exchange, key) = (named(&b.queue)?, named(&b.exchange)?, named(&b.key)?);
        let result = bounded(channel.queue_unbind(queue, exchange, key, FieldTable::default())).await;
        match self.used("a queue or exchange to unbind", result) {
            Err(BrokerError::Missing(_)) => Ok(()),
            other => other,
        }
    }

    /// Deletes a queue with what it holds; how much that was.
    pub(super) async fn delete_queue(&mut self, queue: &str) -> Result<u64, BrokerError> {
        let channel = self.channel().await?;
        let result = bounded(channel.queue_delete(named(queue)?, QueueDeleteOptions::default())).await;
        self.used(&format!("queue {queue}"), result).map(u64::from)
    }
}

async fn bind_one(channel: lapin::Channel, b: Binding) -> Result<(), BrokerError> {
    let (queue, exchange, key) = (named(&b.queue)?, named(&b.exchange)?, named(&b.key)?);
    bounded(channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default())).await
}

fn drift(result: Result<(), BrokerError>) -> Result<Option<Drift>, BrokerError> {
    match result {
        Ok(()) => Ok(None),
        Err(BrokerError::Missing(what)) => Ok(Some(Drift::Missing(what))),
        Err(BrokerError::Different { name, detail }) => Ok(Some(Drift::Different { name, detail })),
        Err(other) => Err(other),
    }
}
