//! Jobs over both stores and the in-process broker, with whatever goes away under them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use paceline_broker::{Broker, Topology, header_text, memory::MemoryBroker};
use paceline_core::{Class, DeadLetter, Journey, Rate, Reason, Timestamp};
use paceline_dlq::{
    Runner,
    jobs::{self, Deps, Ended, Progress},
};
use paceline_store::{
    Error, FailedItem, Filter, Item, ItemOutcome, Job, JobKind, JobState, Jobs, Leased, NewJob, Options, Plan, PostgresStore,
    Purge, SqliteStore, State, StateFilter, Store, StoredDeadLetter,
};
use paceline_testkit::Postgres;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// A lane of mail that no destination takes.
const LANE: &str = "paceline.lane.high.tail";

/// Runs the case over each kind of store, empty.
async fn each(case: impl AsyncFn(Arc<dyn Store>)) {
    let (dir, postgres) = (tempfile::tempdir().unwrap(), Postgres::start().await);
    let file = dir.path().join("store.db");
    let sqlite = SqliteStore::new(file.to_str().unwrap(), Options::default()).unwrap();
    let postgres_store = PostgresStore::new(&postgres.url(), Options::default()).unwrap();
    tokio::join!(case(Arc::new(sqlite)), case(Arc::new(postgres_store)));
}

async fn broker() -> MemoryBroker {
    let broker = MemoryBroker::new("paceline");
    broker.apply(&Topology::new("paceline", std::iter::empty::<(&str, [&str; 0])>())).await.unwrap();
    broker
}

