//! Every grant the limiter gave, and whether any limit was exceeded: in any span, on the dates of grants.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use paceline_limiter::{Ask, Kind, Reply};

/// What was granted, by bucket.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    by_bucket: HashMap<Arc<str>, Granted>,
}

#[derive(Debug)]
struct Granted {
    /// The most that was allowed at any time.
    kind: Kind,
    narrow: bool,
    /// Dates and costs.
    costs: Vec<(u64, u64)>,
}

/// What one bucket gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Use {
    pub(crate) granted: u64,
    /// Recipients a second it allows; of a window, over its length.
    pub(crate) allowed_per_s: f64,
    /// From its first grant to its last.
    pub(crate) over_s: f64,
    /// The most, in recipients, by which some span went beyond its bound; never positive.
    pub(crate) overshoot: f64,
    pub(crate) narrow: bool,
}

impl Grants {
    pub(crate) fn note(&mut self, ask: &Ask, reply: &Reply) {
        for (lane, grant) in ask.lanes.iter().zip(&reply.lanes) {
            for (date_us, cost) in grant.dates_us.iter().zip(&lane.costs) {
                for (k, bucket) in lane.buckets.iter().map(|b| &ask.buckets[*b]).enumerate() {
                    if matches!(bucket.kind, Kind::Slots { .. }) {
                        continue;
                    }
                    let new = || Granted { kind: bucket.kind, narrow: bucket.narrow, costs: Vec::new() };
                    let granted = self.by_bucket.entry(bucket.key.clone()).or_insert_with(new);
                    granted.kind = wider(granted.kind, bucket.kind);
                    granted.costs.push((*date_us, cost.at(k)));
                }
            }
        }
    }

    pub(crate) fn uses(&mut self) -> BTreeMap<Arc<str>, Use> {
        self.by_bucket.iter_mut().map(|(key, g)| (key.clone(), g.summary())).collect()
    }
}

/// Limits change while a fleet runs; what is judged by is the widest that was in force.
fn wider(a: Kind, b: Kind) -> Kind {
    match (a, b) {
        (Kind::Rate { interval_us: i, burst: m, .. }, Kind::Rate { interval_us, burst, reserve, shared }) => {
            Kind::Rate { interval_us: interval_us.min(i), burst: burst.max(m), reserve, shared }
        }
        (Kind::Window { limit: most, .. }, Kind::Window { length_us, limit, reserve }) => {
            Kind::Window { length_us, limit: limit.max(most), reserve }
        }
        _ => b,
    }
}

impl Granted {
    fn summary(&mut self) -> Use {
        self.costs.sort_unstable();
        let granted = self.costs.iter().map(|(_, cost)| cost).sum();
        let (allowed_per_s, overshoot) = match self.kind {
            Kind::Rate { interval_us, burst, .. } => {
                (1e6 / interval_us as f64, over_rate(&self.costs, interval_us, u64::from(burst)))
            }
            Kind::Window { length_us, limit, .. } => {
                // A limiter that forgot excuses nothing: rates start again from nothing. Quotas that lost their past are closed for their length, so that no forgetting excuses them.
                (limit as f64 / (length_us as f64 / 1e6), over_window(&self.costs, length_us) - limit as f64)
            }
            Kind::Slots { .. } => (f64::MAX, 0.0),
        };
        let span = self.costs.last().zip(self.costs.first()).map_or(0, |(last, first)| last.0 - first.0);
        Use { granted, allowed_per_s, over_s: span as f64 / 1e6, overshoot, narrow: self.narrow }
    }
}

/// By how much some span of any length exceeds max(burst, largest cost) + rate × length; in tokens.
fn over_rate(costs: &[(u64, u64)], interval_us: u64, burst: u64) -> f64 {
    let largest = costs.iter().map(|(_, cost)| *cost).max().unwrap_or(0);
    let bound = (burst.max(largest) * interval_us) as i64;
    let (mut level, mut last, mut worst) = (0_i64, costs.first().map_or(0, |c| c.0), i64::MIN);
    for (date, cost) in costs {
        level = (level - (date - last) as i64).max(0) + (cost * interval_us) as i64;
        last = *date;
        worst = worst.max(level - bound);
    }
    if worst == i64::MIN { 0.0 } else { worst as f64 / interval_us as f64 }
}

/// The most within some span of this length.
fn over_window(costs: &[(u64, u64)], length_us: u64) -> f64 {
    let (mut from, mut sum, mut most) = (0, 0, 0);
    for (date, cost) in costs {
        sum += cost;
        while costs[from].0 + length_us <= *date {
            sum -= costs[from].1;
            from += 1;
        }
        most = most.max(sum);
    }
    most as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_too_many_is_seen() {
        // 10/s, burst 2.
        let good = [(0, 1), (0, 1), (100_000, 1), (200_000, 1), (1_000_000, 2)];
        assert_eq!(over_rate(&good, 100_000, 2), 0.0);
        let bad = [(0, 1), (0, 1), (100_000, 1), (150_000, 1)];
        assert_eq!(over_rate(&bad, 100_000, 2), 0.5);
        assert_eq!(over_rate(&[(0, 50)], 100_000, 2), 0.0, "one larger than the burst is its own bound");
    }

    #[test]
    fn windows_are_judged_wherever_they_begin() {
        let costs = [(0, 3), (900_000, 4), (1_000_000, 3), (1_900_000, 1)];
        assert_eq!(over_window(&costs, 1_000_000), 7.0);
    }
}
