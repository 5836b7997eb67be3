//! One call: who is here, in which order, the sweeps, and what those left waiting leave behind.

use std::sync::Arc;

use super::{
    ACTIVE_US, FORGET_US, GAP_US, HORIZON_US, LATER_US, MARK_STEP_US, OUT_OF_TURN_US, PATIENCE_US, POLL_US, REST_US, RETURN_US,
    SOON_US, State,
    lane::{Lane, Visit},
    state::{Bucket, Epoch, Loaded, More, Past, Turn, Turns},
};
use crate::{
    Ask, BucketSpec, Change, Cost, Denied, Kind, LaneAsk, LaneGrant, LimiterError, MAX_DEBT_US, Reply, Seed, Spent, Why,
};

/// Grants what may go at `now_us` and changes `state` accordingly.
pub fn decide(state: &mut State, ask: &Ask, now_us: u64) -> Result<Reply, LimiterError> {
    ask.check()?;
    let epoch = state.epoch(ask.epoch_us, false, now_us);
    let mut call = Call::load(state, ask, epoch, now_us);
    let mut lanes: Vec<Lane<'_>> = ask.lanes.iter().map(|l| call.admit(l, &ask.buckets[l.buckets[0]].key)).collect();
    let mut out = vec![LaneGrant::default(); lanes.len()];

    let mut order: Vec<usize> = (0..lanes.len()).collect();
    order.sort_by_key(|i| lanes[*i].order_key(&call));

    // Phase 1 serves in turn only; when a sweep grants nothing, phase 2 gives away what would go to waste, one a lane.
    let mut done = vec![false; lanes.len()];
    let mut in_turn_only = true;
    loop {
        let mut any = false;
        for &i in &order {
            if done[i] {
                continue;
            }
            let visit = Visit { in_turn_only, only_one: !in_turn_only };
            any |= lanes[i].grant_while_possible(&mut call, visit, &mut out[i]);
            done[i] = match out[i].denied {
                None => lanes[i].exhausted(),
                Some(denied) => matches!(denied.why, Why::Date | Why::Quota | Why::Concurrency | Why::Closed),
            };
        }
        match (any, in_turn_only) {
            (true, _) => in_turn_only = true,
            (false, true) => in_turn_only = false,
            (false, false) => break,
        }
    }

    for (lane, out) in lanes.iter().zip(&mut out) {
        if lane.exhausted() {
            out.denied = None;
        } else if let Some(denied) = out.denied {
            // Where it is closed nobody takes turns.
            if denied.why != Why::Closed {
                call.remember_waiting(lane, denied);
            }
        }
    }
    call.save(state, ask);
    Ok(Reply { now_us, epoch_us: epoch.at_us, lost: epoch.past == Past::Lost, lanes: out })
}

/// Tells windows their past, as [`crate::Limiter::seed`] does.
pub fn tell(state: &mut State, past: &[Seed], complete: bool, now_us: u64) -> Result<(), LimiterError> {
    tell_state(state, past, complete, 0, now_us)
}

/// The same for the state of that epoch alone, or 0.
pub(crate) fn tell_state(
    state: &mut State,
    past: &[Seed],
    complete: bool,
    meant_us: u64,
    now_us: u64,
) -> Result<(), LimiterError> {
    let ask = Ask { buckets: past.iter().map(|s| s.window.clone()).collect(), ..Ask::default() };
    ask.check()?;
    let told = past.iter().map(Seed::by_slot).collect::<Result<Vec<_>, _>>()?;
    let epoch = state.epoch(meant_us, complete, now_us);
    let mut call = Call::load(state, &ask, epoch, now_us);
    if meant_us > 0 && meant_us != epoch.at_us {
        call.save(state, &ask);
        return Ok(());
    }
    for (slot, told) in call.slots.iter_mut().zip(&told) {
        if let More::Window(window) = &mut slot.bucket.more {
            slot.dirty |= window.tell(told);
        }
    }
    call.save(state, &ask);
    Ok(())
}

