//! The rate limits a sandbox keeps: token buckets, counted by theoretical arrival time.

use std::time::Duration;

use paceline_core::Rate;

/// When the bucket is full again, in microseconds of the sandbox's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    full_at_us: u64,
}

impl Bucket {
    /// Takes `cost` tokens, or says how long until there are as many. More than `burst` at once counts as `burst`.
    pub(crate) fn take(&mut self, cost: u32, rate: Rate, burst: u32, now_us: u64) -> Result<(), Duration> {
        let interval = rate.interval_us();
        let cost = interval.saturating_mul(u64::from(cost.min(burst)));
        let full_at = self.full_at_us.max(now_us).saturating_add(cost);
        let over = full_at.saturating_sub(now_us).saturating_sub(interval.saturating_mul(u64::from(burst)));
        if over > 0 {
            return Err(Duration::from_micros(over));
        }
        self.full_at_us = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let mut bucket = Bucket::default();
        let mut take = |cost, at_ms: u64| bucket.take(cost, Rate::per_second(10), 3, at_ms * 1000);
        let ms = |n| Err(Duration::from_millis(n));
        assert_eq!((take(1, 5000), take(2, 5000)), (Ok(()), Ok(())));
        assert_eq!((take(1, 5000), take(2, 5050)), (ms(100), ms(150)));
        assert_eq!((take(1, 5100), take(1, 5100)), (Ok(()), ms(100)));
        assert_eq!((take(99, 6000), take(1, 6000)), (Ok(()), ms(100)));
    }
}
