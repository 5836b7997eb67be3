//! The pipeline over in-process ports: what becomes of messages, whatever the provider says and the broker does.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail anywhere")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_broker::{Broker, Outgoing, Properties, Purpose, Route, Topology, header_text, memory::MemoryBroker};
use paceline_classifier::{Classifier, DestinationSpec, Destinations};
use paceline_consumer::{Account, Deps, Destination, Limit, Metrics, Settings, Worker};
use paceline_core::{DeadLetter, Domain, Outcome, Policy, ProviderAnswer, Reason, Rejected, RetryPolicy, Scope, dead_letter};
use paceline_limiter::{fleet::LocalFleet, ledger::LocalLedger, local::LocalLimiter};
use paceline_provider::{Attempt, Provider};
use tokio::time::{sleep, timeout};

/// Answers by what the message's stream says; keeps every call.
#[derive(Default)]
struct Script {
    calls: Mutex<Vec<(String, Vec<String>)>>,
    hang: tokio::sync::Notify,
}

impl Script {
    fn calls_of(&self, id: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|(i, _)| i == id).count()
    }

    fn total(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

fn words(code: &str, status: u16) -> ProviderAnswer {
    ProviderAnswer::new(code, Some(status), "as scripted")
}

#[async_trait]
impl Provider for Script {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let m = attempt.message;
        let to = m.recipients().map(ToString::to_string).collect();
        let nth = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((m.id.clone(), to));
            calls.iter().filter(|(i, _)| *i == m.id).count()
        };
        match m.stream.as_deref() {
            Some("fail-twice") if nth <= 2 => Outcome::Temporary { retry_after: None, answer: words("unavailable", 503) },
            Some("fail") => Outcome::Temporary { retry_after: None, answer: words("unavailable", 503) },
            Some("throttled-once") if nth == 1 => Outcome::Throttled {
                scope: Scope::Destination,
                retry_after: Some(Duration::from_millis(20)),
                answer: words("rate_limited", 429),
            },
            Some("reject") => Outcome::Rejected { what: Rejected::Message, answer: words("bad_request", 400) },
            Some("reject-second") if m.recipient_count() > 1 => {
                Outcome::Rejected { what: Rejected::Recipients(vec![m.to[1].email.clone()]), answer: words("bad_recipient", 400) }
            }
            Some("lost") => Outcome::Uncertain { answer: ProviderAnswer::new("timeout", None, "") },
            Some("hang") => {
                self.hang.notified().await;
                Outcome::accepted(None)
            }
            _ => Outcome::accepted(Some("p-1".into())),
        }
    }

    fn idempotent(&self) -> bool {
        false
    }
}

struct Rig {
    broker: MemoryBroker,
    provider: Arc<Script>,
    limiter: Arc<LocalLimiter>,
    ledger: Arc<LocalLedger>,
}

impl Rig {
    async fn new() -> Rig {
        let broker = MemoryBroker::new("paceline");
        broker.apply(&Topology::new("paceline", [("google", ["gmail.com"])])).await.unwrap();
        Rig {
            broker,
            provider: Arc::default(),
            limiter: Arc::new(LocalLimiter::new()),
            ledger: Arc::new(LocalLedger::new(Duration::from_secs(3600))),
        }
    }

    fn worker(&self, google: Option<Limit>) -> Worker {
        let domain = Domain::parse("gmail.com").unwrap();
        let destinations = Destinations::new(vec![DestinationSpec { name: "google".into(), domains: vec![domain] }]).unwrap();
        let quick = RetryPolicy {
            attempts: 3,
            base: Duration::from_millis(20),
            max: Duration::from_millis(100),
            max_age: Duration::from_secs(3600),
        };
        let account = Account {
            name: "main".into(),
            provider: self.provider.clone(),
            limit: None,
            concurrency: 32,
            total_timeout: Duration::from_secs(30),
        };
        Worker::start(Deps {
            broker: Arc::new(self.broker.clone()),
            limiter: self.limiter.clone(),
            ledger: self.ledger.clone(),
            fleet: Arc::new(LocalFleet::new()),
            classifier: Arc::new(Classifier::new(vec![], destinations)),
            metrics: Metrics::default(),
            settings: Settings {
                worker_id: format!("w-{}", rand::random::<u32>()).into(),
                prefix: "paceline".into(),
                accounts: vec![account],
                destinations: vec![Destination { name: "google".into(), limit: google, fleet: None }],
                tail: Limit { rate: "1000/s".parse().unwrap(), burst: 1000 },
                reserve: 0.2,
                policy: Policy::new([quick; 4]),
                concurrency: 32,
                held_bytes: 32 << 20,
                max_message_bytes: 10 << 20,
                drain_grace: Duration::from_secs(5),
            },
        })
    }

    async fn publish(&self, key: &str, body: String) {
        let properties = Properties::default();
        let body = Bytes::from(body);
        let m = Outgoing { to: Route::Producers, key: key.into(), body, properties, purpose: Purpose::Submit };
        self.broker.publish(m).await.unwrap();
    }

