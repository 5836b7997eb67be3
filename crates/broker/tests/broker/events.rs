use std::time::Duration;

use paceline_broker::{Outgoing, Purpose, Route};
use tokio::time::sleep;

use crate::stage::{Stage, message, next, nothing_more};

fn event(key: &str) -> Outgoing {
    Outgoing { purpose: Purpose::Event, ..message(Route::Events, key, "{}") }
}

pub(crate) async fn reach_listeners_by_pattern(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let mut all = broker.listen("#").await.unwrap();
    let mut google = broker.listen("sent.*.google").await.unwrap();
    for key in ["sent.low.google", "dead.low.google", "sent.low.yahoo"] {
        broker.emit(event(key));
    }
    for key in ["sent.low.google", "dead.low.google", "sent.low.yahoo"] {
        let got = next(&mut all).await;
        assert_eq!(got.routing_key, key);
        got.settle.ack();
    }
    assert_eq!(next(&mut google).await.routing_key, "sent.low.google");
    nothing_more(&mut google).await;
    assert_eq!(broker.counters().published(Purpose::Event), 3);
    assert_eq!(broker.counters().events_dropped(), 0);
}

pub(crate) async fn nobody_listening_costs_little(stage: &dyn Stage) {
    let broker = stage.applied().await;
    let mut other = broker.listen("dead.#").await.unwrap();
    for _ in 0..400 {
        broker.emit(event("sent.low.google"));
        sleep(Duration::from_micros(500)).await;
    }
    broker.emit(event("dead.low.google"));
    assert_eq!(next(&mut other).await.routing_key, "dead.low.google");
    let (published, unheard) = (broker.counters().published(Purpose::Event), broker.counters().events_unheard());
    assert!(unheard >= 100, "{published} published, {unheard} unheard");
    assert_eq!(broker.counters().events_dropped(), 0);

    // A listener that comes hears after a moment.
    let mut listener = broker.listen("sent.#").await.unwrap();
    let heard = async {
        loop {
            broker.emit(event("sent.low.google"));
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        got = next(&mut listener) => assert_eq!(got.routing_key, "sent.low.google"),
        () = heard => {}
    }
}
