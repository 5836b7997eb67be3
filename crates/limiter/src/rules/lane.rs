//! One lane during a call: its limits for a visit, the date of its next head, and the charge.

use super::{
    ACTIVE_US, GAP_US, HORIZON_US, LEAD_US, OUT_OF_TURN_US, POLL_US, REST_US, SLACK_US, TURN, WEIGHT,
    call::{Call, Slot, out_of_turn_limit, patience_over},
};
use crate::{Cost, Denied, LaneAsk, LaneGrant, Why};

/// How a lane is visited in a sweep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    pub(super) in_turn_only: bool,
    pub(super) only_one: bool,
}

/// A lane and how far it got.
pub(super) struct Lane<'a> {
    pub(super) ask: &'a LaneAsk,
    pub(super) class: usize,
    /// Its position among those who take turns, bucket by bucket.
    turns: Vec<Option<usize>>,
    next: usize,
    since_us: u64,
}

/// What others allow a lane at one bucket; constant while only this lane is granted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Critical mail is waiting: nobody else's turn.
    blocked: bool,
    /// Least tag of the other waiting classes, and how far it lets this class go.
    least_other: u64,
    tag_limit: u64,
    /// The same among those who take turns.
    least_other_turn: u64,
    turn_limit: u64,
    /// Somebody else's ticket.
    ticket: bool,
}

impl Limits {
    pub(super) fn in_turn(&self, tag: u64, turn_tag: u64) -> bool {
        !self.blocked && tag <= self.tag_limit && turn_tag <= self.turn_limit
    }
}

impl<'a> Lane<'a> {
    pub(super) fn new(ask: &'a LaneAsk, turns: Vec<Option<usize>>) -> Self {
        Lane { ask, class: ask.class.index(), turns, next: 0, since_us: ask.since_us }
    }

    fn account(&self) -> usize {
        self.ask.buckets[0]
    }

    /// Its position among those who take turns at `bucket`.
    pub(super) fn turn_at(&self, bucket: usize) -> Option<usize> {
        self.turns[self.ask.buckets.iter().position(|b| *b == bucket)?]
    }

    pub(super) fn exhausted(&self) -> bool {
        self.next >= self.ask.costs.len()
    }

    pub(super) fn rank(&self) -> u64 {
        u64::from(self.class > 0)
    }

    /// Rule 2: critical first, then by the account's class tag, then the destination's. Sorting is stable.
    pub(super) fn order_key(&self, call: &Call) -> (bool, u64, u64) {
        let account = &call.slots[self.account()];
        (self.class > 0, account.tag_of(self.class), self.turn_tag(account, 0))
    }

    /// How far it got in turn at its `k`-th bucket, `slot`.
    pub(super) fn turn_tag(&self, slot: &Slot, k: usize) -> u64 {
        self.turns[k].map_or(0, |turn| slot.turns_of(self.class).0[turn].tag)
    }

    /// Names the next head of this lane.
    pub(super) fn ticket_name(&self) -> String {
        format!("{}:{}", self.ask.id, self.ask.seq + self.next as u64)
    }

    pub(super) fn patient(&self, now: u64) -> bool {
        self.class == 0 || patience_over(now, self.since_us)
    }

    /// Whether the waiting head is one that others would overtake for ever at `slot`, its `k`-th bucket.
    pub(super) fn wants_ticket(&self, slot: &Slot, k: usize, why: Why) -> bool {
        let cost = slot.price(&self.ask.costs[self.next], k);
        let most = cost.min(slot.burst - slot.reserve);
        // What a window never gives is not waited for.
        let comes = why == Why::Date || (why == Why::Quota && cost <= slot.burst);
        comes && cost > 1 && (most - 1) * slot.t > slot.horizon_of(self.class) - OUT_OF_TURN_US
    }

    /// Rule 3, as of now, at the lane's `k`-th bucket.
    pub(super) fn limits(&self, call: &Call, k: usize) -> Limits {
        self.limits_as(call, k, &self.ticket_name())
    }

    fn limits_as(&self, call: &Call, k: usize, name: &str) -> Limits {
        let now = call.now;
        let slot = &call.slots[self.ask.buckets[k]];
        let mut limits = Limits {
            blocked: false,
            least_other: u64::MAX,
            tag_limit: u64::MAX,
            least_other_turn: u64::MAX,
            turn_limit: u64::MAX,
            ticket: false,
        };
        let ticket = &slot.bucket.ticket;
        if ticket.until_us > now && ticket.rank <= self.rank() {
            limits.ticket = ticket.holder != name;
        }
        if self.class > 0 {
            limits.blocked = slot.waiting(now, 0);
            for other in 1..4 {
                if other != self.class && slot.waiting(now, other) {
                    limits.least_other = limits.least_other.min(slot.tag_of(other));
                }
            }
            limits.tag_limit = limits.least_other.saturating_add(2 * LEAD_US / slot.t);
        }
        if let Some(mine) = self.turns[k] {
            let (turns, present) = slot.turns_of(self.class);
            let mut waiting = 1;
            for (i, turn) in turns.iter().enumerate() {
                if i != mine && (turn.until_us > now || present[i]) {
                    waiting += 1;
                    limits.least_other_turn = limits.least_other_turn.min(turn.tag);
                }
            }
            limits.turn_limit = limits.least_other_turn.saturating_add(LEAD_US * TURN / (slot.t * waiting));
        }
        limits
    }

