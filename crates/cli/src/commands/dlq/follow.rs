//! A job, run or watched, with its progress on standard error and its end on standard output.

use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

use paceline_broker::{Broker, memory::MemoryBroker};
use paceline_dlq::jobs::{self, Deps, Ended, Progress};
use paceline_store::{FailedItem, Job, JobKind, JobState, Store};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{about, grouped};
use crate::{
    commands::{broker_is_up, operator},
    config::Config,
    exit::Failure,
    output::{self, Format},
    services,
    signals::Signals,
};

/// Failures that are shown.
const MAX_FAILURES: u32 = 1000;
/// How often a job that runs elsewhere is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a job stands, printed.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    job: &'a Job,
    left: u64,
    failures: Vec<FailedItem>,
}

/// Runs the job here until it has ended. Where another process runs it, watches; and goes on where that one stops.
pub(super) async fn work(config: &Config, store: Arc<dyn Store>, job: Job, format: Format) -> Result<(), Failure> {
    if job.state != JobState::Running {
        return finish(&*store, &job, format).await;
    }
    let broker: Arc<dyn Broker> = match job.kind {
        JobKind::Replay => {
            let broker = services::broker(config, "replay")?;
            broker_is_up(&*broker, config).await?;
            broker
        }
        // Publishes nothing.
        JobKind::Discard => Arc::new(MemoryBroker::new(&config.broker.prefix)),
    };
    let owner = jobs::owner(&format!("{} {}", operator::host(), std::process::id()));
    let deps = Deps::new(store.clone(), broker.clone(), owner);
    let mut signals = Signals::new()?;
    let mut view = View::new();
    let mut job = job;
    let result = loop {
        match run(&job, &deps, &mut view, &mut signals).await? {
            Ended::Finished(job) => break finish(&*store, &job, format).await,
            Ended::Stopped(job) => break stopped(&*store, &job, format).await,
            Ended::Unknown => break Err(Failure::failed(format!("job {} is gone from the store", job.id))),
            Ended::Taken { owner } => {
                view.say(&format!("{owner} runs it; watching"));
                match look_on(&*store, job, Until::Free, &mut view, &mut signals).await? {
                    Watched::Free(free) => job = free,
                    Watched::Finished(job) => break finish(&*store, &job, format).await,
                    Watched::Interrupted(job) => break print(&*store, &job, format).await,
                }
            }
        }
    };
    broker.close().await;
    result
}

/// Watches a job that runs elsewhere until it has ended.
pub(super) async fn watch(store: Arc<dyn Store>, job: Job, format: Format) -> Result<(), Failure> {
    let (mut signals, mut view) = (Signals::new()?, View::new());
    match look_on(&*store, job, Until::Ended, &mut view, &mut signals).await? {
        Watched::Interrupted(job) => print(&*store, &job, format).await,
        Watched::Free(job) | Watched::Finished(job) => finish(&*store, &job, format).await,
    }
}

/// Prints how it stands.
pub(super) async fn print(store: &dyn Store, job: &Job, format: Format) -> Result<(), Failure> {
    // A cancelled job also tells what may have gone out.
    let any = job.failed > 0 || job.state == JobState::Cancelled;
    let failures = if any { store.failures(&job.id, MAX_FAILURES).await? } else { vec![] };
    output::object(format, &Outcome { job, left: job.left(), failures }, people)?;
    Ok(())
}

async fn finish(store: &dyn Store, job: &Job, format: Format) -> Result<(), Failure> {
    print(store, job, format).await?;
    if job.failed > 0 || job.state == JobState::Cancelled { Err(Failure::Reported) } else { Ok(()) }
}

async fn stopped(store: &dyn Store, job: &Job, format: Format) -> Result<(), Failure> {
    print(store, job, format).await?;
    let Job { id, kind, .. } = job;
    Err(Failure::failed(format!(
        "stopped; `paceline dlq {kind} --resume {id}` goes on, `--cancel {id}` ends it. Where a control process runs, it goes \
         on by itself in ten seconds"
    )))
}

