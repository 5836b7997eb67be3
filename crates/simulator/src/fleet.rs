//! The workers of a run: they come, drain, crash and are cut off.

use std::sync::{Arc, Mutex, atomic::Ordering};

use paceline_broker::memory::MemoryBroker;
use paceline_consumer::Worker;
use paceline_core::Timestamp;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    chance::Chance,
    ports::{Life, Ports, Shared, lock},
    span::Span,
    worker::Plan,
};

/// All workers of a run.
pub(crate) struct Crew {
    plan: Plan,
    shared: Arc<Shared>,
    broker: MemoryBroker,
    state: Mutex<State>,
}

struct State {
    members: Vec<Member>,
    chance: Chance,
    crashes: u64,
    /// The run ends: nobody takes anybody's place any more.
    closing: bool,
}

struct Member {
    life: Arc<Life>,
    connection: MemoryBroker,
    /// `None` once it drains, or has crashed.
    worker: Option<Worker>,
    since_us: u64,
    until_us: Option<u64>,
}

/// Calls to the limiter.
pub(crate) struct Calls {
    pub(crate) workers: usize,
    /// Mean over each worker's life of a second or more; the highest of them.
    pub(crate) worst_per_s: f64,
    /// All calls by all workers' time.
    pub(crate) mean_per_s: f64,
}

impl Crew {
    pub(crate) fn new(plan: Plan, shared: Arc<Shared>, broker: MemoryBroker, chance: Chance) -> Arc<Crew> {
        let state = State { members: Vec::new(), chance, crashes: 0, closing: false };
        Arc::new(Crew { plan, shared, broker, state: Mutex::new(state) })
    }

    /// Another worker comes.
    pub(crate) fn join(self: &Arc<Self>) {
        let life = Life::new();
        let connection = self.broker.connect();
        let ports = Ports { shared: self.shared.clone(), life: life.clone(), broker: connection.clone() };
        let now_us = self.shared.clock.now_us();
        let mut state = lock(&self.state);
        if state.closing {
            return;
        }
        let index = state.members.len();
        let now = Timestamp::from_micros(i64::try_from(now_us).unwrap_or(i64::MAX));
        let worker = Some(self.plan.start(&format!("w{index}"), ports, now, &mut state.chance));
        state.members.push(Member { life: life.clone(), connection, worker, since_us: now_us, until_us: None });
        drop(state);
        let crew = self.clone();
        tokio::spawn(async move {
            life.died.notified().await;
            crew.bury(index).await;
        });
    }

    /// What others see of a worker that has crashed: its connection is gone, and what it was about to say is never said.
    async fn bury(self: Arc<Self>, index: usize) {
        let was_at_work = {
            let mut state = lock(&self.state);
            state.crashes += 1;
            let member = &mut state.members[index];
            let worker = member.worker.take();
            let was_at_work = worker.is_some();
            if let Some(worker) = worker {
                worker.abandon();
            }
            member.until_us = Some(self.shared.clock.now_us());
            member.connection.lose("crashed");
            let mut book = lock(&self.shared.book);
            member.life.unrecorded().iter().for_each(|id| book.unheard(id));
            was_at_work
        };
        sleep(self.plan.scenario.fleet.restart_after.0).await;
        if was_at_work {
            self.join();
        }
    }

    fn at_work(&self) -> Vec<usize> {
        let state = lock(&self.state);
        (0..state.members.len()).filter(|i| state.members[*i].worker.is_some()).collect()
    }

    /// Up to `many` of those at work, by chance.
    fn some(&self, many: Option<usize>) -> Vec<usize> {
        let mut left = self.at_work();
        let many = many.unwrap_or(left.len());
        let chance = &mut lock(&self.state).chance;
        while left.len() > many {
            left.swap_remove(chance.below(left.len() as u64) as usize);
        }
        left
    }

    /// Lets workers crash at one of their next calls to a service, each at another.
    pub(crate) fn crash(&self, many: Option<usize>) {
        for index in self.some(many) {
            let state = &mut *lock(&self.state);
            state.members[index].life.crash_in(state.chance.below(60));
        }
    }

    pub(crate) async fn leave(self: &Arc<Self>, many: Option<usize>) {
        let mut leaving = JoinSet::new();
        for index in self.some(many) {
            let crew = self.clone();
            leaving.spawn(async move {
                let worker = lock(&crew.state).members[index].worker.take();
                if let Some(worker) = worker {
                    worker.drain().await;
                    let mut state = lock(&crew.state);
                    let member = &mut state.members[index];
                    member.until_us = Some(crew.shared.clock.now_us());
                    member.connection.lose("left");
                }
            });
        }
        leaving.join_all().await;
    }

    pub(crate) async fn redis_away(&self, many: Option<usize>, lasts: Span) {
        let some = self.some(many);
        let set = |away: bool| some.iter().for_each(|i| lock(&self.state).members[*i].life.redis_away(away));
        set(true);
        sleep(lasts.0).await;
        set(false);
    }

    pub(crate) async fn broker_away(&self, many: Option<usize>, lasts: Span) {
        let some = self.some(many);
        some.iter().for_each(|i| lock(&self.state).members[*i].connection.lose("cut off"));
        sleep(lasts.0).await;
        for index in some {
            let state = lock(&self.state);
            let member = &state.members[index];
            if !member.life.is_dead() && member.until_us.is_none() {
                member.connection.restore();
            }
        }
    }

    /// Everybody drains; nobody comes any more.
    pub(crate) async fn close(self: &Arc<Self>) {
        lock(&self.state).closing = true;
        self.leave(None).await;
    }

    pub(crate) fn crashes(&self) -> u64 {
        lock(&self.state).crashes
    }

    pub(crate) fn calls(&self) -> Calls {
        let (state, now_us) = (lock(&self.state), self.shared.clock.now_us());
        let (mut worst, mut calls, mut time) = (0.0_f64, 0.0, 0.0);
        for member in &state.members {
            let seconds = (member.until_us.unwrap_or(now_us) - member.since_us) as f64 / 1e6;
            let made = member.life.limiter_calls.load(Ordering::Relaxed) as f64;
            if seconds >= 1.0 {
                worst = worst.max(made / seconds);
            }
            (calls, time) = (calls + made, time + seconds);
        }
        Calls { workers: state.members.len(), worst_per_s: worst, mean_per_s: if time > 0.0 { calls / time } else { 0.0 } }
    }
}
