//! Lanes: the broker queues messages wait in, one per class and destination; and the delay ladder.

use std::{fmt, sync::Arc, time::Duration};

use crate::Class;

/// The destination of every domain that no named destination claims.
pub const TAIL: &str = "tail";
/// The name of the queue for what carries no class; no destination may take it.
pub const INTAKE: &str = "intake";

/// One (class, destination) pair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    pub class: Class,
    pub destination: Arc<str>,
}

impl Lane {
    pub fn new(class: Class, destination: impl Into<Arc<str>>) -> Lane {
        Lane { class, destination: destination.into() }
    }

    /// Whether many domains share this lane, each with limits of its own.
    pub fn is_tail(&self) -> bool {
        &*self.destination == TAIL
    }
}

/// `<class>.<destination>`: the routing key within `paceline.lanes`.
impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.class, self.destination)
    }
}

/// The routing key, within `paceline.lanes`, of the queue of a flow: mail of this class that a limit narrower than its lane
/// binds. It begins with the class, as every key does. No destination is named so: names have no dot.
pub fn flow_key(class: Class, flow: &str) -> String {
    format!("{class}.flow.{flow}")
}

/// The delays of the ladder, in seconds.
pub const RUNGS_S: [u32; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

/// A wait this short is spent in the worker, not on the ladder.
pub const HOLD_MAX: Duration = Duration::from_secs(2);

/// The rung that brings a message closest to `remaining` from now, or `None` when the wait is short enough to hold.
///
/// It may be late by at most the greater of 0.9 s and 9 % of `remaining` (transit takes the rest of the second or
/// the tenth that the contract allows); otherwise it is early, and what remains is waited for on a lower rung.
pub fn rung_s(remaining: Duration) -> Option<u32> {
    if remaining <= HOLD_MAX {
        return None;
    }
    let late = remaining + Duration::from_millis(900).max(remaining.mul_f64(0.09));
    RUNGS_S.into_iter().rev().find(|&s| Duration::from_secs(u64::from(s)) <= late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let lane = Lane::new(Class::Critical, "google");
        assert_eq!(lane.to_string(), "critical.google");
        assert!(!lane.is_tail() && Lane::new(Class::Low, "tail").is_tail());
    }

    #[test]
    fn waits_end_within_a_second_or_a_tenth() {
        for ms in (1..300_000u64).step_by(37).chain((300_000..20_000_000).step_by(7919)) {
            let total = Duration::from_millis(ms);
            let (mut waited, mut hops) = (Duration::ZERO, 0);
            while let Some(rung) = rung_s(total.saturating_sub(waited)) {
                waited += Duration::from_secs(u64::from(rung));
                hops += 1;
            }
            let late = waited.saturating_sub(total);
            assert!(late <= Duration::from_millis(900).max(total.mul_f64(0.09)), "{total:?} late by {late:?}");
            assert!(total.saturating_sub(waited) <= HOLD_MAX);
            assert!(hops <= 13 + ms / 4_096_000, "{total:?} took {hops} hops");
        }
    }

    #[test]
    fn the_usual_retry_takes_one_hop() {
        for (wait_s, rung) in [(5.0, 4), (60.0, 64), (63.0, 64), (66.0, 64), (120.0, 128), (240.0, 256), (480.0, 512)] {
            assert_eq!(rung_s(Duration::from_secs_f64(wait_s)), Some(rung), "{wait_s}");
        }
    }
}
