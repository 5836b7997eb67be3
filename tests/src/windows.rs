//! Whether uses of a bucket stay within burst + rate × time in every window.

/// A limit, in whole units a second.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    pub per_s: u64,
    pub burst: u64,
}

/// At most so many in any span of that length.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    pub most: u64,
    pub length_us: u64,
}

/// One use of a bucket: when, in microseconds, and how many units.
pub type Use = (u64, u64);

/// By how much the worst of all windows exceeds max(burst, largest use) + rate × time, in millionths of a unit; at
/// most 0 where the bound holds. Exact: integers, every pair of uses.
///
/// The running sum is the largest over all windows that end at a use: where it would fall below zero, the window that
/// starts with the next use is the larger one.
pub fn worst_excess(uses: &[Use], limit: Limit) -> i128 {
    let mut uses = uses.to_vec();
    uses.sort_unstable();
    let bound = i128::from(limit.burst.max(largest(&uses))) * 1_000_000;
    let (mut sum, mut last, mut worst) = (0i128, None, -bound);
    for (at, cost) in uses {
        let passed = i128::from(at - last.unwrap_or(at));
        sum = (sum - i128::from(limit.per_s) * passed).max(0) + i128::from(cost) * 1_000_000;
        last = Some(at);
        worst = worst.max(sum - bound);
    }
    worst
}

