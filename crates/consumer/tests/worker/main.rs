//! The pipeline over in-process ports: what becomes of messages, whatever the provider says and the broker does.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail anywhere")]

mod ages;
mod batched;
mod directed;
mod divided;
mod flows;
mod lanes;
mod learning;
mod script;
mod suppressed;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_broker::{Broker, Outgoing, Properties, Purpose, Route, Topology, header_text, memory::MemoryBroker};
use paceline_classifier::{Classifier, DestinationSpec, Destinations, Routes};
use paceline_consumer::{Account, Deps, Destination, FlowSettings, Keep, Limit, Metrics, Named, Settings, Worker, World};
use paceline_core::{
    Cancel, CancelSet, DeadLetter, Directives, Domain, Message, Outcome, Policy, ProviderAnswer, Rate, Reason, Rejected,
    RetryPolicy, Scope, Selector, SuppressionSet,
    circuit::CircuitPolicy,
    dead_letter,
    suppression::{Change, Entry, Kind},
};
use paceline_limiter::{fleet::LocalFleet, ledger::LocalLedger, local::LocalLimiter, signals::LocalSignals};
use paceline_provider::{Attempt, Provider};
use script::{Script, words};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

struct Rig {
    broker: MemoryBroker,
    provider: Arc<Script>,
    limiter: Arc<LocalLimiter>,
    ledger: Arc<LocalLedger>,
    cancels: watch::Sender<Arc<CancelSet>>,
    quota: Vec<Rate>,
    fleet_concurrency: Option<u32>,
    batch: usize,
    batch_wait: Duration,
    /// There is a second account, `spare`.
    spare: bool,
    tenants: Vec<Named>,
    suppressions: watch::Sender<Arc<SuppressionSet>>,
    circuit: CircuitPolicy,
    signals: Arc<LocalSignals>,
    keep: Option<Arc<dyn Keep>>,
    directives: watch::Sender<Arc<Directives>>,
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
            cancels: watch::Sender::default(),
            quota: vec![],
            fleet_concurrency: None,
            batch: 1,
            batch_wait: Duration::from_millis(50),
            spare: false,
            tenants: vec![],
            suppressions: watch::Sender::new(Arc::new(SuppressionSet::new(1, true))),
            circuit: CircuitPolicy::default(),
            signals: Arc::new(LocalSignals::new()),
            keep: None,
            directives: watch::Sender::default(),
        }
    }

    fn settings(&self, google: Option<Limit>) -> Settings {
        let quick = RetryPolicy {
            attempts: 3,
            base: Duration::from_millis(20),
            max: Duration::from_millis(100),
            max_age: Duration::from_secs(3600),
        };
        let names: &[&str] = if self.spare { &["main", "spare"] } else { &["main"] };
        let account = |name: &&str| Account {
            name: (*name).into(),
            provider: self.provider.clone(),
            limit: None,
            max_rate: None,
            adaptive: true,
            warmup: None,
            quota: self.quota.clone(),
            concurrency: 32,
            fleet_concurrency: self.fleet_concurrency,
            total_timeout: Duration::from_secs(30),
            batch: self.batch,
            batch_wait: self.batch_wait,
        };
        Settings {
            worker_id: format!("w-{}", rand::random::<u32>()).into(),
            prefix: "paceline".into(),
            accounts: names.iter().map(account).collect(),
            destinations: vec![Destination {
                name: "google".into(),
                limit: google,
                max_rate: None,
                warmup_start: None,
                fleet: None,
                quota: vec![],
                concurrency: None,
            }],
            routes: Routes::all(names.iter().copied()),
            tail: Limit { rate: "1000/s".parse().unwrap(), burst: 1000 },
            tenants: self.tenants.clone(),
            senders: vec![],
            recipient: None,
            reserve: 0.2,
            quota_reserve: 0.0,
            policy: Policy::new([quick; 4]),
            circuit: self.circuit,
            concurrency: 32,
            held_bytes: 32 << 20,
            max_message_bytes: 10 << 20,
            flows: FlowSettings::default(),
            drain_grace: Duration::from_secs(5),
        }
    }

    fn worker(&self, google: Option<Limit>) -> Worker {
        Worker::start(self.deps(google))
    }

    fn deps(&self, google: Option<Limit>) -> Deps {
        let domain = Domain::parse("gmail.com").unwrap();
        let destinations = Destinations::new(vec![DestinationSpec { name: "google".into(), domains: vec![domain] }]).unwrap();
        Deps {
            broker: Arc::new(self.broker.clone()),
            limiter: self.limiter.clone(),
            ledger: self.ledger.clone(),
            fleet: Arc::new(LocalFleet::new()),
            signals: self.signals.clone(),
            keep: self.keep.clone(),
            classifier: Arc::new(Classifier::new(vec![], destinations)),
            cancels: self.cancels.subscribe(),
            suppressions: self.suppressions.subscribe(),
            directives: self.directives.subscribe(),
            metrics: Metrics::default(),
            world: World::default(),
            settings: self.settings(google),
        }
    }

    async fn publish(&self, key: &str, body: String) {
        self.publish_with(key, body, Properties::default()).await;
    }

    async fn publish_with(&self, key: &str, body: String, properties: Properties) {
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

    /// From now on these are on the suppression list.
    fn suppress(&self, addresses: &[(&str, Kind)]) {
        let change = |(address, kind): &(&str, Kind)| Change {
            address: (*address).to_owned(),
            entry: Some(Entry { kind: *kind, until: None }),
        };
        let now = std::time::SystemTime::now().into();
        self.suppressions.send_modify(|set| *set = Arc::new(set.after(addresses.iter().map(change), now)));
    }

    /// The recipients of each call for this message, in order.
    fn recipients_of(&self, id: &str) -> Vec<String> {
        let calls = self.provider.calls.lock().unwrap();
        calls.iter().filter(|(i, _)| i == id).map(|(_, to)| to.join(" ")).collect()
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
            ("pinned", Reason::InvalidMessage),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_replay_is_a_call_of_its_own_under_a_key_of_its_own() {
    let rig = Rig::new().await;
    let worker = rig.worker(None);
    rig.send("m1", "", "\"u@gmail.com\"", "").await;
    rig.until("the original", |rig| rig.provider.total() == 1).await;
    // Each of them twice, as a replay that was interrupted does.
    for replay in ["r-1", "r-1", "r-1.2", "r-1.2"] {
        let body = r#"{"id":"m1","from":"a@b.org","to":["u@gmail.com"],"text":"x"}"#;
        let headers = [("x-paceline-replay".to_owned(), replay.into())].into();
        rig.publish_with("normal.gmail.com", body.into(), Properties { headers, ..Properties::default() }).await;
    }
    rig.until("both replays", |rig| rig.provider.total() >= 3).await;
    let lane = "paceline.lane.normal.google";
    let mut empty = 0;
    // What is given back for a moment is neither held nor called: once is not enough.
    while empty < 20 {
        let left = rig.broker.depth(lane).await.unwrap() + rig.broker.held(lane) as u64;
        empty = if left == 0 { empty + 1 } else { 0 };
        sleep(Duration::from_millis(10)).await;
    }
    worker.drain().await;
    assert_eq!(rig.provider.total(), 3);
    let mut keys = rig.provider.keys.lock().unwrap().clone();
    keys.sort();
    assert_eq!(keys, ["m1", "m1.r-1", "m1.r-1.2"]);
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
async fn cancelled_mail_is_given_up_wherever_it_is() {
    let rig = Rig::new().await;
    let order = |selector| {
        let now: paceline_core::Timestamp = std::time::SystemTime::now().into();
        Arc::new(CancelSet::new([Cancel { selector, since: now, until: now + Duration::from_secs(60) }]))
    };
    rig.send("held", "digest", ONE, "").await;
    rig.send("other", "plain", ONE, "").await;
    // The next token is six seconds away: both wait in the worker.
    let worker = rig.worker(Some(Limit { rate: "10/min".parse().unwrap(), burst: 1 }));
    rig.until("both are held", |r| r.broker.held("paceline.lane.normal.google") == 2).await;
    rig.cancels.send_replace(order(Selector::Stream("digest".into())));
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.message_id.as_deref(), letter.reason), (Some("held"), Reason::Cancelled));
    // The same order meets what comes after it, and no other mail.
    rig.send("later", "digest", ONE, "").await;
    let (letter, _) = rig.dead(1).await.remove(0);
    assert_eq!((letter.message_id.as_deref(), letter.reason), (Some("later"), Reason::Cancelled));
    assert_eq!(rig.provider.total(), 0);
    rig.until("the other mail goes out", |r| r.provider.calls_of("other") == 1).await;
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

#[tokio::test]
async fn a_spent_quota_sends_its_mail_back_to_the_broker_and_spends_no_attempts() {
    let rig = Rig { quota: vec!["7/h".parse().unwrap()], ..Rig::new().await };
    for n in 0..20 {
        rig.send(&format!("q{n:02}"), "plain", ONE, "").await;
        rig.publish("low.else.org", format!(r#"{{"id":"t{n}","from":"a@b.org","to":["u@else.org"],"text":"x"}}"#)).await;
    }
    // Could never go, and keeps nobody else.
    let eight: Vec<String> = (0..8).map(|n| format!("\"u{n}@gmail.com\"")).collect();
    rig.send("eight", "plain", &eight.join(","), "").await;
    let submitted = rig.broker.counters().published(Purpose::Submit);
    let worker = rig.worker(None);
    rig.until("the quota is spent", |r| r.provider.total() == 7).await;
    // Named lanes and the tail alike: what waits for hours waits in the broker, and is not parked turn by turn.
    let lanes = ["paceline.lane.normal.google", "paceline.lane.low.tail"];
    rig.until("given back", |r| lanes.iter().all(|lane| r.broker.held(lane) == 0)).await;
    let mut waiting = 0;
    for lane in lanes {
        waiting += rig.broker.depth(lane).await.unwrap();
    }
    assert_eq!((waiting, rig.provider.total()), (33, 7));
    let (letter, body) = rig.dead(1).await.remove(0);
    assert!(letter.reason == Reason::InvalidMessage && String::from_utf8_lossy(&body).contains("eight"));
    assert_eq!(
        Purpose::ALL
            .iter()
            .filter(|p| !matches!(p, Purpose::Event | Purpose::Dead))
            .map(|p| rig.broker.counters().published(*p))
            .sum::<u64>(),
        submitted
    );
    worker.drain().await;
}

#[tokio::test]
async fn calls_at_a_time_are_limited_over_all_workers() {
    let rig = Rig { fleet_concurrency: Some(3), ..Rig::new().await };
    let (a, b) = (rig.worker(None), rig.worker(None));
    for n in 0..9 {
        rig.send(&format!("h{n}"), "hang", ONE, "").await;
    }
    for begun in [3, 6, 9] {
        rig.until("calls under way", |r| r.provider.total() == begun).await;
        sleep(Duration::from_millis(150)).await;
        assert_eq!(rig.provider.total(), begun, "no more than three at a time");
        for _ in 0..3 {
            rig.provider.hang.notify_one();
            sleep(Duration::from_millis(1)).await;
        }
    }
    // A worker that ends gives its slots back at once.
    rig.send("last", "hang", ONE, "").await;
    rig.until("the last", |r| r.provider.calls_of("last") == 1).await;
    rig.provider.hang.notify_one();
    a.drain().await;
    for n in 0..3 {
        rig.send(&format!("more{n}"), "plain", ONE, "").await;
    }
    rig.until("the other has all slots", |r| r.provider.total() == 13).await;
    b.drain().await;
}

#[tokio::test]
async fn a_tenant_at_its_limit_keeps_no_other_from_the_lane() {
    let slow = Named { name: "acme".into(), limit: Some(Limit { rate: "1/h".parse().unwrap(), burst: 1 }), quota: vec![] };
    let rig = Rig { tenants: vec![slow], ..Rig::new().await };
    for n in 0..40 {
        rig.send(&format!("acme{n}"), "plain", ONE, r#","tenant":"acme""#).await;
    }
    rig.send("other", "plain", ONE, r#","tenant":"other""#).await;
    let worker = rig.worker(Some(Limit { rate: "3/s".parse().unwrap(), burst: 3 }));
    rig.until("the other's mail", |r| r.provider.calls_of("other") == 1).await;
    assert_eq!(rig.provider.total(), 1);
    worker.drain().await;
}
