//! When a worker calls its limiter, and with which heads. Pure: it takes `now` on the limiter's clock.
//!
//! The owner pushes each message it holds for its lane, asks [`Pacer::next_call_at`] when to wake, sends what
//! [`Pacer::begin`] returns, and hands the reply to [`Pacer::complete`], which returns the granted heads with their
//! dates. Promises:
//!
//! - one call under way at a time, [`CALL_GAP_US`] apart; [`CRITICAL_GAP_US`] when a critical head has just arrived, as
//!   long as that keeps the average below one per [`CALL_GAP_US`];
//! - only heads whose limits may have something for them soon are asked about, at most `max_heads` a call and never
//!   more than there are free slots to send them with; where slots are scarce, critical first, then 8 : 3 : 1;
//! - where calls at a time are limited, each call says what has ended since the last one ([`Pacer::release`]), within
//!   [`CALL_GAP_US`] also when there is nothing else to ask;
//! - heads of one *flow* (a lane's messages that touch the same buckets) go in the order pushed; flows are independent,
//!   so a lane may hold thousands of tail domains. Work per call follows the flows that are due, not those that wait.

mod flow;
mod group;
mod held;
mod leases;
mod schedule;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use paceline_core::Class;

pub use self::group::Group;
use self::{
    flow::{Flow, FlowKey, Waiting},
    group::Held,
    leases::Leases,
    schedule::Schedule,
};
use crate::{Ask, BucketSpec, CALL_GAP_US, CRITICAL_GAP_US, Change, Cost, Kind, LaneAsk, Reply, Why};

/// A lane as the broker names it; what is given back together.
pub type LaneKey = Arc<str>;

/// Heads in one call, so that it stays cheap for the server.
pub const MAX_HEADS: usize = 500;
/// What the heads of one call should cover of each bucket's time.
const COVER_US: u64 = 100_000;
/// Calls a critical head may bring forward in a row.
const CALL_CREDIT: u64 = 10;
/// First wait after a failed call; doubles up to the second figure.
const BACKOFF_US: (u64, u64) = (50_000, 1_000_000);
/// Shares of free slots: high, normal, low.
const WEIGHT: [u64; 4] = [0, 3, 8, 24];

/// A message that waits for its grant.
#[derive(Debug)]
pub struct Head<H> {
    /// Comes back with the grant.
    pub handle: H,
    /// Recipients: at least 1 in each bucket.
    pub cost: Cost,
    pub class: Class,
    /// Whose turn it is within the account; `tail` for all tail domains.
    pub destination: Arc<str>,
    /// [`LaneAsk::weight`]; 1 unless the turn is worth more than others.
    pub weight: u32,
    /// What it touches, the account first. Share one `Arc` between messages: it is compared by address first.
    pub buckets: Arc<[BucketSpec]>,
}

/// A granted head: to be sent not before `date_us`, and not later than that + [`crate::GRANT_LIFE_US`].
#[derive(Debug, PartialEq, Eq)]
pub struct Granted<H> {
    pub handle: H,
    pub date_us: u64,
    pub lane: LaneKey,
}

/// A call under way: send [`Call::ask`], then hand it back with the outcome.
#[derive(Debug)]
pub struct Call {
    ask: Ask,
    /// Flow and the sequence numbers of its heads, one a lane of the ask.
    asked: Vec<(u64, Vec<u64>)>,
}

impl Call {
    /// What to ask the limiter.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }
}

/// What a bucket is just now, where that is not as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// `None`: as configured. A rate stays a rate, slots stay slots.
    pub kind: Option<Kind>,
    /// Nothing goes before this; one that has passed: open; 0: nothing is said of that; [`crate::FOREVER_US`]: until told
    /// otherwise.
    pub closed_until_us: u64,
    /// When that came about, on the limiter's clock: among workers that say otherwise, the newest is right. 0: for this
    /// worker only, and then it cannot be closed (see [`Pacer::hold_bucket`]).
    pub since_us: u64,
}

