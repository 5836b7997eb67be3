//! Going on without Redis, safely, and back.
//!
//! [`Guarded`] stands between a worker and its Redis, as its [`Limiter`] and [`Fleet`]; [`GuardedLedger`] as its ledger.
//! A worker that has lost Redis, by refusals or by silence, sends nothing until all others must have noticed, and then
//! goes by half its share of what it last knew: on buckets of its own that start empty, with its share of every burst and
//! half its share of every rate, of the calls at a time and of what was left of each quota. Those who still see Redis leave
//! just that out. So the bound of every limit holds on the dates of all grants together, whoever is cut off from whom.
//!
//! On return it tells Redis what it has granted, and only then its share is in common use again: nothing comes in a burst.
//! A worker that never saw Redis sends nothing, and nobody goes on by itself for longer than `away`: by then the others
//! take its share for free.
//!
//! `book` says whose share is how large, `scale` what a share of a limit is, `quotas` what is known of windows, `guard` what goes
//! when. All pure; what talks to Redis is here, what talks to the store in `memory`.

mod book;
mod guard;
mod ledger;
mod memory;
mod quotas;
#[cfg(test)]
mod redis_tests;
mod scale;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinHandle};

pub use self::{
    book::{Beat, Book, Census, WHOLE},
    guard::{BEAT_US, LIFE_US, Mode, QUIET_US, VIEW_US},
    ledger::GuardedLedger,
    memory::{Kept, Memory},
};
use self::{
    guard::{Guard, Plan, Step},
    quotas::Levels,
};
use crate::{
    Ask, BucketSpec, CALL_TIMEOUT_US, Kind, Limiter, LimiterError, Reply, Seed, Spent,
    fleet::{Alive, Fleet, RedisFleet},
    redis::{RedisClient, RedisLimiter, Script},
    wire::decode,
};

/// Between two looks at what is to be done.
const TICK: Duration = Duration::from_millis(50);
/// Between two tries to see Redis again.
const PROBE_US: u64 = 500_000;

/// A worker's limiter and fleet over Redis, and without it.
pub struct Guarded {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
    memory: Option<JoinHandle<()>>,
}

struct Inner {
    limiter: RedisLimiter,
    fleet: RedisFleet,
    client: RedisClient,
    census: Script,
    levels: Script,
    guard: Mutex<Guard>,
    mode: watch::Sender<Mode>,
    /// Why the latest heartbeat had no answer.
    fault: Mutex<Option<LimiterError>>,
    start: Instant,
    worker: Arc<str>,
}

impl Guarded {
    /// A guard for this worker over `client`. `away`: how long it goes on by itself; nothing is sent alone where that is
    /// zero. `memory` outlives the limiter's. Must be called within a Tokio runtime: a task keeps in touch with the fleet, another
    /// with the memory, until this is dropped.
    pub fn start(client: RedisClient, worker_id: &str, away: Duration, memory: Option<Arc<dyn Memory>>) -> Guarded {
        let away_us = u64::try_from(away.as_micros()).unwrap_or(u64::MAX).min(86_400_000_000);
        let worker: Arc<str> = worker_id.into();
        let inner = Arc::new(Inner {
            limiter: RedisLimiter::new(client.clone()),
            fleet: RedisFleet::new(client.clone()),
            client,
            census: Script::new(include_str!("degraded/census.lua")),
            levels: Script::new(concat!(include_str!("script/windows.lua"), include_str!("degraded/levels.lua"))),
            guard: Mutex::new(Guard::new(worker.clone(), away_us)),
            mode: watch::Sender::new(Mode::Unknown),
            fault: Mutex::default(),
            start: Instant::now(),
            worker,
        });
        if memory.is_some() {
            inner.guard().remembers();
        }
        let task = tokio::spawn(keep_in_touch(inner.clone()));
        let memory = memory.map(|memory| tokio::spawn(memory::remember(inner.clone(), memory)));
        Guarded { inner, task, memory }
    }

    /// How this worker goes about limits, as it changes.
    pub fn mode(&self) -> watch::Receiver<Mode> {
        self.inner.mode.subscribe()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(memory) = &self.memory {
            memory.abort();
        }
    }
}

