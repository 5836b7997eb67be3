use std::collections::BTreeSet;

use futures_util::future::join_all;
use paceline_broker::{BrokerError, PublishError, Purpose, Route};

use crate::stage::{Stage, message, next, reaches_depth};

pub(crate) async fn five_thousand_at_once(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let publishes = (0..5000u32).map(|n| broker.publish(message(Route::Producers, "normal.yahoo.com", n.to_string())));
    let results = join_all(publishes).await;
    assert_eq!(results.into_iter().filter(|r| r.is_err()).count(), 0);
    assert_eq!(broker.counters().published(Purpose::Submit), 5000);
    reaches_depth(&*broker, "paceline.lane.normal.yahoo", 5000).await;
    let mut consumer = broker.consume("paceline.lane.normal.yahoo", 300).await.unwrap();
    let mut got = BTreeSet::new();
    for _ in 0..5000 {
        let delivery = next(&mut consumer).await;
        got.insert(delivery.body.clone());
        delivery.settle.ack();
    }
    assert_eq!(got.len(), 5000);
    consumer.cancel().await;
    consumer.flush().await;
    reaches_depth(&*broker, "paceline.lane.normal.yahoo", 0).await;
}

pub(crate) async fn errors_say_what_to_do(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let missing = broker.consume("paceline.lane.low.aol", 1).await.unwrap_err();
    assert!(matches!(&missing, BrokerError::Missing(what) if what.contains("paceline.lane.low.aol")), "{missing}");
    let missing = broker.depth("paceline.lane.low.aol").await.unwrap_err();
    assert!(matches!(&missing, BrokerError::Missing(what) if what.contains("paceline.lane.low.aol")), "{missing}");
    let long = message(Route::Producers, &"x".repeat(300), "");
    assert!(matches!(broker.publish(long).await, Err(PublishError::Invalid(_))));
    // A queue that is not there swallows nothing, however many publish at once.
    let lost = (0..50).map(|n| {
        let there = n % 2 == 0;
        let queue = if there { "paceline.feedback" } else { "paceline.flow.low.gone" };
        let publish = broker.publish(message(Route::Queue(queue.into()), "", "x"));
        async move { (there, publish.await) }
    });
    for (there, result) in join_all(lost).await {
        match result {
            Err(PublishError::Unreachable(why)) => assert!(!there && why.contains("paceline.flow.low.gone"), "{why}"),
            other => assert!(there && other.is_ok(), "{other:?}"),
        }
    }
    // None of these has hurt the client.
    broker.publish(message(Route::Producers, "low.gmail.com", "x")).await.unwrap();
    assert_eq!(broker.depth("paceline.lane.low.google").await, Ok(1));
}

pub(crate) async fn a_refusing_queue_refuses(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let refused = broker.publish(message(Route::Queue("paceline.refuse".into()), "", "x")).await;
    assert_eq!(refused, Err(PublishError::Refused));
    assert_eq!((broker.counters().failed(), broker.counters().published(Purpose::Submit)), (1, 0));
}