async fn run(job: &Job, deps: &Deps, view: &mut View, signals: &mut Signals) -> Result<Ended, Failure> {
    let stop = CancellationToken::new();
    let (progress, now) = watch::channel(Progress { job: job.clone(), waiting: None });
    let mut running = Box::pin(jobs::run(job, deps, &progress, &stop));
    loop {
        tokio::select! {
            ended = &mut running => {
                view.end();
                return Ok(ended);
            }
            () = view.tick() => view.show(&now.borrow()),
            () = signals.end() => {
                if stop.is_cancelled() {
                    view.end();
                    let Job { id, kind, .. } = job;
                    return Err(Failure::failed(format!(
                        "told twice to end; what was under way is sorted out by `paceline dlq {kind} --resume {id}`"
                    )));
                }
                view.say("stopping: what is under way is finished and recorded");
                stop.cancel();
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Ended,
    /// Or nobody runs it.
    Free,
}

enum Watched {
    Finished(Job),
    Free(Job),
    Interrupted(Job),
}

async fn look_on(
    store: &dyn Store,
    mut job: Job,
    until: Until,
    view: &mut View,
    signals: &mut Signals,
) -> Result<Watched, Failure> {
    let mut looks = interval(LOOK_EVERY);
    let mut waiting = None;
    let watched = loop {
        tokio::select! {
            () = signals.end() => break Watched::Interrupted(job),
            () = view.tick() => view.show(&Progress { job: job.clone(), waiting: waiting.clone() }),
            _ = looks.tick() => match store.job(&job.id).await {
                Ok(Some(now)) => {
                    let free = now.owner.is_none();
                    waiting = free.then(|| "nobody runs it; --resume does".to_owned());
                    job = now;
                    if job.state != JobState::Running {
                        break Watched::Finished(job);
                    }
                    if free && until == Until::Free {
                        break Watched::Free(job);
                    }
                }
                Ok(None) => {
                    view.end();
                    return Err(Failure::failed(format!("job {} is gone from the store", job.id)));
                }
                Err(e) => waiting = Some(e.in_full()),
            }
        }
    };
    view.end();
    Ok(watched)
}

fn people(outcome: &Outcome<'_>) -> String {
    let Outcome { job, left, failures } = outcome;
    let did = match job.kind {
        JobKind::Replay => "replayed",
        JobKind::Discard => "discarded",
    };
    let (done, total, failed) = (grouped(job.done), grouped(job.total), grouped(job.failed));
    let mut text = format!("{}  {}: {done} of {total} {did}, {failed} failed, {} left\n", job.id, job.state, grouped(*left));
    if let Some(by) = &job.cancelled_by {
        text.push_str(&format!("Cancelled by {by}; what was left is open again.\n"));
    }
    if !failures.is_empty() {
        let rows: Vec<_> = failures.iter().map(|f| vec![f.id.clone(), f.error.clone()]).collect();
        text.push_str(&format!("\n{}", output::table(&["OPEN AGAIN", "WHY"], &rows)));
    }
    text
}

/// Progress for whoever sits in front of it: one line that is written over on a terminal, now and then a line elsewhere.
struct View {
    ticks: Interval,
    terminal: bool,
    /// A line that is to be written over.
    drawn: bool,
    /// What was said, and when, where lines stay.
    last: Option<(Option<String>, Instant)>,
}

/// Between lines that stay, unless there is news.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl View {
    fn new() -> View {
        let mut ticks = interval(Duration::from_millis(200));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        View { ticks, terminal: io::stderr().is_terminal(), drawn: false, last: None }
    }

    async fn tick(&mut self) {
        self.ticks.tick().await;
    }

    fn show(&mut self, progress: &Progress) {
        let line = line(progress);
        if self.terminal {
            self.drawn = true;
            // Where standard error is closed there is nobody to tell.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
            return;
        }
        let due = |(waiting, at): &(Option<String>, Instant)| *waiting != progress.waiting || at.elapsed() >= LINE_EVERY;
        if self.last.as_ref().is_none_or(due) {
            self.last = Some((progress.waiting.clone(), Instant::now()));
            crate::say(&line);
        }
    }

    fn say(&mut self, what: &str) {
        self.end();
        crate::say(what);
    }

    /// Takes the line away.
    fn end(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(Progress { job, waiting }: &Progress) -> String {
    let mut line = format!("{}: {} of {} done", job.id, grouped(job.done), grouped(job.total));
    if job.failed > 0 {
        line.push_str(&format!(", {} failed", grouped(job.failed)));
    }
    match (waiting, job.rate) {
        (Some(why), _) => line.push_str(&format!("; waiting: {why}")),
        (None, Some(rate)) => {
            line.push_str(&format!(", {rate}, {} left", about(job.left() as f64 / rate.as_per_second())));
        }
        (None, None) => {}
    }
    // It comes in part from outside, and must stay one line.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