/// Charges buckets what was granted without this limiter, by a worker that could not ask.
pub fn charge(state: &mut State, spent: &[(BucketSpec, Spent)], known_epoch_us: u64, now_us: u64) -> Result<(), LimiterError> {
    let ask = Ask { buckets: spent.iter().map(|(bucket, _)| bucket.clone()).collect(), ..Ask::default() };
    ask.check()?;
    let epoch = state.epoch(known_epoch_us, false, now_us);
    let mut call = Call::load(state, &ask, epoch, now_us);
    let nobody: Arc<str> = "".into();
    for (slot, (_, spent)) in call.slots.iter_mut().zip(spent).filter(|(slot, _)| !slot.is_slots()) {
        match (spent, &mut slot.bucket.more) {
            (Spent::Slots(slots), More::Window(window)) => window.add(&slots.iter().copied().collect()),
            (spent, _) => slot.charge(&nobody, now_us, spent.sum(), now_us),
        }
        slot.dirty = true;
    }
    call.save(state, &ask);
    Ok(())
}

/// The buckets of one call, loaded.
pub(super) struct Call {
    pub(super) now: u64,
    /// When this state began.
    epoch_us: u64,
    pub(super) worker: Arc<str>,
    pub(super) slots: Vec<Slot>,
}

/// A bucket during a call.
pub(super) struct Slot {
    pub(super) bucket: Bucket,
    kind: Kind,
    pub(super) t: u64,
    /// Tokens of a full bucket; the limit of a window or of slots.
    pub(super) burst: u64,
    pub(super) reserve: u64,
    pub(super) shared: bool,
    /// Some lane of this call takes turns here.
    takes_turns: bool,
    /// Until when it is closed, if it is.
    pub(super) opens_us: Option<u64>,
    /// How far ahead classes other than critical may be dated.
    pub(super) horizon: u64,
    /// Classes present in this call where nothing else binds them.
    pub(super) present: [bool; 4],
    /// Likewise for those who take turns, by position.
    pub(super) turn_present: [Vec<bool>; 4],
    pub(super) dirty: bool,
}

impl Slot {
    pub(super) fn horizon_of(&self, class: usize) -> u64 {
        if class == 0 { HORIZON_US } else { self.horizon }
    }

    /// What a head costs here, where this is its lane's `k`-th bucket.
    pub(super) fn price(&self, cost: &Cost, k: usize) -> u64 {
        if self.is_slots() { 1 } else { cost.at(k) }
    }

    pub(super) fn is_slots(&self) -> bool {
        matches!(self.kind, Kind::Slots { .. })
    }

    /// A window that is closed because nobody has told it what it had granted.
    pub(super) fn is_lost(&self) -> bool {
        matches!(&self.bucket.more, More::Window(window) if window.is_lost())
    }

    pub(super) fn is_window(&self) -> bool {
        matches!(self.kind, Kind::Window { .. })
    }

    /// Closed for longer than `class` may be dated ahead.
    pub(super) fn shut(&self, now: u64, class: usize) -> bool {
        self.opens_us.is_some_and(|at| at > now + self.horizon_of(class))
    }

    /// What denies a head here that cannot go soon enough.
    pub(super) fn why(&self) -> Why {
        match self.kind {
            Kind::Rate { .. } => Why::Date,
            Kind::Window { .. } => Why::Quota,
            Kind::Slots { .. } => Why::Concurrency,
        }
    }

    /// When the bucket can give `cost` to `class`; beyond every horizon where all slots are taken.
    pub(super) fn date(&self, now: u64, class: usize, cost: u64) -> u64 {
        let need = if class == 0 { cost } else { cost + self.reserve }.min(self.burst);
        let gives = match &self.bucket.more {
            More::Rate => (self.bucket.tat_us + need * self.t).saturating_sub(self.burst * self.t).max(now),
            // More than all of it never fits.
            More::Window(window) => window.date(need.max(cost), self.burst, now),
            More::Slots(leases) => now + if leases.used() < self.burst { 0 } else { HORIZON_US + 1 },
        };
        self.opens_us.map_or(gives, |opens| gives.max(opens))
    }

    /// Takes `cost` at `date`.
    pub(super) fn charge(&mut self, worker: &Arc<str>, now: u64, cost: u64, date: u64) {
        match (&mut self.bucket.more, self.kind) {
            (More::Window(window), _) => window.charge(date, cost),
            (More::Slots(leases), Kind::Slots { life_us, .. }) => leases.take(worker, life_us, now),
            _ => {
                self.bucket.tat_us = self.bucket.tat_us.max(date) + cost.saturating_mul(self.t).min(MAX_DEBT_US);
                self.bucket.last_us = self.bucket.last_us.max(date);
            }
        }
    }

