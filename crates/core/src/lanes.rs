//! What the fleet's lanes do just now: what each worker says of them, and what it comes to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Class, Lane, PauseScope, Timestamp, diagnosis::Place};

/// What a lane does. In this order, the later hides the earlier where workers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// No worker says anything of it.
    Unattended,
    /// Nothing waits.
    Idle,
    /// Mail goes as it comes.
    Flowing,
    /// Mail waits for its turn at a limit.
    Paced,
    /// Nothing can go for a while: its mail is back in the broker.
    Resting,
    /// The provider or the destination asked for a pause.
    BackingOff,
    /// Its circuit lets a few messages through, to see how they fare.
    Probing,
    /// Its circuit is open.
    Open,
    /// An operator holds it.
    Paused,
}

impl LaneState {
    pub const ALL: [LaneState; 9] = {
        use LaneState::{BackingOff, Flowing, Idle, Open, Paced, Paused, Probing, Resting, Unattended};
        [Unattended, Idle, Flowing, Paced, Resting, BackingOff, Probing, Open, Paused]
    };

    pub const fn as_str(self) -> &'static str {
        match self {
            LaneState::Unattended => "unattended",
            LaneState::Idle => "idle",
            LaneState::Flowing => "flowing",
            LaneState::Paced => "paced",
            LaneState::Resting => "resting",
            LaneState::BackingOff => "backing_off",
            LaneState::Probing => "probing",
            LaneState::Open => "open",
            LaneState::Paused => "paused",
        }
    }
}

/// What one worker says of one queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaneReport {
    /// The queue's name at the broker.
    pub queue: String,
    pub class: Class,
    pub destination: String,
    /// Waiting here for their limits.
    pub held: u64,
    /// Granted, and not yet settled.
    pub in_flight: u64,
    /// Recipients a second that its limits allow the fleet; `None`: nothing limits it.
    pub allowed_per_s: Option<f64>,
    /// What binds, for people; `None` where nothing does.
    pub binding: Option<String>,
    /// Messages a second that were accepted here, over the last ten seconds.
    pub actual_per_s: f64,
    pub state: LaneState,
    /// When the oldest message seen was published; that of what went back to the broker included.
    pub oldest_at: Option<Timestamp>,
}

/// All that one worker says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    pub worker: String,
    pub lanes: Vec<LaneReport>,
    /// What came of calls, by account and destination.
    pub places: Vec<Place>,
}

/// A queue as the broker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDepth {
    pub queue: String,
    /// Its short name: `<class>.<destination>` of a lane.
    pub lane: String,
    pub class: Class,
    pub destination: String,
    /// Messages ready; `None` where the broker did not say.
    pub ready: Option<u64>,
}

impl QueueDepth {
    /// A lane whose depth is not known yet.
    pub fn of(lane: &Lane, queue: String) -> QueueDepth {
        QueueDepth { queue, lane: lane.to_string(), class: lane.class, destination: lane.destination.to_string(), ready: None }
    }
}

/// A lane, over all workers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaneStatus {
    /// `<class>.<destination>`; of a flow `flow.<class>.<flow>`.
    pub lane: String,
    pub class: Class,
    pub destination: String,
    /// Messages that wait, held ones and those under way included; `null` where the broker did not say.
    pub depth: Option<u64>,
    pub held: u64,
    pub in_flight: u64,
    /// Recipients a second; `null`: nothing limits it, or no worker says.
    pub allowed_per_s: Option<f64>,
    pub binding: Option<String>,
    /// Messages a second that were accepted, over the last ten seconds.
    pub actual_per_s: f64,
    pub state: LaneState,
    pub oldest_s: Option<u64>,
    /// `null`: nobody can tell, or never as things stand.
    pub drain_eta_s: Option<u64>,
}

