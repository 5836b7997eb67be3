//! Percentiles, and rates while there was a backlog. Pure.

use serde::Serialize;

/// A rate is measured from here on in a backlog, or from half of a shorter one, so that what the bucket had saved up is
/// gone.
const SETTLED_US: u64 = 2_000_000;
/// A backlog shorter than this says nothing about a rate.
const SHORTEST_US: u64 = 1_500_000;

/// How long things took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latency {
    /// Of these times in microseconds; `None` of none.
    pub(crate) fn of(times_us: impl IntoIterator<Item = u64>) -> Option<Latency> {
        let mut times: Vec<u64> = times_us.into_iter().collect();
        times.sort_unstable();
        let at = |percent| nearest_rank(&times, percent).map(|us| us as f64 / 1000.0);
        Some(Latency { count: times.len(), p50_ms: at(50)?, p95_ms: at(95)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

/// The least value that `percent` of all do not exceed.
fn nearest_rank(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// A span of time in which mail waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub(crate) from_us: u64,
    pub(crate) until_us: u64,
    /// The most that waited at once.
    pub(crate) most: usize,
}

/// The longest span in which at least `least` messages waited for their first call. A message waits from the first of
/// its two times to the second.
pub(crate) fn backlog(waits: impl IntoIterator<Item = (u64, u64)>, least: usize) -> Option<Backlog> {
    let mut changes: Vec<(u64, i64)> = waits.into_iter().flat_map(|(from, until)| [(from, 1), (until, -1)]).collect();
    changes.sort_unstable();
    let (mut waiting, mut open, mut longest) = (0_i64, None::<Backlog>, None::<Backlog>);
    for (at_us, change) in changes {
        waiting += change;
        let now = usize::try_from(waiting).unwrap_or(0);
        match &mut open {
            Some(backlog) if now < least => {
                backlog.until_us = at_us;
                if longest.is_none_or(|l| l.until_us - l.from_us < backlog.until_us - backlog.from_us) {
                    longest = Some(*backlog);
                }
                open = None;
            }
            Some(backlog) => backlog.most = backlog.most.max(now),
            None if now >= least => open = Some(Backlog { from_us: at_us, until_us: at_us, most: now }),
            None => {}
        }
    }
    longest
}

impl Backlog {
    /// Calls a second while it lasted, once the bucket was down to its rate.
    pub(crate) fn rate(&self, calls_us: impl IntoIterator<Item = u64>) -> Option<f64> {
        let length = self.until_us - self.from_us;
        if length < SHORTEST_US {
            return None;
        }
        let from = self.from_us + SETTLED_US.min(length / 2);
        let calls = calls_us.into_iter().filter(|at| (from..self.until_us).contains(at)).count();
        Some(calls as f64 * 1e6 / (self.until_us - from) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        assert_eq!(Latency::of([]), None);
        let one = Latency::of([7000]).unwrap();
        assert_eq!((one.count, one.p50_ms, one.p99_ms), (1, 7.0, 7.0));
        let l = Latency::of((1..=200).rev().map(|ms| ms * 1000)).unwrap();
        assert_eq!((l.p50_ms, l.p95_ms, l.p99_ms, l.max_ms), (100.0, 190.0, 198.0, 200.0));
    }

    #[test]
    fn the_longest_backlog_is_found() {
        let waits = [(0, 10), (5, 12), (100, 200), (110, 220), (120, 230)];
        assert_eq!(backlog(waits, 2), Some(Backlog { from_us: 110, until_us: 220, most: 3 }));
        assert_eq!(backlog(waits, 1), Some(Backlog { from_us: 100, until_us: 230, most: 3 }));
        assert_eq!(backlog(waits, 4), None);
        assert_eq!(backlog([], 1), None);
    }

    #[test]
    fn what_a_bucket_had_saved_up_is_not_its_rate() {
        let backlog = Backlog { from_us: 0, until_us: 12_000_000, most: 9 };
        // Fifty at once, then ten a second.
        let calls = std::iter::repeat_n(1000, 50).chain((0..120).map(|n| n * 100_000));
        assert_eq!(backlog.rate(calls), Some(10.0));
        assert_eq!(Backlog { until_us: 1_400_000, ..backlog }.rate([1]), None);
    }
}
