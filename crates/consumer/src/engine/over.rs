//! Mail that waits for nothing any more: its time is over, or an operator has cancelled it.

use paceline_core::{Reason, Timestamp};

use super::Engine;
use crate::pipeline;

impl Engine {
    /// Gives up on what has expired while it waited, without a grant.
    pub(super) fn expire(&mut self) {
        let now = self.cx.now();
        for (lane, expiry) in self.lanes.iter().zip(&mut self.expiries) {
            if expiry.is_none_or(|at| at > now) {
                continue;
            }
            *expiry = None;
            let expired = self.pacer.take_where(&lane.key, |item, _| {
                let expired = item.expired(now);
                if !expired {
                    earliest(expiry, item.expires_at);
                }
                expired
            });
            for item in expired {
                let cx = self.cx.clone();
                self.cx.tasks.spawn(async move { pipeline::bury(&cx, item, Reason::Expired).await });
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

pub(super) fn earliest(known: &mut Option<Timestamp>, other: Option<Timestamp>) {
    *known = match (*known, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}
