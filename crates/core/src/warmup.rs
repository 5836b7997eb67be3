//! Warm-up: a ceiling that rises from day to day, until a new account or address has a reputation.

/// `[account.warmup]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// On the first day, recipients a second.
    pub start_per_s: f64,
    /// What each day allows, times the day before.
    pub factor: f64,
    /// After so many days there is no such ceiling any more.
    pub days: u32,
}

const DAY_US: u64 = 86_400_000_000;

impl Warmup {
    /// The ceiling, in recipients a second, for an account whose first mail went at `first_us`, or has not gone yet (0).
    /// `None` once it is over.
    pub fn ceiling(&self, first_us: u64, now_us: u64) -> Option<f64> {
        let day = if first_us == 0 { 0 } else { now_us.saturating_sub(first_us) / DAY_US };
        let day = u32::try_from(day).unwrap_or(u32::MAX);
        // `days` is at most a few hundred, so the power is finite or infinite, never NaN.
        (day < self.days).then(|| self.start_per_s * self.factor.powi(i32::try_from(day).unwrap_or(i32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_from_day_to_day_and_ends() {
        let w = Warmup { start_per_s: 1.0, factor: 2.0, days: 4 };
        let at = |day: f64| w.ceiling(5, 5 + (day * DAY_US as f64) as u64);
        assert_eq!(w.ceiling(0, 99 * DAY_US), Some(1.0), "has not begun");
        assert_eq!((at(0.0), at(0.999), at(1.0), at(3.5), at(4.0)), (Some(1.0), Some(1.0), Some(2.0), Some(8.0), None));
        assert_eq!(w.ceiling(10, 5), Some(1.0), "a clock that stepped back");
    }
}
