//! What a spool still knows when it is opened again.

use std::time::{Duration, SystemTime};

use paceline_broker::{Broker, End, Outgoing, PublishError, Route, State};
use paceline_core::Timestamp;

use crate::{
    spool::{applied, open},
    stage::{message, next, next_n, nothing_more, number, reaches_depth, submit_numbered, topology},
};

const LANE: &str = "paceline.lane.low.google";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacked_mail_is_there_again_in_its_place() {
    let (_dir, path, spool) = applied().await;
    submit_numbered(&spool, "low.gmail.com", 20).await;
    let mut lane = spool.consume(LANE, 10).await.unwrap();
    let mut held = next_n(&mut lane, 10).await;
    // Or their places would be taken.
    lane.cancel().await;
    held.remove(7).settle.ack();
    held.remove(2).settle.ack();
    drop((held, lane, spool));

    let again = open(&path);
    assert_eq!(again.check(&topology()).await, Ok(vec![]));
    assert_eq!(again.depth(LANE).await, Ok(18), "the acks were written");
    let mut lane = again.consume(LANE, 100).await.unwrap();
    let got = next_n(&mut lane, 18).await;
    let want: Vec<u32> = (0..20).filter(|n| *n != 2 && *n != 7).collect();
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), want);
    let redelivered: Vec<u32> = got.iter().filter(|d| d.redelivered).map(number).collect();
    assert_eq!(redelivered, [0, 1, 3, 4, 5, 6, 8, 9]);
    assert_eq!(again.depth(LANE).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_writes_the_acks_and_ends_everything() {
    let (_dir, path, spool) = applied().await;
    submit_numbered(&spool, "low.gmail.com", 50).await;
    let mut lane = spool.consume(LANE, 50).await.unwrap();
    let mut events = spool.listen("#").await.unwrap();
    let mut held = next_n(&mut lane, 50).await;
    let kept = held.split_off(30);
    held.into_iter().for_each(|delivery| delivery.settle.ack());
    spool.close().await;
    assert!(lane.next().await.is_none() && events.next().await.is_none());
    assert_eq!(lane.ended(), Some(&End::Lost("closed".to_owned())));
    assert!(matches!(&*spool.state().borrow(), State::Down { why, .. } if why == "closed"));
    assert!(matches!(spool.publish(message(Route::Dead, "", "x")).await, Err(PublishError::Unreachable(_))));
    assert!(spool.depth(LANE).await.is_err());
    // The other handle may consume although the first one and what it delivered are still there.
    let again = open(&path);
    let mut lane = again.consume(LANE, 50).await.unwrap();
    assert_eq!(next_n(&mut lane, 20).await.iter().map(number).collect::<Vec<_>>(), (30..50).collect::<Vec<_>>());
    kept.into_iter().for_each(|delivery| delivery.settle.ack());
    drop(lane);
    reaches_depth(&again, LANE, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_go_on_while_nobody_runs() {
    let (_dir, path, spool) = applied().await;
    let published = SystemTime::now();
    for (rung_s, body) in [(1, "soon"), (2, "later"), (64, "much later")] {
        spool.publish(message(Route::Delay { rung_s }, "low.google", body)).await.unwrap();
    }
    drop(spool);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let again = open(&path);
    let mut lane = again.consume(LANE, 10).await.unwrap();
    let first = next(&mut lane).await;
    assert_eq!((&first.body[..], first.routing_key.as_str(), first.redelivered), (&b"soon"[..], "low.google", false));
    let second = next(&mut lane).await;
    assert_eq!(second.body, "later");
    assert!(published.elapsed().unwrap() >= Duration::from_secs(2));
    nothing_more(&mut lane).await;
    assert_eq!(again.depth("paceline.delay.64s").await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_survive() {
    let (_dir, path, spool) = applied().await;
    let mut properties = paceline_broker::Properties { message_id: Some("m-1".to_owned()), ..Default::default() };
    properties.timestamp = Some(Timestamp::from_secs(1_800_000_000));
    properties.headers.insert("x-paceline-attempts".to_owned(), paceline_broker::HeaderValue::Int(3));
    let sent = Outgoing { properties: properties.clone(), ..message(Route::Lanes, "low.google", "x") };
    spool.publish(sent).await.unwrap();
    drop(spool);
    let mut lane = open(&path).consume(LANE, 1).await.unwrap();
    properties.content_type = Some("application/json".to_owned());
    assert_eq!(next(&mut lane).await.properties, properties);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_told_of() {
    let (_dir, path, spool) = applied().await;
    for n in 0..100 {
        spool.publish(message(Route::Lanes, "low.google", format!("{n} {}", "x".repeat(2_000)))).await.unwrap();
    }
    drop(spool);
    let mut bytes = std::fs::read(&path).unwrap();
    let whole = bytes.len();
    bytes[whole * 3 / 4..whole * 7 / 8].fill(0xee);
    std::fs::write(&path, bytes).unwrap();
    let spool = open(&path);
    let mut state = spool.state();
    let mut lane = spool.consume(LANE, 100).await.unwrap();
    // Whatever comes before the damage goes out.
    next_n(&mut lane, 30).await;
    let down = async { state.wait_for(|state| !state.is_up()).await.unwrap().clone() };
    match tokio::time::timeout(Duration::from_secs(30), down).await.unwrap() {
        State::Down { why, .. } => assert!(why.contains("spool.db") && why.contains("malformed"), "{why}"),
        other => panic!("{other:?}"),
    }
}
