//! What the pacer holds: giving it back, and what keeps it.

use std::{collections::VecDeque, sync::Arc};

use paceline_core::Class;

use super::{Group, Hint, LaneKey, Pacer, Standing, group::Held};
use crate::{BucketSpec, FOREVER_US, Why};

/// A date that has passed: what was closed is open.
const OPEN_US: u64 = 1;

impl<H> Pacer<H> {
    /// Gives back everything held for a lane, in the order pushed.
    pub fn take_lane(&mut self, lane: &LaneKey) -> Vec<H> {
        self.take_where(lane, |_, _| true)
    }

    /// Gives back the heads of a lane that a limit narrower than the lane keeps, where `late` says so of when each could
    /// go: those before it in its flow take their time as well. Each flow's in order, with what keeps them, and
    /// until when: those that stay go first. Looks at every flow of the lane.
    pub fn take_narrow(&mut self, lane: &LaneKey, late: impl Fn(&Hint, u64, &H) -> bool) -> Vec<(Hint, Vec<H>)> {
        let Some((ids, _)) = self.lanes.get(lane) else { return Vec::new() };
        let kept = |id: &&u64| {
            let flow = self.flows.get(id).filter(|f| !f.in_call);
            flow.and_then(|f| f.hint.as_ref()).is_some_and(|h| h.narrow)
        };
        let mut ids: Vec<u64> = ids.iter().filter(kept).copied().collect();
        ids.sort_unstable();
        let mut taken = Vec::new();
        for id in ids {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let Some(hint) = flow.hint.clone() else { continue };
            let (pace_us, position) = flow.pace_at(&hint.bucket, &self.standing);
            let mut turn_us = hint.retry_at_us;
            let (mut gone, mut stay) = (Vec::new(), VecDeque::new());
            for head in flow.heads.drain(..) {
                if late(&hint, turn_us, &head.handle) {
                    gone.push(head.handle);
                } else {
                    let cost = position.map_or(0, |k| head.cost.at(k));
                    turn_us = turn_us.saturating_add(pace_us.saturating_mul(cost));
                    stay.push_back(head);
                }
            }
            flow.heads = stay;
            let empty = flow.heads.is_empty();
            if gone.is_empty() {
                continue;
            }
            if let Some((_, held)) = self.lanes.get_mut(lane) {
                *held -= gone.len();
            }
            if empty {
                self.forget(id);
            }
            taken.push((Hint { retry_at_us: turn_us, ..hint }, gone));
        }
        taken
    }

    /// Gives back the heads of a lane that match and whose flow does, by its limits, class and hint, in the order pushed.
    /// A flow that is being asked about stays.
    pub fn take_bound(
        &mut self,
        lane: &LaneKey,
        mut bound: impl FnMut(&[BucketSpec], Class, Option<&Hint>) -> bool,
        mut wanted: impl FnMut(&H) -> bool,
    ) -> Vec<H> {
        let Some((ids, _)) = self.lanes.get(lane) else { return Vec::new() };
        let flows = ids.iter().filter_map(|id| Some((*id, self.flows.get(id)?)));
        let matching = flows.filter(|(_, f)| !f.in_call && bound(&f.buckets, f.class, f.hint.as_ref()));
        let ids: Vec<u64> = matching.map(|(id, _)| id).collect();
        self.take_from(lane, ids, |head, _| wanted(head))
    }

    /// Likewise the heads that `wanted` picks from flows kept for as long by whatever limit.
    pub fn take_kept(&mut self, lane: &LaneKey, later_than_us: u64, wanted: impl Fn(&Hint, &H) -> bool) -> Vec<H> {
        self.take_where(lane, |head, hint| hint.is_some_and(|h| h.retry_at_us > later_than_us && wanted(h, head)))
    }

    /// Gives back the heads of a lane that match, in the order pushed. The flow's hint comes with each head.
    pub fn take_where(&mut self, lane: &LaneKey, wanted: impl FnMut(&H, Option<&Hint>) -> bool) -> Vec<H> {
        let Some((ids, _)) = self.lanes.get(lane) else { return Vec::new() };
        let ids: Vec<u64> = ids.iter().copied().collect();
        self.take_from(lane, ids, wanted)
    }

    fn take_from(&mut self, lane: &LaneKey, ids: Vec<u64>, mut wanted: impl FnMut(&H, Option<&Hint>) -> bool) -> Vec<H> {
        let mut taken = Vec::new();
        for id in ids {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let mut kept = VecDeque::new();
            for head in flow.heads.drain(..) {
                if wanted(&head.handle, flow.hint.as_ref()) {
                    taken.push((head.order, head.handle));
                } else {
                    kept.push_back(head);
                }
            }
            flow.heads = kept;
            if flow.heads.is_empty() {
                self.forget(id);
            }
        }
        if let Some((ids, held)) = self.lanes.get_mut(lane) {
            *held -= taken.len();
            if ids.is_empty() {
                self.lanes.remove(lane);
            }
        }
        taken.sort_by_key(|(order, _)| *order);
        taken.into_iter().map(|(_, handle)| handle).collect()
    }