/// Queues that workers speak of and `known` does not hold: flows, and lanes of another configuration.
pub fn unknown_queues(known: &[QueueDepth], reports: &[WorkerReport], prefix: &str) -> Vec<QueueDepth> {
    let mut found = BTreeMap::new();
    for lane in reports.iter().flat_map(|r| &r.lanes) {
        if known.iter().any(|k| k.queue == lane.queue) {
            continue;
        }
        let short = lane.queue.strip_prefix(prefix).and_then(|s| s.strip_prefix('.')).unwrap_or(&lane.queue);
        let short = short.strip_prefix("lane.").unwrap_or(short).to_owned();
        found.entry(lane.queue.clone()).or_insert_with(|| QueueDepth {
            queue: lane.queue.clone(),
            lane: short,
            class: lane.class,
            destination: lane.destination.clone(),
            ready: None,
        });
    }
    found.into_values().collect()
}

/// What is known of all lanes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    pub queues: &'a [QueueDepth],
    pub reports: &'a [WorkerReport],
    /// What operators hold just now, whether or not workers have heard of it.
    pub pauses: &'a [PauseScope],
    /// Every account there is.
    pub accounts: &'a [String],
    /// What workers hold is counted as ready, as by a spool that another process consumes.
    pub ready_holds_all: bool,
}

/// What it comes to. What needs a look comes first: lanes with mail, by state, the deepest first.
pub fn merge(known: Known<'_>, now: Timestamp) -> Vec<LaneStatus> {
    let mut lanes: Vec<LaneStatus> = known.queues.iter().map(|queue| status(queue, known, now)).collect();
    lanes.sort_by(|a, b| {
        let key = |l: &LaneStatus| (l.depth == Some(0), std::cmp::Reverse(l.state), std::cmp::Reverse(l.depth), l.class);
        key(a).cmp(&key(b)).then_with(|| a.lane.cmp(&b.lane))
    });
    lanes
}

fn status(queue: &QueueDepth, known: Known<'_>, now: Timestamp) -> LaneStatus {
    let said: Vec<&LaneReport> = known.reports.iter().flat_map(|r| &r.lanes).filter(|l| l.queue == queue.queue).collect();
    let sum = |of: fn(&LaneReport) -> u64| said.iter().map(|l| of(l)).fold(0, u64::saturating_add);
    let (held, in_flight) = (sum(|l| l.held), sum(|l| l.in_flight));
    // The sum of nothing is −0 otherwise.
    let actual_per_s = said.iter().map(|l| l.actual_per_s).fold(0.0, |sum, per_s| sum + per_s);
    let depth = queue.ready.map(|ready| match known.ready_holds_all {
        true => ready,
        false => ready.saturating_add(held).saturating_add(in_flight),
    });
    let state = said.iter().map(|l| l.state).max().unwrap_or(LaneState::Unattended);
    // Who has mail of the lane has been told what binds it; who has none knows its configuration alone.
    let telling = said.iter().filter(|l| l.state == state);
    let least = |l: &&&LaneReport| l.allowed_per_s.unwrap_or(f64::MAX);
    let telling = telling.min_by(|a, b| b.held.cmp(&a.held).then_with(|| least(a).total_cmp(&least(b))));
    let (state, allowed_per_s, binding) = match paused(queue, known) {
        Some(scope) => (LaneState::Paused, Some(0.0), Some(format!("paused: {scope}"))),
        None => (state, telling.and_then(|l| l.allowed_per_s), telling.and_then(|l| l.binding.clone())),
    };
    // Of an empty lane nothing is old, whatever was given back to it.
    let oldest = said.iter().filter_map(|l| l.oldest_at).min().filter(|_| depth != Some(0));
    LaneStatus {
        lane: queue.lane.clone(),
        class: queue.class,
        destination: queue.destination.clone(),
        depth,
        held,
        in_flight,
        allowed_per_s: allowed_per_s.map(rounded),
        binding,
        actual_per_s: rounded(actual_per_s),
        state,
        oldest_s: oldest.map(|at| now.since(at).as_secs()),
        drain_eta_s: depth.and_then(|depth| eta_s(depth, allowed_per_s, actual_per_s, state)),
    }
}

