//! The writer between a private RabbitMQ and a private PostgreSQL, both of which go away under it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use paceline_broker::{
    Broker, Outgoing, Properties, Purpose, Route, Topology,
    rabbitmq::{Options as RabbitOptions, RabbitMq as RabbitBroker},
};
use paceline_core::{DeadLetter, Journey, Reason, Timestamp, dead_letter::HEADER};
use paceline_dlq::{Options, Writer};
use paceline_store::{BurstRule, DeadLetters, Filter, PostgresStore};
use paceline_testkit::{Postgres, RabbitMq};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const ENTRIES: u64 = 10_000;

fn connect(url: &str, name: &str) -> Arc<RabbitBroker> {
    let options = RabbitOptions { urls: vec![url.to_owned()], prefix: "paceline".to_owned(), name: name.to_owned() };
    Arc::new(RabbitBroker::start(options).unwrap())
}

fn dead_letter(n: u64) -> Outgoing {
    let now = Timestamp::from_secs(1_800_000_000);
    let entry = DeadLetter::new(n.to_string(), Reason::MaxAgeExceeded, &Journey::starting(now), now);
    let headers = [(HEADER.to_owned(), serde_json::to_string(&entry).unwrap().into())].into();
    let body = format!("\0{n}").into_bytes().into();
    Outgoing {
        to: Route::Dead,
        key: String::new(),
        body,
        properties: Properties { headers, ..Properties::default() },
        purpose: Purpose::Dead,
    }
}

/// Publishes until confirmed: an entry may be there twice after an outage.
async fn publish(broker: Arc<RabbitBroker>, n: u64) {
    while broker.publish(dead_letter(n)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1200 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_entry_outlives_both_services() {
    let (server, postgres) = tokio::join!(RabbitMq::start(), Postgres::start());
    let url = server.url();
    let (producer, consumer) = (connect(&url, "test producer"), connect(&url, "test control"));
    let topology = Topology::new("paceline", std::iter::empty::<(&str, [&str; 0])>());
    until("topology applied", async || producer.apply(&topology).await.is_ok()).await;
    let options = paceline_store::Options { acquire_timeout: Duration::from_secs(1), ..paceline_store::Options::default() };
    let store = Arc::new(PostgresStore::new(&postgres.url(), options).unwrap());
    let counted = Arc::new(AtomicU64::new(0));
    let counter = counted.clone();
    let options = Options { retry_max: Duration::from_millis(500), ..Options::new(topology.names.dead()) };
    let writer = Writer::new(consumer.clone(), store.clone(), options, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writing = tokio::spawn(async move { writer.run(stopped).await });

    let feeding = tokio::spawn({
        let producer = producer.clone();
        async move {
            let mut publishing = JoinSet::new();
            for n in 0..ENTRIES {
                if publishing.len() >= 64 {
                    publishing.join_next().await;
                }
                publishing.spawn(publish(producer.clone(), n));
            }
            publishing.join_all().await;
        }
    });
    until("a fifth written", async || counted.load(Ordering::Relaxed) >= ENTRIES / 5).await;
    postgres.kill9().await;
    postgres.start_again().await;
    until("two fifths written", async || counted.load(Ordering::Relaxed) >= 2 * ENTRIES / 5).await;
    server.kill9().await;
    server.start_again().await;
    feeding.await.unwrap();
    until("all in the store", async || {
        store.stats(&Filter::default(), &BurstRule::default()).await.is_ok_and(|s| s.total == ENTRIES)
    })
    .await;
    until("all acked", async || consumer.depth(&topology.names.dead()).await.ok() == Some(0)).await;
    let one = store.get("4711").await.unwrap().unwrap();
    assert_eq!((&*one.body, one.entry.reason), (&b"\x004711"[..], Reason::MaxAgeExceeded));

    stop.cancel();
    writing.await.unwrap();
    // What the writer held when it ended would be ready again.
    consumer.close().await;
    assert_eq!(producer.depth(&topology.names.dead()).await.unwrap(), 0);
    producer.close().await;
}
