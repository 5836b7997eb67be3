use std::collections::BTreeMap;

use paceline_broker::{BrokerError, Drift, Route, Topology, topology::Queue};
use paceline_core::{Class, lane::flow_key};

use crate::stage::{Stage, message, next, number, reaches_depth, submit, submit_numbered, take, topology};

pub(crate) async fn applying_twice_changes_nothing(stage: &dyn Stage) {
    let broker = stage.empty().await;
    let missing = broker.check(&topology()).await.unwrap();
    let all = topology().exchanges.len() + topology().queues.len() + topology().bindings.len();
    assert_eq!(missing.len(), all);
    assert!(missing.iter().all(|drift| matches!(drift, Drift::Missing(_))));
    let first = broker.apply(&topology()).await.unwrap();
    assert_eq!((first.created.len(), first.present), (all, 0));
    submit(&*broker, "low.gmail.com", "x").await;
    let second = stage.another().await.apply(&topology()).await.unwrap();
    assert!(second.nothing_changed(), "{second:?}");
    assert_eq!(second.present, all);
    assert_eq!(broker.check(&topology()).await, Ok(vec![]));
    assert_eq!(take(&*broker, "paceline.lane.low.google", 1).await.len(), 1);
}

pub(crate) async fn check_finds_what_differs(stage: &dyn Stage) {
    let broker = stage.empty().await;
    let name = "paceline.lane.low.google".to_owned();
    stage.declare(&Queue { name, arguments: BTreeMap::from([("x-queue-type", "quorum".into())]) }).await;
    let drift = broker.check(&topology()).await.unwrap();
    let different: Vec<_> = drift.iter().filter(|d| matches!(d, Drift::Different { .. })).collect();
    assert!(
        matches!(&different[..], [Drift::Different { name, detail }]
            if name.contains("paceline.lane.low.google") && detail.contains("x-delivery-limit")),
        "{different:?}"
    );
    let refused = broker.apply(&topology()).await.unwrap_err();
    assert!(matches!(&refused, BrokerError::Different { name, .. } if name.contains("low.google")), "{refused}");
}

pub(crate) async fn a_dropped_lane_is_drained(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "low.yahoo.com", 120).await;
    broker.publish(message(Route::Lanes, "low.yahoo", "by its lane")).await.unwrap();
    // One is held by a worker that does not know yet.
    let mut consumer = broker.consume("paceline.lane.low.yahoo", 1).await.unwrap();
    let held = next(&mut consumer).await;

    let without = Topology::new("paceline", [("google", vec!["gmail.com", "googlemail.com"])]);
    let drift = broker.check(&without).await.unwrap();
    assert!(drift.contains(&Drift::Unnamed("queue paceline.lane.low.yahoo".to_owned())), "{drift:?}");
    let applied = stage.another().await.apply(&without).await.unwrap();
    assert_eq!(applied.drained, [("paceline.lane.low.yahoo".to_owned(), 120)], "{applied:?}");
    assert_eq!(applied.left, ["paceline.lane.low.yahoo"], "it is in use");
    reaches_depth(&*broker, "paceline.lane.low.tail", 120).await;
    assert!(matches!(broker.depth("paceline.lane.high.yahoo").await, Err(BrokerError::Missing(_))));

    held.settle.release();
    consumer.cancel().await;
    drop(consumer);
    reaches_depth(&*broker, "paceline.lane.low.yahoo", 1).await;
    let applied = broker.apply(&without).await.unwrap();
    assert_eq!(applied.drained, [("paceline.lane.low.yahoo".to_owned(), 1)], "{applied:?}");
    assert!(applied.left.is_empty());
    assert!(matches!(broker.depth("paceline.lane.low.yahoo").await, Err(BrokerError::Missing(_))));
    let mut bodies: Vec<_> = take(&*broker, "paceline.lane.low.tail", 121).await.into_iter().map(|(_, body)| body).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 121);
    assert!(broker.apply(&without).await.unwrap().nothing_changed());
}

pub(crate) async fn a_moved_domain_reaches_one_lane(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit(&*broker, "low.googlemail.com", "before").await;
    let moved = Topology::new("paceline", [("google", vec!["gmail.com"]), ("yahoo", vec!["yahoo.com", "googlemail.com"])]);
    let applied = broker.apply(&moved).await.unwrap();
    assert_eq!((applied.created.len(), applied.removed.len()), (4, 4), "{applied:?}");
    submit(&*broker, "low.googlemail.com", "after").await;
    assert_eq!(take(&*broker, "paceline.lane.low.google", 1).await[0].1, "before");
    assert_eq!(take(&*broker, "paceline.lane.low.yahoo", 1).await[0].1, "after");
    assert_eq!(broker.check(&moved).await, Ok(vec![]));
}

pub(crate) async fn a_flow_is_made_on_demand_and_goes_when_idle(stage: &dyn Stage) {
    let broker = stage.applied().await;
    const FLOW: &str = "google.tenant-acme";
    let (queue, key) = ("paceline.flow.low.google.tenant-acme", flow_key(Class::Low, FLOW));
    broker.publish(message(Route::Lanes, &key, "before")).await.unwrap();
    assert_eq!(take(&*broker, "paceline.intake", 1).await, [(key.clone(), "before".into())], "not lost");
    broker.open_flow(Class::Low, FLOW).await.unwrap();
    stage.another().await.open_flow(Class::Low, FLOW).await.unwrap();
    assert_eq!(broker.flows().await, Ok(vec![(Class::Low, FLOW.to_owned())]));
    broker.publish(message(Route::Lanes, &key, "1")).await.unwrap();
    // By the ladder too.
    broker.publish(message(Route::Delay { rung_s: 1 }, &key, "2")).await.unwrap();
    reaches_depth(&*broker, queue, 2).await;
    assert_eq!(broker.close_flow(Class::Low, FLOW).await, Ok(false), "it holds mail");
    assert!(broker.apply(&topology()).await.unwrap().nothing_changed(), "flows are none of its business");
    assert_eq!(broker.check(&topology()).await, Ok(vec![]));
    broker.publish(message(Route::Lanes, &key, "3")).await.unwrap();

    let mut consumer = broker.consume(queue, 10).await.unwrap();
    for n in 1..=3 {
        let delivery = next(&mut consumer).await;
        assert_eq!((number(&delivery), &delivery.routing_key), (n, &key));
        delivery.settle.ack();
    }
    assert_eq!(broker.close_flow(Class::Low, FLOW).await, Ok(false), "it is consumed");
    consumer.cancel().await;
    consumer.flush().await;
    drop(consumer);
    for _ in 0..200 {
        if broker.close_flow(Class::Low, FLOW).await.unwrap() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(matches!(broker.depth(queue).await, Err(BrokerError::Missing(_))));
    assert_eq!(broker.close_flow(Class::Low, FLOW).await, Ok(true), "gone already");
    assert_eq!(broker.flows().await, Ok(vec![]));
    broker.publish(message(Route::Lanes, &key, "after")).await.unwrap();
    assert_eq!(take(&*broker, "paceline.intake", 1).await[0].1, "after");
}
