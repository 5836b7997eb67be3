//! What a real broker and a real network do to a client.

use std::time::Duration;

use paceline_broker::{Broker, End, PublishError, Route, State};
use paceline_testkit::{Proxy, RabbitMq as Server};
use tokio::time::timeout;

use crate::{
    rabbitmq::client,
    stage::{message, next, next_n, number, reaches_depth, submit_numbered, topology},
};

const LANE: &str = "paceline.lane.low.google";

async fn becomes(broker: &dyn Broker, what: &str, wanted: impl Fn(&State) -> bool + Send + Sync) {
    let mut state = broker.state();
    let reached = timeout(Duration::from_secs(60), state.wait_for(|s| wanted(s))).await.is_ok_and(|s| s.is_ok());
    assert!(reached, "the broker did not become {what}: {:?}", *broker.state().borrow());
}

/// The consumer must end by itself.
async fn ends_lost(consumer: &mut paceline_broker::Consumer) -> String {
    let ended = timeout(Duration::from_secs(60), async { while consumer.next().await.is_some() {} }).await;
    assert!(ended.is_ok(), "the consumer did not end");
    match consumer.ended() {
        Some(End::Lost(why)) => why.clone(),
        other => panic!("ended as {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_goes_and_comes_back() {
    let server = Server::start().await;
    restart_while_consuming(&server).await;
    closed_by_the_broker(&server).await;
    a_deleted_queue(&server).await;
    a_failed_channel(&server).await;
    blocked(&server).await;
    silence(&server).await;
}

async fn restart_while_consuming(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    submit_numbered(&broker, "low.gmail.com", 20).await;
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    let mut held = next_n(&mut lane, 5).await;
    held.remove(0).settle.ack();
    lane.flush().await;

    server.stop().await;
    ends_lost(&mut lane).await;
    becomes(&broker, "down", |s| matches!(s, State::Down { .. })).await;
    // At once, not when the broker is back.
    let away = broker.publish(message(Route::Producers, "low.gmail.com", "x"));
    let away = timeout(Duration::from_secs(20), away).await.expect("an answer during the outage");
    assert!(matches!(away, Err(PublishError::Unreachable(_))), "{away:?}");
    assert!(broker.consume(LANE, 1).await.is_err());
    broker.emit(message(Route::Events, "sent.low.google", "{}"));
    // Stale: these come again.
    held.into_iter().for_each(|delivery| delivery.settle.ack());

    server.start_again().await;
    becomes(&broker, "up", State::is_up).await;
    broker.publish(message(Route::Producers, "low.gmail.com", "20")).await.unwrap();
    let mut lane = broker.consume(LANE, 100).await.unwrap();
    let got: Vec<u32> = next_n(&mut lane, 20).await.iter().map(number).collect();
    assert_eq!(got, (1..21).collect::<Vec<_>>());
    assert!(broker.counters().events_dropped() <= 1);
}

async fn closed_by_the_broker(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    submit_numbered(&broker, "low.gmail.com", 5).await;
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    let _held = next_n(&mut lane, 5).await;
    assert!(server.close_all_connections().await >= 2);
    let why = ends_lost(&mut lane).await;
    assert!(!why.is_empty());
    let again = async {
        loop {
            match broker.consume(LANE, 10).await {
                Ok(lane) => return lane,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let mut lane = timeout(Duration::from_secs(20), again).await.expect("a new consumer");
    let got = next_n(&mut lane, 5).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(got.iter().all(|d| d.redelivered));
}

async fn a_deleted_queue(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    server.delete_queue(&url, LANE).await;
    ends_lost(&mut lane).await;
    // Only that consumer is gone.
    submit_numbered(&broker, "low.yahoo.com", 1).await;
    let mut other = broker.consume("paceline.lane.low.yahoo", 1).await.unwrap();
    next(&mut other).await.settle.ack();
    // And what was lost can be made again.
    let applied = broker.apply(&topology()).await.unwrap();
    assert!(applied.created.iter().any(|what| what.contains(LANE)), "{applied:?}");
    submit_numbered(&broker, "low.gmail.com", 1).await;
    reaches_depth(&broker, LANE, 1).await;
}

/// A channel error ends that channel only, and lapin's stream must not wait for ever.
async fn a_failed_channel(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    submit_numbered(&broker, "low.gmail.com", 3).await;
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    let held = next_n(&mut lane, 3).await;
    let mut other = broker.consume("paceline.lane.low.yahoo", 10).await.unwrap();
    // What a precondition failure does, from the broker's side.
    server
        .eval(
            "[exit(P, normal) || P <- []], \
             Channels = [P || [{pid, P}, {consumer_count, N}, {messages_unacknowledged, U}] <- \
               rabbit_channel:info_all([pid, consumer_count, messages_unacknowledged]), N > 0, U > 0], \
             [gen_server2:cast(P, {method, {'basic.ack', 999999, false}, none, noflow}) || P <- Channels], length(Channels)",
        )
        .await;
    let why = ends_lost(&mut lane).await;
    assert!(why.contains("delivery tag"), "{why}");
    drop(held);
    let mut again = broker.consume(LANE, 10).await.unwrap();
    assert_eq!(next_n(&mut again, 3).await.iter().map(number).collect::<Vec<_>>(), [0, 1, 2]);
    submit_numbered(&broker, "low.yahoo.com", 1).await;
    next(&mut other).await.settle.ack();
}

async fn blocked(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    submit_numbered(&broker, "low.gmail.com", 5).await;
    server.block_publishers().await;
    // The broker tells a connection when it next publishes.
    let first = tokio::spawn({
        let publish = client(&url).await;
        async move { publish.publish(message(Route::Dead, "", "x")).await }
    });
    let pending = broker.publish(message(Route::Dead, "", "x"));
    tokio::pin!(pending);
    tokio::select! {
        result = &mut pending => panic!("published while blocked: {result:?}"),
        () = becomes(&broker, "blocked", |s| matches!(s, State::Blocked { .. })) => {}
    }
    let refused = broker.publish(message(Route::Dead, "", "x")).await;
    assert!(matches!(refused, Err(PublishError::Blocked(_))), "{refused:?}");
    // Deliveries and acks go on.
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    next_n(&mut lane, 5).await.into_iter().for_each(|delivery| delivery.settle.ack());
    lane.flush().await;
    drop(lane);
    reaches_depth(&broker, LANE, 0).await;
    server.unblock_publishers().await;
    becomes(&broker, "up", State::is_up).await;
    pending.await.unwrap();
    first.await.unwrap().unwrap();
    broker.publish(message(Route::Dead, "", "x")).await.unwrap();
}

/// A network that swallows everything: the heartbeat finds out.
async fn silence(server: &Server) {
    let proxy = Proxy::to(("127.0.0.1", server.port())).await;
    let url = server.vhost().await;
    let broker = client(&proxy.url(&url)).await;
    broker.apply(&topology()).await.unwrap();
    submit_numbered(&broker, "low.gmail.com", 3).await;
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    let held = next_n(&mut lane, 3).await;
    proxy.blackhole().await;
    let why = ends_lost(&mut lane).await;
    becomes(&broker, "down", |s| matches!(s, State::Down { .. })).await;
    assert!(!why.is_empty());
    drop(held);
    proxy.heal().await;
    becomes(&broker, "up", State::is_up).await;
    let mut lane = broker.consume(LANE, 10).await.unwrap();
    let got = next_n(&mut lane, 3).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), [0, 1, 2]);
}