    /// Grants heads until one may not go; true if any did. What stopped it is left in `out.denied`.
    pub(super) fn grant_while_possible(&mut self, call: &mut Call, visit: Visit, out: &mut LaneGrant) -> bool {
        let name = self.ticket_name();
        let limits: Vec<Limits> = (0..self.ask.buckets.len()).map(|k| self.limits_as(call, k, &name)).collect();
        let mut any = false;
        out.denied = None;
        while let Some(cost) = self.ask.costs.get(self.next) {
            match self.date(call, &limits, visit, cost) {
                Ok(date) => {
                    self.charge(call, &limits, cost, date);
                    out.dates_us.push(date);
                    self.next += 1;
                    self.since_us = 0;
                    any = true;
                    if visit.only_one {
                        break;
                    }
                }
                Err(denied) => {
                    out.denied = Some(denied);
                    break;
                }
            }
        }
        if any {
            for &b in &self.ask.buckets {
                let slot = &mut call.slots[b];
                if self.class == 0 && slot.is_slots() {
                    // Nobody else may go while critical mail waits for a slot: not for longer than it does.
                    slot.bucket.active_until_us[0] = 0;
                }
                if slot.bucket.ticket.holder == name {
                    slot.bucket.ticket = Default::default();
                }
            }
        }
        any
    }

    /// Rule 4: the date of the next head, or what keeps it back.
    fn date(&self, call: &Call, limits: &[Limits], visit: Visit, cost: &Cost) -> Result<u64, Denied> {
        let now = call.now;
        let class = self.class;
        let mut date = now;
        let mut date_from = 0;
        let mut account_date = now;
        let mut denied: Option<Denied> = None;
        let mut latest = 0;
        for (k, &bucket) in self.ask.buckets.iter().enumerate() {
            let slot = &call.slots[bucket];
            let f = slot.date(now, class, slot.price(cost, k));
            if f > date {
                (date, date_from) = (f, k);
            }
            if k == 0 {
                account_date = f;
            }
            let shut = slot.shut(now, class);
            if limits[k].ticket && !shut {
                if latest == 0 {
                    let ticket_until = slot.bucket.ticket.until_us;
                    // A window may keep its ticket's holder for long; that one comes back before the ticket runs out.
                    let free = if slot.is_window() { ticket_until.saturating_sub(ACTIVE_US) } else { f - HORIZON_US };
                    denied = Some(Denied { retry_at_us: free.max(now + 2 * GAP_US), bucket, why: Why::Ticket });
                }
            } else if f > now + slot.horizon_of(class) {
                if f > latest {
                    latest = f;
                    let ahead = if class == 0 { HORIZON_US } else { slot.horizon / 2 };
                    let (retry_at_us, why) = match slot.why() {
                        _ if shut && slot.opens_us == Some(f) => ((f - ahead).min(now + REST_US), Why::Closed),
                        Why::Concurrency => (now + if class == 0 { GAP_US } else { POLL_US }, Why::Concurrency),
                        why if slot.is_lost() => ((f - ahead).min(call.told_us()), why),
                        why => (f - ahead, why),
                    };
                    denied = Some(Denied { retry_at_us: retry_at_us.max(now + GAP_US), bucket, why });
                }
            } else if latest == 0
                && denied.is_none_or(|d| d.why != Why::Ticket)
                && (visit.in_turn_only || f > out_of_turn_limit(now) || slot.is_slots())
                && !limits[k].in_turn(slot.tag_of(class), self.turn_tag(slot, k))
            {
                let retry_at_us = (now + GAP_US).max(f.saturating_sub(OUT_OF_TURN_US));
                denied = Some(Denied { retry_at_us, bucket, why: Why::Turn });
            }
        }
        if let Some(denied) = denied {
            return Err(denied);
        }
        let from = self.ask.buckets[date_from];
        if date_from > 0 && call.slots[from].shared && limits[date_from].least_other_turn < u64::MAX {
            // Other accounts wait there too: its date will not come any nearer by waiting.
            return Ok(date);
        }
        for (k, &bucket) in self.ask.buckets.iter().enumerate() {
            let slot = &call.slots[bucket];
            if k > 0 && !slot.shared {
                continue;
            }
            // Where this bucket could give at once, its stored burst counts: a slow destination must not eat it up,
            // creeping ahead date by date.
            let mut base = slot.date(now, class, slot.price(cost, k));
            if k > 0 {
                // An account that runs ahead takes its fleet limits along; only third buckets may not.
                base = base.max(account_date);
            }
            let slack = ((slot.burst - 1) * slot.t / 8).max(SLACK_US);
            if date.saturating_sub(base) > slack {
                let retry_at_us = (now + GAP_US).max(date - slack);
                return Err(Denied { retry_at_us, bucket: from, why: Why::Gap });
            }
        }
        Ok(date)
    }

    /// Rule 5.
    fn charge(&self, call: &mut Call, limits: &[Limits], cost: &Cost, date: u64) {
        for (k, &b) in self.ask.buckets.iter().enumerate() {
            let slot = &mut call.slots[b];
            let cost = slot.price(cost, k);
            slot.dirty = true;
            slot.charge(&call.worker, call.now, cost, date);
            if self.class > 0 {
                let tag = &mut slot.bucket.tags[self.class - 1];
                slot.bucket.v = slot.bucket.v.max((*tag).min(limits[k].least_other));
                *tag += cost * WEIGHT[self.class - 1];
            }
            if let Some(mine) = self.turns[k] {
                let turns = slot.turns(self.class);
                let tag = &mut turns.entries[mine].tag;
                turns.v = turns.v.max((*tag).min(limits[k].least_other_turn));
                // Weights count at the account.
                *tag += cost * TURN / if k == 0 { u64::from(self.ask.weight) } else { 1 };
            }
        }
    }
}