impl Inner {
    fn at(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        // Nothing in there is left half changed.
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everybody know how things stand.
    fn note(&self) {
        let (mode, share) = {
            let guard = self.guard();
            (guard.mode(self.at()), guard.share())
        };
        let before = self.mode.send_replace(mode);
        if before == mode {
            return;
        }
        let percent = share as f64 / (WHOLE as f64 / 50.0);
        match mode {
            Mode::Quiet => tracing::warn!("limits: Redis gives no answer; nothing is sent until the other workers have noticed"),
            Mode::Alone => {
                tracing::error!(percent_of_limits = percent, "limits: Redis is away; this worker goes on by its own share")
            }
            Mode::Over => tracing::error!("limits: Redis has been away for too long; nothing is sent until it is back"),
            Mode::Returning => tracing::info!("limits: Redis answers again; telling it what was sent meanwhile"),
            Mode::Shared if before == Mode::Unknown => tracing::debug!("limits are shared with the fleet"),
            Mode::Shared => tracing::warn!("limits: Redis is back; limits are shared again"),
            Mode::Unknown => {}
        }
    }

    /// What is wrong with a heartbeat. A refusal does not go away by itself: it is said once.
    fn note_fault(&self, error: Option<&LimiterError>) {
        let before = std::mem::replace(&mut *self.fault.lock().unwrap_or_else(PoisonError::into_inner), error.cloned());
        match error {
            Some(error) if !error.is_transient() && before.as_ref() != Some(error) => {
                tracing::error!(%error, "limits: Redis refuses this worker's heartbeat");
            }
            Some(error) => tracing::debug!(%error, "limits: heartbeat without an answer"),
            None => {}
        }
    }

    /// Does what is next, and says after how long there is more to do.
    async fn step(&self) -> u64 {
        let at = self.at();
        let step = self.guard().step(at);
        match step {
            Step::Wait => 20_000,
            Step::Probe => {
                let answer = self.client.now_us().await.ok();
                self.guard().probed(answer, self.at());
                if answer.is_some() { 0 } else { PROBE_US }
            }
            Step::Settle { held, spent, epoch_us } => {
                let told = self.settle(&held, &spent, epoch_us).await;
                if let Err(error) = &told {
                    tracing::warn!(%error, "limits: Redis could not be told what was sent without it; trying again");
                }
                self.guard().settled(told.is_ok());
                if told.is_ok() { 0 } else { PROBE_US }
            }
            Step::Seed { past, epoch_us } => {
                let told = self.seed(&past, epoch_us).await;
                match &told {
                    Ok(()) => tracing::warn!(quotas = past.len(), "limits: Redis was told what it had lost of quotas"),
                    Err(error) => tracing::warn!(%error, "limits: Redis could not be told what it had lost of quotas"),
                }
                self.guard().seeded(told.is_ok());
                0
            }
            Step::Beat(beat) => {
                let census = self.beat(&beat).await;
                self.note_fault(census.as_ref().err());
                let late = census.as_ref().is_ok_and(|c| c.late);
                self.guard().beaten(census.ok(), at, self.at());
                if !late {
                    self.look_at_windows().await;
                }
                if late { 100_000 } else { self.guard().beat_in(at, self.at()) }
            }
        }
    }

    async fn beat(&self, beat: &Beat) -> Result<Census, LimiterError> {
        let numbers =
            [beat.life_us, beat.away_us, beat.expected_us, beat.late_us, beat.since_us, beat.believes, beat.version, beat.saw_us];
        let mut args = vec!["beat".to_owned(), beat.worker.to_string()];
        args.extend(numbers.map(|n| n.to_string()));
        args.push(u8::from(beat.stale).to_string());
        // Only a younger state needs them, and nobody knows before.
        args.extend(beat.members.iter().flat_map(|(name, share)| [name.to_string(), share.to_string()]));
        self.census(&args).await
    }

    async fn census(&self, args: &[String]) -> Result<Census, LimiterError> {
        let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        let bytes = self.client.run(&self.census, &[self.client.key("members", "")], &args).await?;
        type Reply = (u64, u8, u64, u64, u64, u64, u64, u64, u64, Vec<(String, u64)>, Vec<(u64, u64)>);
        let (now_us, late, since_us, version, live, lost, share, saw_us, untold, members, mut gone): Reply = decode(&bytes)?;
        gone.sort_unstable();
        let members = members.into_iter().map(|(name, share)| (name.into(), share)).collect();
        Ok(Census { now_us, late: late != 0, since_us, version, live, lost, gone, share, saw_us, untold, members })
    }

    /// Calls under way first: they take nothing that is not there.
    async fn settle(&self, held: &Ask, spent: &[(BucketSpec, Spent)], epoch_us: u64) -> Result<(), LimiterError> {
        for some in held.held.chunks(1_000) {
            let buckets = some.iter().map(|h| held.buckets[h.bucket].clone()).collect();
            let held_here = some.iter().enumerate().map(|(bucket, h)| crate::Held { bucket, calls: h.calls }).collect();
            self.limiter.ask(&Ask { buckets, held: held_here, lanes: Vec::new(), ..held.clone() }).await?;
        }
        for some in spent.chunks(1_000) {
            self.limiter.charge(some, epoch_us).await?;
        }
        Ok(())
    }

    async fn seed(&self, past: &[Seed], epoch_us: u64) -> Result<(), LimiterError> {
        for some in past.chunks(64) {
            self.limiter.seed_state(some, epoch_us).await?;
        }
        Ok(())
    }

    async fn look_at_windows(&self) {
        let (windows, mode) = {
            let guard = self.guard();
            (guard.windows(), guard.mode(self.at()))
        };
        if mode != Mode::Shared || windows.is_empty() {
            return;
        }
        let mut keys: Vec<String> = windows.iter().map(|w| self.client.key("limit", &w.key)).collect();
        keys.push(self.client.key("members", ""));
        let lengths: Vec<String> = windows.iter().map(|w| length(w).to_string()).collect();
        let args: Vec<&[u8]> = lengths.iter().map(String::as_bytes).collect();
        let read = async { decode::<(u64, u64, Vec<Vec<u64>>, Vec<u64>)>(&self.client.run(&self.levels, &keys, &args).await?) };
        match read.await {
            Ok((now_us, since_us, found, said)) => {
                let pairs = |flat: Vec<u64>| flat.chunks_exact(2).map(|c| (c[0], c[1])).collect();
                let limits = windows.iter().zip(said).map(|(w, limit)| (w.key.clone(), limit)).collect();
                let slots = windows.into_iter().zip(found).map(|(w, flat)| (w.key, pairs(flat))).collect();
                self.guard().seen(Levels { now_us, since_us, slots, limits, ..Levels::default() });
            }
            Err(error) => tracing::debug!(%error, "limits: quotas could not be looked at"),
        }
    }
}

fn length(window: &BucketSpec) -> u64 {
    match window.kind {
        Kind::Window { length_us, .. } => length_us,
        Kind::Rate { .. } | Kind::Slots { .. } => 0,
    }
}

async fn keep_in_touch(inner: Arc<Inner>) {
    loop {
        let wait = inner.step().await;
        let until = inner.at() + wait;
        inner.note();
        // What has become of the mode by the mere passing of time is seen meanwhile.
        while inner.at() < until {
            tokio::time::sleep(TICK.min(Duration::from_micros(until - inner.at()))).await;
            inner.note();
        }
    }
}

#[async_trait]
impl Limiter for Guarded {
    async fn ask(&self, ask: &Ask) -> Result<Reply, LimiterError> {
        let begun = self.inner.at();
        let plan = self.inner.guard().plan(ask, begun);
        match plan {
            Plan::Answer(reply) => Ok(reply),
            Plan::Refuse(error) => Err(error),
            Plan::Unknown => {
                let fault = self.inner.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(fault.unwrap_or_else(|| LimiterError::Unreachable { reason: "it has not been seen yet".into() }))
            }
            Plan::Shared(scaled) => {
                let reply = self.inner.limiter.ask(&scaled.ask).await?;
                let at = self.inner.at();
                if at > begun + CALL_TIMEOUT_US {
                    // Others may go by what this worker does not use any more.
                    return Err(LimiterError::TimedOut { reason: "the answer came too late".into() });
                }
                self.inner.guard().answered(&reply, at);
                Ok(scaled.reply(reply, 1_000_000))
            }
        }
    }

