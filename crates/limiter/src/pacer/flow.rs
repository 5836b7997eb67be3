//! A flow: the heads of one lane that touch the same buckets.

use std::{
    collections::{HashMap, VecDeque},
    hash::{Hash, Hasher},
    sync::Arc,
};

use paceline_core::Class;

use super::{Head, Hint, LaneKey, Standing};
use crate::{BucketSpec, Cost, Kind};

#[derive(Debug)]
pub(super) struct Flow<H> {
    pub(super) lane: LaneKey,
    pub(super) class: Class,
    pub(super) destination: Arc<str>,
    pub(super) weight: u32,
    pub(super) buckets: Arc<[BucketSpec]>,
    /// Names it to the limiter.
    pub(super) name: Arc<str>,
    pub(super) heads: VecDeque<Waiting<H>>,
    /// Grants so far.
    pub(super) seq: u64,
    /// When the first head was first denied, or 0.
    pub(super) since_us: u64,
    /// What the last answer said about the first head.
    pub(super) hint: Option<Hint>,
    pub(super) in_call: bool,
}

/// A head in its flow.
#[derive(Debug)]
pub(super) struct Waiting<H> {
    /// Position among everything ever pushed.
    pub(super) order: u64,
    pub(super) cost: Cost,
    pub(super) handle: H,
}

impl<H> Flow<H> {
    pub(super) fn new(lane: LaneKey, first: &Head<H>, name: Arc<str>) -> Self {
        Flow {
            lane,
            class: first.class,
            destination: first.destination.clone(),
            weight: first.weight,
            buckets: first.buckets.clone(),
            name,
            heads: VecDeque::new(),
            seq: 1,
            since_us: 0,
            hint: None,
            in_call: false,
        }
    }

    pub(super) fn account(&self) -> Option<Arc<str>> {
        self.buckets.first().map(|b| b.key.clone())
    }

    /// The time a token takes at the bucket so named as it stands, and where it is among this flow's.
    pub(super) fn pace_at(&self, key: &str, standing: &HashMap<Arc<str>, Standing>) -> (u64, Option<usize>) {
        let position = self.buckets.iter().position(|b| &*b.key == key);
        let stands = standing.get(key).and_then(|s| s.kind);
        let pace_us = match (stands, position) {
            (Some(Kind::Rate { interval_us, .. }), _) => interval_us,
            (_, Some(k)) => self.buckets[k].interval_us(),
            _ => 0,
        };
        (pace_us, position)
    }

    /// How many heads a call should carry: what the slowest bucket gives in `cover_us`, the account's share of it
    /// where `sharing` flows divide it, and at least two, because one would cap a flow at one message a call.
    pub(super) fn worth_asking(&self, sharing: u32, cover_us: u64, standing: &HashMap<Arc<str>, Standing>) -> usize {
        let mut most = u64::MAX;
        for (k, bucket) in self.buckets.iter().enumerate() {
            let divided_by = if k == 0 { u64::from(sharing.max(1)) } else { 1 };
            let stands = if standing.is_empty() { None } else { standing.get(&bucket.key).and_then(|s| s.kind) };
            let kind = stands.unwrap_or(bucket.kind);
            most = most.min(match kind {
                Kind::Rate { interval_us, .. } => cover_us / interval_us.saturating_mul(divided_by) + 1,
                Kind::Window { limit, .. } => limit,
                Kind::Slots { limit, .. } => u64::from(limit),
            });
        }
        usize::try_from(most).unwrap_or(usize::MAX).max(2).min(self.heads.len())
    }
}

/// What makes a flow: lane, class, destination and the names of its buckets, whatever their limits are just now.
#[derive(Debug)]
pub(super) struct FlowKey {
    lane: LaneKey,
    class: Class,
    destination: Arc<str>,
    buckets: Arc<[BucketSpec]>,
}

impl FlowKey {
    pub(super) fn new(lane: &LaneKey, class: Class, destination: &Arc<str>, buckets: &Arc<[BucketSpec]>) -> Self {
        FlowKey { lane: lane.clone(), class, destination: destination.clone(), buckets: buckets.clone() }
    }
}

impl PartialEq for FlowKey {
    fn eq(&self, other: &Self) -> bool {
        let same_buckets = Arc::ptr_eq(&self.buckets, &other.buckets)
            || (self.buckets.len() == other.buckets.len()
                && self.buckets.iter().zip(&*other.buckets).all(|(a, b)| a.key == b.key));
        self.class == other.class && same_buckets && self.destination == other.destination && self.lane == other.lane
    }
}

impl Eq for FlowKey {}

impl Hash for FlowKey {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.class.hash(state);
        self.lane.hash(state);
        // Any of them may be the telling one: a tail domain, a tenant, a recipient.
        self.buckets.iter().for_each(|b| b.key.hash(state));
    }
}
