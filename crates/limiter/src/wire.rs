//! What travels to the scripts and back: compact MessagePack arrays.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Ask, Denied, LaneGrant, LimiterError, Reply, Why};

/// `{class, destination, buckets, runs, since, id, seq}`.
type LaneOut<'a> = (usize, &'a str, Vec<usize>, Vec<u64>, u64, &'a str, u64);
/// `{dates − now, retry − now, bucket, why}`.
type LaneIn = (Vec<u64>, u64, usize, u8);

/// The first argument of `limiter.lua`.
pub(crate) fn encode_ask(ask: &Ask) -> Result<Vec<u8>, LimiterError> {
    let mut specs = Vec::with_capacity(ask.buckets.len() * 4);
    for b in &ask.buckets {
        specs.extend([b.interval_us, u64::from(b.burst), u64::from(b.reserve), u64::from(b.shared)]);
    }
    let lanes: Vec<LaneOut<'_>> = ask
        .lanes
        .iter()
        .map(|l| {
            let buckets = l.buckets.iter().map(|b| b + 1).collect();
            (l.class.index(), &*l.destination, buckets, runs(&l.costs), l.since_us, &*l.id, l.seq)
        })
        .collect();
    encode(&(specs, lanes))
}

/// The reply of `limiter.lua` to `ask`.
pub(crate) fn decode_reply(ask: &Ask, bytes: &[u8]) -> Result<Reply, LimiterError> {
    let (now_us, lanes): (u64, Vec<LaneIn>) = decode(bytes)?;
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
    Ok(Reply { now_us, lanes })
}

/// `cost, count, cost, count …` of neighbours that cost the same: most lanes are one run.
fn runs(costs: &[u32]) -> Vec<u64> {
    let mut runs: Vec<u64> = Vec::with_capacity(2);
    for &cost in costs {
        match runs.as_mut_slice() {
            [.., last, count] if *last == u64::from(cost) => *count += 1,
            _ => runs.extend([u64::from(cost), 1]),
        }
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
        assert_eq!(runs(&[1, 1, 1, 7, 7, 1]), [1, 3, 7, 2, 1, 1]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_an_error() {
        let ask = Ask::default();
        assert!(decode_reply(&ask, &[]).is_err());
        assert!(decode_reply(&ask, b"\xff\xff").is_err());
        let one_lane_too_many: (u64, Vec<LaneIn>) = (5, vec![(vec![], 0, 0, 0)]);
        assert!(decode_reply(&ask, &encode(&one_lane_too_many).unwrap()).is_err());
    }
}