    async fn seed(&self, past: &[Seed], complete: bool) -> Result<(), LimiterError> {
        self.inner.limiter.seed(past, complete).await
    }

    async fn now_us(&self) -> Result<u64, LimiterError> {
        match self.inner.guard().mode(self.inner.at()) {
            Mode::Unknown | Mode::Shared => {}
            _ => return Ok(self.inner.guard().now_us(self.inner.at())),
        }
        self.inner.limiter.now_us().await
    }

    fn calls(&self) -> u64 {
        self.inner.limiter.calls()
    }
}

#[async_trait]
impl Fleet for Guarded {
    async fn heartbeat(&self, worker_id: &str, config: &str, known_us: u64, ttl: Duration) -> Result<Alive, LimiterError> {
        let alive = self.inner.fleet.heartbeat(worker_id, config, known_us, ttl).await;
        match *self.inner.mode.borrow() {
            Mode::Unknown | Mode::Shared => alive,
            // By itself its own configuration holds; the fleet hears of it on return.
            _ => Ok(alive.unwrap_or_else(|_| Alive { workers: self.inner.guard().live(), generation_us: known_us })),
        }
    }

    async fn leave(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.task.abort();
        if self.inner.guard().owes() {
            // Its share stays out of use until what it sent by itself cannot matter any more.
            return self.inner.fleet.leave(worker_id).await;
        }
        let census = self.inner.census(&["leave".to_owned(), self.inner.worker.to_string()]).await;
        self.inner.fleet.leave(worker_id).await?;
        census.map(drop)
    }

    async fn lease(&self, name: &str, worker_id: &str, ttl: Duration) -> Result<bool, LimiterError> {
        self.inner.fleet.lease(name, worker_id, ttl).await
    }

    async fn release(&self, name: &str, worker_id: &str) -> Result<(), LimiterError> {
        self.inner.fleet.release(name, worker_id).await
    }

    async fn note(&self, list: &str, used: &[Arc<str>]) -> Result<Vec<(Arc<str>, Duration)>, LimiterError> {
        self.inner.fleet.note(list, used).await
    }

    async fn strike(&self, list: &str, name: &str, idle: Duration) -> Result<(), LimiterError> {
        self.inner.fleet.strike(list, name, idle).await
    }
}
