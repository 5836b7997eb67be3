//! The closing report: every figure from the sandbox's arrivals file and the store. Pure.

use std::collections::BTreeMap;

use paceline_core::{Class, Reason};
use serde::Serialize;

use super::{
    books::{Account, Books, Call, Entry, Seen},
    plan::Group,
    stage::{Figures, PLACES},
    stats::{Backlog, Latency, backlog},
};

/// Ids listed of what is wrong.
const LISTED: usize = 20;
/// So much of a second's allowance must wait to be called a backlog.
const BACKLOG_OF_RATE: f64 = 0.25;

/// What the worker, the sandbox and the store say by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// Calls the worker counted.
    pub(crate) worker_calls: u64,
    /// Dead letters the worker counted.
    pub(crate) worker_dead: u64,
    /// Calls the sandbox counted, taken or not.
    pub(crate) sandbox_calls: u64,
    pub(crate) sandbox_accepted: u64,
    /// Entries in the store.
    pub(crate) stored_dead: u64,
}

/// How it went, with the run's own circumstances.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Every message accounted for once, and every count in agreement.
    pub(crate) ok: bool,
    /// Ended before its time, by a signal.
    pub(crate) interrupted: bool,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    /// Messages published.
    pub(crate) messages: usize,
    /// Planned, but not published.
    pub(crate) unpublished: usize,
    /// Published a second time by their producer.
    pub(crate) published_again: usize,
    pub(crate) accounted_for: usize,
    /// The first of those that are neither accepted nor dead letters.
    pub(crate) missing: Vec<String>,
    /// The first of those accounted for more than once.
    pub(crate) twice: Vec<String>,
    pub(crate) calls: u64,
    pub(crate) accepted: u64,
    /// Accepted more than once.
    pub(crate) duplicates: usize,
    pub(crate) refused: u64,
    /// Of the refused: with status 429.
    pub(crate) throttled: u64,
    pub(crate) unanswered: u64,
    /// Calls the sandbox knew by their key and did not take again.
    pub(crate) repeated: u64,
    /// Messages that took more than one call.
    pub(crate) retried: usize,
    pub(crate) dead: usize,
    pub(crate) dead_by_reason: BTreeMap<Reason, usize>,
    pub(crate) otp: Otp,
    pub(crate) account: Paced,
    pub(crate) destinations: Vec<Destination>,
    pub(crate) checks: Vec<Check>,
    /// Where everything is, if it is kept.
    pub(crate) dir: Option<String>,
    pub(crate) arrivals: Option<String>,
}

/// Password resets, from publishing to acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Otp {
    pub(crate) idle: Option<Latency>,
    pub(crate) under_load: Option<Latency>,
    pub(crate) burst: Option<Latency>,
}

/// A rate beside its limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Paced {
    pub(crate) allowed_per_s: f64,
    /// Calls a second while it had a backlog; `None` where it had none to speak of.
    pub(crate) reached_per_s: Option<f64>,
    pub(crate) backlog_s: f64,
    pub(crate) backlog_most: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Destination {
    pub(crate) destination: &'static str,
    pub(crate) messages: usize,
    pub(crate) sent: usize,
    pub(crate) retried: usize,
    pub(crate) dead: usize,
    #[serde(flatten)]
    pub(crate) paced: Paced,
    pub(crate) latency: Option<Latency>,
    pub(crate) lanes: Vec<Lane>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Lane {
    pub(crate) class: Class,
    pub(crate) messages: usize,
    pub(crate) sent: usize,
    pub(crate) retried: usize,
    pub(crate) dead: usize,
    /// Allowed is what the destination allows all its classes together.
    #[serde(flatten)]
    pub(crate) paced: Paced,
    pub(crate) latency: Option<Latency>,
}

/// One count from two sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) here: u64,
    pub(crate) there: u64,
    pub(crate) agrees: bool,
}

/// What happened around the books.
#[derive(Debug, Clone, Default)]
pub(crate) struct Circumstances {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) interrupted: bool,
    pub(crate) dir: Option<String>,
    pub(crate) arrivals: Option<String>,
}

