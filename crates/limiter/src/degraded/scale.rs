//! An ask made smaller: what a worker asks for when part of the fleet cannot see the others.

use super::book::WHOLE;
use crate::{Ask, BucketSpec, Denied, Kind, LaneGrant, MAX_DEBT_US, Reply, Why, bucket::slot_width};

/// A window's slots and what each has granted.
pub(super) type Slots = [(u64, u64)];

/// What is left for those who see each other, when `lost` is the sum of the others' shares: those use half of it of
/// every rate and window and of the calls at a time, and all of it of every burst.
pub(super) fn shared(kind: Kind, lost: u64) -> Kind {
    let lost = lost.min(WHOLE);
    match kind {
        _ if lost == 0 => kind,
        Kind::Rate { interval_us, burst, reserve, shared } => {
            let burst_left = burst - part(u64::from(burst) - 1, lost, WHOLE) as u32;
            rate(interval_us, 2 * WHOLE - lost, burst_left, reserve, burst, shared)
        }
        Kind::Window { length_us, limit, reserve } => window(length_us, limit - part(limit, lost, 2 * WHOLE), reserve, limit),
        Kind::Slots { limit, life_us } => {
            let limit = (limit - part(u64::from(limit), lost, 2 * WHOLE) as u32).max(1);
            Kind::Slots { limit, life_us }
        }
    }
}

/// What a worker may use that is by itself with this share; `None`: nothing. Windows see [`allowance`].
pub(super) fn alone(kind: Kind, share: u64) -> Option<Kind> {
    let share = share.min(WHOLE);
    match kind {
        Kind::Rate { interval_us, burst, reserve, shared } => {
            let own = part(u64::from(burst) - 1, share, WHOLE) as u32;
            (own > 0).then(|| rate(interval_us, share, own, reserve, burst, shared))
        }
        Kind::Window { .. } => None,
        Kind::Slots { limit, life_us } => {
            let own = part(u64::from(limit), share, 2 * WHOLE) as u32;
            (own > 0).then_some(Kind::Slots { limit: own, life_us })
        }
    }
}

/// What one worker may grant of a window by itself: half its share of what was left of it, where `seen` is what was
/// granted when it was last seen and `unseen` what may have been granted by others since.
pub(super) fn allowance(kind: Kind, seen: &Slots, unseen: u64, share: u64, now_us: u64) -> Option<Kind> {
    let Kind::Window { length_us, limit, reserve } = kind else { return None };
    let left = limit.saturating_sub(counted(seen, length_us, now_us)).saturating_sub(unseen);
    let own = part(left, share.min(WHOLE), 2 * WHOLE);
    (own > 0).then(|| window(length_us, own, reserve, limit))
}

/// What of a window's slots counts at that time.
pub(super) fn counted(slots: &Slots, length_us: u64, now_us: u64) -> u64 {
    let oldest = (now_us / slot_width(length_us)).saturating_sub(crate::bucket::SPANS);
    slots.iter().filter(|(slot, _)| *slot >= oldest).map(|(_, cost)| cost).sum()
}

/// `parts` of 2 × [`WHOLE`] of a rate, never rounded up.
fn rate(interval_us: u64, parts: u64, burst: u32, reserve: u32, of: u32, shared: bool) -> Kind {
    let slower = (u128::from(interval_us) * u128::from(2 * WHOLE)).div_ceil(u128::from(parts.max(1)));
    let interval_us = u64::try_from(slower).unwrap_or(MAX_DEBT_US).min(MAX_DEBT_US);
    let burst = burst.min(u32::try_from(MAX_DEBT_US / interval_us).unwrap_or(u32::MAX)).max(1);
    let reserve = part(u64::from(reserve), u64::from(burst), u64::from(of)) as u32;
    Kind::Rate { interval_us, burst, reserve: reserve.min(burst - 1), shared }
}

fn window(length_us: u64, limit: u64, reserve: u64, of: u64) -> Kind {
    let limit = limit.max(1);
    Kind::Window { length_us, limit, reserve: part(reserve, limit, of).min(limit - 1) }
}

/// `value · parts / of`, rounded down; at most `value` where `parts` ≤ `of`.
pub(super) fn part(value: u64, parts: u64, of: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(parts) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

/// A smaller ask, and where its lanes were in the ask as it came.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) ask: Ask,
    lanes: Vec<Place>,
    /// It is not asked for as it came.
    smaller: bool,
}

#[derive(Debug)]
enum Place {
    /// The next lane of the smaller ask; heads from some point on were left out because of this bucket.
    Asked { short: Option<usize> },
    /// Left out because of this bucket.
    Closed { bucket: usize },
}

