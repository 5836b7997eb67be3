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
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use paceline_broker::Purpose;
use paceline_core::{
    Class,
    lane::{HOLD_MAX, RUNGS_S},
};
use paceline_limiter::{
    BucketSpec, Why,
    fleet::{Fleet, Turns},
    pacer::Hint,
};
use tokio::task::JoinHandle;

use crate::{context::Context, item::Item, pipeline};

/// How long a line may be for anybody.
const LEAST: Duration = Duration::from_secs(512);
/// How long for those who have waited long: the highest rung.
const MOST: Duration = Duration::from_secs(4096);
/// Mail that came for its turn, and a little early, is held for so long without a grant.
const HELD_AGAIN: Duration = Duration::from_secs(10);
/// What is closed is looked at so often: it may be opened sooner than was said.
const CLOSED: Duration = Duration::from_secs(64);

/// The lines as this worker knows them, and who is about to line up.
pub(crate) struct Lines {
    ends: Arc<Ends>,
    coming: BTreeMap<Line, Kept>,
    /// The fleet is being asked: others wait, so that they are asked about together.
    asking: Option<JoinHandle<()>>,
}

/// What is waited for: a bucket, and by which class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Line {
    bucket: Arc<str>,
    class: Class,
}

/// Mail that one limit keeps, in order.
struct Kept {
    /// When the first of it could go if nobody stood in line.
    from_us: u64,
    items: Vec<Item>,
}

/// Where the lines end: as the fleet says, and as this worker remembers.
struct Ends {
    fleet: Arc<dyn Fleet>,
    /// The time one token takes, and the end, on the limiter's clock.
    known: Mutex<HashMap<Line, (u64, u64)>>,
}

impl Lines {
    pub(crate) fn new(fleet: Arc<dyn Fleet>) -> Lines {
        Lines { ends: Arc::new(Ends { fleet, known: Mutex::default() }), coming: BTreeMap::new(), asking: None }
    }

    /// Gives back a message that waits for nobody. One that has just come lines up where others stand in line for what it
    /// needs, unless it is soon its turn.
    pub(crate) fn pass(&mut self, item: Item, now_us: u64) -> Option<Item> {
        let Some((line, end_us)) = self.ends.before(&item, now_us) else { return Some(item) };
        self.join(line, end_us, item);
        None
    }

    /// Lines up what a narrow limit keeps. What is closed has no turns: it comes back when that may be over.
    pub(crate) fn keep(&mut self, cx: &Arc<Context>, hint: &Hint, items: Vec<Item>, now_us: u64) {
        let closed = matches!(hint.why, Why::Closed | Why::Hold);
        for item in items {
            if closed {
                let wait = Duration::from_micros(hint.retry_at_us.saturating_sub(now_us));
                park(cx, item, wait.min(CLOSED));
            } else {
                self.join(Line { bucket: hint.bucket.clone(), class: item.lane.class }, hint.retry_at_us, item);
            }
        }
    }

    fn join(&mut self, line: Line, from_us: u64, item: Item) {
        let kept = self.coming.entry(line).or_insert(Kept { from_us, items: Vec::new() });
        kept.from_us = kept.from_us.min(from_us);
        kept.items.push(item);
    }

    /// Sends all that lines up to the ladder, each for its turn; what comes meanwhile a moment later, if it need not go
    /// `at_once`.
    pub(crate) fn line_up(&mut self, cx: &Arc<Context>, now_us: u64, at_once: bool) {
        let asking = self.asking.as_ref().is_some_and(|task| !task.is_finished());
        if self.coming.is_empty() || (asking && !at_once) {
            return;
        }
        let (coming, ends, own) = (std::mem::take(&mut self.coming), self.ends.clone(), cx.clone());
        self.asking = Some(cx.tasks.spawn(async move { ends.give(&own, coming, now_us).await }));
    }

