//! Which flow is due when.

use std::collections::{BTreeSet, HashMap};

use paceline_core::Class;

/// Flows by due time and class, and the critical ones that have never been asked about.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: [BTreeSet<(u64, u64)>; 4],
    fresh: BTreeSet<(u64, u64)>,
    at: HashMap<u64, (Class, u64)>,
}

impl Schedule {
    /// Puts a flow at `due`, wherever it was. `fresh` ones may bring a call forward.
    pub(super) fn set(&mut self, flow: u64, class: Class, due: u64, fresh: bool) {
        self.remove(flow);
        self.due[class.index()].insert((due, flow));
        if fresh {
            self.fresh.insert((due, flow));
        }
        self.at.insert(flow, (class, due));
    }

    pub(super) fn remove(&mut self, flow: u64) {
        if let Some((class, due)) = self.at.remove(&flow) {
            self.due[class.index()].remove(&(due, flow));
            self.fresh.remove(&(due, flow));
        }
    }

    pub(super) fn earliest(&self) -> Option<u64> {
        self.due.iter().filter_map(|d| d.first()).map(|(due, _)| *due).min()
    }

    pub(super) fn earliest_fresh(&self) -> Option<u64> {
        self.fresh.first().map(|(due, _)| *due)
    }

    pub(super) fn is_due(&self, class: Class, by: u64) -> bool {
        self.due[class.index()].first().is_some_and(|(due, _)| *due <= by)
    }

    /// Takes out the next flow due by `by`: critical first, then the class whose tag is least, longest due first.
    pub(super) fn pop_due(&mut self, by: u64, tag: impl Fn(Class) -> u64) -> Option<(Class, u64)> {
        let due = |c: &Class| self.is_due(*c, by);
        let class = if due(&Class::Critical) {
            Class::Critical
        } else {
            Class::ALL[1..].iter().copied().filter(due).min_by_key(|c| tag(*c))?
        };
        let (_, flow) = *self.due[class.index()].first()?;
        self.remove(flow);
        Some((class, flow))
    }
}