impl Scaled {
    /// `ask` with every bucket as `kind` says. What touches a bucket without one is left out, and so is a head that costs a
    /// rate more than what is left of its burst: it could only go on credit, of what others may be giving away.
    pub(super) fn new(ask: &Ask, now_us: u64, mut kind: impl FnMut(&BucketSpec) -> Option<Kind>) -> Scaled {
        let mut kinds: Vec<Option<Kind>> = ask.buckets.iter().map(&mut kind).collect();
        for change in ask.changes.iter().filter(|c| c.closed_until_us > now_us) {
            kinds[change.bucket] = None;
        }
        let buckets = ask.buckets.iter().zip(&kinds).map(|(b, kind)| BucketSpec { kind: kind.unwrap_or(b.kind), ..b.clone() });
        // What is smaller holds for this call alone: nobody else must learn of it as of a configuration.
        let mut smaller = Ask {
            buckets: buckets.collect(),
            lanes: Vec::with_capacity(ask.lanes.len()),
            worker: ask.worker.clone(),
            held: ask.held.clone(),
            epoch_us: ask.epoch_us,
            ..Ask::default()
        };
        let mut lanes = Vec::with_capacity(ask.lanes.len());
        for lane in &ask.lanes {
            if let Some(&bucket) = lane.buckets.iter().find(|b| kinds[**b].is_none()) {
                lanes.push(Place::Closed { bucket });
                continue;
            }
            let too_large = |cost: &crate::Cost| {
                let larger = |(k, b): &(usize, &usize)| match (kinds[**b], ask.buckets[**b].kind) {
                    (Some(Kind::Rate { burst, .. }), Kind::Rate { burst: of, .. }) => {
                        burst < of && cost.at(*k) > u64::from(burst)
                    }
                    _ => false,
                };
                lane.buckets.iter().enumerate().find(larger).map(|(_, b)| *b)
            };
            let cut = lane.costs.iter().enumerate().find_map(|(i, cost)| Some((i, too_large(cost)?)));
            match cut {
                Some((0, bucket)) => lanes.push(Place::Closed { bucket }),
                Some((heads, bucket)) => {
                    smaller.lanes.push(crate::LaneAsk { costs: lane.costs[..heads].to_vec(), ..lane.clone() });
                    lanes.push(Place::Asked { short: Some(bucket) });
                }
                None => {
                    smaller.lanes.push(lane.clone());
                    lanes.push(Place::Asked { short: None });
                }
            }
        }
        Scaled { ask: smaller, lanes, smaller: true }
    }

    /// The ask as it came.
    pub(super) fn whole(ask: &Ask) -> Scaled {
        Scaled { ask: ask.clone(), lanes: ask.lanes.iter().map(|_| Place::Asked { short: None }).collect(), smaller: false }
    }

    /// The reply to the ask as it came. What was left out is to be asked again after `again_us`, and so is what anything
    /// else than a closure keeps for longer than that, where it was made smaller: what there is may grow any moment.
    pub(super) fn reply(&self, reply: Reply, again_us: u64) -> Reply {
        let again = reply.now_us.saturating_add(again_us);
        let left_out = |bucket| Some(Denied { retry_at_us: again, bucket, why: Why::Date });
        let mut answers = reply.lanes.into_iter();
        let lane = |place: &Place| match place {
            Place::Closed { bucket } => LaneGrant { dates_us: Vec::new(), denied: left_out(*bucket) },
            Place::Asked { short } => {
                let mut answer = answers.next().unwrap_or_default();
                if let Some(denied) = &mut answer.denied
                    && self.smaller
                    && denied.why != Why::Closed
                {
                    denied.retry_at_us = denied.retry_at_us.min(again);
                }
                if answer.denied.is_none() {
                    answer.denied = short.and_then(left_out);
                }
                answer
            }
        };
        let lanes = self.lanes.iter().map(lane).collect();
        Reply { lanes, ..reply }
    }
}

