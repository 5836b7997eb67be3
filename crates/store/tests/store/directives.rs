//! Pauses and limits that operators order.

use std::time::{Duration, SystemTime};

use paceline_core::{Class, LimitName, PauseScope, Selector, Timestamp};
use paceline_store::{Error, Which};

use crate::stage::{Stage, until};

const HOUR: Duration = Duration::from_secs(3600);

fn from_now(d: Duration) -> Timestamp {
    Timestamp::from(SystemTime::now()) + d
}

pub(crate) async fn a_pause_is_ordered_changed_and_ended(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    let account = PauseScope::Account("main".to_owned());
    // An order of another kind about something of the same name is another order.
    store.add_cancel(&Selector::Tenant("main".to_owned()), from_now(HOUR), "ada", None).await.unwrap();
    assert!(store.pauses(Which::All).await.unwrap().is_empty());

    let given = store.pause(&account, None, "ada", Some("provider asked")).await.unwrap();
    assert!(given.id.starts_with("p-"));
    assert_eq!((&given.order.scope, given.order.until, given.by.as_str()), (&account, None, "ada"));
    assert_eq!(other.pauses(Which::InForce).await.unwrap(), std::slice::from_ref(&given));

    let end = from_now(HOUR);
    let changed = other.pause(&account, Some(end), "bob", None).await.unwrap();
    assert_eq!((&changed.id, changed.order.until, changed.by.as_str(), &changed.note), (&given.id, Some(end), "bob", &None));
    for scope in [PauseScope::Destination("main".to_owned()), PauseScope::Class(Class::Critical)] {
        assert_eq!(store.pause(&scope, None, "ada", None).await.unwrap().order.scope, scope);
    }
    assert_eq!(store.pauses(Which::InForce).await.unwrap().len(), 3);

    let ended = store.resume(&account, "carol", Some("fixed")).await.unwrap().unwrap();
    assert_eq!((&ended.id, ended.removed_by.as_deref()), (&given.id, Some("carol")));
    assert_eq!(store.resume(&account, "dora", None).await.unwrap(), None, "there is nothing left to end");
    assert_eq!(other.pauses(Which::InForce).await.unwrap().len(), 2);
    assert!(other.pauses(Which::All).await.unwrap().contains(&ended));
    let anew = store.pause(&account, None, "ada", None).await.unwrap();
    assert!(anew.id != given.id, "another order");

    let trail = store.audit(Some("account main"), 10).await.unwrap();
    let told: Vec<_> = trail.iter().map(|e| (e.action.as_str(), e.by.as_str())).collect();
    let actions = [("pause.added", "ada"), ("pause.removed", "carol"), ("pause.changed", "bob"), ("pause.added", "ada")];
    assert_eq!(told, actions);
    let json = serde_json::to_value(&given).unwrap();
    assert_eq!((&json["kind"], &json["name"], &json["until"]), (&"account".into(), &"main".into(), &serde_json::Value::Null));

    let long = "x".repeat(513);
    for bad in ["", "a\0", long.as_str()] {
        let refused = store.pause(&PauseScope::Account(bad.to_owned()), None, "ada", None).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    }
    assert_eq!(store.resume(&PauseScope::Account("a\0".to_owned()), "ada", None).await.unwrap(), None);
    let past = store.pause(&account, Some(Timestamp::from_secs(1)), "ada", None).await;
    assert!(matches!(past, Err(Error::Refused(_))), "{past:?}");
}

pub(crate) async fn a_limit_is_set_changed_and_taken_back(stage: &dyn Stage) {
    let store = stage.empty().await;
    let name: LimitName = "account:main/destination:google".parse().unwrap();
    let given = store.set_limit(&name, "300/h".parse().unwrap(), Some(from_now(HOUR)), "ada", None).await.unwrap();
    assert!(given.id.starts_with("l-"));
    assert_eq!((&given.order.name, given.order.rate.to_string().as_str()), (&name, "300/h"));
    let changed = store.set_limit(&name, "5/s".parse().unwrap(), None, "bob", Some("more")).await.unwrap();
    assert_eq!((&changed.id, changed.order.until), (&given.id, None));
    assert_eq!(store.limit_orders(Which::InForce).await.unwrap(), std::slice::from_ref(&changed));
    assert!(store.pauses(Which::All).await.unwrap().is_empty() && store.cancels(Which::All).await.unwrap().is_empty());
    assert_eq!(store.reset_limit(&LimitName::Tail, "ada", None).await.unwrap(), None);
    let ended = store.reset_limit(&name, "ada", None).await.unwrap().unwrap();
    assert_eq!(ended.order.rate.to_string(), "5/s");
    assert!(store.limit_orders(Which::InForce).await.unwrap().is_empty());
    let trail = store.audit(Some("account:main/destination:google"), 10).await.unwrap();
    let told: Vec<_> =
        trail.iter().map(|e| (e.action.as_str(), e.detail.get("rate").and_then(serde_json::Value::as_str))).collect();
    assert_eq!(told, [("limit.reset", None), ("limit.changed", Some("5/s")), ("limit.set", Some("300/h"))]);
    let json = serde_json::to_value(&given).unwrap();
    assert_eq!((&json["name"], &json["rate"]), (&"account:main/destination:google".into(), &"300/h".into()));
}

pub(crate) async fn orders_end_by_themselves(stage: &dyn Stage) {
    let store = stage.empty().await;
    let class = PauseScope::Class(Class::Low);
    let mut short = None;
    until("a pause is ordered", async || {
        // Refused where this machine is slower than the order is long.
        short = store.pause(&class, Some(from_now(Duration::from_millis(200))), "ada", None).await.ok();
        short.is_some()
    })
    .await;
    let short = short.unwrap();
    until("the pause ends", async || store.pauses(Which::InForce).await.unwrap().is_empty()).await;
    assert_eq!(store.pauses(Which::All).await.unwrap(), std::slice::from_ref(&short));
    assert_eq!(store.resume(&class, "bob", None).await.unwrap(), None, "too late to end it");
    let next = store.pause(&class, None, "bob", None).await.unwrap();
    assert!(next.id != short.id, "another order");
    assert_eq!(store.pauses(Which::InForce).await.unwrap(), [next]);
}

pub(crate) async fn the_version_tells_every_change(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    let mut versions = vec![other.directives_version().await.unwrap()];
    let account = PauseScope::Account("main".to_owned());
    store.pause(&account, None, "ada", None).await.unwrap();
    versions.push(other.directives_version().await.unwrap());
    store.pause(&account, Some(from_now(HOUR)), "ada", None).await.unwrap();
    versions.push(other.directives_version().await.unwrap());
    store.set_limit(&LimitName::Tail, "1/s".parse().unwrap(), None, "ada", None).await.unwrap();
    versions.push(other.directives_version().await.unwrap());
    store.reset_limit(&LimitName::Tail, "ada", None).await.unwrap();
    versions.push(other.directives_version().await.unwrap());
    store.resume(&account, "ada", None).await.unwrap();
    versions.push(other.directives_version().await.unwrap());
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
    store.resume(&account, "ada", None).await.unwrap();
    assert_eq!(other.directives_version().await.unwrap(), versions[5], "nothing changed");
}
