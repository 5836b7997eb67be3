//! What came of a run, in figures, and whether it is what was expected.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use paceline_broker::memory::Traffic;
use paceline_core::{Class, Policy};
use serde::Serialize;

use crate::{
    book::{self, Book, LoadBook, Mail, PhaseBook},
    fleet::Calls,
    grants::Use,
    scenario::{Expect, Scenario},
    worker::policy,
};

/// A run in figures. Spans are in seconds of simulated time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub about: String,
    pub seed: u64,
    pub simulated_s: f64,
    /// Workers that ever were; a crash brings another.
    pub workers: usize,
    pub crashes: u64,
    pub messages: Messages,
    pub classes: BTreeMap<&'static str, Figures>,
    pub loads: BTreeMap<String, Figures>,
    /// Parts of the run that the scenario names.
    pub phases: BTreeMap<String, PhaseFigures>,
    /// Limits of accounts, destinations, tenants and senders; those of single tail domains and recipients are in `narrow`.
    pub buckets: BTreeMap<String, Bucket>,
    pub narrow: Narrow,
    /// The most by which any limit was exceeded in any span, in recipients; never positive.
    pub overshoot: f64,
    /// Calls at a time.
    pub slots: BTreeMap<String, Slots>,
    pub limiter: LimiterCalls,
    pub broker: Operations,
    /// Promises that were not kept; empty where all were.
    pub broken: Vec<String>,
    pub expects: Vec<Checked>,
}

/// Every message, to its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Messages {
    pub submitted: usize,
    /// Accepted for at least one recipient.
    pub sent: usize,
    /// Dead letters by reason; those of single recipients too.
    pub dead: BTreeMap<&'static str, u64>,
    /// Not at an end when the run ended, and in the broker.
    pub left: usize,
    /// Neither at an end nor anywhere.
    pub lost: usize,
    /// Sent more than once.
    pub doubled: usize,
    /// Thereof without a lost result that explains it, or under another key.
    pub wrongly_doubled: usize,
    /// Both sent and given up, without a lost result that explains it.
    pub contradicted: usize,
    /// Sent when they were older than they may become.
    pub too_late: usize,
}

/// Of one class or load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub submitted: usize,
    pub sent: usize,
    pub sent_per_s: f64,
    /// Part of all recipients that were sent to.
    pub share: f64,
    /// From submission to acceptance.
    pub p50_s: f64,
    pub p95_s: f64,
    pub p99_s: f64,
    pub max_s: f64,
    /// Trips through the broker a message: 1 where nothing was published again.
    pub hops_per_message: f64,
    /// Calls that were answered, by what the answer meant.
    pub answers: BTreeMap<&'static str, u64>,
    /// Part of those that were throttled, greylisted, or refused for now.
    pub deferred_share: f64,
    pub dead: BTreeMap<&'static str, u64>,
}

/// Of a part of the run, all mail together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseFigures {
    pub accepted_per_s: f64,
    /// As of [`Figures`].
    pub deferred_share: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bucket {
    pub allowed_per_s: f64,
    /// From its first grant to its last.
    pub used_per_s: f64,
    pub used: f64,
    pub granted: u64,
    pub overshoot: f64,
}

/// All limits of single domains and recipients together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Narrow {
    pub buckets: usize,
    pub granted: u64,
    pub overshoot: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slots {
    pub limit: u32,
    pub most: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimiterCalls {
    pub calls: u64,
    pub per_message: f64,
    /// By the average worker, and by the one that called most.
    pub per_s: f64,
    pub worst_per_s: f64,
}

/// What the workers asked of the broker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Operations {
    pub deliveries: u64,
    pub acks: u64,
    pub returns: u64,
    pub consumes: u64,
    pub published: BTreeMap<&'static str, u64>,
    /// Deliveries, acks, returns and publishes a message.
    pub per_message: f64,
}

/// An expectation, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    pub figure: String,
    pub why: String,
    pub without: Option<String>,
    pub least: Option<f64>,
    pub most: Option<f64>,
    /// `None`: the report has no such figure.
    pub found: Option<f64>,
    pub holds: bool,
}

impl Report {
    /// Whether every promise was kept and every expectation holds.
    pub fn holds(&self) -> bool {
        self.broken.is_empty() && self.expects.iter().all(|e| e.holds)
    }

    /// A figure by its JSON pointer.
    pub fn figure(&self, pointer: &str) -> Option<f64> {
        let whole = serde_json::to_value(self).ok()?;
        whole.pointer(pointer)?.as_f64()
    }

    pub(crate) fn check(&mut self, expects: &[Expect], others: &BTreeMap<&str, Report>) {
        let check = |e: &Expect| {
            let found = match e.without.as_deref() {
                None => self.figure(&e.figure),
                Some(without) => {
                    let other = others.get(without).and_then(|r| r.figure(&e.figure));
                    self.figure(&e.figure).zip(other).filter(|(_, b)| *b != 0.0).map(|(a, b)| round(a / b))
                }
            };
            let holds = found.is_some_and(|f| e.least.is_none_or(|b| f >= b) && e.most.is_none_or(|b| f <= b));
            let Expect { figure, least, most, without, why } = e.clone();
            Checked { figure, why, without, least, most, found, holds }
        };
        self.expects = expects.iter().map(check).collect();
    }
}

