//! How often and when to try again.

use std::time::Duration;

use crate::Class;

/// The retry budget and schedule of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Budget-spending calls in all, the first included; at least 1.
    pub attempts: u32,
    /// Gap after the first failure.
    pub base: Duration,
    /// Longest gap before jitter.
    pub max: Duration,
    /// Age past which nothing is tried any more and nothing waits.
    pub max_age: Duration,
}

impl RetryPolicy {
    /// The wait before the next attempt after `failures` failures (≥ 1): uniform in [d, 1.25 d] with
    /// d = min(base · 2^(failures − 1), max). `jitter` is in [0, 1).
    pub fn gap(&self, failures: u32, jitter: f64) -> Duration {
        backoff(self.base, self.max, failures, jitter)
    }
}

pub(crate) fn backoff(base: Duration, max: Duration, n: u32, jitter: f64) -> Duration {
    let doubled = base.saturating_mul(2u32.saturating_pow(n.saturating_sub(1).min(31)));
    let d = doubled.min(max);
    d + d.mul_f64(0.25 * jitter.clamp(0.0, 1.0))
}

/// The retry policies of all classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    per_class: [RetryPolicy; 4],
}

impl Policy {
    /// One policy a class, in the order of [`Class::ALL`].
    pub fn new(per_class: [RetryPolicy; 4]) -> Policy {
        Policy { per_class }
    }

    pub fn of(&self, class: Class) -> &RetryPolicy {
        &self.per_class[class.index()]
    }
}

impl Default for Policy {
    /// 5 attempts, 60 s doubling up to 1 h; critical 5 s up to 60 s. Ages: 15 min, 24 h, 24 h, 72 h.
    fn default() -> Policy {
        const H: u64 = 3600;
        let of = |base, max, age| RetryPolicy {
            attempts: 5,
            base: Duration::from_secs(base),
            max: Duration::from_secs(max),
            max_age: Duration::from_secs(age),
        };
        Policy::new([of(5, 60, H / 4), of(60, H, 24 * H), of(60, H, 24 * H), of(60, H, 72 * H)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_double_up_to_the_cap_with_a_quarter_of_jitter() {
        let p = *Policy::default().of(Class::Normal);
        let s = |n, j| p.gap(n, j).as_secs_f64();
        assert_eq!((s(1, 0.0), s(2, 0.0), s(3, 0.0), s(7, 0.0), s(100, 0.0)), (60.0, 120.0, 240.0, 3600.0, 3600.0));
        assert_eq!((s(1, 1.0), s(3, 0.5)), (75.0, 270.0));
    }
}
