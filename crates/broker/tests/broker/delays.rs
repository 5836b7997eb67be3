use std::time::Duration;

use paceline_broker::{Outgoing, Route};
use tokio::time::Instant;

use crate::stage::{Stage, message, next, reaches_depth};

pub(crate) async fn a_rung_returns_to_the_lane(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let mut lane = broker.consume("paceline.lane.normal.google", 10).await.unwrap();
    let mut started = Instant::now();
    broker.publish(message(Route::Delay { rung_s: 1 }, "normal.google", "x")).await.unwrap();
    // Over the same rung again: a death header that came along would keep it there.
    for hop in 0..3 {
        let back = next(&mut lane).await;
        // RabbitMQ counts in whole milliseconds.
        assert!(started.elapsed() >= Duration::from_millis(995), "hop {hop}: {:?}", started.elapsed());
        assert_eq!((back.routing_key.as_str(), &back.body[..]), ("normal.google", &b"x"[..]));
        assert!(back.properties.headers.is_empty(), "{:?}", back.properties.headers);
        started = Instant::now();
        let again = Outgoing { properties: back.properties, ..message(Route::Delay { rung_s: 1 }, &back.routing_key, back.body) };
        broker.publish(again).await.unwrap();
        back.settle.ack();
    }
    next(&mut lane).await.settle.ack();
    // A destination that is gone by then: classified anew.
    broker.publish(message(Route::Delay { rung_s: 1 }, "normal.aol", "x")).await.unwrap();
    let mut intake = broker.consume("paceline.intake", 10).await.unwrap();
    assert_eq!(next(&mut intake).await.routing_key, "normal.aol");
    reaches_depth(&*broker, "paceline.delay.1s", 0).await;
}
