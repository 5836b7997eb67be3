//! The writer between the in-process broker and a private PostgreSQL, or a store that misbehaves on purpose.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_broker::{Broker, HeaderValue, Outgoing, Properties, Purpose, Route, Topology, memory::MemoryBroker};
use paceline_core::{
    Class, DeadLetter, EmailAddress, Journey, Reason, Timestamp,
    dead_letter::{DeadLetterError, HEADER},
    suppression::Kind,
};
use paceline_dlq::{AutoSuppress, Options, Writer, WriterState};
use paceline_store::{
    BurstRule, DeadLetters, Error, Filter, Kept, Listed, Position, PostgresStore, SqliteStore, State, Stats, Status,
    StoredDeadLetter, Suppressions, Written,
};
use paceline_testkit::Postgres;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const DEAD: &str = "paceline.dead";

type Counts = Arc<Mutex<BTreeMap<Reason, u64>>>;

struct Running {
    broker: MemoryBroker,
    counts: Counts,
    state: watch::Receiver<WriterState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn quick() -> Options {
    Options { retry_min: Duration::from_millis(10), retry_max: Duration::from_millis(200), ..Options::new(DEAD.to_owned()) }
}

async fn broker() -> MemoryBroker {
    let broker = MemoryBroker::new("paceline");
    broker.apply(&Topology::new("paceline", std::iter::empty::<(&str, [&str; 0])>())).await.unwrap();
    broker
}

fn start(broker: &MemoryBroker, store: Arc<dyn DeadLetters>) -> Running {
    start_with(broker, store, None)
}

fn start_with(broker: &MemoryBroker, store: Arc<dyn DeadLetters>, suppressing: Option<AutoSuppress>) -> Running {
    let counts = Counts::default();
    let counted = counts.clone();
    let writer = Writer::new(Arc::new(broker.clone()), store, quick(), move |reason| {
        *counted.lock().unwrap().entry(reason).or_default() += 1;
    })
    .suppressing(suppressing);
    let stop = CancellationToken::new();
    let (state, stopped) = (writer.state(), stop.clone());
    let task = tokio::spawn(async move { writer.run(stopped).await });
    Running { broker: broker.clone(), counts, state, stop, task }
}

impl Running {
    fn counted(&self) -> u64 {
        self.counts.lock().unwrap().values().sum()
    }

