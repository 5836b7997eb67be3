//! One job, run by whoever holds its lease.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use paceline_broker::PublishError;
use paceline_core::Timestamp;
use paceline_store::{Error, Item, ItemOutcome, Job, JobKind, JobState, Leased};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{DEFAULT_RATE, Deps, Ended, Progress, outgoing::outgoing, outgoing::replay_id, pace::Pace};

/// Batches taken from the store at a time. What was taken and not settled when a job is cancelled behind a runner that
/// died may have gone out, as far as anybody knows: few are better.
const BATCHES_TAKEN: usize = 4;
/// Entries discarded in one step.
const DISCARD_PAGE: u32 = 1000;
/// Between tries while broker or store are away.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// What was published is still settled after the job was halted, if the store takes it within this.
const LAST_SETTLE: Duration = Duration::from_secs(5);

/// Runs `job` until it has ended, `stop`, or another holds it. Broker and store may go away meanwhile: it waits for
/// them, says so in `progress`, and goes on.
///
/// Any number of runners may be started for one job, here or elsewhere: one of them works.
pub async fn run(job: &Job, deps: &Deps, progress: &watch::Sender<Progress>, stop: &CancellationToken) -> Ended {
    let (lease, held) = watch::channel(None);
    // The lease's end halts the work like `stop` does.
    let halt = stop.child_token();
    let run = Run { job, deps, progress, held, halt: halt.clone() };
    let (finished, gone) = {
        let working = run.work();
        tokio::pin!(working);
        tokio::select! {
            finished = &mut working => (finished, None),
            gone = run.keep(&lease) => {
                halt.cancel();
                // What has been published is still settled.
                (working.await, Some(gone))
            }
        }
    };
    let last = progress.borrow().job.clone();
    match &gone {
        Some(Leased::Taken { owner, .. }) if finished.is_none() => return Ended::Taken { owner: owner.clone() },
        Some(Leased::Unknown) if finished.is_none() => return Ended::Unknown,
        _ => {}
    }
    // A cancelled job lets go of what it had taken and not begun.
    if let Err(error) = deps.store.release(&job.id, &deps.owner).await {
        warn!(job = job.id, error = error.in_full(), "the job is not given back; its lease runs out by itself");
    }
    match (finished, gone) {
        (Some(job), _) => Ended::Finished(job),
        (None, Some(Leased::Ended(state))) => match deps.store.job(&job.id).await {
            Ok(Some(job)) => {
                progress.send_modify(|p| p.job = job.clone());
                Ended::Finished(job)
            }
            _ => Ended::Finished(Job { state, ..last }),
        },
        _ => Ended::Stopped(last),
    }
}

struct Run<'a> {
    job: &'a Job,
    deps: &'a Deps,
    progress: &'a watch::Sender<Progress>,
    /// Until when the lease certainly holds.
    held: watch::Receiver<Option<Instant>>,
    halt: CancellationToken,
}