    /// Until when a head counts as waiting here that may retry at `retry_at_us`, and what is not worth writing down.
    fn mark(&self, now: u64, retry_at_us: u64) -> (u64, u64) {
        let until = now.max(retry_at_us) + ACTIVE_US;
        match self.kind {
            Kind::Rate { .. } => (until, MARK_STEP_US),
            // A lane that rests asks again within a minute.
            Kind::Window { .. } => (until.min(now + REST_US + ACTIVE_US), MARK_STEP_US),
            // Calls end any moment.
            Kind::Slots { .. } => (now + 2 * POLL_US, GAP_US),
        }
    }

    pub(super) fn waiting(&self, now: u64, class: usize) -> bool {
        self.bucket.active_until_us[class] > now || self.present[class]
    }

    /// Turns of `class`. Only called where turns are taken.
    pub(super) fn turns(&mut self, class: usize) -> &mut Turns {
        &mut self.bucket.turns.get_or_insert_default()[class]
    }

    pub(super) fn turns_of(&self, class: usize) -> (&[Turn], &[bool]) {
        let entries = self.bucket.turns.as_ref().map_or(&[][..], |t| &t[class].entries);
        (entries, &self.turn_present[class])
    }
}

impl Call {
    fn load(state: &State, ask: &Ask, epoch: Epoch, now: u64) -> Call {
        let mut changes = vec![None; ask.buckets.len()];
        ask.changes.iter().for_each(|c| changes[c.bucket] = Some(*c));
        let slot = |(spec, change): (&BucketSpec, Option<Change>)| {
            let Loaded { bucket, kind, dirty } = state.load(spec, ask.generation_us, change, epoch, now);
            let (burst, reserve, shared) = match kind {
                Kind::Rate { burst, reserve, shared, .. } => (u64::from(burst), u64::from(reserve), shared),
                Kind::Window { limit, reserve, .. } => (limit, reserve, false),
                Kind::Slots { limit, .. } => (u64::from(limit), 0, false),
            };
            let t = kind.pace_us();
            Slot {
                opens_us: bucket.said.opens_us(now),
                bucket,
                kind,
                t,
                burst,
                reserve,
                shared,
                takes_turns: false,
                horizon: (reserve * t).clamp(2 * GAP_US, HORIZON_US),
                present: [false; 4],
                turn_present: Default::default(),
                dirty,
            }
        };
        let slots = ask.buckets.iter().zip(changes).map(slot).collect();
        let mut call = Call { now, epoch_us: epoch.at_us, worker: ask.worker.clone(), slots };
        let mut held = vec![0; ask.buckets.len()];
        ask.held.iter().for_each(|h| held[h.bucket] = u64::from(h.calls));
        for (slot, calls) in call.slots.iter_mut().zip(held) {
            if let (More::Slots(leases), Kind::Slots { life_us, .. }) = (&mut slot.bucket.more, slot.kind) {
                slot.dirty |= leases.report(&call.worker, calls, life_us, now);
            }
        }
        for lane in &ask.lanes {
            for (k, &b) in lane.buckets.iter().enumerate() {
                call.slots[b].prepare_turns(k);
            }
        }
        call
    }

    /// When to look again at a window whose past is lost.
    pub(super) fn told_us(&self) -> u64 {
        self.now + if self.now < self.epoch_us + RETURN_US { SOON_US } else { LATER_US }
    }