fn letter(n: u64, reason: Reason) -> StoredDeadLetter {
    let at = Timestamp::from_secs(1_800_000_000) + Duration::from_secs(n);
    let body = format!(r#"{{"id":"m{n}","from":"a@example.com","to":["u{n}@x.example"],"text":"hi"}}"#);
    StoredDeadLetter {
        entry: DeadLetter {
            message_id: Some(format!("m{n}")),
            class: Some(Class::High),
            domain: Some("x.example".into()),
            ..DeadLetter::new(format!("d{n}"), reason, &Journey::starting(at), at)
        },
        amqp_message_id: None,
        content_type: Some("application/json".into()),
        headers: serde_json::Map::new(),
        body: body.into_bytes().into(),
    }
}

async fn fill(store: &dyn Store, count: u64) {
    let letters: Vec<_> = (0..count).map(|n| letter(n, Reason::MaxAgeExceeded)).collect();
    store.insert(&letters).await.unwrap();
}

fn order(kind: JobKind, rate: Option<Rate>) -> NewJob {
    let filter = jobs::selection(kind, Filter::default());
    NewJob { kind, filter, rate, by: "ann".into(), note: Some("a test".into()) }
}

async fn replay(store: &dyn Store, per_second: u32) -> Job {
    store.create(&order(JobKind::Replay, Some(Rate::per_second(per_second)))).await.unwrap().unwrap()
}

fn deps(store: &Arc<dyn Store>, broker: &MemoryBroker) -> Deps {
    let lease = Duration::from_secs(1);
    Deps { lease, ..Deps::new(store.clone(), Arc::new(broker.clone()), jobs::owner("test")) }
}

async fn run(job: &Job, deps: &Deps) -> Ended {
    let progress = watch::Sender::new(Progress { job: job.clone(), waiting: None });
    tokio::time::timeout(Duration::from_secs(120), jobs::run(job, deps, &progress, &CancellationToken::new())).await.unwrap()
}

#[track_caller]
fn finished(ended: Ended) -> Job {
    match ended {
        Ended::Finished(job) => job,
        other => panic!("{other:?}"),
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

/// What was published to the lane: how often, by body and replay id.
async fn published(broker: &MemoryBroker) -> BTreeMap<(String, String), usize> {
    let mut copies = BTreeMap::new();
    let mut left = broker.depth(LANE).await.unwrap();
    let mut consumer = broker.consume(LANE, 0).await.unwrap();
    while left > 0 {
        let delivery = consumer.next().await.unwrap();
        let replay = header_text(&delivery.properties.headers, "x-paceline-replay").unwrap().into_owned();
        let body = String::from_utf8(delivery.body.to_vec()).unwrap();
        *copies.entry((body, replay)).or_default() += 1;
        delivery.settle.ack();
        left -= 1;
    }
    copies
}

async fn states(store: &dyn Store) -> HashMap<State, usize> {
    let filter = Filter { state: StateFilter::All, ..Filter::default() };
    let mut counts = HashMap::new();
    for listed in store.list(&filter).await.unwrap() {
        *counts.entry(listed.status.state).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selection_is_replayed_once_and_never_again() {
    each(async |store| {
        fill(&*store, 500).await;
        store.insert(&[letter(900, Reason::InvalidMessage)]).await.unwrap();
        let broker = broker().await;
        let job = replay(&*store, 100_000).await;
        // Comes too late for the frozen selection.
        store.insert(&[letter(901, Reason::MaxAgeExceeded)]).await.unwrap();
        let done = finished(run(&job, &deps(&store, &broker)).await);
        assert_eq!((done.state, done.total, done.done, done.failed), (JobState::Done, 500, 500, 0));
        let copies = published(&broker).await;
        assert_eq!((copies.len(), copies.values().sum::<usize>()), (500, 500));
        assert!(copies.keys().all(|(body, replay)| body.contains("u") && *replay == job.id));
        assert_eq!(states(&*store).await, [(State::Open, 2), (State::Replayed, 500)].into());
        let again = replay(&*store, 100_000).await;
        assert_eq!(again.total, 1, "only the one that came later is left");
        finished(run(&again, &deps(&store, &broker)).await);
        assert!(store.create(&order(JobKind::Replay, None)).await.unwrap().is_none());
        assert_eq!(published(&broker).await.len(), 1);
        // A job that has ended is not run again.
        assert_eq!(finished(run(&job, &deps(&store, &broker)).await).done, 500);
        assert_eq!(broker.depth(LANE).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runners_that_die_anywhere_leave_the_same_copies() {
    each(async |store| {
        const COUNT: u64 = 400;
        fill(&*store, COUNT).await;
        let broker = broker().await;
        let job = replay(&*store, 2000).await;
        let mut deaths = 0;
        let done = loop {
            let one = deps(&store, &broker);
            let progress = watch::Sender::new(Progress { job: job.clone(), waiting: None });
            let (never, after) = (CancellationToken::new(), Duration::from_millis(30 + 17 * deaths));
            // Dropped in the middle of whatever it does, like a process that is killed.
            match tokio::time::timeout(after, jobs::run(&job, &one, &progress, &never)).await {
                Ok(Ended::Finished(job)) => break job,
                Ok(Ended::Taken { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Ok(other) => panic!("{other:?}"),
                Err(_) => deaths += 1,
            }
        };
        assert_eq!((done.state, done.done, done.failed), (JobState::Done, COUNT, 0));
        let copies = published(&broker).await;
        let ids: BTreeSet<_> = copies.keys().map(|(_, replay)| replay.as_str()).collect();
        assert_eq!((copies.len() as u64, ids), (COUNT, BTreeSet::from([job.id.as_str()])), "one claim each");
        let twice = copies.values().filter(|n| **n > 1).count() as u64;
        assert!(deaths >= 2 && twice <= deaths * 100, "{twice} published again after {deaths} deaths");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_is_kept_and_a_stop_is_orderly() {
    each(async |store| {
        fill(&*store, 60).await;
        let broker = broker().await;
        let job = replay(&*store, 40).await;
        let (one, stop) = (deps(&store, &broker), CancellationToken::new());
        let progress = watch::Sender::new(Progress { job: job.clone(), waiting: None });
        let begun = Instant::now();
        let stopping = async {
            until("a third done", async || progress.borrow().job.done >= 20).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(jobs::run(&job, &one, &progress, &stop), stopping);
        let Ended::Stopped(stopped) = ended else { panic!("{ended:?}") };
        assert_eq!(store.job(&job.id).await.unwrap().unwrap().done, stopped.done);
        assert_eq!(broker.depth(LANE).await.unwrap(), stopped.done, "all that was published is recorded");
        assert_eq!(store.abandoned(10).await.unwrap().len(), 1, "given back");
        // Resumed by another at once.
        let done = finished(run(&job, &deps(&store, &broker)).await);
        assert_eq!((done.done, broker.depth(LANE).await.unwrap()), (60, 60));
        let least = Duration::from_secs_f64((60.0 - 2.0 * 4.0) / 40.0);
        assert!(begun.elapsed() >= least, "60 at 40/s took {:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_stops_and_leaves_the_rest_open() {
    each(async |store| {
        fill(&*store, 300).await;
        let broker = broker().await;
        let job = replay(&*store, 100).await;
        let one = deps(&store, &broker);
        let cancelling = async {
            until("some published", async || broker.depth(LANE).await.unwrap() >= 20).await;
            store.cancel(&job.id, "bob", Some("wrong one")).await.unwrap().unwrap()
        };
        let (ended, _) = tokio::join!(run(&job, &one), cancelling);
        let cancelled = finished(ended);
        assert_eq!((cancelled.state, cancelled.cancelled_by.as_deref()), (JobState::Cancelled, Some("bob")));
        let (count, left) = (broker.depth(LANE).await.unwrap(), 300 - cancelled.done);
        assert_eq!(cancelled.done, count, "what was published stays replayed");
        assert_eq!(states(&*store).await, [(State::Open, left as usize), (State::Replayed, count as usize)].into());
        // The rest can be ordered anew, and nothing goes out twice.
        let rest = replay(&*store, 100_000).await;
        assert_eq!(finished(run(&rest, &deps(&store, &broker)).await).done, left);
        let bodies: BTreeSet<_> = published(&broker).await.into_keys().map(|(body, _)| body).collect();
        assert_eq!(bodies.len(), 300);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_what_is_away_and_goes_on() {
    each(async |store| {
        fill(&*store, 200).await;
        let broker = broker().await;
        let job = replay(&*store, 200).await;
        let away = Arc::new(Away { store: store.clone(), away: AtomicBool::new(false) });
        let one = Deps { store: away.clone(), ..deps(&store, &broker) };
        let (progress, stop) = (watch::Sender::new(Progress { job: job.clone(), waiting: None }), CancellationToken::new());
        let waits = async |words: &str| {
            until(words, async || progress.borrow().waiting.as_ref().is_some_and(|why| why.contains(words))).await;
        };
        let trouble = async {
            until("begun", async || progress.borrow().job.done >= 20).await;
            broker.lose("the line is cut");
            waits("the line is cut").await;
            broker.restore();
            let before = progress.borrow().job.done;
            until("it goes on", async || progress.borrow().job.done > before).await;
            away.away.store(true, Ordering::SeqCst);
            waits("a test's outage").await;
            // Longer than the lease: nothing may be published on a lease that may have ended.
            tokio::time::sleep(one.lease).await;
            let published = broker.depth(LANE).await.unwrap();
            tokio::time::sleep(one.lease / 2).await;
            assert_eq!(broker.depth(LANE).await.unwrap(), published);
            away.away.store(false, Ordering::SeqCst);
        };
        let (ended, ()) = tokio::join!(jobs::run(&job, &one, &progress, &stop), trouble);
        assert_eq!(finished(ended).done, 200);
        assert_eq!(progress.borrow().waiting, None);
        let copies = published(&broker).await;
        assert_eq!((copies.len(), copies.values().sum::<usize>()), (200, 200));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_runner_works_and_abandoned_jobs_are_run_on() {
    each(async |store| {
        fill(&*store, 100).await;
        let broker = broker().await;
        let job = replay(&*store, 50).await;
        let (first, second) = (deps(&store, &broker), deps(&store, &broker));
        let stop = CancellationToken::new();
        let progress = watch::Sender::new(Progress { job: job.clone(), waiting: None });
        let meanwhile = async {
            until("begun", async || progress.borrow().job.done > 0).await;
            assert_eq!(run(&job, &second).await, Ended::Taken { owner: first.owner.clone() });
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(jobs::run(&job, &first, &progress, &stop), meanwhile);
        assert!(matches!(ended, Ended::Stopped(_)), "{ended:?}");

        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Runner::run(store.clone(), Arc::new(broker.clone()), shutdown.clone()));
        let state = async || store.job(&job.id).await.unwrap().unwrap().state;
        until("run on", async || state().await == JobState::Done).await;
        // One that was left to it from the start.
        store.insert(&[letter(500, Reason::Expired)]).await.unwrap();
        let later = replay(&*store, 50).await;
        until("the second", async || store.job(&later.id).await.unwrap().unwrap().state == JobState::Done).await;
        shutdown.cancel();
        running.await.unwrap();
        assert_eq!(published(&broker).await.len(), 101);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_entries_of_a_message_are_copies_of_their_own() {
    each(async |store| {
        let body = br#"{"id":"m1","from":"a@example.com","to":["b@x.example","c@x.example","d@x.example"],"text":"hi"}"#;
        let mut letters = Vec::new();
        for (n, to) in ["b@x.example", "c@x.example", "z@x.example"].into_iter().enumerate() {
            let mut one = letter(n as u64, Reason::RejectedRecipient);
            one.entry.message_id = Some("m1".into());
            one.entry.to = Some(to.into());
            one.body = body.as_slice().into();
            letters.push(one);
        }
        store.insert(&letters).await.unwrap();
        let broker = broker().await;
        let job = replay(&*store, 100_000).await;
        let done = finished(run(&job, &deps(&store, &broker)).await);
        assert_eq!((done.state, done.done, done.failed), (JobState::Done, 2, 1), "one names nobody of the message");
        let copies: Vec<_> = published(&broker).await.into_keys().collect();
        let of = |whose: &str| copies.iter().find(|(body, _)| body.contains(whose)).map(|(_, replay)| replay.clone());
        assert_eq!(of("b@x.example"), Some(job.id.clone()));
        assert_eq!(of("c@x.example"), Some(format!("{}.2", job.id)));
        assert!(copies.len() == 2 && of("d@x.example").is_none(), "{copies:?}");
        let failures = store.failures(&job.id, 10).await.unwrap();
        assert!(failures.len() == 1 && failures[0].error.contains("does not name them"), "{failures:?}");
        assert_eq!(states(&*store).await, [(State::Open, 1), (State::Replayed, 2)].into());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discarding_publishes_nothing() {
    each(async |store| {
        fill(&*store, 2500).await;
        store.insert(&[letter(9000, Reason::InvalidMessage)]).await.unwrap();
        let broker = broker().await;
        let job = store.create(&order(JobKind::Discard, None)).await.unwrap().unwrap();
        let done = finished(run(&job, &deps(&store, &broker)).await);
        assert_eq!((done.state, done.total, done.done), (JobState::Done, 2501, 2501));
        assert_eq!(states(&*store).await, [(State::Discarded, 2501)].into());
        assert_eq!(broker.depth(LANE).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_counts_what_an_operator_must_know() {
    each(async |store| {
        fill(&*store, 30).await;
        let mut late = letter(100, Reason::RetryBudgetExhausted);
        let body = r#"{"id":"m","from":"a@example.com","to":["u@x.example"],"text":"x","expires_at":"2026-01-01T00:00:00Z"}"#;
        late.body = body.as_bytes().to_vec().into();
        let more = [letter(101, Reason::Uncertain), letter(102, Reason::Poison), letter(103, Reason::InvalidMessage), late];
        store.insert(&more).await.unwrap();
        let now = Timestamp::from_secs(1_800_000_000);
        let rate = Some(Rate::per_second(11));
        let propose = async |kind, filter: Filter| jobs::propose(&*store, kind, &filter, rate, now).await.unwrap();
        let all = propose(JobKind::Replay, Filter::default()).await;
        assert_eq!((all.plan.total, all.plan.uncertain, all.expired, all.estimated_s), (33, 2, Some(1), Some(3.0)));
        assert_eq!(all.left_out.iter().map(|l| (l.reason, l.count)).collect::<Vec<_>>(), [(Reason::InvalidMessage, 1)]);
        let asked = propose(JobKind::Replay, Filter { reason: Some(Reason::InvalidMessage), ..Filter::default() }).await;
        assert_eq!((asked.plan.total, asked.left_out.len(), asked.expired), (1, 0, Some(0)));
        let asked = propose(JobKind::Replay, Filter { id: Some("d103".into()), ..Filter::default() }).await;
        assert_eq!((asked.plan.total, asked.left_out.len()), (1, 0));
        let latest = propose(JobKind::Replay, Filter { limit: Some(3), ..Filter::default() }).await;
        assert_eq!((latest.plan.total, latest.expired), (3, Some(1)));
        let discard = propose(JobKind::Discard, Filter::default()).await;
        assert_eq!((discard.plan.total, discard.expired), (34, None));
        // None of this changed anything.
        assert_eq!(states(&*store).await, [(State::Open, 34)].into());
    })
    .await;
}

/// A store that can be taken away.
struct Away {
    store: Arc<dyn Store>,
    away: AtomicBool,
}

impl Away {
    fn there(&self) -> Result<&dyn Store, Error> {
        if self.away.load(Ordering::SeqCst) { Err(Error::Unavailable("a test's outage".into())) } else { Ok(&*self.store) }
    }
}

#[async_trait]
impl Jobs for Away {
    async fn plan(&self, filter: &Filter) -> Result<Plan, Error> {
        self.there()?.plan(filter).await
    }
    async fn create(&self, new: &NewJob) -> Result<Option<Job>, Error> {
        self.there()?.create(new).await
    }
    async fn job(&self, id: &str) -> Result<Option<Job>, Error> {
        self.there()?.job(id).await
    }
    async fn jobs(&self, limit: u32) -> Result<Vec<Job>, Error> {
        self.there()?.jobs(limit).await
    }
    async fn abandoned(&self, limit: u32) -> Result<Vec<Job>, Error> {
        self.there()?.abandoned(limit).await
    }
    async fn lease(&self, id: &str, owner: &str, ttl: Duration) -> Result<Leased, Error> {
        self.there()?.lease(id, owner, ttl).await
    }
    async fn release(&self, id: &str, owner: &str) -> Result<(), Error> {
        self.there()?.release(id, owner).await
    }
    async fn next(&self, id: &str, owner: &str, max: u32) -> Result<Vec<Item>, Error> {
        self.there()?.next(id, owner, max).await
    }
    async fn settle(&self, id: &str, owner: &str, outcomes: &[(u64, ItemOutcome)]) -> Result<Job, Error> {
        self.there()?.settle(id, owner, outcomes).await
    }
    async fn discard_next(&self, id: &str, owner: &str, max: u32) -> Result<Job, Error> {
        self.there()?.discard_next(id, owner, max).await
    }
    async fn cancel(&self, id: &str, by: &str, note: Option<&str>) -> Result<Option<Job>, Error> {
        self.there()?.cancel(id, by, note).await
    }
    async fn failures(&self, id: &str, limit: u32) -> Result<Vec<FailedItem>, Error> {
        self.there()?.failures(id, limit).await
    }
    async fn purge(&self, purge: &Purge) -> Result<u64, Error> {
        self.there()?.purge(purge).await
    }
}