impl Report {
    pub(crate) fn new(books: &Books, figures: Figures, told: Told, around: Circumstances) -> Report {
        let Circumstances { seed, seconds, interrupted, dir, arrivals } = around;
        let published: Vec<&Entry> = books.entries().iter().filter(|e| e.copies > 0).collect();
        let with = |account| published.iter().filter(move |e| e.account() == account);
        let ids = |account| with(account).take(LISTED).map(|e| e.id.clone()).collect::<Vec<_>>();
        let Seen { calls, accepted, refused, throttled, unanswered, repeated } = books.seen;
        let mut dead_by_reason = BTreeMap::new();
        for reason in published.iter().flat_map(|e| &e.dead) {
            *dead_by_reason.entry(*reason).or_default() += 1;
        }
        let destinations = (0..PLACES.len()).map(|place| destination(place, &published, books.calls(), figures)).collect();
        let otp = |group| Latency::of(published.iter().filter(|e| e.group == Some(group)).filter_map(|e| e.latency_us()));
        let dead: usize = published.iter().map(|e| e.dead.len()).sum();
        let accounted_for = with(Account::Complete).count() + with(Account::Dead).count();
        let checks = vec![
            check("calls, as the worker counts them", told.worker_calls, calls),
            check("calls, as the sandbox counts them", told.sandbox_calls, calls),
            check("accepted, as the sandbox counts them", told.sandbox_accepted, accepted),
            check("dead letters in the store, as the worker counts them", told.worker_dead, told.stored_dead),
            check("calls and dead letters of messages nobody published", books.strangers(), 0),
        ];
        let unpublished = books.entries().len() - published.len();
        let ok = accounted_for == published.len() && unpublished == 0 && checks.iter().all(|c| c.agrees) && !interrupted;
        Report {
            ok,
            interrupted,
            seed,
            seconds,
            messages: published.len(),
            unpublished,
            published_again: published.iter().filter(|e| e.copies > 1).count(),
            accounted_for,
            missing: ids(Account::Missing),
            twice: ids(Account::Twice),
            calls,
            accepted,
            duplicates: published.iter().filter(|e| e.accepted > 1).count(),
            refused,
            throttled,
            unanswered,
            repeated,
            retried: published.iter().filter(|e| e.calls > 1).count(),
            dead,
            dead_by_reason,
            otp: Otp { idle: otp(Group::Idle), under_load: otp(Group::UnderLoad), burst: otp(Group::Burst) },
            account: account(figures, &published, books.calls()),
            destinations,
            checks,
            dir,
            arrivals,
        }
    }
}

fn check(what: &'static str, here: u64, there: u64) -> Check {
    Check { what, here, there, agrees: here == there }
}

/// The first destination's mail waits for itself: a backlog of the account is one of the others.
fn account(figures: Figures, published: &[&Entry], calls: &[Call]) -> Paced {
    let others: Vec<&Entry> = published.iter().filter(|e| e.lane.1 > 0).copied().collect();
    paced(figures.account(), &others, calls.iter().map(|c| c.at_us))
}

fn destination(place: usize, published: &[&Entry], calls: &[Call], figures: Figures) -> Destination {
    let of_place = |e: &&&Entry| e.lane.1 == place && !e.garbage;
    let entries: Vec<&Entry> = published.iter().filter(of_place).copied().collect();
    let allowed = figures.destination(&PLACES[place]);
    let times = |wanted: &dyn Fn(&Call) -> bool| calls.iter().filter(|c| wanted(c)).map(|c| c.at_us).collect::<Vec<_>>();
    let lanes = Class::ALL.map(|class| {
        let entries: Vec<&Entry> = entries.iter().filter(|e| e.lane.0 == class).copied().collect();
        Lane {
            class,
            messages: entries.len(),
            sent: sent(&entries),
            retried: retried(&entries),
            dead: dead(&entries),
            paced: paced(allowed, &entries, times(&|c| c.lane == (class, place))),
            latency: Latency::of(entries.iter().filter_map(|e| e.latency_us())),
        }
    });
    Destination {
        destination: PLACES[place].name,
        messages: entries.len(),
        sent: sent(&entries),
        retried: retried(&entries),
        dead: dead(&entries),
        paced: paced(allowed, &entries, times(&|c| c.lane.1 == place)),
        latency: Latency::of(entries.iter().filter_map(|e| e.latency_us())),
        lanes: lanes.into(),
    }
}

fn sent(entries: &[&Entry]) -> usize {
    entries.iter().filter(|e| e.accepted > 0).count()
}

fn retried(entries: &[&Entry]) -> usize {
    entries.iter().filter(|e| e.calls > 1).count()
}

fn dead(entries: &[&Entry]) -> usize {
    entries.iter().filter(|e| !e.dead.is_empty()).count()
}