    /// Rule 1: a class or destination that was away starts level with the others, and one whose only obstacle is a
    /// bucket is present at that bucket (at all of its buckets when nothing stands in its way).
    fn admit<'a>(&mut self, ask: &'a LaneAsk, account: &Arc<str>) -> Lane<'a> {
        let now = self.now;
        let class = ask.class.index();
        let mut far = 0;
        let mut far_at = 0;
        let mut turns = Vec::with_capacity(ask.buckets.len());
        for (k, &b) in ask.buckets.iter().enumerate() {
            let slot = &mut self.slots[b];
            if class > 0 && !slot.waiting(now, class) {
                let tag = &mut slot.bucket.tags[class - 1];
                *tag = (*tag).max(slot.bucket.v);
            }
            turns.push(slot.turn_name(k, ask, account).map(|name| slot.wake(now, class, name)));
            if slot.date(now, class, slot.price(&ask.costs[0], k)) > now + slot.horizon_of(class) {
                far += 1;
                far_at = b;
            }
        }
        for (k, &b) in ask.buckets.iter().enumerate() {
            if far == 0 || (far == 1 && far_at == b) {
                let slot = &mut self.slots[b];
                // At slots only those denied wait: others may be here without being in need of one.
                slot.present[class] = !slot.is_slots();
                if let Some(turn) = turns[k] {
                    slot.turn_present[class][turn] = true;
                }
            }
        }
        Lane::new(ask, turns)
    }

    /// Rule 7: marks a waiting head at the bucket that binds it, and its ticket.
    fn remember_waiting(&mut self, lane: &Lane<'_>, denied: Denied) {
        let now = self.now;
        let (class, rank) = (lane.class, lane.rank());
        let binding = &mut self.slots[denied.bucket];
        let (until, step) = binding.mark(now, denied.retry_at_us);
        if until > binding.bucket.active_until_us[class] + step {
            binding.bucket.active_until_us[class] = until;
            binding.dirty = true;
        }
        if let Some(turn) = lane.turn_at(denied.bucket) {
            let turn = &mut binding.turns(class).entries[turn];
            if until > turn.until_us + MARK_STEP_US {
                turn.until_us = until;
                binding.dirty = true;
            }
        }
        if !lane.patient(now) {
            return;
        }
        let holder = lane.ticket_name();
        for (k, &b) in lane.ask.buckets.iter().enumerate() {
            let slot = &self.slots[b];
            let ticket = &slot.bucket.ticket;
            let mine = ticket.holder == holder;
            let free = ticket.until_us <= now || ticket.rank > rank;
            let refresh = mine && denied.why != Why::Ticket;
            let take = !mine && free && b == denied.bucket && lane.wants_ticket(slot, k, denied.why) && {
                let limits = lane.limits(self, k);
                limits.in_turn(slot.tag_of(class), lane.turn_tag(slot, k))
            };
            if refresh || take {
                let slot = &mut self.slots[b];
                slot.bucket.ticket.until_us = until;
                slot.bucket.ticket.rank = rank;
                slot.bucket.ticket.holder.clone_from(&holder);
                slot.dirty = true;
            }
        }
    }

    fn save(self, state: &mut State, ask: &Ask) {
        let now = self.now;
        for (slot, spec) in self.slots.into_iter().zip(&ask.buckets) {
            if !slot.dirty {
                continue;
            }
            let mut bucket = slot.bucket;
            for turns in bucket.turns.iter_mut().flatten().filter(|_| slot.takes_turns) {
                let v = turns.v;
                turns.entries.retain(|e| e.until_us + FORGET_US >= now || e.tag > v);
            }
            state.store(&spec.key, bucket, now);
        }
    }
}

impl Slot {
    /// The tag of a class; critical has none.
    pub(super) fn tag_of(&self, class: usize) -> u64 {
        if class == 0 { 0 } else { self.bucket.tags[class - 1] }
    }

    /// Whose turn it is here for a lane that has this as its `k`-th bucket: at the account its destination's, at a
    /// bucket that accounts share its account's, elsewhere nobody's.
    fn turn_name<'a>(&self, k: usize, ask: &'a LaneAsk, account: &'a Arc<str>) -> Option<&'a Arc<str>> {
        match k {
            0 => Some(&ask.destination),
            _ if self.shared => Some(account),
            _ => None,
        }
    }

    fn prepare_turns(&mut self, k: usize) {
        if (k > 0 && !self.shared) || self.takes_turns {
            return;
        }
        self.takes_turns = true;
        for class in 0..4 {
            let known = self.turns(class).entries.len();
            self.turn_present[class].resize(known, false);
        }
    }

    /// Position of `name` among the turns of `class`, level with the others if it was away.
    fn wake(&mut self, now: u64, class: usize, name: &Arc<str>) -> usize {
        let turns = &mut self.bucket.turns.get_or_insert_default()[class];
        let present = &mut self.turn_present[class];
        match turns.entries.iter().position(|e| e.name == *name) {
            Some(i) => {
                let entry = &mut turns.entries[i];
                if entry.until_us <= now && !present[i] {
                    entry.tag = entry.tag.max(turns.v);
                }
                i
            }
            None => {
                turns.entries.push(Turn { name: name.clone(), tag: turns.v, until_us: 0 });
                present.push(false);
                turns.entries.len() - 1
            }
        }
    }
}

/// Sums below stay far from overflow: [`Ask::check`] bounds every interval, burst and cost.
pub(super) const fn out_of_turn_limit(now: u64) -> u64 {
    now + OUT_OF_TURN_US
}

pub(super) const fn patience_over(now: u64, since: u64) -> bool {
    since > 0 && now.saturating_sub(since) >= PATIENCE_US
}
