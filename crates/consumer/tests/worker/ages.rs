//! `max_age` and `expires_at`: what has waited for too long is given up on, whatever it waited for.

use paceline_broker::HeaderValue;
use paceline_core::{Timestamp, journey::header};
use paceline_limiter::ledger::{Claim, Claimed, Ledger};
use xxhash_rust::xxh3::xxh3_64;

use super::*;

const KEY: &str = "normal.gmail.com";
const TOO_OLD: Duration = Duration::from_secs(7_200);
/// The first token is two seconds away.
const SLOW: &str = "30/min";

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

/// As if it had been published so long ago; mail may become an hour old.
fn aged(age: Duration) -> Properties {
    let headers = [(header::ENQUEUED_AT.to_owned(), HeaderValue::Text((now() - age).to_string()))];
    Properties { headers: headers.into(), ..Properties::default() }
}

/// So old that it may wait for so long, and no longer.
fn with_left(left: Duration) -> Properties {
    aged(Duration::from_secs(3_600) - left)
}

fn mail(id: &str, more: &str) -> String {
    format!(r#"{{"id":"{id}","from":"a@b.org","to":[{ONE}],"text":"x"{more}}}"#)
}

fn limit(rate: &str) -> Option<Limit> {
    Some(Limit { rate: rate.parse().unwrap(), burst: 1 })
}

/// The ids and reasons of the next dead letters, by id.
async fn dead(rig: &Rig, count: usize) -> Vec<(String, Reason)> {
    let mut dead: Vec<_> = rig.dead(count).await.into_iter().map(|(d, _)| (d.message_id.unwrap(), d.reason)).collect();
    dead.sort();
    dead
}

fn told(ids: &[(&str, Reason)]) -> Vec<(String, Reason)> {
    ids.iter().map(|(id, reason)| ((*id).to_owned(), *reason)).collect()
}

async fn settled(rig: &Rig) {
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
}

#[tokio::test]
async fn mail_that_is_too_old_is_given_up_without_a_call() {
    let rig = Rig::new().await;
    rig.publish_with(KEY, mail("old", ""), aged(TOO_OLD)).await;
    // Old enough while it is held.
    rig.publish_with(KEY, mail("ages", ""), with_left(Duration::from_secs(1))).await;
    let due = now() - Duration::from_secs(60);
    rig.publish_with(KEY, mail("for-later", &format!(r#","not_before":"{due}""#)), aged(TOO_OLD)).await;
    let worker = rig.worker(limit(SLOW));
    let want = told(&[("ages", Reason::MaxAgeExceeded), ("old", Reason::MaxAgeExceeded)]);
    assert_eq!(dead(&rig, 2).await, want);
    rig.until("the one for later", |r| r.provider.calls_of("for-later") == 1).await;
    assert_eq!(rig.provider.total(), 1);
    worker.drain().await;
}

#[tokio::test]
async fn what_was_sent_is_not_given_up_when_it_comes_again_too_late() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    let soon = now() + Duration::from_secs(2);
    let brief = mail("brief", &format!(r#","expires_at":"{soon}""#));
    for body in [mail("sent", ""), brief.clone()] {
        rig.publish(KEY, body).await;
    }
    rig.until("sent", |r| r.provider.total() == 2).await;
    sleep(soon.since(now())).await;
    for body in [mail("sent", ""), mail("old", ""), brief] {
        rig.publish_with(KEY, body, aged(TOO_OLD)).await;
    }
    assert_eq!(dead(&rig, 1).await, told(&[("old", Reason::MaxAgeExceeded)]));
    settled(&rig).await;
    worker.drain().await;
    assert_eq!((rig.broker.depth("paceline.dead").await.unwrap(), rig.provider.total()), (0, 2));
}

#[tokio::test]
async fn what_may_have_been_sent_before_a_crash_is_not_said_to_be_too_late() {
    let rig = Rig::new().await;
    let body = mail("lost", "");
    let digest = xxh3_64(body.as_bytes());
    // Another worker's, which died in its call.
    let claim = Claim::new("lost".into(), None, 1, digest, "gone".into(), Duration::from_secs(1));
    assert!(matches!(rig.ledger.claim(claim).await, Ok(Claimed::Granted)));
    rig.publish_with(KEY, body, aged(TOO_OLD)).await;
    let worker = rig.worker(None);
    assert_eq!(dead(&rig, 1).await, told(&[("lost", Reason::Uncertain)]));
    settled(&rig).await;
    assert_eq!(rig.provider.total(), 0);
    worker.drain().await;
}

#[tokio::test]
async fn a_replay_is_as_old_as_the_replay() {
    let rig = Rig::new().await;
    rig.publish_with(KEY, mail("old", ""), aged(TOO_OLD)).await;
    let worker = rig.worker(None);
    assert_eq!(dead(&rig, 1).await, told(&[("old", Reason::MaxAgeExceeded)]));
    // As a replay job publishes it (paceline-dlq's tests hold it to that).
    let mut replayed = aged(Duration::ZERO);
    replayed.headers.insert(header::REPLAY.to_owned(), HeaderValue::Text("r-1".into()));
    rig.publish_with(KEY, mail("old", ""), replayed).await;
    rig.until("sent", |r| r.provider.calls_of("old") == 1).await;
    worker.drain().await;
}

#[tokio::test]
async fn who_is_left_of_a_divided_message_is_as_old_as_it() {
    let rig = Rig::new().await;
    let body = mail("m", r#","stream":"divided""#).replace(ONE, r#""a@gmail.com","grey@gmail.com""#);
    // Two seconds to the first call; the next would be four seconds later, for it goes to two.
    rig.publish_with(KEY, body, with_left(Duration::from_secs(4))).await;
    let worker = rig.worker(limit(SLOW));
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.to.as_deref(), letter.reason), (Some("grey@gmail.com"), Reason::MaxAgeExceeded));
    assert_eq!((rig.recipients_of("m"), letter.attempts), (vec!["a@gmail.com grey@gmail.com".to_owned()], 1));
    worker.drain().await;
}

#[tokio::test]
async fn nothing_stays_on_the_ladder_past_its_end() {
    let rig = Rig::new().await;
    let mut deps = rig.deps(None);
    // Parked for a turn a minute ahead.
    deps.settings.tail = limit("1/h").unwrap();
    let parked = mail("parked", "").replace("gmail.com", "else.org");
    rig.publish_with("normal.else.org", parked, with_left(Duration::from_secs(4))).await;
    let (end, due) = (now() + Duration::from_secs(4), now() + Duration::from_secs(3_600));
    rig.publish(KEY, mail("never", &format!(r#","not_before":"{due}","expires_at":"{end}""#))).await;
    let worker = Worker::start(deps);
    assert_eq!(dead(&rig, 2).await, told(&[("never", Reason::Expired), ("parked", Reason::MaxAgeExceeded)]));
    assert!(rig.broker.counters().published(Purpose::Delay) >= 2, "both were on the ladder");
    assert_eq!(rig.provider.total(), 0);
    worker.drain().await;
}

#[tokio::test]
async fn a_pause_ends_no_later_than_the_mail() {
    let rig = Rig::new().await;
    rig.directives.send_replace(directed::paused(&[("destination", "google")], Some(now() + Duration::from_secs(2))));
    rig.publish_with(KEY, mail("ages", ""), with_left(Duration::from_secs(1))).await;
    rig.publish_with(KEY, mail("old", ""), aged(TOO_OLD)).await;
    rig.publish(KEY, mail("new", "")).await;
    let worker = rig.worker(None);
    assert_eq!(dead(&rig, 1).await, told(&[("old", Reason::MaxAgeExceeded)]), "delivered once, before its lane rests");
    // With the broker then, and too old when it comes again.
    assert_eq!(dead(&rig, 1).await, told(&[("ages", Reason::MaxAgeExceeded)]));
    rig.until("sent", |r| r.provider.calls_of("new") == 1).await;
    assert_eq!(rig.provider.total(), 1);
    worker.drain().await;
}

#[tokio::test]
async fn an_age_read_anew_holds_for_what_waits_already() {
    let rig = Rig::new().await;
    // Held for six seconds.
    let slow = limit("10/min");
    let policy = |secs| {
        let max_age = Duration::from_secs(secs);
        let quick = RetryPolicy { max_age, ..*rig.settings(slow).policy.of(paceline_core::Class::Normal) };
        Settings { policy: Policy::new([quick; 4]), ..rig.settings(slow) }
    };
    rig.publish_with(KEY, mail("older", ""), with_left(Duration::from_secs(2))).await;
    rig.publish_with(KEY, mail("old", ""), aged(Duration::from_secs(1_800))).await;
    let worker = rig.worker(slow);
    rig.until("both are held", |r| r.broker.held("paceline.lane.normal.google") == 2).await;
    worker.reread(policy(7_200));
    // Past the end that the first one had.
    sleep(Duration::from_millis(2_600)).await;
    assert_eq!(rig.broker.depth("paceline.dead").await.unwrap(), 0);
    worker.reread(policy(600));
    let want = told(&[("old", Reason::MaxAgeExceeded), ("older", Reason::MaxAgeExceeded)]);
    assert_eq!(dead(&rig, 2).await, want);
    assert_eq!(rig.provider.total(), 0);
    worker.drain().await;
}

#[tokio::test]
async fn what_became_too_old_since_its_account_was_refused_says_so() {
    let rig = Rig::new().await;
    rig.provider.refusing.store(true, Ordering::Relaxed);
    rig.publish_with(KEY, mail("refused", ""), with_left(Duration::from_secs(4))).await;
    let worker = rig.worker(None);
    assert_eq!(dead(&rig, 1).await, told(&[("refused", Reason::RejectedAccount)]));
    assert_eq!(rig.provider.total(), 1);
    worker.drain().await;
}