fn paced(allowed_per_s: f64, entries: &[&Entry], calls_us: impl IntoIterator<Item = u64>) -> Paced {
    let waits = entries.iter().filter_map(|e| Some((e.published_us?, e.first_call_us?)));
    let least = (allowed_per_s * BACKLOG_OF_RATE).ceil().max(2.0) as usize;
    let found = backlog(waits, least);
    Paced {
        allowed_per_s,
        reached_per_s: found.and_then(|b| b.rate(calls_us)),
        backlog_s: found.map_or(0.0, |Backlog { from_us, until_us, .. }| (until_us - from_us) as f64 / 1e6),
        backlog_most: found.map_or(0, |b| b.most),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::{
            books::tests::{arrival, mail},
            plan::{Fate, Mail},
        },
        *,
    };

    /// Sixty digests to google at once, sent thirty a second; three resets; one dead letter; one piece of garbage.
    pub(crate) fn books() -> Books {
        let digests = (0..60).map(|n| mail(&format!("digest-{n}"), Class::Low, 0));
        let reset = |id, group| Mail { group: Some(group), ..mail(id, Class::Critical, 1) };
        let others = [
            reset("idle", Group::Idle),
            reset("load", Group::UnderLoad),
            reset("burst", Group::Burst),
            mail("nobody", Class::Normal, 3),
            Mail { fate: Fate::Garbage, ..mail("garbage", Class::Normal, 3) },
        ];
        let all: Vec<_> = digests.chain(others).collect();
        let mut books = Books::new(&all);
        const T0: u64 = 1_000_000_000;
        (0..all.len()).for_each(|i| books.published(i, T0));
        books.published(0, T0 + 5);
        let id = |n: u64| format!("digest-{n}");
        for n in 0..60 {
            let at = T0 + 1000 + n * 33_333;
            if n == 7 {
                books.arrived(&arrival(at - 500, &id(n), "refused"));
            }
            books.arrived(&arrival(at, &id(n), "accepted"));
        }
        for (id, ms) in [("idle", 5), ("load", 9), ("burst", 30)] {
            books.arrived(&arrival(T0 + ms * 1000, id, "accepted"));
        }
        books.arrived(&arrival(T0 + 50_000, "nobody", "refused"));
        books.buried([(Some("nobody"), Reason::RejectedRecipient), (Some("garbage"), Reason::InvalidMessage)]);
        books
    }

    pub(crate) fn told() -> Told {
        Told { worker_calls: 65, worker_dead: 2, sandbox_calls: 65, sandbox_accepted: 63, stored_dead: 2 }
    }

    pub(crate) fn report(books: &Books, told: Told) -> Report {
        let around = Circumstances { seed: 7, seconds: 2.5, ..Circumstances::default() };
        Report::new(books, Figures::of(400), told, around)
    }

    #[test]
    fn all_is_well() {
        let report = report(&books(), told());
        assert!(report.ok, "{report:?}");
        assert_eq!((report.messages, report.accounted_for, report.published_again), (65, 65, 1));
        assert_eq!((report.calls, report.accepted, report.refused, report.retried), (65, 63, 2, 1));
        assert_eq!(report.dead_by_reason, [(Reason::RejectedRecipient, 1), (Reason::InvalidMessage, 1)].into());
        let google = &report.destinations[0];
        assert_eq!((google.messages, google.sent, google.retried, google.dead), (60, 60, 1, 0));
        assert_eq!((google.paced.allowed_per_s, google.paced.backlog_most), (27.0, 60));
        assert!(google.paced.reached_per_s.is_some_and(|r| (29.0..31.0).contains(&r)), "{google:?}");
        assert_eq!(google.lanes[3].latency.map(|l| l.count), Some(60));
        assert_eq!(report.destinations[3].messages, 1);
        assert_eq!(report.otp.burst.map(|l| l.p50_ms), Some(30.0));
        assert_eq!(report.destinations[1].paced.reached_per_s, None);
    }

    #[test]
    fn what_is_missing_doubled_or_miscounted_is_not_well() {
        let mut missing = books();
        missing.buried([(Some("garbage"), Reason::InvalidMessage)]);
        let missing = report(&missing, Told { worker_dead: 1, stored_dead: 1, ..told() });
        assert_eq!((missing.ok, missing.accounted_for, missing.missing), (false, 64, vec!["nobody".to_owned()]));

        let mut doubled = books();
        doubled.arrived(&arrival(2_000_000_000, "idle", "accepted"));
        let doubled = report(&doubled, Told { worker_calls: 66, sandbox_calls: 66, sandbox_accepted: 64, ..told() });
        assert_eq!((doubled.ok, doubled.duplicates, doubled.twice), (false, 1, vec!["idle".to_owned()]));

        for wrong in [
            Told { worker_calls: 64, ..told() },
            Told { sandbox_accepted: 62, ..told() },
            Told { sandbox_calls: 66, ..told() },
            Told { stored_dead: 3, ..told() },
        ] {
            let report = report(&books(), wrong);
            assert!(!report.ok && report.checks.iter().filter(|c| !c.agrees).count() == 1, "{wrong:?}");
        }
        let mut stranger = books();
        stranger.buried([
            (Some("nobody"), Reason::RejectedRecipient),
            (Some("garbage"), Reason::InvalidMessage),
            (Some("x"), Reason::Expired),
        ]);
        assert!(!report(&stranger, Told { worker_dead: 3, stored_dead: 3, ..told() }).ok);
    }

    #[test]
    fn what_was_not_published_is_not_missed() {
        let mut books = Books::new(&[mail("a", Class::Low, 0), mail("b", Class::Low, 0)]);
        books.published(0, 1);
        books.arrived(&arrival(2, "a", "accepted"));
        let told = Told { worker_calls: 1, worker_dead: 0, sandbox_calls: 1, sandbox_accepted: 1, stored_dead: 0 };
        let around = Circumstances { interrupted: true, ..Circumstances::default() };
        let report = Report::new(&books, Figures::of(400), told, around);
        assert_eq!((report.messages, report.unpublished, report.accounted_for, report.ok), (1, 1, 1, false));
    }
}