/// What a run leaves behind.
pub(crate) struct Facts<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) book: &'a Book,
    pub(crate) grants: BTreeMap<Arc<str>, Use>,
    pub(crate) most_under_way: BTreeMap<String, usize>,
    pub(crate) calls: Calls,
    pub(crate) limiter_calls: u64,
    pub(crate) traffic: Traffic,
    /// Deliveries and acks that were the dead letters' reader's.
    pub(crate) buried: u64,
    /// Ids of everything in the broker.
    pub(crate) waiting: Vec<String>,
    pub(crate) crashes: u64,
    pub(crate) took: Duration,
}

pub(crate) fn of(facts: Facts<'_>) -> Report {
    let Facts { scenario, book, grants, most_under_way, calls, limiter_calls, traffic, buried, waiting, crashes, took } = facts;
    let messages = messages(book, &waiting, &policy(&scenario.retry));
    let recipients: u64 = book.loads.iter().map(LoadBook::reached).sum();
    let classes = Class::ALL.iter().filter_map(|class| {
        let of_class: Vec<&LoadBook> = book.loads.iter().filter(|l| l.class == *class && !l.mail.is_empty()).collect();
        (!of_class.is_empty()).then(|| (class.as_str(), figures(&of_class, recipients)))
    });
    let loads = book.loads.iter().filter(|l| !l.mail.is_empty()).map(|l| (l.name.clone(), figures(&[l], recipients)));
    let worst = |narrow: bool| {
        let of_kind = grants.values().filter(|u| u.narrow == narrow || !narrow);
        of_kind.map(|u| u.overshoot).fold(f64::MIN, f64::max)
    };
    let known = |n: f64| if n == f64::MIN { 0.0 } else { round(n) };
    let narrow = Narrow {
        buckets: grants.values().filter(|u| u.narrow).count(),
        granted: grants.values().filter(|u| u.narrow).map(|u| u.granted).sum(),
        overshoot: known(worst(true)),
    };
    let buckets = grants.iter().filter(|(key, u)| !u.narrow || is_named(key)).map(|(key, u)| (key.to_string(), bucket(u)));
    let done = book.done.max(1) as f64;
    let mut published = BTreeMap::new();
    for load in &book.loads {
        load.published.iter().for_each(|(purpose, n)| *published.entry(*purpose).or_default() += n);
    }
    let (deliveries, acks) = (traffic.deliveries.saturating_sub(buried), traffic.acks.saturating_sub(buried));
    let operations = deliveries + acks + traffic.returns + published.values().sum::<u64>();
    let mut report = Report {
        about: scenario.about.clone(),
        seed: scenario.seed,
        simulated_s: round(took.as_secs_f64()),
        workers: calls.workers,
        crashes,
        classes: classes.collect(),
        loads: loads.collect(),
        phases: book.phases.iter().map(|p| (p.name.clone(), phase(p))).collect(),
        buckets: buckets.collect(),
        overshoot: known(worst(false)),
        narrow,
        slots: slots(scenario, &most_under_way),
        limiter: LimiterCalls {
            calls: limiter_calls,
            per_message: round(limiter_calls as f64 / done),
            per_s: round(calls.mean_per_s),
            worst_per_s: round(calls.worst_per_s),
        },
        broker: Operations {
            deliveries,
            acks,
            returns: traffic.returns,
            consumes: traffic.consumes,
            published,
            per_message: round(operations as f64 / done),
        },
        messages,
        broken: Vec::new(),
        expects: Vec::new(),
    };
    report.broken = broken(&report, book.strangers);
    report
}

/// From the last look at a message's age to its call, at most: the claim.
const CLAIMED: Duration = Duration::from_millis(100);

/// What must hold of every run, whatever the scenario.
fn broken(report: &Report, strangers: u64) -> Vec<String> {
    let m = &report.messages;
    let promises = [
        (m.lost as f64, "messages were lost"),
        (m.wrongly_doubled as f64, "messages were sent twice without a lost result, or under two keys"),
        (m.contradicted as f64, "messages were both sent and given up without a lost result"),
        (m.too_late as f64, "messages were sent though they were too old"),
        (strangers as f64, "dead letters or publishes belong to no message"),
        (report.overshoot, "is the most by which a limit was exceeded, in recipients"),
    ];
    promises.iter().filter(|(n, _)| *n > 0.0).map(|(n, what)| format!("{n} {what}")).collect()
}

