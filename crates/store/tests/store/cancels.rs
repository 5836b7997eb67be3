//! Cancel orders.

use std::time::{Duration, SystemTime};

use paceline_core::{Selector, Timestamp};
use paceline_store::{Error, Which};

use crate::stage::{Stage, until};

fn from_now(d: Duration) -> Timestamp {
    Timestamp::from(SystemTime::now()) + d
}

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn an_order_is_given_renewed_and_taken_back(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    assert!(store.cancels(Which::All).await.unwrap().is_empty());
    let tag = Selector::Tag("spring".to_owned());
    let (end, later) = (from_now(HOUR), from_now(2 * HOUR));
    let given = store.add_cancel(&tag, end, "ada", Some("typo in the subject")).await.unwrap();
    assert!(given.id.starts_with("c-"));
    assert_eq!((&given.cancel.selector, given.cancel.until, given.by.as_str()), (&tag, end, "ada"));
    assert_eq!(other.cancels(Which::InForce).await.unwrap(), std::slice::from_ref(&given));

    let renewed = other.add_cancel(&tag, later, "bob", None).await.unwrap();
    assert_eq!((&renewed.id, renewed.cancel.until, renewed.by.as_str(), &renewed.note), (&given.id, later, "bob", &None));
    assert!(renewed.cancel.since > given.cancel.since, "it counts from now");
    let shorter = store.add_cancel(&tag, end, "bob", None).await.unwrap();
    assert_eq!(shorter.cancel.until, later, "nothing ends sooner by being said twice");

    let kinds = [
        Selector::Id("spring".to_owned()),
        Selector::Tenant("spring".to_owned()),
        Selector::Stream("spring".to_owned()),
        Selector::Stream("it's \"é\" --".to_owned()),
    ];
    for selector in &kinds {
        assert_eq!(&store.add_cancel(selector, end, "ada", None).await.unwrap().cancel.selector, selector);
    }
    assert_eq!(store.cancels(Which::InForce).await.unwrap().len(), 5);

    let removed = store.remove_cancel(&given.id, "carol", Some("fixed")).await.unwrap().unwrap();
    assert_eq!(removed.removed_by.as_deref(), Some("carol"));
    assert_eq!(store.remove_cancel(&given.id, "dora", None).await.unwrap(), Some(removed.clone()), "once");
    assert_eq!(other.cancels(Which::InForce).await.unwrap().len(), 4);
    assert!(other.cancels(Which::All).await.unwrap().contains(&removed));
    assert_eq!(store.remove_cancel("c-20261122-nobody", "x", None).await.unwrap(), None);
    assert_eq!(store.remove_cancel("a\0b", "x", None).await.unwrap(), None);
    let anew = store.add_cancel(&tag, end, "ada", None).await.unwrap();
    assert!(anew.id != given.id && anew.cancel.until == end, "a removed order is over");

    let actions: Vec<_> = store.audit(Some(&given.id), 10).await.unwrap().into_iter().map(|e| (e.action, e.by)).collect();
    let told: Vec<_> = actions.iter().map(|(action, by)| (action.as_str(), by.as_str())).collect();
    assert_eq!(
        told,
        [("cancel.removed", "carol"), ("cancel.renewed", "bob"), ("cancel.renewed", "bob"), ("cancel.added", "ada")]
    );
    let json = serde_json::to_value(&given).unwrap();
    assert_eq!(json["selector"], serde_json::json!({"by": "tag", "value": "spring"}));
    assert_eq!(json["by"], "ada");

    let long = "x".repeat(513);
    for bad in ["", "a\0", long.as_str()] {
        let refused = store.add_cancel(&Selector::Tag(bad.to_owned()), end, "ada", None).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    }
}

pub(crate) async fn an_order_ends_by_itself(stage: &dyn Stage) {
    let store = stage.empty().await;
    let id = Selector::Id("m1".to_owned());
    let past = store.add_cancel(&id, Timestamp::from_secs(1), "ada", None).await;
    assert!(matches!(past, Err(Error::Refused(_))), "{past:?}");
    let mut short = None;
    until("an order is given", async || {
        // Refused where this machine is slower than the order is long.
        short = store.add_cancel(&id, from_now(Duration::from_millis(200)), "ada", None).await.ok();
        short.is_some()
    })
    .await;
    let short = short.unwrap();
    let version = store.cancels_version().await.unwrap();
    until("the order ends", async || store.cancels(Which::InForce).await.unwrap().is_empty()).await;
    assert_eq!(store.cancels(Which::All).await.unwrap(), std::slice::from_ref(&short));
    assert_eq!(store.cancels_version().await.unwrap(), version, "who knows the order knows its end");
    assert_eq!(store.remove_cancel(&short.id, "bob", None).await.unwrap(), Some(short.clone()), "too late to take it back");
    let next = store.add_cancel(&id, from_now(HOUR), "bob", None).await.unwrap();
    assert!(next.id != short.id, "another order");
    assert_eq!(store.cancels(Which::InForce).await.unwrap(), [next]);
}

pub(crate) async fn the_version_tells_every_change(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    let mut versions = vec![other.cancels_version().await.unwrap()];
    let tag = Selector::Tag("t".to_owned());
    let order = store.add_cancel(&tag, from_now(HOUR), "ada", None).await.unwrap();
    versions.push(other.cancels_version().await.unwrap());
    store.add_cancel(&tag, from_now(2 * HOUR), "ada", None).await.unwrap();
    versions.push(other.cancels_version().await.unwrap());
    store.remove_cancel(&order.id, "ada", None).await.unwrap();
    versions.push(other.cancels_version().await.unwrap());
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
    store.remove_cancel(&order.id, "ada", None).await.unwrap();
    assert_eq!(other.cancels_version().await.unwrap(), versions[3], "nothing changed");
}

pub(crate) async fn orders_given_at_once_are_one(stage: &dyn Stage) {
    let store = stage.empty().await;
    let mut giving = Vec::new();
    for i in 0..10u32 {
        let store = stage.another().await;
        giving.push(tokio::spawn(async move {
            store.add_cancel(&Selector::Tenant("acme".to_owned()), from_now(HOUR * (i + 1)), "ada", None).await.unwrap()
        }));
    }
    let mut orders = Vec::new();
    for one in giving {
        orders.push(one.await.unwrap());
    }
    let [in_force] = &store.cancels(Which::InForce).await.unwrap()[..] else { panic!("not one") };
    assert!(orders.iter().all(|o| o.id == in_force.id));
    assert_eq!(in_force.cancel.until, orders.iter().map(|o| o.cancel.until).max().unwrap());
    assert_eq!(store.cancels_version().await.unwrap(), 10);
}