/// What holds the whole lane by an operator's order.
fn paused<'a>(queue: &QueueDepth, known: Known<'a>) -> Option<&'a PauseScope> {
    let of = |scope: &&PauseScope| match scope {
        PauseScope::Class(class) => *class == queue.class,
        PauseScope::Destination(destination) => *destination == queue.destination,
        PauseScope::Account(_) => false,
    };
    let held = |account: &String| known.pauses.iter().find(|p| matches!(p, PauseScope::Account(name) if name == account));
    let by_accounts = || match known.accounts.iter().map(held).collect::<Option<Vec<_>>>() {
        Some(all) => all.into_iter().next(),
        None => None,
    };
    known.pauses.iter().find(of).or_else(by_accounts)
}

/// What a lane gets while mail waits is its rate: an allowance may be shared with other lanes. Where nothing has gone for
/// ten seconds, what is allowed counts, and where nothing may go, nothing can be told.
fn eta_s(depth: u64, allowed_per_s: Option<f64>, actual_per_s: f64, state: LaneState) -> Option<u64> {
    if depth == 0 {
        return Some(0);
    }
    let closed = matches!(state, LaneState::Unattended | LaneState::Open | LaneState::Paused);
    if closed || allowed_per_s == Some(0.0) {
        return None;
    }
    let rate = match (actual_per_s > 0.0, allowed_per_s) {
        (true, Some(allowed)) => actual_per_s.min(allowed.max(f64::MIN_POSITIVE)),
        (true, None) => actual_per_s,
        (false, Some(allowed)) => allowed,
        (false, None) => return None,
    };
    let seconds = depth as f64 / rate;
    // `as` saturates; more than a thousand years is nobody's plan.
    (seconds < 3e10).then(|| seconds.ceil() as u64)
}

