//! The limiter's clock, seen from a worker.
//!
//! A reply carries the limiter's time of the decision and arrives a little later, so "limiter's time at arrival = time
//! in the reply" is always behind the truth: what waits for a date by this clock is never sent early.

use std::time::{Duration, Instant};

/// Maps this process's monotonic clock to the limiter's microseconds, by the latest reply.
#[derive(Debug, Clone, Copy)]
pub struct ServerClock {
    at: Instant,
    server_us: u64,
}

impl ServerClock {
    /// A clock set by a first reply that said `server_us` and arrived at `at`.
    pub fn new(server_us: u64, at: Instant) -> Self {
        ServerClock { at, server_us }
    }

    /// Sets the clock by a newer reply. May step back a little when that reply travelled longer.
    pub fn observe(&mut self, server_us: u64, at: Instant) {
        *self = ServerClock { at, server_us };
    }

    /// The limiter's time at `now`, or a little before it.
    pub fn now_us(&self, now: Instant) -> u64 {
        match now.checked_duration_since(self.at) {
            Some(ahead) => self.server_us.saturating_add(micros(ahead)),
            None => self.server_us.saturating_sub(micros(self.at.duration_since(now))),
        }
    }

    /// How long ago it was set.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// When `date_us` has come on this machine: not before it, and `self.at` for dates already past.
    pub fn instant_of(&self, date_us: u64) -> Instant {
        self.at + Duration::from_micros(date_us.saturating_sub(self.server_us))
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_map_to_instants_and_back() {
        let start = Instant::now();
        let mut clock = ServerClock::new(5_000_000, start);
        let later = start + Duration::from_millis(30);
        assert_eq!(clock.now_us(later), 5_030_000);
        assert_eq!(clock.instant_of(5_030_000), later);
        assert_eq!(clock.instant_of(1), start);
        clock.observe(9_000_000, later);
        assert_eq!(clock.now_us(start), 8_970_000);
        assert_eq!(clock.now_us(later), 9_000_000);
    }
}
