//! Which acks to send for what has been settled. Pure.
//!
//! Delivery tags count up by one on a channel. One ack with `multiple` covers everything up to its tag, so it may
//! only be used where all lower tags are settled; what is settled beyond a gap waits a little for the gap to close,
//! and is acked on its own when it has waited long enough.

use std::collections::BTreeSet;

/// An ack to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    pub(super) multiple: bool,
}

/// The settled tags of one channel.
#[derive(Debug, Default)]
pub(super) struct Batcher {
    /// Every tag up to here is settled and the broker knows.
    floor: u64,
    /// Settled, known to the broker, above a gap.
    known: BTreeSet<u64>,
    /// To be acked.
    waiting: BTreeSet<u64>,
}

impl Batcher {
    /// A delivery is done. Told twice, or after a release, it counts once.
    pub(super) fn settle(&mut self, tag: u64) {
        if tag > self.floor && !self.known.contains(&tag) {
            self.waiting.insert(tag);
        }
    }

    /// A delivery goes back now, by a nack of its own. Whether that is to be sent.
    pub(super) fn release(&mut self, tag: u64) -> bool {
        tag > self.floor && !self.waiting.contains(&tag) && self.known.insert(tag)
    }

    /// How many settled deliveries wait behind a gap.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The acks that can be sent as one, and with `all` also one for each of those behind a gap.
    pub(super) fn take(&mut self, all: bool) -> Vec<Ack> {
        let mut acks = Vec::new();
        let (mut last, mut covered) = (0, 0);
        loop {
            let next = self.floor + 1;
            if self.waiting.remove(&next) {
                (last, covered) = (next, covered + 1);
            } else if !self.known.remove(&next) {
                break;
            }
            self.floor = next;
        }
        if covered > 0 {
            acks.push(Ack { tag: last, multiple: covered > 1 });
        }
        if all {
            for tag in std::mem::take(&mut self.waiting) {
                acks.push(Ack { tag, multiple: false });
                self.known.insert(tag);
            }
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(tag: u64, multiple: bool) -> Ack {
        Ack { tag, multiple }
    }

    #[test]
    fn a_run_is_one_ack_and_a_gap_waits() {
        let mut b = Batcher::default();
        [1, 2, 3, 5].into_iter().for_each(|tag| b.settle(tag));
        assert_eq!(b.take(false), [ack(3, true)]);
        assert_eq!(b.waiting(), 1);
        assert_eq!(b.take(false), []);
        b.settle(4);
        assert_eq!(b.take(false), [ack(5, true)]);
        assert_eq!(b.take(true), []);
    }

    #[test]
    fn the_tag_of_an_ack_is_always_outstanding() {
        // An ack for a tag the broker does not know ends the channel.
        let mut b = Batcher::default();
        b.settle(3);
        assert_eq!(b.take(true), [ack(3, false)]);
        b.settle(1);
        b.settle(2);
        assert_eq!(b.take(false), [ack(2, true)]);
        assert!(b.release(4));
        b.settle(5);
        assert_eq!(b.take(false), [ack(5, false)]);
        b.settle(4);
        assert_eq!(b.take(true), []);
        assert!(!b.release(2) && !b.release(4));
    }

    /// Whatever the order: each settled tag is acked once, no other is ever covered.
    #[test]
    fn never_covers_what_was_not_settled() {
        let mut seed = 1u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..300 {
            let mut b = Batcher::default();
            let mut open: BTreeSet<u64> = (1..=60).collect();
            let mut outstanding = open.clone();
            let (mut settled, mut released) = (BTreeSet::new(), BTreeSet::new());
            while !open.is_empty() {
                let tag = *open.iter().nth(random(open.len().min(9) as u64) as usize).unwrap();
                open.remove(&tag);
                if random(10) == 0 {
                    assert!(b.release(tag));
                    released.insert(tag);
                    outstanding.remove(&tag);
                } else {
                    b.settle(tag);
                    settled.insert(tag);
                }
                if random(3) == 0 || open.is_empty() {
                    for ack in b.take(random(4) == 0 || open.is_empty()) {
                        assert!(outstanding.contains(&ack.tag), "{ack:?} is unknown to the broker");
                        let covered: Vec<u64> =
                            if ack.multiple { outstanding.range(..=ack.tag).copied().collect() } else { vec![ack.tag] };
                        for tag in covered {
                            assert!(settled.contains(&tag), "{tag} was not settled");
                            outstanding.remove(&tag);
                        }
                    }
                }
            }
            assert!(outstanding.is_empty(), "{outstanding:?} not acked");
        }
    }
}
