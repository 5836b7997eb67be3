//! Mail that would keep others waiting makes room: it goes to a flow, or to the ladder for its turn.

use std::{collections::HashMap, sync::Arc};

use paceline_core::lane::HOLD_MAX;
use paceline_limiter::pacer::Hint;

use super::Engine;
use crate::{flows::Flow, item::Item, limits::TENANT, pipeline, turns};

impl Engine {
    /// What a limit narrower than its lane keeps for long would keep the rest of the lane from being looked at. What a
    /// tenant's limit keeps, or that of an account it is pinned to, waits in a flow; other mail lines up for its turn.
    pub(super) fn park(&mut self) {
        let now_us = self.now_us();
        let later_than = now_us + HOLD_MAX.as_micros() as u64;
        let by_flow = |hint: &Hint, item: &Item| {
            let own = hint.bucket.starts_with(TENANT) && item.flow.is_none();
            item.tenant.clone().filter(|_| own)
        };
        // A flow takes all that comes after what it is opened for; a line only those whose own turn is late.
        let late = |hint: &Hint, turn_us: u64, item: &Item| match by_flow(hint, item) {
            Some(_) => hint.retry_at_us > later_than,
            None => turn_us > turns::held_until(item, now_us),
        };
        for (lane, pinned) in self.lanes.iter().zip(&self.pinned) {
            for (hint, items) in self.pacer.take_narrow(&lane.key, late) {
                let mut lining_up = Vec::new();
                for item in items {
                    match by_flow(&hint, &item) {
                        Some(label) => {
                            let flow = Flow::new(item.lane.clone(), label);
                            self.cx.tasks.spawn(pipeline::to_flow(self.cx.clone(), item, Arc::new(flow)));
                        }
                        None => lining_up.push(item),
                    }
                }
                self.lines.keep(&self.cx, &hint, lining_up, now_us);
            }
            if !pinned {
                continue;
            }
            let waits = |hint: &Hint, item: &Item| item.pinned && hint.bucket.starts_with("account:");
            for item in self.pacer.take_kept(&lane.key, later_than, waits) {
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
            let beyond = |item: &Item, _: Option<&Hint>| {
                let Some(counted) = item.counted.as_ref().filter(|counted| counted.held() > most) else { return false };
                let kept = kept.entry(counted.flow.label.clone()).or_default();
                *kept += 1;
                *kept > most
            };
            for item in self.pacer.take_where(&lane.key, beyond) {
                if let Some(flow) = item.counted.as_ref().map(|counted| counted.flow.clone()) {
                    lane.note_moved();
                    self.cx.tasks.spawn(pipeline::to_flow(self.cx.clone(), item, flow));
                }
            }
        }
    }
}
