//! What the cases share.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_broker::{Broker, Consumer, Delivery, Outgoing, Properties, Purpose, Route, Topology, topology::Queue};
use tokio::time::timeout;

/// An adapter on trial.
#[async_trait]
pub(crate) trait Stage: Send + Sync {
    /// A client of a new broker with nothing on it.
    async fn empty(&self) -> Arc<dyn Broker>;

    /// Another client of the broker given last.
    async fn another(&self) -> Arc<dyn Broker>;

    /// Declares a queue there behind the client's back.
    async fn declare(&self, queue: &Queue);

    /// A client of a new broker with [`topology`] applied.
    async fn applied(&self) -> Arc<dyn Broker> {
        let broker = self.empty().await;
        broker.apply(&topology()).await.unwrap();
        broker
    }
}

/// Runs every case on a broker of its own.
pub(crate) async fn conformance(stage: &dyn Stage) {
    macro_rules! cases {
        ($($case:path),+ $(,)?) => {
            $(
                println!("case {}", stringify!($case));
                $case(stage).await;
            )+
        };
    }
    cases!(
        crate::routing::by_domain_tail_and_intake,
        crate::routing::within_paceline,
        crate::routing::properties_and_headers_pass,
        crate::routing::a_body_of_10_mb_passes,
        crate::delays::a_rung_returns_to_the_lane,
        crate::returns::cancel_and_release_return_to_the_head,
        crate::returns::what_is_dropped_unsettled_returns_in_order,
        crate::returns::a_cancelled_consumer_yields_what_had_arrived,
        crate::returns::two_consumers_share,
        crate::returns::resize_gives_nothing_back,
        crate::acks::only_what_is_acked_is_gone,
        crate::acks::acks_in_any_order_all_arrive,
        crate::publishing::five_thousand_at_once,
        crate::publishing::errors_say_what_to_do,
        crate::publishing::a_refusing_queue_refuses,
        crate::events::reach_listeners_by_pattern,
        crate::events::nobody_listening_costs_little,
        crate::admin::applying_twice_changes_nothing,
        crate::admin::check_finds_what_differs,
        crate::admin::a_dropped_lane_is_drained,
        crate::admin::a_moved_domain_reaches_one_lane,
        crate::admin::a_flow_is_made_on_demand_and_goes_when_idle,
    );
}

pub(crate) fn topology() -> Topology {
    Topology::new("paceline", [("google", vec!["gmail.com", "googlemail.com"]), ("yahoo", vec!["yahoo.com"])])
}

pub(crate) fn message(to: Route, key: &str, body: impl Into<Bytes>) -> Outgoing {
    Outgoing { to, key: key.to_owned(), body: body.into(), properties: Properties::default(), purpose: Purpose::Submit }
}

pub(crate) async fn submit(broker: &dyn Broker, key: &str, body: impl Into<Bytes>) {
    broker.publish(message(Route::Producers, key, body)).await.unwrap();
}

/// Publishes `0`, `1`, … one after the other.
pub(crate) async fn submit_numbered(broker: &dyn Broker, key: &str, count: u32) {
    for n in 0..count {
        submit(broker, key, n.to_string()).await;
    }
}

pub(crate) fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.body).unwrap().parse().unwrap()
}

/// The next delivery, which must come.
pub(crate) async fn next(consumer: &mut Consumer) -> Delivery {
    let next = timeout(Duration::from_secs(20), consumer.next()).await;
    next.expect("a delivery in time").unwrap_or_else(|| panic!("a delivery, but the consumer ended: {:?}", consumer.ended()))
}

pub(crate) async fn next_n(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut got = Vec::new();
    for _ in 0..count {
        got.push(next(consumer).await);
    }
    got
}

/// Nothing more comes as long as nothing is settled.
pub(crate) async fn nothing_more(consumer: &mut Consumer) {
    let more = timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(more.is_err(), "{more:?}");
}

/// Takes and acks exactly this many from a queue and sees that it is empty then.
pub(crate) async fn take(broker: &dyn Broker, queue: &str, count: usize) -> Vec<(String, Bytes)> {
    let mut consumer = broker.consume(queue, 100).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..count {
        let delivery = next(&mut consumer).await;
        taken.push((delivery.routing_key, delivery.body));
        delivery.settle.ack();
    }
    nothing_more(&mut consumer).await;
    consumer.cancel().await;
    consumer.flush().await;
    taken
}

/// Polls until a queue is this deep.
pub(crate) async fn reaches_depth(broker: &dyn Broker, queue: &str, depth: u64) {
    let reached = async {
        while broker.depth(queue).await.unwrap() != depth {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(Duration::from_secs(20), reached).await.is_err() {
        panic!("{queue} holds {:?}, not {depth}", broker.depth(queue).await);
    }
}
