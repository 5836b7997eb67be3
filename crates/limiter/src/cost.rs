//! What a message costs, in recipients.

use std::sync::Arc;

/// What one head costs at the buckets of its lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cost {
    /// The same at every bucket.
    All(u32),
    /// So much at each, in the order of the lane's buckets: a message to several destinations costs each of them its
    /// own recipients.
    Each(Arc<[u32]>),
}

impl Cost {
    /// The cost at the `k`-th bucket of the lane.
    pub fn at(&self, k: usize) -> u64 {
        u64::from(match self {
            Cost::All(cost) => *cost,
            Cost::Each(costs) => costs.get(k).copied().unwrap_or(0),
        })
    }

    /// Whether it says what each of `buckets` buckets is charged, and charges each something.
    pub(crate) fn fits(&self, buckets: usize) -> bool {
        match self {
            Cost::All(cost) => *cost > 0,
            Cost::Each(costs) => costs.len() == buckets && !costs.contains(&0),
        }
    }
}

impl From<u32> for Cost {
    fn from(cost: u32) -> Self {
        Cost::All(cost)
    }
}