/// What keeps the heads of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// No grant before this.
    pub retry_at_us: u64,
    /// The bucket that binds.
    pub bucket: Arc<str>,
    /// It binds only part of the lane's mail.
    pub narrow: bool,
    pub why: Why,
}

/// The driver of one worker. `H` is whatever the owner keeps for a message.
#[derive(Debug)]
pub struct Pacer<H> {
    worker: Arc<str>,
    max_heads: usize,
    flows: HashMap<u64, Flow<H>>,
    by_key: HashMap<FlowKey, u64>,
    /// Flows of each lane, and heads held.
    lanes: HashMap<LaneKey, (HashSet<u64>, usize)>,
    /// Flows with heads, by account and class: what the account's rate is divided by.
    sharing: HashMap<(Arc<str>, Class), u32>,
    schedule: Schedule,
    holds: HashMap<Arc<str>, u64>,
    /// Held by what they are, by the name of the hold.
    groups: HashMap<Arc<str>, Held>,
    /// What buckets are just now, where that is not as configured.
    standing: HashMap<Arc<str>, Standing>,
    leases: Leases,
    epoch_us: u64,
    generation_us: u64,
    next_flow: u64,
    next_head: u64,
    under_way: bool,
    last_call_us: Option<u64>,
    not_before_us: u64,
    failures: u32,
    /// GCRA over this worker's own calls.
    calls_tat_us: u64,
    slot_tags: [u64; 4],
    wasted: u64,
}

impl<H> Pacer<H> {
    /// A pacer for the worker so named; the name must be unlike those of other live workers.
    pub fn new(worker_id: &str) -> Self {
        Pacer {
            worker: worker_id.into(),
            max_heads: MAX_HEADS,
            flows: HashMap::new(),
            by_key: HashMap::new(),
            lanes: HashMap::new(),
            sharing: HashMap::new(),
            schedule: Schedule::default(),
            holds: HashMap::new(),
            groups: HashMap::new(),
            standing: HashMap::new(),
            leases: Leases::default(),
            epoch_us: 0,
            generation_us: 0,
            next_flow: 0,
            next_head: 0,
            under_way: false,
            last_call_us: None,
            not_before_us: 0,
            failures: 0,
            calls_tat_us: 0,
            slot_tags: [0; 4],
            wasted: 0,
        }
    }

    /// Sets the most heads in one call, [`MAX_HEADS`] unless told.
    #[must_use]
    pub fn with_max_heads(mut self, max_heads: usize) -> Self {
        self.max_heads = max_heads.clamp(1, crate::MAX_HEADS);
        self
    }

    /// Takes a head at the end of its lane. Its limits are those of its latest message.
    ///
    /// A head without buckets has no limits and must not come here; it would wait for ever.
    pub fn push(&mut self, lane: LaneKey, head: Head<H>, now_us: u64) {
        let id = self.flow_for(&lane, &head);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let was_empty = flow.heads.is_empty();
        flow.buckets = head.buckets;
        flow.weight = head.weight;
        flow.heads.push_back(Waiting { order: self.next_head, cost: head.cost, handle: head.handle });
        self.next_head += 1;
        if let Some((_, held)) = self.lanes.get_mut(&lane) {
            *held += 1;
        }
        if was_empty {
            flow.hint = None;
            flow.since_us = 0;
            let (class, account) = (flow.class, flow.account());
            if let Some(account) = account {
                *self.sharing.entry((account, class)).or_default() += 1;
            }
            if !self.flows[&id].in_call {
                self.schedule.set(id, class, now_us, class == Class::Critical);
            }
        }
    }