    /// Shows every head held for a lane, in no order.
    pub fn look(&self, lane: &LaneKey, mut seen: impl FnMut(&H)) {
        let flows = self.lanes.get(lane).into_iter().flat_map(|(ids, _)| ids).filter_map(|id| self.flows.get(id));
        flows.flat_map(|flow| &flow.heads).for_each(|head| seen(&head.handle));
    }

    /// Heads held for a lane.
    pub fn held(&self, lane: &LaneKey) -> usize {
        self.lanes.get(lane).map_or(0, |(_, held)| *held)
    }

    /// Heads held in all.
    pub fn len(&self) -> usize {
        self.lanes.values().map(|(_, held)| held).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// What keeps a lane, if every flow of it was denied: the one that may go first.
    pub fn hint(&self, lane: &LaneKey) -> Option<Hint> {
        let (ids, _) = self.lanes.get(lane)?;
        let mut first: Option<&Hint> = None;
        for id in ids {
            let hint = self.flows.get(id)?.hint.as_ref()?;
            if first.is_none_or(|f| hint.retry_at_us < f.retry_at_us) {
                first = Some(hint);
            }
        }
        first.cloned()
    }

    /// Asks nothing that touches the bucket `key` before `until_us`: a pause, an open circuit, a Retry-After.
    /// A later call replaces an earlier one; 0 ends the hold.
    pub fn hold_bucket(&mut self, key: &Arc<str>, until_us: u64, now_us: u64) {
        if until_us > now_us {
            self.holds.insert(key.clone(), until_us);
            return;
        }
        self.holds.remove(key);
        self.let_go(key, now_us);
    }

    /// As [`Pacer::hold_bucket`], of a whole group of flows. `name` is what hints call it, and what ends the hold.
    pub fn hold_group(&mut self, name: &Arc<str>, group: Group, until_us: u64, now_us: u64) {
        if until_us > now_us {
            self.groups.insert(name.clone(), Held { group, until_us });
            return;
        }
        self.groups.remove(name);
        self.let_go(name, now_us);
    }

    fn let_go(&mut self, name: &Arc<str>, now_us: u64) {
        for (id, flow) in &mut self.flows {
            let held = flow.hint.as_ref().is_some_and(|h| h.why == Why::Hold && h.bucket == *name);
            if held && !flow.in_call {
                flow.hint = None;
                self.schedule.set(*id, flow.class, now_us, flow.class == Class::Critical);
            }
        }
    }

    /// Asks for the bucket `key` as it stands from now on, whatever its messages say; `None`: as they say. What replaces
    /// something that others have been told is told as newer than that.
    pub fn set_standing(&mut self, key: &Arc<str>, standing: Option<Standing>, now_us: u64) {
        let before = self.standing.get(key).copied();
        let told_us = before.map_or(0, |b| b.since_us);
        let mut new = standing.unwrap_or_default();
        new.closed_until_us = if new.since_us == 0 { 0 } else { new.closed_until_us.min(FOREVER_US) };
        new.since_us = new.since_us.min(FOREVER_US);
        if before == Some(new) {
            return;
        }
        if new.closed_until_us == 0 && before.is_some_and(|b| b.closed_until_us > now_us) {
            // Only who closed it says that it is open.
            new.closed_until_us = OPEN_US;
        }
        if told_us > 0 && new.since_us <= told_us {
            let same = before.is_some_and(|b| b.kind == new.kind && b.closed_until_us == new.closed_until_us);
            new.since_us = if same { told_us } else { told_us + 1 };
        }
        if new == Standing::default() {
            self.standing.remove(key);
        } else {
            self.standing.insert(key.clone(), new);
        }
        for (id, flow) in &mut self.flows {
            // What it was told to wait for was reckoned by the old one.
            if !flow.in_call && flow.hint.as_ref().is_some_and(|h| h.bucket == *key && h.why != Why::Hold) {
                flow.hint = None;
                self.schedule.set(*id, flow.class, now_us, false);
            }
        }
    }

    /// The configuration that heads' buckets come from came into force at that moment ([`crate::Ask::generation_us`]).
    pub fn set_generation(&mut self, generation_us: u64) {
        self.generation_us = generation_us;
    }

    /// Limits have changed: everything is asked about again, whatever the last answers said.
    pub fn reconsider(&mut self, now_us: u64) {
        for (id, flow) in &mut self.flows {
            flow.hint = None;
            if !flow.in_call {
                self.schedule.set(*id, flow.class, now_us, false);
            }
        }
    }
}
