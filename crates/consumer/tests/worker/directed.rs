//! What operators order while mail waits: pauses and limits, and limits read anew.

use paceline_core::{LimitOrder, Pause, PauseScope, Timestamp};

use super::*;

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

pub(super) fn paused(scopes: &[(&str, &str)], until: Option<Timestamp>) -> Arc<Directives> {
    let pause =
        |(kind, name): &(&str, &str)| Pause { scope: PauseScope::new(kind, (*name).to_owned()).unwrap(), since: now(), until };
    Arc::new(Directives::new(scopes.iter().map(pause), []))
}

fn limited(name: &str, rate: &str, until: Option<Timestamp>) -> Arc<Directives> {
    let order = LimitOrder { name: name.parse().unwrap(), rate: rate.parse().unwrap(), since: now(), until };
    Arc::new(Directives::new([], [order]))
}

async fn tail(rig: &Rig, id: &str) {
    let body = format!(r#"{{"id":"{id}","from":"a@b.org","to":["u@else.org"],"text":"x"}}"#);
    rig.publish("normal.else.org", body).await;
}

#[tokio::test]
async fn paused_mail_waits_in_its_lane_and_the_rest_goes_on() {
    let rig = Rig::new().await;
    // Ordered before the worker starts: its first message is held already.
    rig.directives.send_replace(paused(&[("destination", "google")], None));
    rig.send("g1", "plain", ONE, "").await;
    let worker = rig.worker(None);
    tail(&rig, "t1").await;
    rig.until("others go on", |r| r.provider.calls_of("t1") == 1).await;
    // Long enough for the lane to go to rest: its mail is with the broker then.
    sleep(Duration::from_secs(1)).await;
    rig.until("held by the broker", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    rig.directives.send_replace(paused(&[("destination", "tail")], None));
    rig.until("google goes on", |r| r.provider.calls_of("g1") == 1).await;
    tail(&rig, "t2").await;
    rig.send("g2", "plain", ONE, "").await;
    rig.until("google goes on", |r| r.provider.calls_of("g2") == 1).await;
    for scope in [("account", "main"), ("class", "normal")] {
        let id = format!("g-{}", scope.0);
        rig.directives.send_replace(paused(&[scope], None));
        rig.send(&id, "plain", ONE, "").await;
        sleep(Duration::from_millis(600)).await;
        assert_eq!((rig.provider.calls_of(&id), rig.provider.calls_of("t2")), (0, 0), "{scope:?}");
    }
    // The last one ends by itself.
    rig.directives.send_replace(paused(&[("class", "normal")], Some(now() + Duration::from_millis(500))));
    rig.until("all goes on", |r| r.provider.total() == 6).await;
    let published = rig.broker.counters().published(Purpose::Delay);
    assert_eq!(published, 0, "nothing went to the ladder");
    worker.drain().await;
}

#[tokio::test]
async fn rates_that_operators_set_hold_for_what_waits_already() {
    let rig = Rig::new().await;
    // The next token after the first is an hour away.
    let worker = rig.worker(Some(Limit { rate: "1/h".parse().unwrap(), burst: 1 }));
    for i in 0..20 {
        rig.send(&format!("m{i}"), "plain", ONE, "").await;
    }
    // Long enough for the lane to go to rest.
    sleep(Duration::from_secs(1)).await;
    assert!(rig.provider.total() <= 1);
    rig.directives.send_replace(limited("destination:google", "50/s", None));
    rig.until("faster", |r| r.provider.total() == 20).await;
    // What is said of the account at the destination comes before what is said of the destination.
    rig.directives.send_replace(limited("account:main/destination:google", "1/h", Some(now() + Duration::from_secs(2))));
    sleep(Duration::from_millis(100)).await;
    for i in 20..25 {
        rig.send(&format!("m{i}"), "plain", ONE, "").await;
    }
    sleep(Duration::from_secs(1)).await;
    assert!(rig.provider.total() <= 21, "{}", rig.provider.total());
    worker.drain().await;
}

#[tokio::test]
async fn limits_read_anew_hold_for_what_waits_already() {
    let rig = Rig::new().await;
    let slow = Some(Limit { rate: "1/h".parse().unwrap(), burst: 1 });
    let worker = rig.worker(slow);
    for i in 0..20 {
        rig.send(&format!("m{i}"), "plain", ONE, "").await;
    }
    // Long enough for the lane to go to rest.
    sleep(Duration::from_secs(1)).await;
    assert!(rig.provider.total() <= 1);
    worker.reread(rig.settings(Some(Limit { rate: "50/s".parse().unwrap(), burst: 50 })));
    rig.until("faster", |r| r.provider.total() == 20).await;
    worker.drain().await;
}