    async fn send(&self, id: &str, stream: &str, to: &str, more: &str) {
        let body = format!(r#"{{"id":"{id}","from":"a@b.org","to":[{to}],"text":"x","stream":"{stream}"{more}}}"#);
        self.publish("normal.gmail.com", body).await;
    }

    /// Everything in the dead-letter queue, by message id and recipient.
    async fn dead(&self, count: usize) -> Vec<(DeadLetter, Bytes)> {
        let mut consumer = self.broker.consume("paceline.dead", 100).await.unwrap();
        let mut out = Vec::new();
        while out.len() < count {
            let d = timeout(Duration::from_secs(10), consumer.next()).await.expect("a dead letter is missing").unwrap();
            let entry = header_text(&d.properties.headers, dead_letter::HEADER).unwrap().into_owned();
            out.push((serde_json::from_str(&entry).unwrap(), d.body.clone()));
            d.settle.ack();
        }
        out
    }

    async fn until(&self, what: &str, mut done: impl FnMut(&Rig) -> bool) {
        for _ in 0..2000 {
            if done(self) {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("not seen within 10 s: {what}");
    }
}

const ONE: &str = r#""u@gmail.com""#;

#[tokio::test]
async fn every_outcome_ends_as_it_should() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    for (id, stream) in [
        ("ok", "plain"),
        ("twice", "fail-twice"),
        ("never", "fail"),
        ("slow-down", "throttled-once"),
        ("no", "reject"),
        ("who-knows", "lost"),
    ] {
        rig.send(id, stream, ONE, "").await;
    }
    rig.send("two", "reject-second", r#""u@gmail.com","v@gmail.com""#, "").await;
    rig.send("late", "plain", ONE, r#","expires_at":"2020-01-01T00:00:00Z""#).await;
    rig.send("pinned", "plain", ONE, r#","account":"other""#).await;
    rig.publish("normal.gmail.com", "{\"id\":\"bad\u{7f}".into()).await;
    rig.publish("no-class-at-all", r#"{"id":"odd","from":"a@b.org","to":["u@else.org"],"text":"x"}"#.into()).await;

    let dead: HashMap<_, _> = rig
        .dead(7)
        .await
        .into_iter()
        .map(|(d, body)| ((d.message_id.clone().unwrap_or_default(), d.reason), (d, body)))
        .collect();
    let reasons: Vec<_> =
        dead.keys().map(|(id, r)| (id.as_str(), *r)).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    assert_eq!(
        reasons,
        [
            ("", Reason::InvalidMessage),
            ("late", Reason::Expired),
            ("never", Reason::RetryBudgetExhausted),
            ("no", Reason::RejectedMessage),
            ("two", Reason::RejectedRecipient),
            ("who-knows", Reason::Uncertain),
        ]
        .into_iter()
        .collect::<Vec<_>>()
    );
    let (never, _) = &dead[&("never".to_owned(), Reason::RetryBudgetExhausted)];
    assert_eq!((never.attempts, never.to.as_deref(), never.destination.as_deref()), (3, Some("u@gmail.com"), Some("google")));
    assert_eq!(never.last_error.as_ref().unwrap().http_status, Some(503));
    assert!(never.first_attempt_at.unwrap() < never.last_attempt_at.unwrap());
    assert_eq!(dead[&("two".to_owned(), Reason::RejectedRecipient)].0.to.as_deref(), Some("v@gmail.com"));
    rig.until("all sent", |r| ["ok", "odd"].iter().all(|id| r.provider.calls_of(id) == 1) && r.provider.calls_of("two") == 2)
        .await;
    rig.until("retried", |r| r.provider.calls_of("twice") == 3 && r.provider.calls_of("slow-down") == 2).await;
    let calls =
        rig.provider.calls.lock().unwrap().iter().filter(|(id, _)| id == "two").map(|(_, to)| to.len()).collect::<Vec<_>>();
    assert_eq!(calls, [2, 1], "the retry carries only those that remain");
    assert_eq!((rig.provider.calls_of("never"), rig.provider.calls_of("who-knows"), rig.provider.calls_of("late")), (3, 1, 0));
    assert_eq!(worker.drain().await.unfinished, 0);
}

#[tokio::test]
async fn the_same_id_is_sent_once_and_another_body_is_a_conflict() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    for _ in 0..5 {
        rig.send("same", "plain", ONE, "").await;
    }
    rig.send("same", "plain", ONE, r#","subject":"other""#).await;
    let dead = rig.dead(1).await;
    assert_eq!(dead[0].0.reason, Reason::IdConflict);
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    assert_eq!(rig.provider.calls_of("same"), 1);
    worker.drain().await;
}

#[tokio::test]
async fn a_backlog_waits_in_its_lane_and_is_never_republished() {
    let rig = Rig::new().await;
    for n in 0..60 {
        rig.send(&format!("g{n}"), "plain", ONE, "").await;
    }
    let submitted = rig.broker.counters().published(Purpose::Submit);
    let worker = rig.worker(Some(Limit { rate: "100/s".parse().unwrap(), burst: 5 }));
    rig.until("all sent", |r| r.provider.total() == 60).await;
    let by_purpose: BTreeMap<_, _> = Purpose::ALL
        .iter()
        .filter(|p| **p != Purpose::Event)
        .map(|p| (p.as_str(), rig.broker.counters().published(*p)))
        .collect();
    assert_eq!(by_purpose.values().sum::<u64>(), submitted, "{by_purpose:?}");
    worker.drain().await;
}

#[tokio::test]
async fn a_drain_gives_back_what_was_not_begun() {
    let rig = Rig::new().await;
    for n in 0..20 {
        rig.send(&format!("g{n:02}"), "plain", ONE, "").await;
    }
    let worker = rig.worker(Some(Limit { rate: "10/min".parse().unwrap(), burst: 1 }));
    rig.until("held", |r| r.broker.held("paceline.lane.normal.google") > 0).await;
    assert_eq!(worker.drain().await.unfinished, 0);
    let sent = rig.provider.total();
    assert!(sent <= 1);
    let mut consumer = rig.broker.consume("paceline.lane.normal.google", 100).await.unwrap();
    for n in sent..20 {
        let d = timeout(Duration::from_secs(5), consumer.next()).await.unwrap().unwrap();
        let body = String::from_utf8(d.body.to_vec()).unwrap();
        assert!(body.contains(&format!("\"g{n:02}\"")), "order is kept: {body}");
        d.settle.ack();
    }
}

#[tokio::test]
async fn a_lane_that_cannot_move_for_long_holds_nothing() {
    let rig = Rig::new().await;
    rig.send("waits", "plain", ONE, "").await;
    let worker = rig.worker(Some(Limit { rate: "1/h".parse().unwrap(), burst: 1 }));
    // Taken once, to learn when it may go; then given back, to wait in the broker.
    let queue = "paceline.lane.normal.google";
    let mut seen = 0;
    for _ in 0..2000 {
        seen += rig.broker.held(queue);
        if seen > 0 && rig.broker.held(queue) == 0 {
            break;
        }
        sleep(Duration::from_millis(1)).await;
    }
    rig.until("given back", |r| r.broker.held(queue) == 0).await;
    assert_eq!((rig.broker.depth(queue).await.unwrap(), rig.provider.total()), (1, 0));
    worker.drain().await;
}

#[tokio::test]
async fn mail_that_expires_while_held_is_given_up_without_a_grant() {
    let rig = Rig::new().await;
    let soon: paceline_core::Timestamp = std::time::SystemTime::now().into();
    let soon = soon + Duration::from_millis(600);
    rig.send("first", "plain", ONE, &format!(r#","expires_at":"{soon}""#)).await;
    rig.send("stays", "plain", ONE, "").await;
    // The next token is six seconds away.
    let worker = rig.worker(Some(Limit { rate: "10/min".parse().unwrap(), burst: 1 }));
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.message_id.as_deref(), letter.reason), (Some("first"), Reason::Expired));
    assert_eq!(rig.provider.total(), 0);
    worker.drain().await;
}

#[tokio::test]
async fn a_lost_broker_costs_nothing_and_sends_nothing_twice() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    rig.send("hanging", "hang", ONE, "").await;
    rig.until("call under way", |r| r.provider.calls_of("hanging") == 1).await;
    rig.broker.lose("cut");
    sleep(Duration::from_millis(50)).await;
    rig.broker.restore();
    // Delivered again while its first handler still runs.
    rig.until("consumed again", |r| r.broker.held("paceline.lane.normal.google") == 1).await;
    rig.send("after", "plain", r#""w@gmail.com""#, "").await;
    rig.until("work resumes", |r| r.provider.calls_of("after") == 1).await;
    rig.provider.hang.notify_one();
    rig.until("settled", |r| r.broker.held("paceline.lane.normal.google") == 0).await;
    assert_eq!(rig.provider.calls_of("hanging"), 1);
    worker.drain().await;
}

#[tokio::test]
async fn two_workers_share_the_lanes_and_send_each_message_once() {
    let rig = Rig::new().await;
    let (a, b) = (rig.worker(None), rig.worker(None));
    for n in 0..300 {
        rig.send(&format!("m{n}"), "plain", &format!("\"u{n}@gmail.com\""), "").await;
    }
    rig.until("all sent", |r| r.provider.total() >= 300).await;
    a.drain().await;
    b.drain().await;
    let calls = rig.provider.calls.lock().unwrap();
    let ids: std::collections::HashSet<_> = calls.iter().map(|(id, _)| id).collect();
    assert_eq!((calls.len(), ids.len()), (300, 300));
}
