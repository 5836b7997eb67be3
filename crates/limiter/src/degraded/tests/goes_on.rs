//! Not only are bounds kept: what a quota has is also given, as far as anybody can know.

use super::*;
use crate::bucket::{SPANS, slot_width};

const LENGTH: u64 = 20 * SECOND;

/// A fleet that loses Redis, all of it and empty, for 20 s from `from_s` on; its grants in order.
fn emptied(seed: u64, quota: u64, from_s: u64, end_s: u64) -> Vec<(u64, u64)> {
    let mut fleet = Fleet::new(seed, false);
    (fleet.quota, fleet.calm) = (quota, true);
    fleet.run(from_s);
    let all = 0..fleet.workers.len();
    fleet.cut(all.collect(), 20 * SECOND, true);
    fleet.run(end_s);
    let mut sent: Vec<(u64, u64)> = fleet.sent.iter().map(|s| (s.0, s.1)).collect();
    sent.sort_unstable();
    assert!(most_within(&sent, LENGTH) <= quota, "seed {seed}");
    sent
}

/// The longest time within which nothing was granted although `quota` had room for any message of these, counted as the
/// limiter does: in slots.
fn idle_with_room(sent: &[(u64, u64)], quota: u64) -> u64 {
    let width = slot_width(LENGTH);
    let room_from = |from: u64, until: u64| {
        let counted = |slot: u64| sent.iter().filter(|s| s.0 <= from && s.0 / width + SPANS >= slot).map(|s| s.1).sum::<u64>();
        (from / width..=until / width).find(|slot| counted(*slot) + 3 <= quota).map(|slot| (slot * width).max(from))
    };
    let gaps = sent.windows(2).map(|pair| (pair[0].0, pair[1].0)).filter(|(from, until)| until - from > SECOND);
    gaps.filter_map(|(from, until)| Some(until.saturating_sub(room_from(from, until)?))).max().unwrap_or(0)
}

/// Of a quota that has plenty left and of one that is spent: a fleet is silent until its workers go by themselves, and until the
/// emptied Redis has been told; never for as long as the quota would be closed if nobody told, 20 s. The longest is the first: 9 s
/// until all have noticed, 3 s until calls of before must have ended (of `concurrency`). (Of one that others may have
/// spent before they noticed, those by themselves use nothing before it comes free.)
#[test]
fn nobody_waits_for_what_has_been_told() {
    for quota in [3_000, 300] {
        let idle = (0..20).map(|seed| idle_with_room(&emptied(seed, quota, 30, 150), quota - quota / 20));
        let worst = idle.max().unwrap_or(0);
        assert!(worst < 14 * SECOND, "{quota}: {:.1} s", worst as f64 / 1e6);
    }
}

/// A quota that is spent in 3 of its 20 s, Redis lost and emptied at any time for as long: of six lengths' worth hardly anything is
/// forgone where it does not come free meanwhile (1,704 of 1,710), and where it does, about half of what did.
#[test]
fn hardly_anything_of_a_quota_is_forgone() {
    let (quota, mut least) = (300, u64::MAX);
    for from_s in 30..50 {
        let sent = emptied(from_s, quota, from_s, 130);
        let second = |s: u64| sent.iter().filter(|g| g.0 < START_US + s * SECOND).map(|g| g.1).sum::<u64>();
        // Of the six lengths from when it begins.
        least = least.min(second(126));
    }
    assert!(least >= 1_400, "{least} of {}", 6 * (quota - quota / 20));
}
