//! A run: everything put together, from the first message to the report.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, RwLock, atomic::AtomicU64},
    time::Duration,
};

use paceline_broker::{Broker, Topology, header_text, memory::MemoryBroker};
use paceline_core::{DeadLetter, dead_letter};
use paceline_limiter::local::LocalClock;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    book::{Book, LoadBook, PhaseBook},
    chance::Chance,
    fleet::Crew,
    load::Producer,
    ports::{Outside, Redis, Shared, lock},
    receiver::Receivers,
    report::{self, Facts, Report},
    scenario::{BadScenario, Event, Phase, Scenario, What},
    worker::{PREFIX, Plan},
};

/// When every simulation begins, on its own clock: 2025-10-09.
const START_US: u64 = 1_760_000_000_000_000;
/// Between two looks at whether all is done.
const LOOK: Duration = Duration::from_secs(1);

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The load that is left out in this run, if it is one for comparison.
    pub without: Option<&'a str>,
    pub at: Duration,
    pub of: Duration,
    pub submitted: usize,
    pub done: usize,
}

/// A scenario, ready to run.
#[derive(Debug, Clone)]
pub struct Simulation {
    scenario: Scenario,
}

/// Runs `scenario`; `progress` hears of each second of simulated time.
///
/// # Errors
/// What is wrong with the scenario as a whole.
pub fn simulate(scenario: &Scenario, progress: &mut (dyn FnMut(Progress<'_>) + Send)) -> Result<Report, BadScenario> {
    Simulation { scenario: scenario.clone() }.run(progress)
}

impl Simulation {
    fn run(self, progress: &mut (dyn FnMut(Progress<'_>) + Send)) -> Result<Report, BadScenario> {
        let scenario = &self.scenario;
        let mut report = alone(scenario, None, progress)?;
        let mut others: BTreeMap<&str, Report> = BTreeMap::new();
        for without in scenario.expects.iter().filter_map(|e| e.without.as_deref()) {
            if !others.contains_key(without) {
                others.insert(without, alone(scenario, Some(without), progress)?);
            }
        }
        report.check(&scenario.expects, &others);
        Ok(report)
    }
}

/// One run, on a thread and a clock of its own.
fn alone(
    scenario: &Scenario,
    without: Option<&str>,
    progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<Report, BadScenario> {
    let bad = |problem: String| BadScenario::Text { name: "the scenario".into(), problem };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|e| bad(format!("no runtime: {e}")))?;
        runtime.block_on(whole(scenario, without, progress)).map_err(bad)
    };
    // Whoever calls may be in a runtime already, and one does not run within another.
    std::thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

async fn whole(
    scenario: &Scenario,
    without: Option<&str>,
    progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<Report, String> {
    let seed = scenario.seed;
    let clock = LocalClock::starting_at(START_US);
    let loads = scenario.loads.iter().map(|l| LoadBook::new(&l.name, l.class, l.recipients)).collect();
    let phase = |p: &Phase| PhaseBook {
        name: p.name.clone(),
        during_us: START_US + p.from.micros()..START_US + p.until.micros(),
        answers: BTreeMap::new(),
    };
    let phases = scenario.phases.iter().map(phase).collect();
    let shared = Arc::new(Shared {
        clock,
        redis: RwLock::new(Redis::empty(clock)),
        grants: Mutex::default(),
        book: Mutex::new(Book { loads, phases, ..Book::default() }),
        outside: Mutex::new(Outside::new(Receivers::new(scenario, START_US), Chance::of(seed, 1))),
        fleet: scenario.fleet.clone(),
        under_way: Mutex::default(),
        limiter_calls: AtomicU64::new(0),
    });
    let plan = Plan::new(scenario.clone())?;
    let broker = MemoryBroker::new(PREFIX);
    let named = scenario.destinations.iter().map(|d| (d.name.as_str(), d.domains.iter().map(String::as_str)));
    broker.apply(&Topology::new(PREFIX, named)).await.map_err(|e| e.to_string())?;

    let (start, end) = (Instant::now(), Instant::now() + scenario.duration.0);
    let buried = Arc::new(AtomicU64::new(0));
    let undertaker = tokio::spawn(bury(broker.connect(), shared.clone(), buried.clone()));
    let crew = Crew::new(plan, shared.clone(), broker.clone(), Chance::of(seed, 2));
    (0..scenario.fleet.workers).for_each(|_| crew.join());
    let mut producers = JoinSet::new();
    for (index, load) in scenario.loads.iter().enumerate().filter(|(_, l)| Some(l.name.as_str()) != without) {
        let chance = Chance::of(seed, 100 + index as u64);
        let broker = broker.connect();
        producers.spawn(Producer { load: load.clone(), index, shared: shared.clone(), broker, chance, end }.run());
    }
    for event in scenario.events.iter().cloned() {
        tokio::spawn(happen(event, crew.clone(), shared.clone()));
    }
    let crashes = scenario.fleet.crash_every.map(|every| {
        let (crew, mut chance) = (crew.clone(), Chance::of(seed, 3));
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_micros(chance.gap_us(1.0 / every.0.as_secs_f64()))).await;
                crew.crash(Some(1));
            }
        })
    });

    let say = |progress: &mut (dyn FnMut(Progress<'_>) + Send)| {
        let book = lock(&shared.book);
        let (at, of) = (start.elapsed(), scenario.duration.0);
        progress(Progress { without, at, of, submitted: book.submitted(), done: book.done });
    };
    loop {
        let more = end.min(Instant::now() + LOOK);
        sleep_until(more).await;
        while producers.try_join_next().is_some() {}
        say(progress);
        if (producers.is_empty() && lock(&shared.book).is_done()) || Instant::now() >= end {
            break;
        }
    }
    let took = start.elapsed();
    // Broker traffic of the end of the run is not the fleet's.
    let traffic = broker.traffic();
    let calls = crew.calls();
    crashes.inspect(|task| task.abort());
    producers.shutdown().await;
    crew.close().await;
    // What was confirmed a moment ago still has to reach the dead letters' reader.
    sleep(LOOK).await;
    undertaker.abort();

    let grants = lock(&shared.grants).uses();
    let most = lock(&shared.under_way).iter().map(|(key, (_, most))| (key.clone(), *most)).collect();
    let book = lock(&shared.book);
    Ok(report::of(Facts {
        scenario,
        book: &book,
        grants,
        most_under_way: most,
        calls,
        limiter_calls: shared.limiter_calls.load(std::sync::atomic::Ordering::Relaxed),
        traffic,
        buried: buried.load(std::sync::atomic::Ordering::Relaxed),
        waiting: broker.ids(),
        crashes: crew.crashes(),
        took,
    }))
}

/// Reads dead letters, as a control process does.
async fn bury(broker: MemoryBroker, shared: Arc<Shared>, buried: Arc<AtomicU64>) {
    let queue = paceline_broker::Names::new(PREFIX).dead();
    let Ok(mut consumer) = broker.consume(&queue, 1_000).await else { return };
    while let Some(delivery) = consumer.next().await {
        let entry = header_text(&delivery.properties.headers, dead_letter::HEADER);
        match entry.and_then(|e| serde_json::from_str::<DeadLetter>(&e).ok()) {
            Some(letter) => lock(&shared.book).dead(&letter),
            None => lock(&shared.book).strangers += 1,
        }
        buried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        delivery.settle.ack();
    }
}

async fn happen(event: Event, crew: Arc<Crew>, shared: Arc<Shared>) {
    sleep(event.at.0).await;
    let lasts = event.lasts.unwrap_or_default();
    match event.what {
        What::Join => (0..event.workers.unwrap_or(1)).for_each(|_| crew.join()),
        What::Leave => crew.leave(event.workers).await,
        What::Crash => crew.crash(event.workers),
        What::RedisAway => crew.redis_away(event.workers, lasts).await,
        What::RedisEmpty => shared.forget(),
        What::BrokerAway => crew.broker_away(event.workers, lasts).await,
    }
}
