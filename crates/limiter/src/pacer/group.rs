//! Flows that are held by what they are, not by one bucket that all of them touch.

use std::sync::Arc;

use paceline_core::Class;

use super::flow::Flow;

/// Which flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// Those of a class.
    Class(Class),
    /// Those that touch a bucket whose key begins so. It is what binds the lanes of this destination, and less than a
    /// lane elsewhere.
    Keys { prefix: Arc<str>, of: Arc<str> },
}

/// A group that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) group: Group,
    pub(super) until_us: u64,
}

impl Group {
    /// Whether it is only a part of its lane's mail that is held with the flow; `None` where the flow is none of these.
    pub(super) fn narrow_for<H>(&self, flow: &Flow<H>) -> Option<bool> {
        match self {
            Group::Class(class) => (flow.class == *class).then_some(false),
            Group::Keys { prefix, of } => {
                let touches = flow.buckets.iter().any(|b| b.key.starts_with(&**prefix));
                touches.then(|| flow.destination != *of)
            }
        }
    }
}
