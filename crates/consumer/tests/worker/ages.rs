//! `max_age`: what has waited for too long is given up on, whatever it waited for.

use paceline_broker::HeaderValue;
use paceline_core::{Timestamp, journey::header};

use super::*;

/// As if it had been published so long ago; mail may become an hour old.
fn aged(age: Duration) -> Properties {
    let now: Timestamp = std::time::SystemTime::now().into();
    let headers = [(header::ENQUEUED_AT.to_owned(), HeaderValue::Text((now - age).to_string()))];
    Properties { headers: headers.into(), ..Properties::default() }
}

fn mail(id: &str, more: &str) -> String {
    format!(r#"{{"id":"{id}","from":"a@b.org","to":[{ONE}],"text":"x"{more}}}"#)
}

#[tokio::test]
async fn mail_that_is_too_old_is_given_up_without_a_call() {
    let rig = Rig::new().await;
    let key = "normal.gmail.com";
    let two_hours = Duration::from_secs(7_200);
    rig.publish_with(key, mail("old", ""), aged(two_hours)).await;
    // Old enough while it is held: the first token is two seconds away.
    rig.publish_with(key, mail("ages", ""), aged(Duration::from_millis(3_599_000))).await;
    let now: Timestamp = std::time::SystemTime::now().into();
    let due = now - Duration::from_secs(60);
    rig.publish_with(key, mail("for-later", &format!(r#","not_before":"{due}""#)), aged(two_hours)).await;
    let worker = rig.worker(Some(Limit { rate: "30/min".parse().unwrap(), burst: 1 }));
    let mut dead: Vec<_> = rig.dead(2).await.into_iter().map(|(d, _)| (d.message_id.unwrap(), d.reason)).collect();
    dead.sort();
    assert_eq!(dead, [("ages".to_owned(), Reason::MaxAgeExceeded), ("old".to_owned(), Reason::MaxAgeExceeded)]);
    rig.until("the one for later", |r| r.provider.calls_of("for-later") == 1).await;
    assert_eq!(rig.provider.total(), 1);
    worker.drain().await;
}

#[tokio::test]
async fn what_was_sent_is_not_given_up_when_it_comes_again_too_late() {
    let rig = Rig::new().await;
    let key = "normal.gmail.com";
    let worker = rig.worker(None);
    rig.publish(key, mail("sent", "")).await;
    rig.until("sent", |r| r.provider.calls_of("sent") == 1).await;
    rig.publish_with(key, mail("sent", ""), aged(Duration::from_secs(7_200))).await;
    rig.publish_with(key, mail("old", ""), aged(Duration::from_secs(7_200))).await;
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!(letter.message_id.as_deref(), Some("old"));
    rig.until("acknowledged", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    worker.drain().await;
    assert_eq!((rig.broker.depth("paceline.dead").await.unwrap(), rig.provider.total()), (0, 1));
}
