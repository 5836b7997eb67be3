//! A quota window: never more than its limit in any span of its length, counted on dates.
//!
//! Time goes in slots of a 200th of the length. In a span of the length that ends in slot `s` lie slots `s − 200` to
//! `s`, so whatever was granted after slot `s − 201` counts: the oldest slot whole, which leaves at most 0.5 % unused.
//! Grants are dated a little ahead and not in order, so what is dated later counts too; then the last grant of any span
//! has seen all the others. What is kept are sums by slot, so that a check is one subtraction and the moment when
//! capacity returns is found by bisection.

use std::collections::{BTreeMap, VecDeque};

use crate::bucket::{SPANS, slot_width};

/// What is known of the time before a window was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nothing says that there was any.
    Found,
    /// Somebody told it.
    Told,
    /// It is lost up to this slot: the window is closed until that is too old to count.
    Unknown(u64),
}

/// What is remembered of a window. Sums count every grant since the window was last empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) length_us: u64,
    pub(super) origin: Origin,
    /// The slot of the latest call.
    current: u64,
    total: u64,
    /// Sum up to the newest slot that is too old to count.
    base: u64,
    /// `{slot, sum at its end}` of the slots before `current`.
    past: VecDeque<(u64, u64)>,
    /// `{slot, cost}` of `current` and later ones.
    ahead: Vec<(u64, u64)>,
}

impl Window {
    /// A window of which `spent` was granted at `at_us`.
    pub(super) fn new(length_us: u64, at_us: u64, spent: u64, origin: Origin) -> Self {
        let current = at_us / slot_width(length_us);
        let ahead = if spent > 0 { vec![(current, spent)] } else { vec![] };
        Window { length_us, origin, current, total: spent, base: 0, past: VecDeque::new(), ahead }
    }

    fn width(&self) -> u64 {
        slot_width(self.length_us)
    }

    /// How long after a grant nothing of it counts any more.
    pub(super) fn life_us(&self) -> u64 {
        (SPANS + 2) * self.width()
    }

    /// What counts, as of the latest call.
    pub(super) fn spent(&self) -> u64 {
        self.total - self.base
    }

    /// What is remembered, slot by slot; as `each` of windows.lua.
    pub(super) fn slots(&self) -> Vec<(u64, u64)> {
        let lost = match self.origin {
            Origin::Unknown(slot) => Some((slot, 1_000_000_000_000)),
            Origin::Found | Origin::Told => None,
        };
        let mut sum = self.base;
        let past = self.past.iter().map(|(slot, upto)| {
            let cost = upto - sum;
            sum = *upto;
            (*slot, cost)
        });
        lost.into_iter().chain(past).chain(self.ahead.iter().copied()).collect()
    }

    /// Moves on: what is over goes to the past, what is too old is forgotten.
    pub(super) fn advance(&mut self, now: u64) {
        let current = now / self.width();
        if matches!(self.origin, Origin::Unknown(slot) if current > slot + SPANS) {
            self.origin = Origin::Found;
        }
        if current <= self.current {
            return;
        }
        let mut sum = self.total - self.ahead.iter().map(|(_, cost)| cost).sum::<u64>();
        self.ahead.retain(|&(slot, cost)| {
            let over = slot < current;
            if over {
                sum += cost;
                self.past.push_back((slot, sum));
            }
            !over
        });
        while let Some(&(slot, upto)) = self.past.front()
            && slot + SPANS < current
        {
            self.base = upto;
            self.past.pop_front();
        }
        self.current = current;
        if self.base == self.total {
            (self.total, self.base) = (0, 0);
        }
    }

    /// From when on `need` fits under `limit`; past every horizon where it never does.
    pub(super) fn date(&self, need: u64, limit: u64, now: u64) -> u64 {
        let want = (self.total + need).saturating_sub(limit);
        let now = match self.origin {
            Origin::Unknown(slot) => now.max((slot + SPANS + 1) * self.width()),
            Origin::Found | Origin::Told => now,
        };
        if want <= self.base {
            return now;
        }
        if want > self.total {
            return now + (SPANS + 1) * self.width();
        }
        // The first slot whose end reaches what has to be gone.
        let at = self.past.partition_point(|(_, upto)| *upto < want);
        let slot = match self.past.get(at) {
            Some((slot, _)) => *slot,
            None => {
                let mut sum = self.past.back().map_or(self.base, |(_, upto)| *upto);
                let reaches = |&&(_, cost): &&(u64, u64)| {
                    sum += cost;
                    sum >= want
                };
                self.ahead.iter().find(reaches).map_or(self.current, |(slot, _)| *slot)
            }
        };
        now.max((slot + SPANS + 1) * self.width())
    }

    /// Whether what it had granted is lost, and may still be told.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.origin, Origin::Unknown(_))
    }

    /// What was lost is known now.
    pub(super) fn found(&mut self) {
        if self.is_lost() {
            self.origin = Origin::Found;
        }
    }

    pub(super) fn charge(&mut self, date_us: u64, cost: u64) {
        let slot = (date_us / self.width()).max(self.current);
        self.total += cost;
        match self.ahead.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(known) => self.ahead[known].1 += cost,
            Err(at) => self.ahead.insert(at, (slot, cost)),
        }
    }

    /// Takes the past as told, cost by slot, beside what is known already; once. Returns whether it did.
    pub(super) fn tell(&mut self, told: &BTreeMap<u64, u64>) -> bool {
        if self.origin == Origin::Told {
            return false;
        }
        self.add(told);
        self.origin = Origin::Told;
        true
    }

    /// Takes what somebody else granted, cost by slot, beside what is known already.
    pub(super) fn add(&mut self, more: &BTreeMap<u64, u64>) {
        let mut costs: BTreeMap<u64, u64> = BTreeMap::new();
        let mut add = |slot: u64, cost: u64| {
            if slot + SPANS >= self.current {
                *costs.entry(slot).or_default() += cost;
            }
        };
        let mut sum = self.base;
        for &(slot, upto) in &self.past {
            add(slot, upto - sum);
            sum = upto;
        }
        self.ahead.iter().for_each(|&(slot, cost)| add(slot, cost));
        more.iter().for_each(|(slot, cost)| add((*slot).min(self.current), *cost));
        (self.total, self.base) = (0, 0);
        self.past.clear();
        self.ahead.clear();
        for (slot, cost) in costs {
            self.total += cost;
            if slot < self.current {
                self.past.push_back((slot, self.total));
            } else {
                self.ahead.push((slot, cost));
            }
        }
    }
}
