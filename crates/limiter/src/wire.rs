//! What travels to the scripts and back: compact MessagePack arrays.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Ask, BucketSpec, Cost, Denied, Kind, LaneGrant, LimiterError, Reply, Seed, Spent, Why};

/// `{class, destination, buckets, runs, since, id, seq, weight}`.
type LaneOut<'a> = (usize, &'a str, Vec<usize>, Vec<Run<'a>>, u64, &'a str, u64, u32);
/// `{dates − now, retry − now, bucket, why}`.
type LaneIn = (Vec<u64>, u64, usize, u8);
/// `{now, epoch, lost, lanes}`.
type ReplyIn = (u64, u64, u8, Vec<LaneIn>);

/// A cost, or how many heads in a row have the one before.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Run<'a> {
    Number(u32),
    Each(&'a [u32]),
}

/// A cost, or `slot, cost, slot, cost …`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Charge {
    Now(u64),
    Slots(Vec<u64>),
}

impl Charge {
    fn of(spent: &Spent) -> Charge {
        match spent {
            Spent::Now(cost) => Charge::Now(*cost),
            Spent::Slots(slots) => Charge::Slots(slots.iter().flat_map(|(slot, cost)| [*slot, *cost]).collect()),
        }
    }
}

/// The first argument of the script.
pub(crate) fn encode_ask(ask: &Ask) -> Result<Vec<u8>, LimiterError> {
    let lanes: Vec<LaneOut<'_>> = ask
        .lanes
        .iter()
        .map(|l| {
            let buckets = l.buckets.iter().map(|b| b + 1).collect();
            (l.class.index(), &*l.destination, buckets, runs(&l.costs), l.since_us, &*l.id, l.seq, l.weight)
        })
        .collect();
    let held: Vec<u64> = ask.held.iter().flat_map(|h| [h.bucket as u64 + 1, u64::from(h.calls)]).collect();
    let changes: Vec<u64> = ask.changes.iter().flat_map(|c| [c.bucket as u64 + 1, c.since_us, c.closed_until_us]).collect();
    encode(&(specs(&ask.buckets), lanes, &*ask.worker, held, ask.epoch_us, [(); 0], 0, ask.generation_us, changes, [(); 0]))
}

/// Likewise, to tell windows their past: buckets as in an ask. Meant for the state of that epoch, or 0: whichever there is.
pub(crate) fn encode_seed(buckets: &[BucketSpec], past: &[Seed], complete: bool, meant_us: u64) -> Result<Vec<u8>, LimiterError> {
    let mut seeds = Vec::with_capacity(past.len());
    for (i, seed) in past.iter().enumerate() {
        let told: Vec<u64> = seed.by_slot()?.into_iter().flat_map(|(slot, cost)| [slot, cost]).collect();
        seeds.push((i + 1, told));
    }
    encode(&(specs(buckets), [(); 0], "", [(); 0], meant_us, seeds, u8::from(complete), 0, [(); 0], [(); 0]))
}

/// Likewise, to charge buckets what was granted without the limiter, in their order.
pub(crate) fn encode_charges(buckets: &[BucketSpec], spent: &[&Spent], epoch_us: u64) -> Result<Vec<u8>, LimiterError> {
    let charges: Vec<(usize, Charge)> = spent.iter().enumerate().map(|(i, spent)| (i + 1, Charge::of(spent))).collect();
    encode(&(specs(buckets), [(); 0], "", [(); 0], epoch_us, [(); 0], 0, 0, [(); 0], charges))
}

/// Four numbers a bucket.
fn specs(buckets: &[BucketSpec]) -> Vec<u64> {
    let numbers = |b: &BucketSpec| match b.kind {
        Kind::Rate { interval_us, burst, reserve, shared } => {
            [interval_us, u64::from(burst), u64::from(reserve), u64::from(shared)]
        }
        Kind::Window { length_us, limit, reserve } => [length_us, limit, reserve, 2],
        Kind::Slots { limit, life_us } => [life_us, u64::from(limit), 0, 3],
    };
    buckets.iter().flat_map(numbers).collect()
}

/// The reply of the script to `ask`.
pub(crate) fn decode_reply(ask: &Ask, bytes: &[u8]) -> Result<Reply, LimiterError> {
    let (now_us, epoch_us, lost, lanes): ReplyIn = decode(bytes)?;
    if lanes.len() != ask.lanes.len() {
        return Err(unreadable("as many lanes as asked"));
    }
    let lanes = lanes
        .into_iter()
        .zip(&ask.lanes)
        .map(|((dates, retry, bucket, why), asked)| {
            let why = match why {
                0 => None,
                1 => Some(Why::Date),
                2 => Some(Why::Turn),
                3 => Some(Why::Ticket),
                4 => Some(Why::Gap),
                5 => Some(Why::Quota),
                6 => Some(Why::Concurrency),
                7 => Some(Why::Closed),
                _ => return Err(unreadable("a reason it knows")),
            };
            if dates.len() > asked.costs.len() {
                return Err(unreadable("no more grants than heads"));
            }
            let denied = match (why, bucket.checked_sub(1)) {
                (None, _) => None,
                (Some(why), Some(bucket)) if bucket < ask.buckets.len() => {
                    Some(Denied { retry_at_us: now_us.saturating_add(retry), bucket, why })
                }
                _ => return Err(unreadable("a bucket it was asked about")),
            };
            let dates_us = dates.into_iter().map(|d| now_us.saturating_add(d)).collect();
            Ok(LaneGrant { dates_us, denied })
        })
        .collect::<Result<_, _>>()?;
    Ok(Reply { now_us, epoch_us, lost: lost != 0, lanes })
}

/// `cost, count, cost, count …` of neighbours that cost the same: most lanes are one run.
fn runs(costs: &[Cost]) -> Vec<Run<'_>> {
    let mut runs = Vec::with_capacity(2);
    for same in costs.chunk_by(|a, b| a == b) {
        runs.push(match &same[0] {
            Cost::All(cost) => Run::Number(*cost),
            Cost::Each(costs) => Run::Each(costs),
        });
        // At most `MAX_HEADS`: fits.
        runs.push(Run::Number(same.len() as u32));
    }
    runs
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, LimiterError> {
    rmp_serde::to_vec(value).map_err(|e| LimiterError::Refused { reason: format!("cannot encode the request: {e}") })
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LimiterError> {
    rmp_serde::from_slice(bytes).map_err(|_| unreadable("a well-formed reply"))
}

fn unreadable(expected: &str) -> LimiterError {
    LimiterError::Refused { reason: format!("the script's reply is not {expected}; is another version running?") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_cost_are_one_run() {
        let of = |costs: &[Cost]| encode(&runs(costs)).unwrap();
        let all = [1, 1, 1, 7, 7, 1].map(Cost::All);
        assert_eq!(of(&all), encode(&[1, 3, 7, 2, 1, 1]).unwrap());
        let each = Cost::Each([3, 1, 2].into());
        assert_eq!(of(&[1.into(), each.clone(), each]), encode(&(1, 1, [3, 1, 2], 2)).unwrap());
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_an_error() {
        let ask = Ask::default();
        assert!(decode_reply(&ask, &[]).is_err());
        assert!(decode_reply(&ask, b"\xff\xff").is_err());
        let one_lane_too_many: ReplyIn = (5, 5, 0, vec![(vec![], 0, 0, 0)]);
        assert!(decode_reply(&ask, &encode(&one_lane_too_many).unwrap()).is_err());
    }
}
