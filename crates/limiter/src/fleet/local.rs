//! Heartbeats and leases within one process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Alive, Fleet, Turns};
use crate::{LimiterError, local::LocalClock};

/// A fleet of the tasks of one process.
#[derive(Debug, Default)]
pub struct LocalFleet {
    clock: LocalClock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Until when each lives, and its configuration.
    workers: HashMap<String, (Instant, String)>,
    /// Since when some live worker has had each.
    configs: HashMap<String, u64>,
    leases: HashMap<String, (String, Instant)>,
    lists: HashMap<String, HashMap<Arc<str>, Instant>>,
    /// Where the turns taken in each line end.
    lines: HashMap<Arc<str>, u64>,
}

impl LocalFleet {
    /// A fleet without workers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same by `clock`: the limiter's, where both are given times by it.
    #[must_use]
    pub fn with_clock(self, clock: LocalClock) -> Self {
        LocalFleet { clock, ..self }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State, Instant) -> T) -> T {
        // No operation leaves the maps half changed.
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }
}

#[async_trait]
impl Fleet for LocalFleet {
    async fn heartbeat(&self, worker_id: &str, config: &str, known_us: u64, ttl: Duration) -> Result<Alive, LimiterError> {
        let now_us = self.clock.now_us();
        Ok(self.with(|state, now| {
            let State { workers, configs, .. } = state;
            workers.retain(|_, (until, _)| *until > now);
            configs.retain(|config, _| workers.values().any(|(_, has)| has == config));
            workers.insert(worker_id.to_owned(), (now + ttl, config.to_owned()));
            let newest = configs.values().max().copied().unwrap_or(0);
            let first = if known_us > 0 { known_us } else { now_us.max(newest + 1) };
            let since = configs.entry(config.to_owned()).or_insert(first);
            *since = (*since).min(first);
            Alive { workers: workers.len() as u64, generation_us: *since }
        }))
    }

    async fn leave(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.with(|state, _| state.workers.remove(worker_id));
        Ok(())
    }

    async fn lease(&self, name: &str, worker_id: &str, ttl: Duration) -> Result<bool, LimiterError> {
        Ok(self.with(|state, now| {
            state.leases.retain(|_, (_, until)| *until > now);
            let (holder, until) = state.leases.entry(name.to_owned()).or_insert_with(|| (worker_id.to_owned(), now));
            let mine = holder == worker_id;
            if mine {
                *until = now + ttl;
            }
            mine
        }))
    }

    async fn note(&self, list: &str, used: &[Arc<str>]) -> Result<Vec<(Arc<str>, Duration)>, LimiterError> {
        Ok(self.with(|state, now| {
            let list = state.lists.entry(list.to_owned()).or_default();
            list.extend(used.iter().map(|name| (name.clone(), now)));
            list.iter().map(|(name, at)| (name.clone(), now - *at)).collect()
        }))
    }

    async fn strike(&self, list: &str, name: &str, idle: Duration) -> Result<(), LimiterError> {
        self.with(|state, now| {
            if let Some(list) = state.lists.get_mut(list)
                && list.get(name).is_some_and(|at| now - *at >= idle)
            {
                list.remove(name);
            }
        });
        Ok(())
    }

    async fn turns(&self, wanted: &[Turns]) -> Result<Vec<u64>, LimiterError> {
        let now_us = self.clock.now_us();
        Ok(self.with(|state, _| {
            state.lines.retain(|_, end_us| *end_us > now_us);
            let take = |turns: &Turns| {
                let end_us = state.lines.get(&turns.line).copied().unwrap_or(0);
                let begin_us = end_us.max(turns.from_us);
                if begin_us < turns.before_us {
                    state.lines.insert(turns.line.clone(), begin_us.saturating_add(turns.takes_us).min(turns.before_us));
                }
                begin_us
            };
            wanted.iter().map(take).collect()
        }))
    }

    async fn release(&self, name: &str, worker_id: &str) -> Result<(), LimiterError> {
        self.with(|state, _| {
            if state.leases.get(name).is_some_and(|(holder, _)| holder == worker_id) {
                state.leases.remove(name);
            }
        });
        Ok(())
    }
}