    async fn until_all_is_acked(&self) {
        until("all acked", async || self.broker.depth(DEAD).await.ok() == Some(0) && self.broker.held(DEAD) == 0).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..6000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn entry(id: &str) -> DeadLetter {
    let now = Timestamp::from_micros(1_800_000_000_123_456);
    DeadLetter {
        message_id: Some(format!("m-{id}")),
        class: Some(Class::Normal),
        ..DeadLetter::new(id.to_owned(), Reason::RetryBudgetExhausted, &Journey::starting(now), now)
    }
}

fn header(value: impl Into<HeaderValue>) -> Properties {
    Properties { headers: [(HEADER.to_owned(), value.into())].into(), ..Properties::default() }
}

fn whole(id: &str) -> Properties {
    header(serde_json::to_string(&entry(id)).unwrap())
}

async fn publish(broker: &MemoryBroker, properties: Properties, body: impl Into<Bytes>) {
    let message =
        Outgoing { to: Route::Dead, key: "normal.google".to_owned(), body: body.into(), properties, purpose: Purpose::Dead };
    broker.publish(message).await.unwrap();
}

async fn all(store: &dyn DeadLetters) -> Vec<StoredDeadLetter> {
    let mut letters = Vec::new();
    for listed in store.list(&Filter::default()).await.unwrap() {
        letters.push(store.get(&listed.entry.id).await.unwrap().unwrap());
    }
    letters
}

fn open(server: &Postgres) -> Arc<PostgresStore> {
    let options = paceline_store::Options { acquire_timeout: Duration::from_secs(1), ..paceline_store::Options::default() };
    Arc::new(PostgresStore::new(&server.url(), options).unwrap())
}

#[tokio::test]
async fn entries_arrive_whole_and_are_counted_by_reason() {
    let server = Postgres::start().await;
    let store = open(&server);
    let broker = broker().await;
    let properties = Properties {
        message_id: Some("amqp".to_owned()),
        content_type: Some("application/json".to_owned()),
        headers: [
            (HEADER.to_owned(), serde_json::to_string(&entry("a")).unwrap().into()),
            ("x-n".to_owned(), HeaderValue::Int(7)),
            ("x-b".to_owned(), HeaderValue::Bytes(Bytes::from_static(b"\xff"))),
            ("x-nul".to_owned(), "\0".into()),
        ]
        .into(),
        ..Properties::default()
    };
    publish(&broker, properties, &b"{\"id\":1}"[..]).await;
    for i in 0..2_000 {
        publish(&broker, whole(&format!("many-{i}")), vec![b'x'; i]).await;
    }
    let running = start(&broker, store.clone());
    running.until_all_is_acked().await;
    assert_eq!(running.counts.lock().unwrap().clone(), BTreeMap::from([(Reason::RetryBudgetExhausted, 2_001)]));
    assert_eq!(*running.state.borrow(), WriterState::Writing);

    let a = store.get("a").await.unwrap().unwrap();
    assert_eq!(a.entry, entry("a"));
    assert_eq!((a.amqp_message_id.as_deref(), a.content_type.as_deref()), (Some("amqp"), Some("application/json")));
    assert_eq!(&*a.body, b"{\"id\":1}");
    let headers = serde_json::json!({"x-n": 7, "x-b": {"base64": "/w=="}, "x-nul": {"base64": "AA=="}});
    assert_eq!(serde_json::Value::Object(a.headers), headers);
    let shown = paceline_dlq::show(&*store, "m-many-3").await.unwrap();
    assert_eq!((shown.len(), shown[0].body.as_deref()), (1, Some("xxx")));
    assert_eq!(paceline_dlq::list(&*store, &Filter::default()).await.unwrap().len(), 100);
    running.end().await;
}

#[tokio::test]
async fn hostile_entries_are_kept_and_hold_up_nobody() {
    let server = Postgres::start().await;
    let store = open(&server);
    let broker = broker().await;
    let text = |e: &DeadLetter| serde_json::to_string(e).unwrap();
    let deep = "[".repeat(100_000);
    let long_id = entry(&"x".repeat(201));
    let nul_words = DeadLetter { detail: Some("a\0".repeat(5_000)), tenant: Some("t\0".to_owned()), ..entry("nul-words") };
    let hostile = [
        Properties::default(),
        header(""),
        header("null"),
        header("{}"),
        header("{\"id\":\"x\"}"),
        header(deep.as_str()),
        header(HeaderValue::Int(7)),
        header(HeaderValue::Bytes(Bytes::from_static(b"\xff\xfe"))),
        header(text(&entry(""))),
        header(text(&entry("a\0b"))),
        header(text(&entry("a\nb"))),
        header(text(&long_id)),
        header(text(&entry("x")).replace("retry_budget_exhausted", "no_such_reason")),
        header(text(&entry("x")).replace("2027-", "99999-")),
        header(text(&entry("x")).replace("\"attempts\":0", "\"attempts\":-1")),
        Properties { message_id: Some("\0".repeat(300)), ..Properties::default() },
        Properties {
            headers: [("x\0".to_owned(), "\0".into()), ("x-paceline-attempts".to_owned(), "3".into())].into(),
            ..Properties::default()
        },
    ];
    let mut bodies = BTreeSet::new();
    for (i, properties) in hostile.iter().enumerate() {
        let body = format!("\0\u{e9}{i}").into_bytes();
        publish(&broker, properties.clone(), body.clone()).await;
        publish(&broker, whole(&format!("good-{i}")), &b"good"[..]).await;
        bodies.insert(body);
    }
    publish(&broker, header(text(&nul_words)), &b"nul words"[..]).await;
    // Alike, but two messages.
    for _ in 0..2 {
        publish(&broker, Properties::default(), &b"twin"[..]).await;
    }
    // The same id for different messages.
    for body in ["first", "second", "third", "first"] {
        publish(&broker, whole("taken"), body).await;
    }
    let large = vec![0xffu8; 10 << 20];
    publish(&broker, Properties::default(), large.clone()).await;

    let running = start(&broker, store.clone());
    running.until_all_is_acked().await;
    let letters = all(&*store).await;
    assert_eq!(letters.iter().filter(|l| l.entry.id.starts_with("good-")).count(), hostile.len());
    let of_body = |body: &[u8]| letters.iter().filter(|l| *l.body == *body).collect::<Vec<_>>();
    for body in &bodies {
        let [letter] = of_body(body)[..] else { panic!("{body:?} is not there once") };
        assert_eq!(letter.entry.reason, Reason::InvalidMessage);
        assert_eq!(letter.entry.detail.as_deref(), Some("dead letter without a readable header"));
        assert_eq!(letter.entry.field.as_deref(), Some(HEADER));
    }
    assert_eq!(of_body(b"\0\xc3\xa916")[0].entry.attempts, 3, "what else is readable is read");
    assert_eq!(of_body(b"nul words")[0].entry.id, "nul-words");
    assert_eq!(of_body(b"twin").len(), 2);
    assert_eq!([of_body(b"first").len(), of_body(b"second").len(), of_body(b"third").len()], [1, 1, 1]);
    assert!(of_body(b"third")[0].entry.id.starts_with("taken"));
    assert_eq!(of_body(&large).len(), 1);
    assert_eq!(letters.len(), 2 * hostile.len() + 1 + 2 + 3 + 1);
    assert_eq!(running.counted(), letters.len() as u64);
    running.end().await;
}

#[tokio::test]
async fn nothing_is_lost_while_postgres_is_away() {
    let server = Postgres::start().await;
    let store = open(&server);
    let broker = broker().await;
    let mut running = start(&broker, store.clone());
    for i in 0..300 {
        publish(&broker, whole(&format!("before-{i}")), &b"x"[..]).await;
    }
    running.until_all_is_acked().await;
    server.stop().await;
    for i in 0..300 {
        publish(&broker, whole(&format!("during-{i}")), &b"x"[..]).await;
    }
    running.state.wait_for(|state| matches!(state, WriterState::Waiting(_))).await.unwrap();
    assert_eq!(broker.depth(DEAD).await.unwrap() + broker.held(DEAD) as u64, 300, "nothing is acked");
    server.start_again().await;
    running.until_all_is_acked().await;
    assert_eq!(*running.state.borrow(), WriterState::Writing);
    // And killed while it writes.
    let feeding = tokio::spawn({
        let broker = broker.clone();
        async move {
            for i in 0..3_000 {
                publish(&broker, whole(&format!("killed-{i}")), vec![b'x'; 2_000]).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let before = running.counted();
    until("writing", async || running.counted() > before).await;
    server.kill9().await;
    server.start_again().await;
    feeding.await.unwrap();
    running.until_all_is_acked().await;
    assert_eq!(store.stats(&Filter::default(), &BurstRule::default()).await.unwrap().total, 3_600);
    running.end().await;
}

#[tokio::test]
async fn a_lost_broker_brings_the_same_entries_again() {
    let server = Postgres::start().await;
    let store = open(&server);
    let broker = broker().await;
    for i in 0..2_000 {
        publish(&broker, whole(&i.to_string()), &b"x"[..]).await;
    }
    let running = start(&broker, store.clone());
    for goal in [200, 700] {
        until("some written", async || running.counted() >= goal).await;
        broker.lose("test");
        until("noticed", async || matches!(*running.state.borrow(), WriterState::Waiting(_))).await;
        broker.restore();
    }
    running.until_all_is_acked().await;
    assert_eq!(store.stats(&Filter::default(), &BurstRule::default()).await.unwrap().total, 2_000);
    assert_eq!(running.counted(), 2_000, "counted once each");
    running.end().await;
}

#[tokio::test]
async fn two_writers_share_the_queue_and_an_ending_one_gives_back() {
    let server = Postgres::start().await;
    let store = open(&server);
    let broker = broker().await;
    for i in 0..3_000 {
        publish(&broker, whole(&i.to_string()), &b"x"[..]).await;
    }
    let (one, two) = (start(&broker, store.clone()), start(&broker, store.clone()));
    until("both write", async || one.counted() > 0 && two.counted() > 0).await;
    let begun = one.counts.clone();
    one.end().await;
    two.until_all_is_acked().await;
    assert_eq!(begun.lock().unwrap().values().sum::<u64>() + two.counted(), 3_000);
    two.end().await;

    // With the store away, an ending writer leaves everything in the queue.
    server.stop().await;
    for i in 0..50 {
        publish(&broker, whole(&format!("late-{i}")), &b"x"[..]).await;
    }
    let mut three = start(&broker, store);
    three.state.wait_for(|state| matches!(state, WriterState::Waiting(_))).await.unwrap();
    three.end().await;
    assert_eq!((broker.depth(DEAD).await.unwrap(), broker.held(DEAD)), (50, 0));
}

/// Refuses whole batches that hold what it does not like.
#[derive(Default)]
struct Picky {
    letters: Mutex<HashMap<String, StoredDeadLetter>>,
}

#[async_trait]
impl DeadLetters for Picky {
    async fn insert(&self, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, Error> {
        if letters.iter().any(|l| l.entry.message_id.as_deref() == Some("m-bad") || l.body.starts_with(b"never")) {
            return Err(Error::Refused("SQLSTATE 22021".to_owned()));
        }
        let mut known = self.letters.lock().unwrap();
        Ok(letters
            .iter()
            .map(|l| match known.insert(l.entry.id.clone(), l.clone()) {
                None => Written::New,
                Some(_) => Written::Known,
            })
            .collect())
    }

    async fn list(&self, _: &Filter) -> Result<Vec<Listed>, Error> {
        let open = Status { state: State::Open, job: None, settled_at: None };
        let listed = |l: &StoredDeadLetter| Listed { entry: l.entry.clone(), status: open.clone() };
        Ok(self.letters.lock().unwrap().values().map(listed).collect())
    }

    async fn page(&self, _: &Filter, _: Option<&Position>, _: u32) -> Result<Vec<Kept>, Error> {
        Ok(Vec::new())
    }

    async fn get(&self, id: &str) -> Result<Option<StoredDeadLetter>, Error> {
        Ok(self.letters.lock().unwrap().get(id).cloned())
    }

    async fn stats(&self, _: &Filter, _: &BurstRule) -> Result<Stats, Error> {
        Ok(Stats::default())
    }
}

#[tokio::test]
async fn one_refused_entry_holds_up_no_other() {
    let store = Arc::new(Picky::default());
    let broker = broker().await;
    for i in 0..40 {
        publish(&broker, whole(&i.to_string()), &b"fine"[..]).await;
        if i == 3 {
            publish(&broker, whole("bad"), &b"\0bytes"[..]).await;
            publish(&broker, whole("hopeless"), &b"never"[..]).await;
        }
    }
    let running = start(&broker, store.clone());
    until("all but one acked", async || broker.depth(DEAD).await.ok() == Some(0) && broker.held(DEAD) == 1).await;
    let letters = all(&*store).await;
    assert_eq!(letters.iter().filter(|l| &*l.body == b"fine").count(), 40);
    let kept: Vec<_> = letters.iter().filter(|l| &*l.body == b"\0bytes").collect();
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].entry.reason, kept[0].entry.message_id.as_deref()), (Reason::InvalidMessage, None));
    assert!(kept[0].entry.detail.as_deref().unwrap().contains("22021"));
    running.end().await;
    assert_eq!((broker.depth(DEAD).await.unwrap(), broker.held(DEAD)), (1, 0), "the broker keeps what no store takes");
}

/// The dead letter of a message to this one recipient, who was refused with this reply.
fn refused(id: &str, to: &str, status: u16) -> (Properties, String) {
    let now = Timestamp::from(std::time::SystemTime::now());
    let error = DeadLetterError {
        code: "recipient_refused".to_owned(),
        http_status: Some(status),
        provider_message: "unknown".to_owned(),
    };
    let entry = DeadLetter {
        message_id: Some(format!("m-{id}")),
        to: Some(to.to_owned()),
        account: Some("relay".to_owned()),
        last_error: Some(error),
        ..DeadLetter::new(id.to_owned(), Reason::RejectedRecipient, &Journey::starting(now), now)
    };
    let body = format!(r#"{{"id":"m-{id}","from":"a@x.org","to":["{to}"],"text":"x"}}"#);
    (header(serde_json::to_string(&entry).unwrap()), body)
}

#[tokio::test]
async fn who_is_refused_for_good_is_listed_and_who_may_be_back_after_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::at(dir.path().join("store.db"), paceline_store::Options::default()));
    let broker = broker().await;
    let auto = AutoSuppress { list: store.clone(), repeats: 3 };
    let running = start_with(&broker, store.clone(), Some(auto.clone()));
    let refuse = async |id: &str, to: &str, status: u16| {
        let (properties, body) = refused(id, to, status);
        publish(&broker, properties, body).await;
        running.until_all_is_acked().await;
    };
    let listed = async |to: &str| store.suppression(&EmailAddress::parse(to).unwrap()).await.unwrap();
    refuse("1", "Gone@x.org", 550).await;
    let entry = listed("gone@x.org").await.unwrap();
    assert_eq!((entry.kind, entry.reason.as_str(), entry.until), (Kind::Hard, "bounce", None));
    assert_eq!((entry.source.as_deref(), entry.note.as_deref()), (Some("relay"), Some("unknown")));

    refuse("2", "may-be@x.org", 450).await;
    refuse("3", "May-Be@x.org", 450).await;
    // The same one again, as after a crash, is no repeat.
    refuse("3", "May-Be@x.org", 450).await;
    assert_eq!(listed("may-be@x.org").await, None);
    refuse("4", "may-be@x.org", 450).await;
    assert_eq!(listed("may-be@x.org").await.map(|e| e.kind), Some(Kind::Hard));
    publish(&broker, whole("5"), &b"{}"[..]).await;
    running.until_all_is_acked().await;
    running.end().await;

    // Off the list by an operator's word, and not told to list by itself.
    store.unsuppress(&[EmailAddress::parse("gone@x.org").unwrap()], "ada", None).await.unwrap();
    let plain = start(&broker, store.clone());
    let (properties, body) = refused("6", "gone@x.org", 550);
    publish(&broker, properties, body).await;
    plain.until_all_is_acked().await;
    assert_eq!(listed("gone@x.org").await, None);
    plain.end().await;
}
