//! Turns at a rate: exact over time, and never more at once than a tenth of a second is worth.

use std::time::Duration;

use paceline_core::Rate;
use tokio::time::Instant;

/// Turns that are taken together are at most what this long is worth.
const TOGETHER: Duration = Duration::from_millis(50);
/// Time lost to a late timer or a slow answer is made up for up to this much. Together with [`TOGETHER`]: never more than
/// a tenth of a second's worth at once.
const SLACK: Duration = Duration::from_millis(50);
/// Most turns taken together, whatever the rate.
const MAX_TOGETHER: usize = 50;

/// In any span of t seconds: at most rate · t + rate / 10, and of rates below 20/s rate · t + 1 + rate / 20.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    together: usize,
    /// When the next turns are due.
    due: Instant,
}

impl Pace {
    /// Starts with nothing saved up, so that a job that is interrupted and resumed does not go faster for it.
    pub(crate) fn new(rate: Rate, now: Instant) -> Pace {
        // Hardly anything is slower than a turn in a year: beyond it `Instant` would overflow.
        let interval = Duration::from_micros(rate.interval_us()).min(Duration::from_secs(365 * 86_400));
        let together = usize::try_from(TOGETHER.as_micros() / interval.as_micros()).unwrap_or(MAX_TOGETHER);
        let together = together.clamp(1, MAX_TOGETHER);
        let first = interval * u32::try_from(together).unwrap_or(1);
        Pace { interval, together, due: now + first }
    }

    /// The most turns that are used together.
    pub(crate) fn together(&self) -> usize {
        self.together
    }

    /// How many turns may be used together, of those wanted, and from when on.
    pub(crate) fn next(&self, want: usize) -> (usize, Instant) {
        (want.clamp(1, self.together), self.due)
    }

    /// Notes that so many turns are used now.
    pub(crate) fn used(&mut self, turns: usize, now: Instant) {
        let from = self.due.max(now.checked_sub(SLACK).unwrap_or(now));
        self.due = from + self.interval * u32::try_from(turns).unwrap_or(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// When each turn was used, in ms from the start; `late_ms` is how long after each due time it was used.
    fn turns(rate: &str, count: usize, mut late_ms: impl FnMut(usize) -> u64) -> Vec<f64> {
        let start = Instant::now();
        let mut now = start;
        let mut pace = Pace::new(rate.parse().unwrap(), now);
        let mut used = Vec::new();
        while used.len() < count {
            let (n, at) = pace.next(count - used.len());
            now = at.max(now) + Duration::from_millis(late_ms(used.len()));
            pace.used(n, now);
            used.extend(std::iter::repeat_n((now - start).as_secs_f64() * 1000.0, n));
        }
        used
    }

    #[test]
    fn the_rate_is_exact_although_every_timer_is_late() {
        for (rate, count, want_ms) in [("200/s", 2000, 10_000.0), ("20/s", 200, 10_000.0), ("1/s", 10, 10_000.0)] {
            let last = *turns(rate, count, |_| 7).last().unwrap();
            assert!((last - want_ms).abs() <= 60.0, "{rate}: {last} ms");
        }
        let last = *turns("1000/s", 10_000, |_| 45).last().unwrap();
        assert!((last - 10_000.0).abs() <= 100.0, "{last} ms");
    }

    #[test]
    fn a_start_has_nothing_saved_up_and_a_stall_is_not_made_up_for() {
        assert_eq!(turns("200/s", 20, |_| 0)[..11], [[50.0; 10].as_slice(), &[100.0]].concat());
        assert_eq!(turns("1/min", 2, |_| 0), [60_000.0, 120_000.0]);
        let stalled = turns("200/s", 400, |n| if n == 100 { 60_000 } else { 0 });
        let at_once = stalled.iter().filter(|t| (60_500.0..60_600.0).contains(*t)).count();
        assert!(at_once <= 30, "{at_once} turns in the tenth of a second after a minute's stall");
    }

    proptest! {
        #[test]
        fn no_span_holds_more_than_its_share(
            rate in 1u32..=2000,
            late in proptest::collection::vec(prop_oneof![Just(0u64), 0..30u64, 0..2000u64], 64),
        ) {
            let used = turns(&format!("{rate}/s"), 500, |n| late[n % 64]);
            let rate = f64::from(rate);
            let (per_ms, burst) = (rate / 1000.0, (rate / 10.0).max(1.0 + rate / 20.0));
            for (i, from) in used.iter().enumerate() {
                for (k, to) in used[i..].iter().enumerate() {
                    let (held, most) = ((k + 1) as f64, (to - from) * per_ms + burst);
                    prop_assert!(held <= most + 1e-6, "{held} in {} ms", to - from);
                }
            }
        }
    }
}