    /// When [`Pacer::begin`] will next have something to ask or to say; `None` while a call is under way or nothing
    /// waits.
    pub fn next_call_at(&self, now_us: u64) -> Option<u64> {
        if self.under_way {
            return None;
        }
        let after = |gap: u64| self.last_call_us.map_or(0, |t| t + gap);
        let regular = self.schedule.earliest().map(|due| due.max(after(CALL_GAP_US)));
        let urgent = self.schedule.earliest_fresh().map(|due| {
            let credit = self.calls_tat_us.saturating_sub(CALL_CREDIT * CALL_GAP_US);
            due.max(after(CRITICAL_GAP_US)).max(credit.min(after(CALL_GAP_US)))
        });
        let at = [regular, urgent, self.report_at(now_us)].into_iter().flatten().min()?;
        Some(at.max(self.not_before_us).max(now_us))
    }

    /// When [`Pacer::begin`] will next say what has ended, whether or not anything can be asked then.
    pub fn report_at(&self, now_us: u64) -> Option<u64> {
        if self.under_way || !self.leases.untold() {
            return None;
        }
        let at = self.last_call_us.map_or(0, |t| t + CALL_GAP_US);
        Some(at.max(self.not_before_us).max(now_us))
    }

    /// A granted head's call has ended, or was not made: its slots, if its `buckets` name any, are free again.
    pub fn release(&mut self, buckets: &[BucketSpec], now_us: u64) {
        for id in self.leases.give_back(buckets) {
            if let Some(flow) = self.flows.get(&id)
                && !flow.in_call
                && flow.hint.as_ref().is_some_and(|h| h.why == Why::Concurrency)
            {
                self.schedule.set(id, flow.class, now_us, false);
            }
        }
    }

    /// Starts a call if one is due and something can be asked or said. `free_slots`: how many sends may be added now;
    /// with none, nothing is asked, and the owner tries again when one is free rather than at [`Pacer::next_call_at`].
    pub fn begin(&mut self, now_us: u64, free_slots: usize) -> Option<Call> {
        self.begin_within(now_us, free_slots, |_, most| most)
    }