/// To three digits behind the point, where it has any.
fn rounded(per_s: f64) -> f64 {
    match per_s {
        x if x >= 1.0 => (x * 1e3).round() / 1e3,
        x => (x * 1e6).round() / 1e6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(class: Class, destination: &str, ready: Option<u64>) -> QueueDepth {
        let lane = Lane::new(class, destination);
        QueueDepth { ready, ..QueueDepth::of(&lane, format!("p.lane.{lane}")) }
    }

    fn said(queue: &str, held: u64, state: LaneState) -> LaneReport {
        LaneReport {
            queue: format!("p.lane.{queue}"),
            class: Class::High,
            destination: "google".into(),
            held,
            in_flight: 1,
            allowed_per_s: Some(10.0),
            binding: Some("account main".into()),
            actual_per_s: 2.0,
            state,
            oldest_at: Some(Timestamp::from_secs(1_000 - held as i64)),
        }
    }

    fn reports(lanes: Vec<LaneReport>) -> Vec<WorkerReport> {
        lanes.into_iter().map(|l| WorkerReport { lanes: vec![l], ..WorkerReport::default() }).collect()
    }

    const NOW: Timestamp = Timestamp::from_secs(1_060);

    #[test]
    fn workers_add_up() {
        let queues = [queue(Class::High, "google", Some(30))];
        let idle = LaneReport { allowed_per_s: Some(99.0), binding: None, ..said("high.google", 0, LaneState::Idle) };
        let said = reports(vec![idle, said("high.google", 5, LaneState::Paced), said("high.google", 4, LaneState::Flowing)]);
        let known = Known { queues: &queues, reports: &said, ..Known::default() };
        let [lane] = &merge(known, NOW)[..] else { panic!() };
        assert_eq!((lane.depth, lane.held, lane.in_flight, lane.state), (Some(42), 9, 3, LaneState::Paced));
        assert_eq!((lane.allowed_per_s, lane.binding.as_deref()), (Some(10.0), Some("account main")));
        assert_eq!((lane.actual_per_s, lane.oldest_s, lane.drain_eta_s), (6.0, Some(65), Some(7)));
        let [lane] = &merge(Known { ready_holds_all: true, ..known }, NOW)[..] else { panic!() };
        assert_eq!(lane.depth, Some(30), "a spool counts held mail itself");
    }

    #[test]
    fn nobody_there() {
        let queues =
            [queue(Class::Low, "tail", Some(7)), queue(Class::Low, "google", None), queue(Class::High, "google", Some(0))];
        let lanes = merge(Known { queues: &queues, ..Known::default() }, NOW);
        let seen: Vec<_> = lanes.iter().map(|l| (&*l.lane, l.depth, l.drain_eta_s, l.oldest_s)).collect();
        assert_eq!(
            seen,
            [("low.tail", Some(7), None, None), ("low.google", None, None, None), ("high.google", Some(0), Some(0), None)]
        );
        assert!(lanes.iter().all(|l| l.state == LaneState::Unattended));
    }

    #[test]
    fn times_to_go() {
        for (depth, allowed, actual, state, want) in [
            (0, None, 0.0, LaneState::Idle, Some(0)),
            (100, Some(10.0), 0.0, LaneState::Resting, Some(10)),
            (100, Some(10.0), 4.0, LaneState::Paced, Some(25)),
            // A burst is over soon.
            (100, Some(10.0), 40.0, LaneState::Flowing, Some(10)),
            (100, None, 50.0, LaneState::Flowing, Some(2)),
            (100, None, 0.0, LaneState::Flowing, None),
            (100, Some(0.0), 5.0, LaneState::Paused, None),
            (100, Some(10.0), 5.0, LaneState::Open, None),
            (u64::MAX, Some(1e-9), 0.0, LaneState::Paced, None),
        ] {
            assert_eq!(eta_s(depth, allowed, actual, state), want, "{depth} {allowed:?} {actual} {state:?}");
        }
    }

    #[test]
    fn what_needs_a_look_comes_first() {
        let queues = [
            queue(Class::Critical, "google", Some(0)),
            queue(Class::High, "google", Some(5)),
            queue(Class::Normal, "google", Some(500)),
            queue(Class::Low, "google", Some(1)),
        ];
        let mut lanes = vec![said("critical.google", 0, LaneState::Paused), said("high.google", 0, LaneState::Flowing)];
        lanes.extend([said("normal.google", 0, LaneState::Flowing), said("low.google", 0, LaneState::Open)]);
        lanes.iter_mut().for_each(|l| l.in_flight = 0);
        let reports = reports(lanes);
        let known = Known { queues: &queues, reports: &reports, ..Known::default() };
        let order: Vec<_> = merge(known, NOW).into_iter().map(|l| l.lane).collect();
        assert_eq!(order, ["low.google", "normal.google", "high.google", "critical.google"]);
    }

    #[test]
    fn what_operators_hold_stands_whatever_workers_say() {
        let queues = [queue(Class::High, "google", Some(3))];
        let said = reports(vec![said("high.google", 0, LaneState::Flowing)]);
        let accounts = ["main".to_owned(), "spare".to_owned()];
        let account = |name: &str| PauseScope::Account(name.into());
        for (pauses, want) in [
            (vec![], None),
            (vec![PauseScope::Class(Class::Low), PauseScope::Destination("yahoo".into()), account("main")], None),
            (vec![PauseScope::Class(Class::High)], Some("paused: class high")),
            (vec![PauseScope::Destination("google".into())], Some("paused: destination google")),
            (vec![account("spare"), account("main")], Some("paused: account main")),
        ] {
            let known = Known { queues: &queues, reports: &said, pauses: &pauses, accounts: &accounts, ready_holds_all: false };
            let [lane] = &merge(known, NOW)[..] else { panic!() };
            let (state, binding) = match want {
                Some(words) => (LaneState::Paused, words),
                None => (LaneState::Flowing, "account main"),
            };
            assert_eq!((lane.state, lane.binding.as_deref()), (state, Some(binding)), "{pauses:?}");
            assert_eq!(lane.drain_eta_s.is_none(), want.is_some());
        }
    }

    #[test]
    fn flows_are_found_in_reports() {
        let known = [queue(Class::High, "google", None)];
        let flow = LaneReport { queue: "p.flow.low.acme".into(), ..said("x", 1, LaneState::Paced) };
        let found = unknown_queues(&known, &reports(vec![said("high.google", 1, LaneState::Paced), flow]), "p");
        assert_eq!(found.iter().map(|q| (&*q.queue, &*q.lane)).collect::<Vec<_>>(), [("p.flow.low.acme", "flow.low.acme")]);
    }

    #[test]
    fn states_are_named_as_they_are_written() {
        for state in LaneState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
