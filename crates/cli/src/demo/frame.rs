//! One moment of the demo, worked out from the books and the queues. Pure.

use std::{collections::BTreeMap, time::Duration};

use paceline_core::{Reason, lane::TAIL};

use super::{
    books::{Books, Entry, Seen},
    plan::Group,
    stage::{Figures, PLACES},
    stats::Latency,
};

/// A rate shown is that of the last so many microseconds.
const RATE_US: u64 = 2_000_000;
/// "Slow down" is shown for as long as the sandbox asks for.
const ASKED_US: u64 = 1_000_000;
/// The latency shown is that of the last so many microseconds.
const LATENCY_US: u64 = 3_000_000;
/// Seconds of latencies that are shown as a curve.
pub(crate) const HISTORY_S: u64 = 30;
/// A limit counts as reached from this part of it on.
const REACHED: f64 = 0.9;

/// What waits, as broker and worker say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Queues {
    /// By destination and class: ready at the broker or held by the worker.
    pub(crate) waiting: [[u64; 4]; PLACES.len()],
    /// On the delay ladder.
    pub(crate) delayed: u64,
    /// Calls under way.
    pub(crate) in_flight: u64,
}

impl Queues {
    /// Nothing is anywhere.
    pub(crate) fn are_empty(&self) -> bool {
        *self == Queues::default()
    }
}

/// What keeps a destination's mail from going faster, as far as the figures tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Nothing,
    /// Its own limit.
    Itself,
    Account,
    /// It asked to slow down.
    Asked,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) waiting: [u64; 4],
    /// Calls a second.
    pub(crate) actual: f64,
    pub(crate) allowed: f64,
    pub(crate) bound: Bound,
}

/// What a view shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) phase: &'static str,
    pub(crate) elapsed: Duration,
    pub(crate) rows: Vec<Row>,
    /// The most any lane will hold, for the bars.
    pub(crate) most: u64,
    pub(crate) in_flight: u64,
    pub(crate) actual: f64,
    pub(crate) allowed: f64,
    /// Password resets: median while idle; median and 95th percentile of late.
    pub(crate) idle_ms: Option<f64>,
    pub(crate) late_ms: Option<(f64, f64)>,
    /// The slowest of each of the last seconds, the current one last.
    pub(crate) history_ms: Vec<Option<f64>>,
    pub(crate) complete: usize,
    pub(crate) messages: usize,
    pub(crate) trying_again: usize,
    pub(crate) seen: Seen,
    pub(crate) dead: BTreeMap<Reason, usize>,
}

impl Frame {
    pub(crate) fn new(
        books: &Books,
        figures: Figures,
        queues: &Queues,
        phase: &'static str,
        (started_us, now_us): (u64, u64),
    ) -> Frame {
        let recent = |span: u64| books.calls().iter().rev().take_while(move |c| c.at_us + span > now_us);
        let per_s = |calls: usize| calls as f64 * 1e6 / (now_us.saturating_sub(started_us)).clamp(500_000, RATE_US) as f64;
        let (actual, allowed) = (per_s(recent(RATE_US).count()), figures.account());
        let row = |place: usize| {
            let here = PLACES[place];
            let asked = recent(ASKED_US).any(|c| c.lane.1 == place && c.status == Some(429));
            let own = (per_s(recent(RATE_US).filter(|c| c.lane.1 == place).count()), figures.destination(&here));
            let waiting = queues.waiting[place];
            let bound = bound(here.name, waiting.iter().sum(), own, (actual, allowed), asked);
            Row { name: here.name, waiting, actual: own.0, allowed: own.1, bound }
        };
        let mut planned = [[0_u64; 4]; PLACES.len()];
        let mut dead = BTreeMap::new();
        for entry in books.entries() {
            planned[entry.lane.1][entry.lane.0.index()] += 1;
            entry.dead.iter().for_each(|reason| *dead.entry(*reason).or_default() += 1);
        }
        let resets = || books.entries().iter().filter(|e| e.group.is_some());
        let of = |wanted: &dyn Fn(&Entry) -> bool| Latency::of(resets().filter(|e| wanted(e)).filter_map(|e| e.latency_us()));
        let within = |e: &Entry, from: u64, to: u64| e.accepted_us.is_some_and(|at| (from..to).contains(&at));
        let late = of(&|e| within(e, now_us.saturating_sub(LATENCY_US), u64::MAX));
        let history = (0..HISTORY_S).rev().map(|ago| {
            let to = now_us.saturating_sub(ago * 1_000_000);
            of(&|e| within(e, to.saturating_sub(1_000_000), to)).map(|l| l.max_ms)
        });
        Frame {
            phase,
            elapsed: Duration::from_micros(now_us.saturating_sub(started_us)),
            rows: (0..PLACES.len()).map(row).collect(),
            most: planned.iter().flatten().copied().max().unwrap_or(0),
            in_flight: queues.in_flight,
            actual,
            allowed,
            idle_ms: of(&|e| e.group == Some(Group::Idle)).map(|l| l.p50_ms),
            late_ms: late.map(|l| (l.p50_ms, l.p95_ms)),
            history_ms: history.collect(),
            complete: books.complete(),
            messages: books.entries().len(),
            trying_again: books.entries().iter().filter(|e| e.is_trying_again()).count(),
            seen: books.seen,
            dead,
        }
    }

