use crate::stage::{Stage, next_n, number, reaches_depth, submit_numbered, take};

const LANE: &str = "paceline.lane.high.tail";

pub(crate) async fn only_what_is_acked_is_gone(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "high.example.org", 60).await;
    let mut consumer = broker.consume(LANE, 60).await.unwrap();
    let held = next_n(&mut consumer, 60).await;
    let mut kept = Vec::new();
    for (n, delivery) in held.into_iter().enumerate() {
        // Runs, and gaps of one and of several.
        if n == 20 || n % 7 == 3 && n > 20 || (40..50).contains(&n) { kept.push(delivery) } else { delivery.settle.ack() }
    }
    consumer.flush().await;
    let want: Vec<u32> = kept.iter().map(number).collect();
    drop(kept);
    drop(consumer);
    reaches_depth(&*broker, LANE, want.len() as u64).await;
    let mut again = broker.consume(LANE, 200).await.unwrap();
    let got = next_n(&mut again, want.len()).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), want);
    assert!(got.iter().all(|d| d.redelivered));
}

pub(crate) async fn acks_in_any_order_all_arrive(stage: &dyn Stage) {
    let broker = stage.applied().await;
    submit_numbered(&*broker, "high.example.org", 300).await;
    let mut consumer = broker.consume(LANE, 40).await.unwrap();
    let mut held = Vec::new();
    let mut got = Vec::new();
    // With a small prefetch, an ack that is held back for long would stop the flow.
    for turn in 0..300 {
        let delivery = next_n(&mut consumer, 1).await.remove(0);
        got.push(number(&delivery));
        held.push(delivery);
        if held.len() > 20 {
            held.swap_remove((turn * 7919) % held.len()).settle.ack();
        }
    }
    held.into_iter().rev().for_each(|delivery| delivery.settle.ack());
    consumer.flush().await;
    drop(consumer);
    assert_eq!(got, (0..300).collect::<Vec<_>>());
    assert!(take(&*broker, LANE, 0).await.is_empty());
}
