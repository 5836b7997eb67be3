use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use paceline_broker::{Broker, End, PublishError, Route, memory::MemoryBroker, topology::Queue};

use crate::stage::{Stage, conformance, message, next, submit_numbered, topology};

#[derive(Default)]
struct InMemory {
    last: Mutex<Option<MemoryBroker>>,
}

impl InMemory {
    fn last(&self) -> MemoryBroker {
        self.last.lock().unwrap().clone().unwrap()
    }
}

#[async_trait]
impl Stage for InMemory {
    async fn empty(&self) -> Arc<dyn Broker> {
        let broker = MemoryBroker::new("paceline");
        *self.last.lock().unwrap() = Some(broker.clone());
        Arc::new(broker)
    }

    async fn another(&self) -> Arc<dyn Broker> {
        Arc::new(self.last())
    }

    async fn declare(&self, queue: &Queue) {
        self.last().declare(queue);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conformance(&InMemory::default()).await;
}

#[tokio::test(start_paused = true)]
async fn delays_obey_paused_time() {
    let broker = MemoryBroker::new("paceline");
    broker.apply(&topology()).await.unwrap();
    let started = tokio::time::Instant::now();
    for rung_s in [4096, 64] {
        broker.publish(message(Route::Delay { rung_s }, "low.google", rung_s.to_string())).await.unwrap();
    }
    let mut lane = broker.consume("paceline.lane.low.google", 10).await.unwrap();
    for seconds in [64, 4096] {
        let delivery = lane.next().await.unwrap();
        assert_eq!(delivery.body, seconds.to_string());
        assert_eq!(started.elapsed(), Duration::from_secs(seconds));
    }
}

#[tokio::test]
async fn an_outage_ends_consumers_and_keeps_mail() {
    let broker = MemoryBroker::new("paceline");
    broker.apply(&topology()).await.unwrap();
    submit_numbered(&broker, "low.gmail.com", 3).await;
    let mut lane = broker.consume("paceline.lane.low.google", 10).await.unwrap();
    let held = next(&mut lane).await;
    broker.lose("test");
    assert!(lane.next().await.is_none());
    assert_eq!(lane.ended(), Some(&End::Lost("test".to_owned())));
    assert!(!broker.state().borrow().is_up());
    let away = broker.publish(message(Route::Dead, "", "x")).await;
    assert_eq!(away, Err(PublishError::Unreachable("test".to_owned())));
    broker.restore();
    held.settle.ack();
    assert_eq!(broker.depth("paceline.lane.low.google").await, Ok(3), "a stale ack does nothing");
}
