//! The embedded limiter: the reference arithmetic behind a mutex, for a single worker process.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    Ask, Limiter, LimiterError, Reply, Seed,
    rules::{State, decide, tell},
};

/// This process's clock in epoch microseconds: set once, then monotonic, so it never goes back. It goes by tokio's time, so
/// it stands still where that is paused.
#[derive(Debug, Clone, Copy)]
pub struct LocalClock {
    start: Instant,
    start_us: u64,
}

impl LocalClock {
    /// A clock set by the system's.
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        LocalClock { start: Instant::now(), start_us: u64::try_from(since.as_micros()).unwrap_or(0) }
    }

    /// A clock that says `start_us` now.
    pub fn starting_at(start_us: u64) -> Self {
        LocalClock { start: Instant::now(), start_us }
    }

    /// Microseconds since 1970.
    pub fn now_us(&self) -> u64 {
        self.start_us.saturating_add(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

impl Default for LocalClock {
    fn default() -> Self {
        Self::new()
    }
}

/// A limiter that one process has to itself. Starts with empty buckets, as a Redis that lost its state does.
#[derive(Debug, Default)]
pub struct LocalLimiter {
    clock: LocalClock,
    state: Mutex<State>,
    calls: AtomicU64,
}

impl LocalLimiter {
    /// A limiter with its own clock.
    pub fn new() -> Self {
        Self::default()
    }

    /// A limiter that goes by this clock.
    pub fn with_clock(clock: LocalClock) -> Self {
        LocalLimiter { clock, ..Self::default() }
    }
}

#[async_trait]
impl Limiter for LocalLimiter {
    async fn ask(&self, ask: &Ask) -> Result<Reply, LimiterError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        // A panic inside `decide` leaves the state as it was before that call.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        decide(&mut state, ask, self.clock.now_us())
    }

    async fn seed(&self, past: &[Seed], complete: bool) -> Result<(), LimiterError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&mut state, past, complete, self.clock.now_us())
    }

    async fn now_us(&self) -> Result<u64, LimiterError> {
        Ok(self.clock.now_us())
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}
