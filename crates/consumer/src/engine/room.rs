//! Mail that would keep others waiting makes room: it goes to a flow, or to the ladder for its turn.

use std::{collections::HashMap, sync::Arc, time::Duration};

use paceline_broker::Purpose;

use super::{Engine, PARK, TURN_MOST};
use crate::{flows::Flow, limits::TENANT, pipeline};

impl Engine {
    /// What a limit narrower than its lane keeps for long would keep the rest of the lane from being looked at. What a
    /// tenant's limit keeps, or that of an account it is pinned to, waits in a flow; other mail is parked for its turn.
    pub(super) fn park(&mut self) {
        let now_us = self.now_us();
        let later_than = now_us + PARK.as_micros() as u64;
        for (lane, pinned) in self.lanes.iter().zip(&self.pinned) {
            let mut turns: HashMap<Arc<str>, u64> = HashMap::new();
            for (hint, items) in self.pacer.take_narrow(&lane.key, later_than) {
                for mut item in items {
                    if let (Some(label), None, true) = (&item.tenant, &item.flow, hint.bucket.starts_with(TENANT)) {
                        let flow = Flow::new(item.lane.clone(), label.clone());
                        self.cx.tasks.spawn(pipeline::to_flow(self.cx.clone(), item, Arc::new(flow)));
                        continue;
                    }
                    // One after another, each its cost later than the one before.
                    let binding = item.buckets.iter().position(|b| b.key == hint.bucket);
                    let takes = binding.map_or(0, |k| item.buckets[k].interval_us().saturating_mul(item.cost.at(k)));
                    let turn = turns.entry(hint.bucket.clone()).or_insert(hint.retry_at_us);
                    let wait = Duration::from_micros(turn.saturating_sub(now_us)).min(TURN_MOST);
                    *turn = turn.saturating_add(takes);
                    item.journey.not_before = Some(self.cx.now() + wait);
                    let cx = self.cx.clone();
                    self.cx.tasks.spawn(async move { pipeline::pass_on(&cx, item, Purpose::Delay).await });
                }
            }
            if !pinned {
                continue;
            }
            let waiting =
                self.pacer.take_kept(&lane.key, later_than, |hint, item| item.pinned && hint.bucket.starts_with("account:"));
            for item in waiting {
                let flow = Flow::new(item.lane.clone(), self.cx.flows.labels.of_account(item.account));
                self.cx.tasks.spawn(pipeline::to_flow(self.cx.clone(), item, Arc::new(flow)));
            }
        }
    }

    /// Where a lane has to wait, what one tenant holds of it beyond its part moves to its flow, the last first: it came
    /// before the lane had to wait.
    pub(super) fn uncrowd(&mut self) {
        for lane in &self.lanes {
            let Some(most) = lane.most() else { continue };
            let mut kept: HashMap<Arc<str>, usize> = HashMap::new();
            let beyond = self.pacer.take_where(&lane.key, |item, _| {
                let Some(counted) = item.counted.as_ref().filter(|counted| counted.held() > most) else { return false };
                let kept = kept.entry(counted.flow.label.clone()).or_default();
                *kept += 1;
                *kept > most
            });
            for item in beyond {
                if let Some(flow) = item.counted.as_ref().map(|counted| counted.flow.clone()) {
                    lane.note_moved();
                    self.cx.tasks.spawn(pipeline::to_flow(self.cx.clone(), item, flow));
                }
            }
        }
    }
}
