//! What came of the calls of a scope, second by second.
//!
//! Seconds are those of the *grants*, on the limiter's clock: what was granted before a change can be told from what was
//! granted after it, however long the calls took.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, Range},
};

/// Length of a slot.
pub const SLOT_US: u64 = 1_000_000;

/// What came of the calls granted within one slot. Additive: workers count apart, and the sums are the fleet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that were accepted.
    pub accepted: u64,
    /// Calls that failed: temporary, uncertain, distrusted.
    pub failed: u64,
    /// Calls whose answer says nothing of the service's health: throttled, greylisted, a bad recipient or message.
    pub answered: u64,
    /// Calls refused because of the account itself.
    pub refused: u64,
    /// Recipients whose call was not refused for its rate.
    pub passed: u64,
    /// Recipients refused for a rate of the destination.
    pub throttled: u64,
    /// Recipients refused for a rate of the account.
    pub throttled_account: u64,
    /// Recipients refused for what their connection, or too many of them, did.
    pub throttled_connection: u64,
    /// Time the calls took.
    pub busy_ms: u64,
}

/// Numbers of one [`Counts`].
pub const FIELDS: usize = 9;

impl Counts {
    /// Always in the same order: what the shared state adds up.
    pub fn to_array(self) -> [u64; FIELDS] {
        let Counts { accepted, failed, answered, refused, passed, throttled, throttled_account, throttled_connection, busy_ms } =
            self;
        [accepted, failed, answered, refused, passed, throttled, throttled_account, throttled_connection, busy_ms]
    }

    /// The reverse of [`Counts::to_array`].
    pub fn from_array(of: [u64; FIELDS]) -> Counts {
        let [accepted, failed, answered, refused, passed, throttled, throttled_account, throttled_connection, busy_ms] = of;
        Counts { accepted, failed, answered, refused, passed, throttled, throttled_account, throttled_connection, busy_ms }
    }

    /// Calls counted.
    pub fn calls(&self) -> u64 {
        self.accepted + self.failed + self.answered + self.refused
    }

    /// Mean time of a call, at most half a minute.
    pub(crate) fn mean_call_us(&self) -> u64 {
        (self.busy_ms * 1_000).checked_div(self.calls()).unwrap_or(0).min(30 * SLOT_US)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        let (mine, more) = (self.to_array(), more.to_array());
        *self = Counts::from_array(std::array::from_fn(|i| mine[i].saturating_add(more[i])));
    }
}

/// Counts by slot: the slot's number is its start in microseconds divided by [`SLOT_US`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    slots: BTreeMap<u64, Counts>,
}

impl Evidence {
    /// Adds to one slot.
    pub fn add(&mut self, slot: u64, counts: Counts) {
        *self.slots.entry(slot).or_default() += counts;
    }

    /// Adds what `other` has from `from_us` on.
    pub fn merge(&mut self, other: &Evidence, from_us: u64) {
        other.slots.range(first_slot(from_us)..).for_each(|(slot, counts)| self.add(*slot, *counts));
    }

    /// Forgets what began before.
    pub fn forget(&mut self, before_us: u64) {
        self.slots = self.slots.split_off(&first_slot(before_us));
    }

    /// Slots in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Counts)> {
        self.slots.iter().map(|(slot, counts)| (*slot, counts))
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The sum over all slots that begin within the span.
    pub fn within(&self, span_us: Range<u64>) -> Counts {
        let mut sum = Counts::default();
        let slots = first_slot(span_us.start)..first_slot(span_us.end).max(first_slot(span_us.start));
        self.slots.range(slots).for_each(|(_, c)| sum += *c);
        sum
    }

    /// Where the first slot of the span begins that counted anything.
    pub(crate) fn begins(&self, span_us: Range<u64>) -> Option<u64> {
        let slots = first_slot(span_us.start)..first_slot(span_us.end).max(first_slot(span_us.start));
        self.slots.range(slots).next().map(|(slot, _)| slot * SLOT_US)
    }
}

/// The first slot that begins no earlier.
fn first_slot(at_us: u64) -> u64 {
    at_us.div_ceil(SLOT_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_where_slots_begin() {
        let mut e = Evidence::default();
        for slot in 10..20 {
            e.add(slot, Counts { accepted: 1, busy_ms: 200, ..Counts::default() });
            e.add(slot, Counts { failed: 1, ..Counts::default() });
        }
        let s = |n: u64| n * SLOT_US;
        assert_eq!(e.within(s(10)..s(12)).calls(), 4);
        assert_eq!(e.within(s(10) + 1..s(12) + 1).calls(), 4, "10 began before, 12 within");
        assert_eq!((e.within(s(30)..s(40)).calls(), e.within(s(15)..s(12)).calls()), (0, 0));
        assert_eq!(e.within(0..s(99)).mean_call_us(), 100_000);
        assert_eq!((e.begins(s(3)..s(99)), e.begins(s(12) - 1..s(99)), e.begins(s(20)..s(99))), (Some(s(10)), Some(s(12)), None));
        let mut other = Evidence::default();
        other.merge(&e, s(18));
        e.forget(s(18));
        assert_eq!(other, e);
        let c = Counts::from_array(std::array::from_fn(|i| i as u64));
        assert_eq!(Counts::from_array(c.to_array()), c);
    }
}
