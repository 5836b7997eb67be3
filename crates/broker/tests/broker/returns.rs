use std::collections::BTreeSet;

use paceline_broker::End;

use crate::stage::{Stage, next, next_n, nothing_more, number, reaches_depth, submit_numbered};

const LANE: &str = "paceline.lane.low.google";

pub(crate) async fn cancel_and_release_return_to_the_head(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "low.gmail.com", 30).await;
    let mut consumer = broker.consume(LANE, 10).await.unwrap();
    let held = next_n(&mut consumer, 10).await;
    nothing_more(&mut consumer).await;
    consumer.cancel().await;
    for (n, delivery) in held.into_iter().enumerate() {
        if n == 0 || n == 5 { delivery.settle.ack() } else { delivery.settle.release() }
    }
    consumer.flush().await;
    assert!(consumer.next().await.is_none());
    assert_eq!(consumer.ended(), Some(&End::Cancelled));
    reaches_depth(&*broker, LANE, 28).await;

    let mut again = broker.consume(LANE, 100).await.unwrap();
    let got = next_n(&mut again, 28).await;
    let want: Vec<u32> = (0..30).filter(|n| *n != 0 && *n != 5).collect();
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), want);
    let redelivered = got.iter().filter(|d| d.redelivered).map(number).collect::<Vec<_>>();
    assert_eq!(redelivered, [1, 2, 3, 4, 6, 7, 8, 9]);
}

pub(crate) async fn what_is_dropped_unsettled_returns_in_order(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "low.gmail.com", 20).await;
    let mut consumer = broker.consume(LANE, 10).await.unwrap();
    let mut held = next_n(&mut consumer, 10).await;
    consumer.cancel().await;
    held.remove(3).settle.ack();
    let last = held.pop().unwrap();
    drop(held);
    drop(consumer);
    // One settle is left: the channel is still open, and it still counts.
    reaches_depth(&*broker, LANE, 10).await;
    last.settle.ack();
    reaches_depth(&*broker, LANE, 18).await;
    let mut again = broker.consume(LANE, 100).await.unwrap();
    let got: Vec<u32> = next_n(&mut again, 18).await.iter().map(number).collect();
    assert_eq!(got, (0..20).filter(|n| *n != 3 && *n != 9).collect::<Vec<u32>>());
}

pub(crate) async fn a_cancelled_consumer_yields_what_had_arrived(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "low.gmail.com", 8).await;
    let mut consumer = broker.consume(LANE, 5).await.unwrap();
    let first = next(&mut consumer).await;
    consumer.cancel().await;
    let mut held = vec![first];
    while let Some(delivery) = consumer.next().await {
        held.push(delivery);
    }
    assert!(held.len() <= 5, "{}", held.len());
    held.into_iter().for_each(|delivery| delivery.settle.release());
    drop(consumer);
    reaches_depth(&*broker, LANE, 8).await;
    let mut again = broker.consume(LANE, 100).await.unwrap();
    let got: Vec<u32> = next_n(&mut again, 8).await.iter().map(number).collect();
    assert_eq!(got, (0..8).collect::<Vec<_>>());
}

pub(crate) async fn two_consumers_share(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let other = stage.another().await;
    let mut a = broker.consume(LANE, 10).await.unwrap();
    let mut b = other.consume(LANE, 10).await.unwrap();
    submit_numbered(&*broker, "low.gmail.com", 20).await;
    let mut got: BTreeSet<u32> = next_n(&mut a, 10).await.iter().map(number).collect();
    got.extend(next_n(&mut b, 10).await.iter().map(number));
    assert_eq!(got.len(), 20);
    // What one gives up the other gets.
    drop(a);
}

pub(crate) async fn resize_gives_nothing_back(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "low.gmail.com", 20).await;
    let mut consumer = broker.consume(LANE, 3).await.unwrap();
    let mut held = next_n(&mut consumer, 3).await;
    nothing_more(&mut consumer).await;
    consumer.resize(5).await.unwrap();
    held.extend(next_n(&mut consumer, 5).await);
    nothing_more(&mut consumer).await;
    consumer.resize(1).await.unwrap();
    held.extend(next_n(&mut consumer, 1).await);
    nothing_more(&mut consumer).await;
    assert_eq!(held.iter().map(number).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    assert!(held.iter().all(|d| !d.redelivered));
    held.into_iter().for_each(|delivery| delivery.settle.ack());
    for n in 9..20 {
        let delivery = next(&mut consumer).await;
        assert_eq!(number(&delivery), n);
        delivery.settle.ack();
    }
    consumer.cancel().await;
    consumer.flush().await;
    drop(consumer);
    reaches_depth(&*broker, LANE, 0).await;
}
