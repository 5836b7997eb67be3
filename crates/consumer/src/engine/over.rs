//! Mail that waits for nothing any more: its time is over, or an operator has cancelled it.

use paceline_core::{Reason, Timestamp};

use super::Engine;
use crate::pipeline;

impl Engine {
    /// Gives up on what waits here and is too old or has expired, without a grant.
    pub(super) fn give_up(&mut self) {
        let now = self.cx.now();
        for (lane, end) in self.lanes.iter().zip(&mut self.ends) {
            if end.is_none_or(|at| at > now) {
                continue;
            }
            *end = None;
            let over = self.pacer.take_where(&lane.key, |item, _| {
                let over = item.end.at <= now;
                if !over {
                    earliest(end, item.end.at);
                }
                over
            });
            for item in over {
                if let Some(reason) = item.over(now) {
                    self.cx.tasks.spawn(pipeline::give_up(self.cx.clone(), item, reason));
                }
            }
        }
    }

    /// Gives up on what waits here and was cancelled, as soon as the orders have changed.
    pub(super) fn cancel(&mut self) {
        if !self.cancels.has_changed().unwrap_or(false) {
            return;
        }
        let (orders, now) = (self.cancels.borrow_and_update().clone(), self.cx.now());
        let max_bytes = self.cx.settings.max_message_bytes;
        for lane in self.lanes.iter() {
            for item in self.pacer.take_where(&lane.key, |item, _| item.cancelled(&orders, max_bytes, now)) {
                let cx = self.cx.clone();
                self.cx.tasks.spawn(async move { pipeline::bury(&cx, item, Reason::Cancelled).await });
            }
        }
    }
}

pub(super) fn earliest(known: &mut Option<Timestamp>, other: Timestamp) {
    *known = Some(known.map_or(other, |at| at.min(other)));
}