impl Run<'_> {
    /// Holds the lease; returns when it cannot be had.
    async fn keep(&self, lease: &watch::Sender<Option<Instant>>) -> Leased {
        let Deps { store, owner, lease: ttl, .. } = self.deps;
        loop {
            let asked = Instant::now();
            match store.lease(&self.job.id, owner, *ttl).await {
                Ok(Leased::Yes(_)) => {
                    // Nothing is published in the last part of it: a publish takes a while.
                    lease.send_replace(Some(asked + *ttl * 4 / 5));
                    sleep(*ttl * 3 / 10).await;
                }
                Ok(gone) => return gone,
                Err(error) => {
                    self.waits(error.in_full());
                    sleep(PAUSE_MAX).await;
                }
            }
        }
    }

    /// `None` where it was halted.
    async fn work(&self) -> Option<Job> {
        self.until_held().await?;
        info!(job = self.job.id, left = self.job.left(), by = self.job.by, "{} job begins here", self.job.kind);
        let job = match self.job.kind {
            JobKind::Replay => self.replay().await?,
            JobKind::Discard => self.discard().await?,
        };
        info!(job = job.id, done = job.done, failed = job.failed, "{} job {}", job.kind, job.state);
        Some(job)
    }

    async fn replay(&self) -> Option<Job> {
        let Deps { store, owner, .. } = self.deps;
        let mut pace = Pace::new(self.job.rate.unwrap_or(DEFAULT_RATE), Instant::now());
        let most = u32::try_from(pace.together() * BATCHES_TAKEN).unwrap_or(1);
        loop {
            self.until_held().await?;
            let items = self.ask(|| store.next(&self.job.id, owner, most)).await?;
            if items.is_empty() {
                // The job has ended, or the lease: the latter halts this soon.
                if let Some(job) = self.ended().await? {
                    return Some(job);
                }
                self.pause(PAUSE_MAX).await?;
                continue;
            }
            let (mut rest, mut published) = (items.as_slice(), Vec::new());
            while !rest.is_empty() {
                let (turns, at) = pace.next(rest.len());
                let (batch, later) = rest.split_at(turns);
                // What was published is settled while the next turn is waited for.
                let (settled, next) = tokio::join!(self.settle(published), async {
                    tokio::select! {
                        () = self.halt.cancelled() => return None,
                        () = sleep_until(at) => {}
                    }
                    self.until_held().await?;
                    pace.used(turns, Instant::now());
                    Some(self.publish(batch).await)
                });
                if let Some(job) = settled.filter(has_ended) {
                    // Cancelled, or done by another hand; what went out meanwhile went out.
                    let last = self.settle(next.unwrap_or_default()).await;
                    return Some(last.unwrap_or(job));
                }
                published = next?;
                rest = later;
            }
            if let Some(job) = self.settle(published).await.filter(has_ended) {
                return Some(job);
            }
        }
    }

    async fn discard(&self) -> Option<Job> {
        let Deps { store, owner, .. } = self.deps;
        let mut pace = self.job.rate.map(|rate| Pace::new(rate, Instant::now()));
        loop {
            let mut step = DISCARD_PAGE;
            if let Some(pace) = &mut pace {
                let (turns, at) = pace.next(DISCARD_PAGE as usize);
                self.pause(at.saturating_duration_since(Instant::now())).await?;
                pace.used(turns, Instant::now());
                step = u32::try_from(turns).unwrap_or(DISCARD_PAGE);
            }
            self.until_held().await?;
            let before = self.progress.borrow().job.left();
            let job = self.ask(|| store.discard_next(&self.job.id, owner, step)).await?;
            self.note(&job);
            if has_ended(&job) {
                return Some(job);
            }
            if job.left() == before {
                // The lease is lost, which halts this soon.
                self.pause(PAUSE_MAX).await?;
            }
        }
    }

    /// Publishes all of them at once; those whose end is known.
    async fn publish(&self, batch: &[Item]) -> Vec<(u64, ItemOutcome)> {
        let each = batch.iter().map(|item| async { Some((item.seq, self.publish_one(item).await?)) });
        join_all(each).await.into_iter().flatten().collect()
    }

    /// Until confirmed, or never to be; `None` where it was halted before.
    async fn publish_one(&self, item: &Item) -> Option<ItemOutcome> {
        let now = Timestamp::from(SystemTime::now());
        let outgoing = match outgoing(replay_id(&self.job.id, item.copy), &item.letter, now) {
            Ok(outgoing) => outgoing,
            Err(why) => return Some(ItemOutcome::Failed(why.to_owned())),
        };
        let mut pause = PAUSE_MIN;
        loop {
            match self.deps.broker.publish(outgoing.clone()).await {
                Ok(()) => {
                    self.goes_on();
                    return Some(ItemOutcome::Done);
                }
                Err(PublishError::Invalid(why)) => return Some(ItemOutcome::Failed(why)),
                // Published again it has the same replay id: workers make one of two.
                Err(error) => self.waits(error.to_string()),
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(PAUSE_MAX);
            // An outage may outlast the lease.
            self.until_held().await?;
        }
    }

    /// Records outcomes, also after the halt for a while; the job after it.
    async fn settle(&self, outcomes: Vec<(u64, ItemOutcome)>) -> Option<Job> {
        if outcomes.is_empty() {
            return None;
        }
        for (seq, outcome) in &outcomes {
            if let ItemOutcome::Failed(why) = outcome {
                warn!(job = self.job.id, seq, why, "an entry cannot be replayed and stays open");
            }
        }
        let Deps { store, owner, .. } = self.deps;
        let settling = async {
            let mut pause = PAUSE_MIN;
            loop {
                match store.settle(&self.job.id, owner, &outcomes).await {
                    Ok(job) => return job,
                    Err(error) => self.waits(error.in_full()),
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        };
        let too_late = async {
            self.halt.cancelled().await;
            sleep(LAST_SETTLE).await;
        };
        tokio::select! {
            job = settling => {
                self.note(&job);
                Some(job)
            }
            () = too_late => {
                warn!(job = self.job.id, items = outcomes.len(), "published and not recorded: whoever resumes the job \
                    publishes them again under the same replay id, and workers send each once");
                None
            }
        }
    }

    /// The job, if it has ended.
    async fn ended(&self) -> Option<Option<Job>> {
        let job = self.ask(|| self.deps.store.job(&self.job.id)).await?;
        Some(job.filter(has_ended).inspect(|job| self.note(job)))
    }

    /// Asks the store until it answers; `None` where it was halted before.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(&self, question: impl Fn() -> F) -> Option<T> {
        let mut pause = PAUSE_MIN;
        loop {
            match question().await {
                Ok(answer) => {
                    self.goes_on();
                    return Some(answer);
                }
                Err(error) => self.waits(error.in_full()),
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Waits until the lease certainly holds; `None` where it was halted.
    async fn until_held(&self) -> Option<()> {
        let mut held = self.held.clone();
        loop {
            if self.halt.is_cancelled() {
                return None;
            }
            if held.borrow_and_update().is_some_and(|until| Instant::now() < until) {
                return Some(());
            }
            tokio::select! {
                () = self.halt.cancelled() => return None,
                // The sender lives as long as the run does.
                _ = held.changed() => {}
            }
        }
    }

    async fn pause(&self, time: Duration) -> Option<()> {
        // The halt comes first: its time is not out.
        timeout(time, self.halt.cancelled()).await.err().map(|_| ())
    }

    fn note(&self, job: &Job) {
        self.goes_on();
        self.progress.send_modify(|p| p.job = job.clone());
    }

    /// Notes, and logs when it is news, that the job waits.
    fn waits(&self, why: String) {
        let news = self.progress.send_if_modified(|p| {
            let news = p.waiting.as_ref() != Some(&why);
            p.waiting = Some(why.clone());
            news
        });
        if news {
            warn!(job = self.job.id, why, "the job waits");
        }
    }

    fn goes_on(&self) {
        if self.progress.send_if_modified(|p| p.waiting.take().is_some()) {
            info!(job = self.job.id, "the job goes on");
        }
    }
}

fn has_ended(job: &Job) -> bool {
    job.state != JobState::Running
}
