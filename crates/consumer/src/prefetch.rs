//! How much of a lane one worker may hold.

/// What a lane starts with, and falls back to when idle, before the size of its messages is known.
pub(crate) const START: u16 = 1;
/// The most that helps throughput: what a fast lane moves between two calls to the limiter, twice.
pub(crate) const MOST: u16 = 600;
/// Likewise in batches: what it moves in the tenth of a second from a delivery over a grant, the wait for others and the call
/// to the acknowledgement.
pub(crate) const MOST_TOGETHER: u16 = 3000;
/// Mail held for one lane across the fleet covers this many seconds of its rate.
const COVER_S: f64 = 30.0;
/// Messages whose sizes are not yet worth much, and what is held on their word.
const FEW: u64 = 10;
const HALFWAY: u64 = 50;
/// Memory a held message costs beside its body and its parsed form, bytes.
const OVERHEAD: u64 = 4096;

/// Who may consume a lane, and how much each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Every worker, this many messages each.
    Each(u16),
    /// A slow lane: one worker at a time, by lease.
    Holder(u16),
}

/// Splits what may be held of a lane that moves `rate` messages a second among `workers`, each `most` at most.
pub(crate) fn share(rate: f64, workers: u64, most: u16) -> Share {
    let cover = (rate * COVER_S).max(1.0);
    let each = cover / workers.max(1) as f64;
    if each < 2.0 {
        Share::Holder((cover as u64).clamp(1, u64::from(most)) as u16)
    } else {
        Share::Each(each.min(f64::from(most)) as u16)
    }
}

/// Follows the sizes of a lane's messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    average: f64,
    seen: u64,
}

impl Sizes {
    pub(crate) fn observe(&mut self, bytes: usize) {
        let bytes = bytes as f64;
        self.seen += 1;
        // A large one counts at once, small ones bring the average down slowly.
        let weight = if bytes > self.average { 0.5 } else { 0.05 };
        self.average = if self.seen == 1 { bytes } else { self.average + (bytes - self.average) * weight };
    }

    /// Messages of this size that fit when `busy` lanes divide `budget` bytes.
    pub(crate) fn fitting(&self, budget: u64, busy: usize) -> u16 {
        if self.seen == 0 {
            return START;
        }
        // A small message is kept parsed as well, a large one is parsed again when its turn comes.
        let bytes = if self.average > crate::item::KEEP_PARSED as f64 { self.average } else { self.average * 2.0 };
        let each = bytes as u64 + OVERHEAD;
        let fit = budget / busy.max(1) as u64 / each;
        // Two steps, since each costs a new subscription: half-way on the word of one message, all the way after ten.
        let known = if self.seen < FEW { HALFWAY } else { u64::from(MOST_TOGETHER) };
        fit.clamp(1, known) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_lanes_have_one_holder() {
        assert_eq!(share(1.0 / 60.0, 8, MOST), Share::Holder(1));
        assert_eq!(share(0.5, 8, MOST), Share::Holder(15));
        assert_eq!(share(0.5, 1, MOST), Share::Each(15));
        assert_eq!(share(1000.0, 8, MOST), Share::Each(600));
        assert_eq!(share(10.0, 8, MOST), Share::Each(37));
    }

    #[test]
    fn what_is_held_follows_the_sizes_seen() {
        let mut s = Sizes::default();
        assert_eq!(s.fitting(32 << 20, 1), START);
        s.observe(9 << 20);
        assert_eq!(s.fitting(32 << 20, 1), 3);
        assert_eq!(s.fitting(32 << 20, 40), 1);
        let mut s = Sizes::default();
        s.observe(2000);
        assert_eq!(s.fitting(32 << 20, 1), 50);
        (0..100).for_each(|_| s.observe(2000));
        assert_eq!(s.fitting(32 << 20, 1), MOST_TOGETHER);
        assert!(s.fitting(32 << 20, 36) < 120);
        s.observe(9 << 20);
        assert!(s.fitting(32 << 20, 1) < 8);
    }
}