/// The largest sum of uses in any span of that length, ends included.
pub fn most_within(uses: &[Use], length_us: u64) -> u64 {
    let mut uses = uses.to_vec();
    uses.sort_unstable();
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for &(at, cost) in &uses {
        sum += cost;
        while uses[first].0 + length_us < at {
            sum -= uses[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

/// When the longest time began, and how many microseconds it was, between one use and the next throughout which each quota
/// had room for one more. Each is counted from these uses, as the limiter does: in slots of a 200th of its length, what is
/// 200 slots old or younger counts. Without quotas, the longest time between two uses.
pub fn longest_idle(uses: &[Use], quotas: &[Quota]) -> (u64, u64) {
    let mut uses = uses.to_vec();
    uses.sort_unstable();
    // Sums of the first n.
    let mut sums = vec![0];
    sums.extend(uses.iter().scan(0, |sum, (_, cost)| {
        *sum += cost;
        Some(*sum)
    }));
    let mut longest = (0, 0);
    for n in 1..uses.len() {
        let room_from = |quota: &Quota| {
            // So many of the oldest must not count any more.
            let gone = sums.partition_point(|sum| *sum + quota.most <= sums[n]);
            let width = quota.length_us.div_ceil(200);
            if gone == 0 { 0 } else { (uses[gone - 1].0 / width + 201) * width }
        };
        let from = quotas.iter().map(room_from).fold(uses[n - 1].0, u64::max);
        let idle = uses[n].0.saturating_sub(from);
        if idle > longest.1 {
            longest = (from, idle);
        }
    }
    longest
}

/// How far the windows of some arrivals exceed a limit.
#[derive(Debug, Clone, Copy)]
pub struct Excess {
    /// Worst window, in seconds of the rate; negative where none exceeds it.
    pub worst_s: f64,
    /// Part of all windows, from any arrival to any later one, that exceed the limit by more than 0.1 s of rate.
    pub over: f64,
    /// Part of the arrivals at which some window ends that does.
    pub ends_over: f64,
}

/// All windows between any two arrivals.
pub fn excess(uses: &[Use], limit: Limit) -> Excess {
    let mut uses = uses.to_vec();
    uses.sort_unstable();
    let Some(&(start, _)) = uses.first() else { return Excess { worst_s: 0.0, over: 0.0, ends_over: 0.0 } };
    let (rate, bound) = (i128::from(limit.per_s), i128::from(limit.burst.max(largest(&uses))) * 1_000_000);
    let threshold = bound + rate * 100_000;
    // A window from use i to use j holds before[j] + cost[j] − before[i] units over t[j] − t[i]: with
    // x = before − rate·t and y = x + cost, it exceeds the threshold where y[j] − x[i] does.
    let mut before = 0i128;
    let points: Vec<(i128, i128)> = uses
        .iter()
        .map(|&(at, cost)| {
            let x = before - rate * i128::from(at - start);
            let y = x + i128::from(cost) * 1_000_000;
            before += i128::from(cost) * 1_000_000;
            (x, y)
        })
        .collect();
    let mut ranks: Vec<i128> = points.iter().map(|p| p.0).collect();
    ranks.sort_unstable();
    let mut counts = vec![0u64; ranks.len() + 1];
    let (mut over, mut ends, mut worst, mut least) = (0u64, 0u64, i128::MIN, i128::MAX);
    for &(x, y) in &points {
        let mut at = ranks.partition_point(|r| *r < x) + 1;
        while at < counts.len() {
            counts[at] += 1;
            at += at & at.wrapping_neg();
        }
        least = least.min(x);
        worst = worst.max(y - least - bound);
        let mut below = ranks.partition_point(|r| *r < y - threshold);
        let mut windows = 0;
        while below > 0 {
            windows += counts[below];
            below -= below & below.wrapping_neg();
        }
        over += windows;
        ends += u64::from(windows > 0);
    }
    let n = points.len() as f64;
    Excess {
        worst_s: worst as f64 / (limit.per_s as f64 * 1e6),
        over: over as f64 / (n * (n + 1.0) / 2.0),
        ends_over: ends as f64 / n,
    }
}

fn largest(uses: &[Use]) -> u64 {
    uses.iter().map(|u| u.1).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { per_s: 10, burst: 2 };

    #[test]
    fn the_exact_bound_is_met_and_missed_by_a_microsecond() {
        let met: Vec<Use> = [0, 0, 100_000, 200_000, 300_000].map(|at| (at, 1)).into();
        assert_eq!(worst_excess(&met, LIMIT), 0);
        let missed: Vec<Use> = [0, 0, 100_000, 200_000, 299_999].map(|at| (at, 1)).into();
        assert_eq!(worst_excess(&missed, LIMIT), 10);
        assert_eq!(worst_excess(&[(0, 7), (700_000, 7)], LIMIT), 0, "a large use may be in debt");
        assert!(worst_excess(&[(0, 1)], LIMIT) < 0);
    }

    #[test]
    fn idle_is_only_who_had_room() {
        let uses: Vec<Use> = [0, 1, 2, 50, 90, 91].map(|s| (s * 1_000_000, 1)).into();
        assert_eq!(longest_idle(&uses, &[]), (2_000_000, 48_000_000));
        let quota = |most| Quota { most, length_us: 20_000_000 };
        assert_eq!(longest_idle(&uses, &[quota(4)]), (2_000_000, 48_000_000), "one more would have been no wrong");
        // The first counts until 20.1 s, the one of 50 s until 70.1.
        assert_eq!(longest_idle(&uses, &[quota(3)]), (50_000_000, 40_000_000));
        assert_eq!(longest_idle(&uses, &[quota(2)]), (50_000_000, 40_000_000));
        assert_eq!(longest_idle(&uses, &[quota(1)]), (22_100_000, 27_900_000));
        assert_eq!(longest_idle(&uses, &[quota(1), Quota { most: 2, length_us: 60_000_000 }]), (70_100_000, 19_900_000));
    }

    #[test]
    fn counted_windows_agree_with_counting_each() {
        let mut seed = 7u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..50 {
            let mut uses: Vec<Use> = (0..80).map(|_| (random(4_000_000), 1 + random(3))).collect();
            uses.sort_unstable();
            let bound = 3_000_000i128;
            let (mut over, mut worst) = (0, i128::MIN);
            for i in 0..uses.len() {
                let mut sum = 0;
                for j in i..uses.len() {
                    sum += i128::from(uses[j].1) * 1_000_000;
                    let beyond = sum - 10 * i128::from(uses[j].0 - uses[i].0) - bound;
                    over += u32::from(beyond > 1_000_000);
                    worst = worst.max(beyond);
                }
            }
            let counted = excess(&uses, LIMIT);
            assert!((counted.over - f64::from(over) / (80.0 * 81.0 / 2.0)).abs() < 1e-9);
            assert!((counted.worst_s - worst as f64 / 1e7).abs() < 1e-9);
            assert_eq!(worst_excess(&uses, LIMIT), worst);
        }
    }
}