fn messages(book: &Book, waiting: &[String], policy: &Policy) -> Messages {
    let somewhere: HashSet<&str> = waiting.iter().map(String::as_str).collect();
    let all = || book.loads.iter().flat_map(|l| l.mail.iter().map(move |m| (l, m)));
    let most_us = |class| (policy.of(class).max_age + CLAIMED).as_micros() as u64;
    let count = |what: &dyn Fn(&Mail) -> bool| all().filter(|(_, m)| what(m)).count();
    let mut dead: BTreeMap<&'static str, u64> = BTreeMap::new();
    for load in &book.loads {
        load.dead.iter().for_each(|(reason, n)| *dead.entry(*reason).or_default() += n);
    }
    let (mut left, mut lost) = (0, 0);
    for (l, load) in book.loads.iter().enumerate() {
        for (n, _) in load.mail.iter().enumerate().filter(|(_, m)| !m.is_done(load.recipients)) {
            *(if somewhere.contains(book::text((l, n)).as_str()) { &mut left } else { &mut lost }) += 1;
        }
    }
    Messages {
        submitted: book.submitted(),
        sent: count(&|m| m.accepted > 0),
        dead,
        left,
        lost,
        doubled: count(&Mail::is_doubled),
        wrongly_doubled: count(&Mail::is_wrongly_doubled),
        contradicted: count(&Mail::is_contradicted),
        too_late: all().filter(|(l, m)| m.age_us() > most_us(l.class)).count(),
    }
}

fn figures(loads: &[&LoadBook], all_recipients: u64) -> Figures {
    let mail = || loads.iter().flat_map(|l| l.mail.iter());
    let mut waits: Vec<u64> = mail().filter(|m| m.accepted > 0).map(|m| m.sent_us - m.submitted_us).collect();
    waits.sort_unstable();
    let quantile = |q: f64| waits.get(((waits.len() as f64 * q) as usize).min(waits.len().saturating_sub(1))).copied();
    let seconds = |us: Option<u64>| round(us.unwrap_or(0) as f64 / 1e6);
    let first = mail().map(|m| m.submitted_us).min().unwrap_or(0);
    let last = mail().map(|m| m.sent_us).max().unwrap_or(0);
    let (mut answers, mut dead): (BTreeMap<&str, u64>, BTreeMap<&str, u64>) = Default::default();
    for load in loads {
        load.answers.iter().for_each(|(label, n)| *answers.entry(*label).or_default() += n);
        load.dead.iter().for_each(|(reason, n)| *dead.entry(*reason).or_default() += n);
    }
    let submitted = mail().count();
    Figures {
        submitted,
        sent: waits.len(),
        sent_per_s: round(waits.len() as f64 / (last.saturating_sub(first) as f64 / 1e6).max(1e-3)),
        share: round(loads.iter().map(|l| l.reached()).sum::<u64>() as f64 / all_recipients.max(1) as f64),
        p50_s: seconds(quantile(0.5)),
        p95_s: seconds(quantile(0.95)),
        p99_s: seconds(quantile(0.99)),
        max_s: seconds(waits.last().copied()),
        hops_per_message: round(mail().map(|m| u64::from(m.hops)).sum::<u64>() as f64 / submitted.max(1) as f64),
        deferred_share: deferred_share(&answers),
        answers,
        dead,
    }
}

fn phase(phase: &PhaseBook) -> PhaseFigures {
    let accepted = phase.answers.get("accepted").copied().unwrap_or(0);
    let lasts_s = (phase.during_us.end - phase.during_us.start) as f64 / 1e6;
    PhaseFigures { accepted_per_s: round(accepted as f64 / lasts_s), deferred_share: deferred_share(&phase.answers) }
}

fn deferred_share(answers: &BTreeMap<&'static str, u64>) -> f64 {
    let deferred = ["throttled", "greylisted", "temporary", "reputation_block"].iter().filter_map(|l| answers.get(l));
    round(deferred.sum::<u64>() as f64 / answers.values().sum::<u64>().max(1) as f64)
}

impl LoadBook {
    fn reached(&self) -> u64 {
        self.mail.iter().map(|m| u64::from(m.got.count_ones())).sum()
    }
}

/// Tenants and senders are configured by name; domains and recipients are whoever gets mail.
fn is_named(key: &str) -> bool {
    key.starts_with("tenant:") || key.starts_with("sender:")
}

fn bucket(u: &Use) -> Bucket {
    let used_per_s = if u.over_s > 0.0 { u.granted as f64 / u.over_s } else { 0.0 };
    Bucket {
        allowed_per_s: round(u.allowed_per_s),
        used_per_s: round(used_per_s),
        used: round(used_per_s / u.allowed_per_s),
        granted: u.granted,
        overshoot: round(u.overshoot),
    }
}

fn slots(scenario: &Scenario, most: &BTreeMap<String, usize>) -> BTreeMap<String, Slots> {
    let of_account = |a: &crate::Account| {
        let key = format!("account:{}", a.name);
        let own = a.concurrency.map(|limit| (format!("{key}:concurrency"), limit));
        let there = scenario.destinations.iter();
        let there = there.filter_map(move |d| Some((format!("{key}:destination:{}:concurrency", d.name), d.concurrency?)));
        own.into_iter().chain(there).collect::<Vec<_>>()
    };
    let limits = scenario.accounts.iter().flat_map(of_account);
    limits.map(|(key, limit)| (key.clone(), Slots { limit, most: most.get(&key).copied().unwrap_or(0) })).collect()
}

/// Four places are enough for people and for comparisons.
fn round(n: f64) -> f64 {
    (n * 1e4).round() / 1e4
}
