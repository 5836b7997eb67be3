//! Turns: when mail that a narrow limit keeps comes back from the ladder.
//!
//! Whoever is parked for a limit lines up behind all that is parked for it already, by any worker: the fleet counts where
//! each line ends. Promises:
//!
//! - a line is never longer than [`Lines`] says to the one who lines up: [`LEAST`], or the time that the message has waited
//!   so far, up to [`MOST`]. Who finds it full comes back when it has moved on, without a place in it. So a message that
//!   waits for hours travels a dozen times rather than every minute, and what is known of its limit now keeps it no
//!   longer than it has kept it already;
//! - each class lines up by itself, so nobody waits behind mail that comes after it;
//! - while others stand in line, mail that has just come lines up too, rather than take what they come back for;
//! - turns are rounded to a sum of three rungs of the ladder, for as many trips at most: an eighth early or late, which
//!   a limit's burst makes up for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use paceline_broker::Purpose;
use paceline_core::{Class, lane::RUNGS_S};
use paceline_limiter::{
    BucketSpec,
    fleet::{FAR_US, Fleet, Turns},
};

use crate::{context::Context, item::Item, pipeline};

/// How long a line may be for anybody.
const LEAST: Duration = Duration::from_secs(512);
/// How long for those who have waited long: the highest rung.
const MOST: Duration = Duration::from_secs(4096);
/// Mail is held for so long without a turn.
const HELD: Duration = paceline_core::lane::HOLD_MAX;
/// Mail that came for its turn, and a little early, for longer.
const HELD_AGAIN: Duration = Duration::from_secs(10);
/// What is closed until further notice is looked at so often.
const CLOSED: Duration = Duration::from_secs(64);
/// Lines remembered before those that are over are forgotten.
const REMEMBERED: usize = 1_000;

/// The lines as this worker knows them.
pub(crate) struct Lines {
    fleet: Arc<dyn Fleet>,
    /// The time one token takes, and where the line ends, on the limiter's clock.
    ends: Mutex<HashMap<Line, (u64, u64)>>,
}

/// What is waited for: a bucket, and by which class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Line {
    pub(crate) bucket: Arc<str>,
    pub(crate) class: Class,
}

/// Mail that one limit keeps, in order.
pub(crate) struct Kept {
    pub(crate) line: Line,
    /// When the first of it could go if nobody stood in line.
    pub(crate) from_us: u64,
    pub(crate) items: Vec<Item>,
}

impl Lines {
    pub(crate) fn new(fleet: Arc<dyn Fleet>) -> Lines {
        Lines { fleet, ends: Mutex::default() }
    }

    /// The longest of the lines before which a message just come would go, if it is not held meanwhile.
    pub(crate) fn before(&self, item: &Item, now_us: u64) -> Option<(Line, u64)> {
        // Who has a time of its own has lined up, or has waited for something else.
        if item.journey.not_before.is_some() {
            return None;
        }
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.is_empty() {
            return None;
        }
        let end = |b: &BucketSpec| {
            let line = Line { bucket: b.key.clone(), class: item.lane.class };
            // At another rate it is another line.
            let (_, end_us) = *ends.get(&line).filter(|(pace_us, _)| *pace_us == b.interval_us())?;
            (end_us > held_until(item, now_us)).then_some((line, end_us))
        };
        item.buckets.iter().filter(|b| b.narrow).filter_map(end).max_by_key(|(_, end_us)| *end_us)
    }

    /// Sends everything to the ladder, each for its turn.
    pub(crate) fn give(self: &Arc<Self>, cx: &Arc<Context>, mut kept: Vec<Kept>, now_us: u64) {
        if !kept.is_empty() {
            kept.sort_by(|a, b| a.line.cmp(&b.line));
            let (lines, own) = (self.clone(), cx.clone());
            cx.tasks.spawn(async move { lines.park(&own, kept, now_us).await });
        }
    }

    async fn park(&self, cx: &Arc<Context>, kept: Vec<Kept>, now_us: u64) {
        let wanted: Vec<Turns> = kept.iter().map(|kept| kept.wanted(cx, now_us)).collect();
        let begins = match self.fleet.turns(&wanted).await {
            Ok(begins) if begins.len() == wanted.len() => begins,
            other => {
                // By what this worker knows itself, then: turns may coincide with those that others give.
                tracing::debug!(error = ?other.err(), "no turns from the fleet");
                kept.iter().map(|kept| kept.from_us.max(self.end(&kept.line))).collect()
            }
        };
        for ((kept, turns), begin_us) in kept.into_iter().zip(wanted).zip(begins) {
            let end_us = begin_us.saturating_add(turns.takes_us).min(turns.before_us.max(begin_us));
            self.remember(&kept, end_us, now_us);
            let mut turn_us = begin_us;
            for mut item in kept.items {
                let wait = match turn_us < turns.before_us {
                    true => rounded(Duration::from_micros(turn_us.saturating_sub(now_us))),
                    false if kept.from_us > now_us + FAR_US => CLOSED,
                    false => furthest(cx.now().since(item.journey.enqueued_at)),
                };
                turn_us = turn_us.saturating_add(takes_us(&kept.line.bucket, &item));
                // What expires is given up on when it does.
                let wait = item.expires_at.map_or(wait, |at| wait.min(at.since(cx.now())));
                item.journey.not_before = Some(cx.now() + wait);
                let cx = cx.clone();
                cx.clone().tasks.spawn(async move { pipeline::pass_on(&cx, item, Purpose::Delay).await });
            }
        }
    }

