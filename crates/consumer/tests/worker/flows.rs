//! Flows: who holds much of a lane that waits, or is bound more narrowly than it, waits in a queue of its own.

use std::time::Duration;

use paceline_broker::{Broker, Purpose};
use paceline_consumer::{Limit, Named};
use paceline_core::Class;
use tokio::time::sleep;

use super::{ONE, Rig, directed::paused};

fn slow(per: &str, burst: u32) -> Limit {
    Limit { rate: per.parse().unwrap(), burst }
}

async fn settled(rig: &Rig, count: usize) {
    rig.until("all sent", |r| r.provider.total() >= count).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.provider.total(), count, "once each");
}

#[tokio::test]
async fn a_tenants_backlog_lets_others_pass() {
    let rig = Rig::new().await;
    for n in 0..300 {
        rig.send(&format!("big{n}"), "plain", ONE, r#","tenant":"big""#).await;
    }
    for n in 0..5 {
        rig.send(&format!("small{n}"), "plain", ONE, r#","tenant":"small""#).await;
    }
    rig.send("nobodys", "plain", ONE, "").await;
    let worker = rig.worker(Some(slow("40/s", 10)));
    let small =
        |rig: &Rig| (0..5).all(|n| rig.provider.calls_of(&format!("small{n}")) == 1) && rig.provider.calls_of("nobodys") == 1;
    rig.until("the small one's mail", small).await;
    let before = rig.provider.total();
    assert!(before < 150, "{before} went before the last of it");
    settled(&rig, 306).await;
    let moved = rig.broker.counters().published(Purpose::Flow);
    assert!((100..=306).contains(&moved), "{moved} moved to a flow, each once");
    assert_eq!(rig.broker.counters().published(Purpose::Delay), 0);
    worker.drain().await;
}

#[tokio::test]
async fn a_tenant_that_is_alone_stays_in_its_lane() {
    let rig = Rig::new().await;
    let worker = rig.worker(Some(slow("150/s", 10)));
    for n in 0..400 {
        rig.send(&format!("first{n}"), "plain", ONE, r#","tenant":"big""#).await;
    }
    rig.until("all sent", |r| r.provider.total() >= 400).await;
    let looked = rig.broker.counters().published(Purpose::Flow);
    assert!(looked > 0, "nobody knew yet that there is nobody else");
    // With nothing more to come, that is known.
    sleep(Duration::from_millis(1_500)).await;
    for n in 0..400 {
        rig.send(&format!("then{n}"), "plain", ONE, r#","tenant":"big""#).await;
    }
    settled(&rig, 800).await;
    assert_eq!(rig.broker.counters().published(Purpose::Flow), looked, "nothing moves for nobody");
    // Somebody else, and room is made again.
    rig.send("nobodys", "plain", ONE, "").await;
    for n in 0..400 {
        rig.send(&format!("last{n}"), "plain", ONE, r#","tenant":"big""#).await;
    }
    settled(&rig, 1_201).await;
    assert!(rig.broker.counters().published(Purpose::Flow) > looked);
    worker.drain().await;
}

#[tokio::test]
async fn mail_without_tenants_is_never_moved() {
    let rig = Rig::new().await;
    let worker = rig.worker(Some(slow("100/s", 10)));
    for n in 0..150 {
        rig.send(&format!("m{n}"), "plain", ONE, "").await;
    }
    settled(&rig, 150).await;
    assert_eq!(rig.broker.counters().published(Purpose::Flow), 0);
    assert_eq!(rig.broker.flows().await, Ok(vec![]));
    worker.drain().await;
}

#[tokio::test]
async fn a_tenant_at_its_limit_waits_in_its_flow_and_goes_at_its_rate() {
    let acme = Named { name: "Acme Inc.".into(), limit: Some(slow("20/min", 2)), quota: vec![] };
    let rig = Rig { tenants: vec![acme], ..Rig::new().await };
    let worker = rig.worker(None);
    for n in 0..6 {
        rig.send(&format!("acme{n}"), "plain", ONE, r#","tenant":"acme inc.""#).await;
    }
    rig.until("it has a flow", |r| r.broker.counters().published(Purpose::Flow) >= 4).await;
    rig.send("other", "plain", ONE, r#","tenant":"other""#).await;
    rig.until("others pass", |r| r.provider.calls_of("other") == 1).await;
    let flows = rig.broker.flows().await.unwrap();
    assert!(matches!(&flows[..], [(Class::Normal, name)] if name.starts_with("google.tenant-acme-inc-")), "{flows:?}");
    // A token in three seconds.
    rig.until("one more", |r| r.provider.total() >= 4).await;
    assert!(rig.broker.counters().published(Purpose::Flow) <= 6, "each once");
    assert_eq!(rig.broker.counters().published(Purpose::Delay), 0, "no ladder");
    worker.drain().await;
}

#[tokio::test]
async fn mail_pinned_to_a_paused_account_keeps_nobody() {
    let rig = Rig { spare: true, ..Rig::new().await };
    rig.directives.send_replace(paused(&[("account", "spare")], None));
    let worker = rig.worker(None);
    for n in 0..20 {
        rig.send(&format!("pinned{n}"), "plain", ONE, r#","account":"spare""#).await;
    }
    rig.send("free", "plain", ONE, "").await;
    rig.until("they have a flow", |r| r.broker.counters().published(Purpose::Flow) >= 20).await;
    rig.until("the other one passes", |r| r.provider.calls_of("free") == 1).await;
    rig.send("later", "plain", ONE, "").await;
    rig.until("and so do later ones", |r| r.provider.calls_of("later") == 1).await;
    assert_eq!(rig.provider.total(), 2, "what is paused waits");
    assert_eq!(rig.broker.flows().await, Ok(vec![(Class::Normal, "google.account-spare".to_owned())]));
    rig.directives.send_replace(paused(&[], None));
    settled(&rig, 22).await;
    let counters = rig.broker.counters();
    assert_eq!((counters.published(Purpose::Flow), counters.published(Purpose::Delay)), (20, 0), "once each, and no ladder");
    worker.drain().await;
}

#[tokio::test]
async fn flows_are_found_again_by_a_fleet_that_has_forgotten_them() {
    let rig = Rig::new().await;
    for n in 0..400 {
        rig.send(&format!("m{n}"), "plain", ONE, r#","tenant":"big""#).await;
    }
    let worker = rig.worker(Some(slow("20/s", 2)));
    rig.until("a flow", |r| r.broker.counters().published(Purpose::Flow) >= 20).await;
    worker.drain().await;
    // Another fleet, with another list: only the broker knows.
    let worker = rig.worker(Some(slow("1000/s", 1000)));
    settled(&rig, 400).await;
    worker.drain().await;
}