    /// As [`Pacer::begin`]. `room` is told the first head of a flow and how many heads are worth asking for, and says how
    /// many there is room for; a flow without any is looked at again a call later.
    pub fn begin_within(&mut self, now_us: u64, free_slots: usize, mut room: impl FnMut(&H, usize) -> usize) -> Option<Call> {
        let report = self.report_at(now_us).is_some_and(|at| at <= now_us);
        if (free_slots == 0 && !report) || self.next_call_at(now_us)? > now_us {
            return None;
        }
        let (worker, epoch_us, generation_us) = (self.worker.clone(), self.epoch_us, self.generation_us);
        let ask = Ask { worker, epoch_us, generation_us, ..Ask::default() };
        let mut call = Call { ask, asked: Vec::new() };
        let mut buckets: HashMap<Arc<str>, usize> = HashMap::new();
        let mut left = free_slots.min(self.max_heads);
        let mut passed: Vec<(u64, Class, u64)> = Vec::new();
        self.start_slot_turns(now_us);
        while left > 0
            && let Some((class, id)) = self.schedule.pop_due(now_us + CALL_GAP_US, |c| self.slot_tags[c.index()])
        {
            let Some(flow) = self.flows.get(&id) else { continue };
            if let Some((until, bucket, narrow)) = self.held_until(flow, now_us) {
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.hint = Some(Hint { retry_at_us: until, bucket, narrow, why: Why::Hold });
                }
                passed.push((id, class, until));
                continue;
            }
            let sharing = flow.account().and_then(|a| self.sharing.get(&(a, class)).copied()).unwrap_or(1);
            let take = flow.worth_asking(sharing, COVER_US, &self.standing).min(left);
            let take = flow.heads.front().map_or(0, |first| room(&first.handle, take));
            if take == 0 {
                passed.push((id, class, now_us + CALL_GAP_US));
                continue;
            }
            if call.ask.buckets.len() + flow.buckets.len() > crate::MAX_BUCKETS {
                passed.push((id, class, now_us));
                break;
            }
            left -= take;
            self.slot_tags[class.index()] += take as u64 * WEIGHT[class.index()];
            let positions = flow.buckets.iter().map(|b| {
                *buckets.entry(b.key.clone()).or_insert_with(|| {
                    let bucket = call.ask.buckets.len();
                    let mut spec = b.clone();
                    if let Some(standing) = self.standing.get(&b.key) {
                        let Standing { kind, since_us, closed_until_us } = *standing;
                        spec.kind = kind.unwrap_or(b.kind);
                        call.ask.changes.push(Change { bucket, since_us, closed_until_us });
                    }
                    call.ask.buckets.push(spec);
                    bucket
                })
            });
            call.ask.lanes.push(LaneAsk {
                class,
                destination: flow.destination.clone(),
                weight: flow.weight,
                buckets: positions.collect(),
                costs: flow.heads.iter().take(take).map(|h| h.cost.clone()).collect(),
                since_us: flow.since_us,
                id: flow.name.clone(),
                seq: flow.seq,
            });
            call.asked.push((id, flow.heads.iter().take(take).map(|h| h.order).collect()));
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.in_call = true;
            }
        }
        for (id, class, due) in passed {
            self.schedule.set(id, class, due, false);
        }
        if call.asked.is_empty() && !report {
            return None;
        }
        self.leases.tell(&mut call.ask);
        self.under_way = true;
        self.last_call_us = Some(now_us);
        self.calls_tat_us = self.calls_tat_us.max(now_us) + CALL_GAP_US;
        Some(call)
    }

    /// Takes the answer; returns the granted heads, each flow's in order. Grants of heads that were taken away
    /// meanwhile are void and counted by [`Pacer::wasted`].
    pub fn complete(&mut self, call: Call, reply: &Reply) -> Vec<Granted<H>> {
        self.under_way = false;
        self.failures = 0;
        self.not_before_us = 0;
        self.epoch_us = reply.epoch_us;
        self.leases.told(&call.ask);
        let mut granted = Vec::new();
        let no_answer = crate::LaneGrant::default();
        for (i, (id, orders)) in call.asked.into_iter().enumerate() {
            let answer = reply.lanes.get(i).unwrap_or(&no_answer);
            let Some(flow) = self.flows.get_mut(&id) else {
                self.wasted += answer.dates_us.len() as u64;
                self.correct(&call.ask, i);
                continue;
            };
            flow.in_call = false;
            let before = granted.len();
            for (&date_us, order) in answer.dates_us.iter().zip(orders) {
                match flow.heads.front() {
                    Some(front) if front.order == order => {
                        if let Some(head) = flow.heads.pop_front() {
                            self.leases.take(&flow.buckets);
                            granted.push(Granted { handle: head.handle, date_us, lane: flow.lane.clone() });
                        }
                    }
                    _ => self.wasted += 1,
                }
            }
            let wasted = answer.dates_us.len() > granted.len() - before;
            flow.seq += answer.dates_us.len() as u64;
            if !answer.dates_us.is_empty() {
                flow.since_us = 0;
            }
            flow.hint = answer.denied.and_then(|d| {
                let bucket = call.ask.buckets.get(d.bucket)?;
                if d.why == Why::Concurrency {
                    self.leases.wait(&bucket.key, id);
                }
                // Another flow may see the same bucket otherwise.
                let narrow = flow.buckets.iter().any(|b| b.narrow && b.key == bucket.key);
                Some(Hint { retry_at_us: d.retry_at_us, bucket: bucket.key.clone(), narrow, why: d.why })
            });
            if flow.hint.is_some() && flow.since_us == 0 {
                flow.since_us = reply.now_us;
            }
            let (class, lane) = (flow.class, flow.lane.clone());
            let due = flow.hint.as_ref().map_or(reply.now_us, |h| h.retry_at_us);
            let empty = flow.heads.is_empty();
            if wasted {
                self.correct(&call.ask, i);
            }
            if let Some((_, held)) = self.lanes.get_mut(&lane) {
                *held -= granted.len() - before;
            }
            if empty {
                self.forget(id);
            } else {
                self.schedule.set(id, class, due, false);
            }
        }
        granted
    }

    /// The call brought no answer: everything is asked again, after a wait that doubles with each failure.
    pub fn failed(&mut self, call: Call, now_us: u64) {
        self.under_way = false;
        self.not_before_us = now_us + (BACKOFF_US.0 << self.failures.min(10)).min(BACKOFF_US.1);
        self.failures += 1;
        // It may have granted something all the same.
        call.ask.buckets.iter().for_each(|b| self.leases.correct(b));
        for (id, _) in call.asked {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.in_call = false;
            let (class, empty) = (flow.class, flow.heads.is_empty());
            if empty {
                self.forget(id);
            } else {
                self.schedule.set(id, class, now_us, false);
            }
        }
    }

    /// Grants that came for heads taken away meanwhile.
    pub fn wasted(&self) -> u64 {
        self.wasted
    }

    /// Leases of the `lane`-th lane of an ask were given for nothing.
    fn correct(&mut self, ask: &Ask, lane: usize) {
        for &bucket in &ask.lanes[lane].buckets {
            self.leases.correct(&ask.buckets[bucket]);
        }
    }

    fn held_until(&self, flow: &Flow<H>, now_us: u64) -> Option<(u64, Arc<str>, bool)> {
        let groups = self.groups.iter().filter(|(_, held)| held.until_us > now_us);
        let groups = groups.filter_map(|(name, held)| Some((held.until_us, name.clone(), held.group.narrow_for(flow)?)));
        if self.holds.is_empty() {
            return groups.max();
        }
        let until = |b: &BucketSpec| self.holds.get(&b.key).copied().filter(|t| *t > now_us);
        flow.buckets.iter().filter_map(|b| Some((until(b)?, b.key.clone(), b.narrow))).chain(groups).max()
    }

    /// A class without due heads does not save up slots.
    fn start_slot_turns(&mut self, now_us: u64) {
        let due = |c: &Class| self.schedule.is_due(*c, now_us + CALL_GAP_US);
        let below_critical = &Class::ALL[1..];
        let least = below_critical.iter().filter(|c| due(c)).map(|c| self.slot_tags[c.index()]).min();
        for class in below_critical {
            if let Some(least) = least
                && !due(class)
            {
                let tag = &mut self.slot_tags[class.index()];
                *tag = (*tag).max(least);
            }
        }
    }

    fn flow_for(&mut self, lane: &LaneKey, head: &Head<H>) -> u64 {
        let key = FlowKey::new(lane, head.class, &head.destination, &head.buckets);
        if let Some(id) = self.by_key.get(&key) {
            return *id;
        }
        let id = self.next_flow;
        self.next_flow += 1;
        let name = format!("{}.{id}", self.worker).into();
        self.flows.insert(id, Flow::new(lane.clone(), head, name));
        self.by_key.insert(key, id);
        self.lanes.entry(lane.clone()).or_default().0.insert(id);
        id
    }

    /// Drops an empty flow and all that points to it; a call under way will not find it.
    fn forget(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.schedule.remove(id);
        self.leases.forget(id, &flow.buckets);
        self.by_key.remove(&FlowKey::new(&flow.lane, flow.class, &flow.destination, &flow.buckets));
        if let Some((ids, held)) = self.lanes.get_mut(&flow.lane) {
            ids.remove(&id);
            if ids.is_empty() && *held == 0 {
                self.lanes.remove(&flow.lane);
            }
        }
        if let Some(account) = flow.account() {
            let key = (account, flow.class);
            if let Some(n) = self.sharing.get_mut(&key) {
                *n -= 1;
                if *n == 0 {
                    self.sharing.remove(&key);
                }
            }
        }
    }
}