    pub(crate) fn dead_letters(&self) -> usize {
        self.dead.values().sum()
    }
}

fn bound(name: &str, waiting: u64, own: (f64, f64), account: (f64, f64), asked: bool) -> Bound {
    let reached = |(actual, allowed): (f64, f64)| actual >= allowed * REACHED;
    match () {
        () if waiting == 0 => Bound::Nothing,
        () if asked => Bound::Asked,
        // What the calls of a quarter of a second carry away is no backlog.
        () if (waiting as f64) < own.1 * 0.25 => Bound::Nothing,
        () if reached(own) => Bound::Itself,
        () if reached(account) => Bound::Account,
        // Each domain of the tail has a limit of its own.
        () if name == TAIL => Bound::Itself,
        () => Bound::Nothing,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::{
            books::tests::{arrival, mail},
            plan::Mail,
        },
        *,
    };
    use paceline_core::Class;

    const T0: u64 = 1_000_000_000;

    fn at(ms: u64) -> u64 {
        T0 + ms * 1000
    }

    pub(crate) fn frame() -> Frame {
        let reset = |id: &str, group| Mail { group: Some(group), ..mail(id, Class::Critical, 1) };
        let digests = (0..400).map(|n| mail(&format!("digest-{n}"), Class::Low, 0));
        let all: Vec<_> = digests
            .chain([reset("idle", Group::Idle), reset("load", Group::UnderLoad), mail("busy", Class::High, 2)])
            .chain([mail("nobody", Class::Normal, 3), mail("flaky", Class::Normal, 3)])
            .collect();
        let mut books = Books::new(&all);
        (0..all.len()).for_each(|i| books.published(i, at(if i == 401 { 9_000 } else { 0 })));
        books.arrived(&arrival(at(6), "idle", "accepted"));
        for n in 0..54 {
            books.arrived(&arrival(at(8_001 + n * 37), &format!("digest-{n}"), "accepted"));
        }
        books.arrived(&arrival(at(9_014), "load", "accepted"));
        books.arrived(&crate::demo::arrivals::Arrival { status: Some(429), ..arrival(at(9_500), "busy", "refused") });
        books.arrived(&arrival(at(9_600), "nobody", "refused"));
        books.arrived(&arrival(at(9_700), "flaky", "refused"));
        books.buried([(Some("nobody"), Reason::RejectedRecipient)]);
        let waiting = [[0, 0, 3, 346], [2, 0, 0, 0], [0, 1, 0, 40], [0, 0, 0, 60]];
        let queues = Queues { waiting, delayed: 1, in_flight: 3 };
        Frame::new(&books, Figures::of(400), &queues, "the campaign", (at(0), at(10_000)))
    }

    #[test]
    fn a_moment_of_the_campaign() {
        let frame = frame();
        let bounds: Vec<_> = frame.rows.iter().map(|r| r.bound).collect();
        assert_eq!(bounds, [Bound::Itself, Bound::Nothing, Bound::Asked, Bound::Itself]);
        assert_eq!((frame.rows[0].actual, frame.rows[0].allowed), (27.0, 27.0));
        assert_eq!((frame.idle_ms, frame.late_ms), (Some(6.0), Some((14.0, 14.0))));
        assert_eq!((frame.history_ms[28], frame.history_ms[29], frame.history_ms.len()), (None, Some(14.0), 30));
        assert_eq!((frame.complete, frame.messages, frame.trying_again, frame.dead_letters()), (56, 405, 2, 1));
        assert_eq!(frame.most, 400);
    }

    #[test]
    fn what_binds() {
        let full = (140.0, 140.0);
        assert_eq!(bound("microsoft", 500, (40.0, 64.0), full, false), Bound::Account);
        assert_eq!(bound("microsoft", 500, (60.0, 64.0), full, false), Bound::Itself);
        assert_eq!(bound("microsoft", 500, (40.0, 64.0), (90.0, 140.0), false), Bound::Nothing);
        assert_eq!(bound(TAIL, 500, (40.0, 96.0), (90.0, 140.0), false), Bound::Itself);
        assert_eq!(bound("yahoo", 5, (48.0, 48.0), full, false), Bound::Nothing);
        assert_eq!(bound("yahoo", 0, (48.0, 48.0), full, true), Bound::Nothing);
    }
}
