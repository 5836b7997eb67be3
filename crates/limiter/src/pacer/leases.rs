//! A worker's calls under way at buckets of slots, and what the limiter has not been told of them yet.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{Ask, BucketSpec, Held};

#[derive(Debug, Default)]
pub(super) struct Leases {
    held: HashMap<Arc<str>, Own>,
    /// Flows that wait for a slot, by bucket.
    waiting: HashMap<Arc<str>, HashSet<u64>>,
    untold: usize,
}

#[derive(Debug)]
struct Own {
    spec: BucketSpec,
    calls: u32,
    untold: bool,
}

impl Leases {
    /// Whether the limiter counts something that has ended.
    pub(super) fn untold(&self) -> bool {
        self.untold > 0
    }

    /// A head was granted.
    pub(super) fn take(&mut self, buckets: &[BucketSpec]) {
        for bucket in buckets.iter().filter(|b| b.is_slots()) {
            self.own(bucket).calls += 1;
        }
    }

    /// A call has ended, or was never made. Returns the flows that wait for its slots.
    pub(super) fn give_back(&mut self, buckets: &[BucketSpec]) -> Vec<u64> {
        let mut woken = Vec::new();
        for bucket in buckets.iter().filter(|b| b.is_slots()) {
            let own = self.own(bucket);
            own.calls = own.calls.saturating_sub(1);
            self.correct(bucket);
            woken.extend(self.waiting.remove(&bucket.key).into_iter().flatten());
        }
        woken
    }

    /// The limiter may count more than is here.
    pub(super) fn correct(&mut self, bucket: &BucketSpec) {
        if bucket.is_slots() && !std::mem::replace(&mut self.own(bucket).untold, true) {
            self.untold += 1;
        }
    }

    /// A flow was denied for want of a slot.
    pub(super) fn wait(&mut self, bucket: &Arc<str>, flow: u64) {
        self.waiting.entry(bucket.clone()).or_default().insert(flow);
    }

    /// A flow is gone.
    pub(super) fn forget(&mut self, flow: u64, buckets: &[BucketSpec]) {
        for bucket in buckets.iter().filter(|b| b.is_slots()) {
            if let Some(flows) = self.waiting.get_mut(&bucket.key) {
                flows.remove(&flow);
                if flows.is_empty() {
                    self.waiting.remove(&bucket.key);
                }
            }
        }
    }

    /// Says in `ask` what is held of its slots, and of all others that have not been told.
    pub(super) fn tell(&mut self, ask: &mut Ask) {
        for (bucket, spec) in ask.buckets.iter().enumerate().filter(|(_, b)| b.is_slots()) {
            let Some(own) = self.held.get_mut(&spec.key) else { continue };
            self.untold -= usize::from(std::mem::replace(&mut own.untold, false));
            ask.held.push(Held { bucket, calls: own.calls });
        }
        if self.untold > 0 {
            for own in self.held.values_mut().filter(|o| o.untold) {
                own.untold = false;
                ask.held.push(Held { bucket: ask.buckets.len(), calls: own.calls });
                ask.buckets.push(own.spec.clone());
            }
            self.untold = 0;
        }
    }

    /// The limiter knows: what is held no more may be forgotten.
    pub(super) fn told(&mut self, ask: &Ask) {
        for held in &ask.held {
            let key = &ask.buckets[held.bucket].key;
            if self.held.get(key).is_some_and(|o| o.calls == 0 && !o.untold) {
                self.held.remove(key);
            }
        }
    }

    fn own(&mut self, bucket: &BucketSpec) -> &mut Own {
        let own = || Own { spec: bucket.clone(), calls: 0, untold: false };
        self.held.entry(bucket.key.clone()).or_insert_with(own)
    }
}
