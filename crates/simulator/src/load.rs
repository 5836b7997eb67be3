//! Producers: they publish what a scenario's loads say, as `paceline send` would.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_broker::{Broker, Outgoing, Properties, Purpose, Route, memory::MemoryBroker};
use paceline_core::{Domain, Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    book::{self, Mail},
    chance::Chance,
    domains,
    ports::{Shared, lock},
    scenario::Load,
};

/// What is published at once takes so many milliseconds.
const SLICES: usize = 200;

/// One load's producer. What it publishes is in the book from that moment on.
pub(crate) struct Producer {
    pub(crate) load: Load,
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) broker: MemoryBroker,
    pub(crate) chance: Chance,
    /// When the run ends.
    pub(crate) end: Instant,
}

impl Producer {
    pub(crate) async fn run(mut self) {
        let start = Instant::now();
        // The scenario was checked: each of them can be read.
        let domains: Vec<Domain> = self.load.to.iter().flat_map(|p| domains::expand(p).unwrap_or_default()).collect();
        sleep_until(start + self.load.from.0).await;
        // At once, but with what other loads publish at once among it.
        let count = self.load.count.unwrap_or(0) as usize;
        for n in 0..count {
            if n > 0 && n % count.div_ceil(SLICES) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            self.publish(&domains, n).await;
        }
        let Some(rate) = self.load.rate else { return };
        let end = self.load.until.map_or(self.end, |until| self.end.min(start + until.0));
        let mut next = Instant::now();
        for n in 0.. {
            next += Duration::from_micros(self.chance.gap_us(rate.as_per_second()));
            if next >= end {
                return;
            }
            sleep_until(next).await;
            self.publish(&domains, n).await;
        }
    }

    async fn publish(&self, domains: &[Domain], n: usize) {
        let load = &self.load;
        let domain = domains[n % domains.len()].as_str();
        let id = book::text((self.index, n));
        let to: Vec<String> = (0..load.recipients).map(|k| format!("{}@{domain}", book::recipient(k))).collect();
        let mut body = json!({"id": id, "class": load.class, "from": load.sender, "to": to, "text": "Hello."});
        for (name, value) in [("tenant", &load.tenant), ("account", &load.account)] {
            if let Some(value) = value {
                body[name] = Value::from(value.as_str());
            }
        }
        let now_us = self.shared.clock.now_us();
        lock(&self.shared.book).loads[self.index].mail.push(Mail::submitted(now_us));
        // By which its age is known, wherever it waits.
        let timestamp = Some(Timestamp::from_micros(now_us as i64));
        let message = Outgoing {
            to: Route::Producers,
            key: format!("{}.{domain}", load.class),
            body: Bytes::from(body.to_string()),
            properties: Properties { message_id: Some(id), timestamp, ..Properties::default() },
            purpose: Purpose::Submit,
        };
        // The producers' exchange refuses nothing, and their connection is never lost here; if it were, the message would
        // be counted as lost.
        let _ = self.broker.publish(message).await;
    }
}