/// The reply to an ask of which nothing may go before `retry_at_us`.
pub(super) fn nothing(ask: &Ask, now_us: u64, retry_at_us: u64) -> Reply {
    let denied = |bucket| Some(Denied { retry_at_us, bucket, why: Why::Date });
    let lanes = ask.lanes.iter().map(|l| LaneGrant { dates_us: Vec::new(), denied: denied(l.buckets[0]) }).collect();
    Reply { now_us, lanes, ..Reply::default() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the shares, all that anybody may use of a limit is no more than the limit.
        #[test]
        fn parts_never_add_up_to_more_than_the_whole(
            shares in prop_oneof![prop::collection::vec(0..WHOLE / 4, 1..5), Just(vec![WHOLE]), Just(vec![WHOLE / 2; 2])],
            interval_us in 1_u64..1_000_000_000, burst in 1_u32..10_000, limit in 1_u64..1_000_000,
        ) {
            let lost: u64 = shares.iter().sum();
            prop_assume!(lost <= WHOLE);
            let kind = Kind::Rate { interval_us, burst, reserve: burst / 5, shared: false };
            let numbers = |kind: Kind| match kind {
                Kind::Rate { interval_us, burst, reserve, .. } => { assert!(reserve < burst); (1e6 / interval_us as f64, u64::from(burst)) }
                Kind::Window { limit, reserve, .. } => { assert!(reserve < limit); (0.0, limit) }
                Kind::Slots { limit, .. } => (0.0, u64::from(limit)),
            };
            let own: Vec<_> = shares.iter().filter_map(|s| alone(kind, *s)).map(numbers).collect();
            let left = numbers(shared(kind, lost));
            let sum = own.iter().fold(left, |a, b| (a.0 + b.0, a.1 + b.1));
            prop_assert!(sum.0 <= 1e6 / interval_us as f64 * (1.0 + 1e-12), "{sum:?}");
            prop_assert!(sum.1 <= u64::from(burst), "{sum:?}");
            for kind in [Kind::Window { length_us: 60_000_000, limit, reserve: limit / 20 }, Kind::Slots { limit: limit as u32, life_us: 9 }] {
                let own = shares.iter().filter_map(|s| alone(kind, *s).or_else(|| allowance(kind, &[], 0, *s, 1_000_000_000)));
                let sum: u64 = own.map(|k| numbers(k).1).sum::<u64>() + numbers(shared(kind, lost)).1;
                prop_assert!(sum <= limit, "{sum} of {limit}");
            }
        }
    }

    /// What is left is not gone beyond on credit, however little it is; what nobody else uses is given as ever.
    #[test]
    fn a_message_to_more_than_what_is_left_waits() {
        let rate = |key: &str, burst| BucketSpec {
            key: key.into(),
            kind: Kind::Rate { interval_us: 10_000, burst, reserve: 0, shared: false },
            narrow: false,
        };
        let lane = |buckets, costs: &[u32]| crate::LaneAsk {
            class: paceline_core::Class::Normal,
            destination: "x".into(),
            weight: 1,
            buckets,
            costs: costs.iter().map(|cost| (*cost).into()).collect(),
            since_us: 0,
            id: "a".into(),
            seq: 0,
        };
        let lanes = vec![lane(vec![0], &[3, 26, 27, 1]), lane(vec![0], &[50, 1]), lane(vec![1], &[9])];
        let ask = Ask { buckets: vec![rate("half", 50), rate("one", 1)], lanes, ..Ask::default() };
        let heads = |kind: &dyn Fn(&BucketSpec) -> Option<Kind>| {
            Scaled::new(&ask, 0, kind).ask.lanes.iter().map(|lane| lane.costs.len()).collect::<Vec<_>>()
        };
        assert_eq!(heads(&|b| Some(shared(b.kind, WHOLE / 2))), [2, 1], "26 are left of 50");
        assert_eq!(heads(&|b| Some(shared(b.kind, WHOLE))), [1; 1], "one is left, and nobody else uses a burst of one");
        assert_eq!(heads(&|b| alone(b.kind, WHOLE / 2)), [1; 1], "24 are its own, and none of a burst of one");
        assert_eq!(heads(&|b| Some(shared(b.kind, 0))), [4, 2, 1]);
    }

    #[test]
    fn a_window_gives_a_part_of_what_was_left() {
        let kind = Kind::Window { length_us: 60_000_000, limit: 6_000, reserve: 0 };
        let limit = |seen: &Slots, unseen, now| match allowance(kind, seen, unseen, WHOLE / 8, now) {
            Some(Kind::Window { limit, .. }) => limit,
            _ => 0,
        };
        let minute = 200;
        assert_eq!(limit(&[], 0, 60_000_000), 375);
        assert_eq!(limit(&[(minute, 2_000)], 1_000, 60_000_000), 187);
        assert_eq!(limit(&[(minute, 5_000)], 1_000, 60_000_000), 0);
        assert_eq!(limit(&[(minute, 5_000)], 1_000, 120_000_000), 0, "the oldest slot counts whole");
        assert_eq!(limit(&[(minute, 5_000)], 1_000, 120_300_000), 312);
    }
}