    /// Forgets the lines that are over.
    pub(crate) fn forget(&self, now_us: u64) {
        self.ends.known().retain(|_, (_, end_us)| *end_us > now_us);
    }
}

impl Ends {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Line, (u64, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest of the lines before which a message just come would go.
    fn before(&self, item: &Item, now_us: u64) -> Option<(Line, u64)> {
        let known = self.known();
        // Who has a time of its own has lined up, or has waited for something else.
        if known.is_empty() || item.journey.not_before.is_some() {
            return None;
        }
        let end = |b: &BucketSpec| {
            let line = Line { bucket: b.key.clone(), class: item.lane.class };
            // At another rate it is another line.
            let (_, end_us) = *known.get(&line).filter(|(pace_us, _)| *pace_us == b.interval_us())?;
            (end_us > held_until(item, now_us)).then_some((line, end_us))
        };
        item.buckets.iter().filter(|b| b.narrow).filter_map(end).max_by_key(|(_, end_us)| *end_us)
    }

    async fn give(&self, cx: &Arc<Context>, coming: BTreeMap<Line, Kept>, now_us: u64) {
        let wanted: Vec<Turns> = coming.iter().map(|(line, kept)| kept.wanted(line, cx, now_us)).collect();
        let begins = match self.fleet.turns(&wanted).await {
            Ok(begins) if begins.len() == wanted.len() => begins,
            other => {
                // By what this worker knows itself, then: turns may coincide with those that others give.
                tracing::debug!(error = ?other.err(), "no turns from the fleet");
                let known = self.known();
                let end = |line| known.get(line).map_or(0, |(_, end_us)| *end_us);
                coming.iter().map(|(line, kept)| kept.from_us.max(end(line))).collect()
            }
        };
        for (((line, kept), turns), begin_us) in coming.into_iter().zip(wanted).zip(begins) {
            let pace_us = kept.items.first().map_or(0, |item| pace_us(&line.bucket, item));
            if pace_us > 0 && begin_us < turns.before_us {
                let end_us = begin_us.saturating_add(turns.takes_us).min(turns.before_us);
                self.known().insert(line.clone(), (pace_us, end_us));
            }
            let mut turn_us = begin_us;
            for item in kept.items {
                let wait = match turn_us < turns.before_us {
                    true => rounded(Duration::from_micros(turn_us.saturating_sub(now_us))),
                    false => furthest(cx.now().since(item.journey.enqueued_at)),
                };
                turn_us = turn_us.saturating_add(takes_us(&line.bucket, &item));
                park(cx, item, wait);
            }
        }
    }
}

impl Kept {
    fn wanted(&self, line: &Line, cx: &Context, now_us: u64) -> Turns {
        let takes_us = self.items.iter().map(|item| takes_us(&line.bucket, item)).fold(0, u64::saturating_add);
        let oldest = self.items.iter().map(|item| cx.now().since(item.journey.enqueued_at)).max();
        let before_us = now_us + furthest(oldest.unwrap_or_default()).as_micros() as u64;
        // At another rate it is another line.
        let pace_us = self.items.first().map_or(0, |item| pace_us(&line.bucket, item));
        Turns { line: format!("{}:{}:{pace_us}", line.bucket, line.class).into(), from_us: self.from_us, takes_us, before_us }
    }
}

/// To the ladder for so long, and no longer than until its time is over: it is given up on then.
fn park(cx: &Arc<Context>, mut item: Item, wait: Duration) {
    let now = cx.now();
    item.journey.not_before = Some(now + wait.min(item.end.at.since(now)));
    let cx = cx.clone();
    cx.clone().tasks.spawn(async move { pipeline::pass_on(&cx, item, Purpose::Delay).await });
}

/// Until when mail that a narrow limit keeps is held rather than parked.
pub(crate) fn held_until(item: &Item, now_us: u64) -> u64 {
    let longest = if item.journey.not_before.is_some() { HELD_AGAIN } else { HOLD_MAX };
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