    fn end(&self, line: &Line) -> u64 {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(line).map_or(0, |(_, end_us)| *end_us)
    }

    fn remember(&self, kept: &Kept, end_us: u64, now_us: u64) {
        let pace_us = kept.items.first().map_or(0, |item| pace_us(&kept.line.bucket, item));
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.len() >= REMEMBERED {
            ends.retain(|_, (_, end_us)| *end_us > now_us);
        }
        if pace_us > 0 && end_us < now_us + FAR_US {
            ends.insert(kept.line.clone(), (pace_us, end_us));
        }
    }
}

impl Kept {
    fn wanted(&self, cx: &Context, now_us: u64) -> Turns {
        let takes_us = self.items.iter().map(|item| takes_us(&self.line.bucket, item)).fold(0, u64::saturating_add);
        let oldest = self.items.iter().map(|item| cx.now().since(item.journey.enqueued_at)).max();
        let before_us = now_us + furthest(oldest.unwrap_or_default()).as_micros() as u64;
        // At another rate it is another line.
        let pace_us = self.items.first().map_or(0, |item| pace_us(&self.line.bucket, item));
        Turns {
            line: format!("{}:{}:{pace_us}", self.line.bucket, self.line.class).into(),
            from_us: self.from_us,
            takes_us,
            before_us,
        }
    }
}

/// Until when mail that a narrow limit keeps is held rather than parked.
pub(crate) fn held_until(item: &Item, now_us: u64) -> u64 {
    let longest = if item.journey.not_before.is_some() { HELD_AGAIN } else { HELD };
    now_us + longest.as_micros() as u64
}

/// The time one token of the limit takes.
fn pace_us(bucket: &Arc<str>, item: &Item) -> u64 {
    item.buckets.iter().find(|b| b.key == *bucket).map_or(0, BucketSpec::interval_us)
}

/// How much later whoever comes after `item` may go.
fn takes_us(bucket: &Arc<str>, item: &Item) -> u64 {
    let position = item.buckets.iter().position(|b| b.key == *bucket);
    position.map_or(0, |k| item.buckets[k].interval_us().saturating_mul(item.cost.at(k)))
}

/// How far ahead a message may be sent that has waited for `age`: one rung.
fn furthest(age: Duration) -> Duration {
    let rungs = RUNGS_S.into_iter().map(|s| Duration::from_secs(u64::from(s)));
    rungs.rev().find(|rung| *rung <= age).unwrap_or(LEAST).clamp(LEAST, MOST)
}

/// The nearest wait that three rungs next to each other, or fewer, come to.
fn rounded(wait: Duration) -> Duration {
    let s = wait.as_secs();
    if s < 8 {
        return wait;
    }
    let step = 1 << (s.ilog2() - 2);
    Duration::from_secs((s + step / 2) / step * step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use paceline_core::lane::rung_s;

    #[test]
    fn lines_grow_with_the_wait_and_are_one_rung_long() {
        for (age_s, far_s) in [(0, 512), (60, 512), (1_023, 512), (1_024, 1_024), (3_000, 2_048), (1_000_000, 4_096)] {
            assert_eq!(furthest(Duration::from_secs(age_s)), Duration::from_secs(far_s), "{age_s}");
        }
    }

    #[test]
    fn turns_take_three_trips_at_most() {
        let (mut all, mut trips) = (0, 0);
        for ms in (8_000..4_096_000).step_by(997) {
            let wait = Duration::from_millis(ms);
            let mut left = rounded(wait);
            assert!(left.abs_diff(wait) <= wait / 8 + Duration::from_secs(1), "{wait:?} becomes {left:?}");
            let mut hops = 0;
            while let Some(rung) = rung_s(left) {
                left = left.saturating_sub(Duration::from_secs(u64::from(rung)));
                hops += 1;
            }
            assert!(hops <= 3, "{wait:?}: {hops}");
            (all, trips) = (all + 1, trips + hops);
        }
        assert!(trips * 10 < all * 22, "{trips} trips for {all} turns");
        assert_eq!(rounded(Duration::from_millis(5_700)), Duration::from_millis(5_700));
    }
}
