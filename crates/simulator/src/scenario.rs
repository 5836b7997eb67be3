//! What a scenario says. `docs/simulator.md` documents every key.

use std::path::PathBuf;

use paceline_core::{Class, Domain, Rate};
use serde::Deserialize;

use crate::{domains, span::Span};

/// Why a text is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum BadScenario {
    /// With the place and the line at fault.
    #[error("{name}: {problem}")]
    Text { name: String, problem: String },
    /// Each with its section.
    #[error("{name}: {}", .problems.join("\n  "))]
    Values { name: String, problems: Vec<String> },
}

/// A fleet, its limits, its mail, who receives it, what happens, and what must come of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One line for people.
    pub about: String,
    #[serde(default = "one")]
    pub seed: u64,
    /// Ends earlier where all mail has come to its end.
    pub duration: Span,
    /// Limits of this paceline.toml in place of those given here; relative to the scenario's file.
    pub config: Option<PathBuf>,
    #[serde(default)]
    pub fleet: Fleet,
    #[serde(default)]
    pub limits: Reserves,
    #[serde(default, rename = "account")]
    pub accounts: Vec<Account>,
    #[serde(default, rename = "destination")]
    pub destinations: Vec<Destination>,
    #[serde(default)]
    pub tail: Option<Tail>,
    #[serde(default, rename = "tenant")]
    pub tenants: Vec<Named>,
    #[serde(default, rename = "sender")]
    pub senders: Vec<Named>,
    #[serde(default)]
    pub recipient: Option<AnyRecipient>,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default, rename = "load")]
    pub loads: Vec<Load>,
    #[serde(default, rename = "receiver")]
    pub receivers: Vec<Receiver>,
    #[serde(default, rename = "event")]
    pub events: Vec<Event>,
    #[serde(default, rename = "phase")]
    pub phases: Vec<Phase>,
    #[serde(default, rename = "expect")]
    pub expects: Vec<Expect>,
}

/// `[fleet]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    pub workers: usize,
    /// Calls at a time from one worker.
    pub concurrency: usize,
    pub held_bytes: u64,
    /// What a call to the limiter takes; likewise to the ledger.
    pub limiter_latency: Span,
    pub publish_latency: Span,
    /// Mean time between two crashes, over the fleet. None: no crashes.
    pub crash_every: Option<Span>,
    /// From a crash to the next worker in its place.
    pub restart_after: Span,
    /// The provider carries out a call once that is repeated with the same key.
    pub idempotent: bool,
    /// Rates follow what is refused.
    pub adaptive: bool,
    pub total_timeout: Span,
}

impl Default for Fleet {
    fn default() -> Fleet {
        Fleet {
            workers: 2,
            concurrency: 256,
            held_bytes: 16 << 20,
            limiter_latency: Span::millis(1),
            publish_latency: Span::millis(2),
            crash_every: None,
            restart_after: Span::secs(2),
            idempotent: true,
            adaptive: true,
            total_timeout: Span::secs(30),
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reserves {
    pub reserve: f64,
    pub quota_reserve: f64,
}

impl Default for Reserves {
    fn default() -> Reserves {
        Reserves { reserve: 0.2, quota_reserve: 0.05 }
    }
}

/// `[[account]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub name: String,
    pub rate: Option<Rate>,
    pub max_rate: Option<Rate>,
    pub burst: Option<u32>,
    #[serde(default)]
    pub quota: Vec<Rate>,
    pub concurrency: Option<u32>,
}

/// `[[destination]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    pub name: String,
    pub domains: Vec<String>,
    pub rate: Option<Rate>,
    pub max_rate: Option<Rate>,
    pub burst: Option<u32>,
    pub fleet_rate: Option<Rate>,
    pub fleet_burst: Option<u32>,
    #[serde(default)]
    pub quota: Vec<Rate>,
    pub concurrency: Option<u32>,
}

/// `[tail]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    pub rate: Rate,
    pub burst: Option<u32>,
}

/// `[[tenant]]`, `[[sender]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub name: String,
    pub rate: Option<Rate>,
    pub burst: Option<u32>,
    #[serde(default)]
    pub quota: Vec<Rate>,
}

/// `[recipient]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnyRecipient {
    pub rate: Option<Rate>,
    pub burst: Option<u32>,
    #[serde(default)]
    pub quota: Vec<Rate>,
}

/// `[retry]`, for all classes.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    pub attempts: Option<u32>,
    pub base: Option<Span>,
    pub max: Option<Span>,
    pub max_age: Option<Span>,
}

/// `[[load]]`: mail of one kind.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    pub name: String,
    #[serde(default = "normal")]
    pub class: Class,
    /// Domains; a message's first recipient is at each of them in turn.
    pub to: Vec<String>,
    /// All at once, at `from`. Or `rate`.
    pub count: Option<u64>,
    /// By chance, so many a second on average, from `from` to `until`.
    pub rate: Option<Rate>,
    #[serde(default)]
    pub from: Span,
    pub until: Option<Span>,
    #[serde(default = "one_recipient")]
    pub recipients: u32,
    pub tenant: Option<String>,
    #[serde(default = "sender")]
    pub sender: String,
    pub account: Option<String>,
}

/// `[[receiver]]`: how the operator of some domains behaves.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Receiver {
    /// Which domains; each `*` stands for any text. The first receiver that matches takes the mail.
    pub domains: Vec<String>,
    /// Each domain by itself, or all of them as one operator.
    pub each: bool,
    /// Recipients accepted; beyond it 421.
    pub rate: Option<Rate>,
    pub burst: Option<u32>,
    /// Another rate from some time on.
    pub then: Vec<Then>,
    /// Calls at a time; beyond it 421.
    pub concurrency: Option<u32>,
    /// A sender that is new to the domain is told to come again after this.
    pub greylist: Option<Span>,
    /// So many refusals for pushing, within about a minute, cost the sender its reputation for a while.
    pub reputation: Option<u32>,
    /// Shortest and longest time a call takes.
    pub latency: Option<[Span; 2]>,
    /// From and to: 451 meanwhile.
    pub outages: Vec<[Span; 2]>,
    /// Part of the recipients that do not exist.
    pub bad_recipients: f64,
    /// Part of the accepted calls whose answer gets lost.
    pub lost_answers: f64,
    /// What it says beyond its rate, in place of its usual words.
    pub says: Option<String>,
}

/// A receiver's rate from some time on.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Then {
    pub at: Span,
    pub rate: Rate,
}

/// `[[event]]`: something that happens to the fleet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub at: Span,
    #[serde(rename = "do")]
    pub what: What,
    /// Workers concerned; all of them where it is not said, one for `join`.
    pub workers: Option<usize>,
    /// How long it lasts, for what ends by itself.
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Workers come.
    Join,
    /// Workers drain and end.
    Leave,
    /// Workers crash, and others take their place.
    Crash,
    /// The limiter and the ledger do not answer them.
    RedisAway,
    /// Limiter and ledger forget everything.
    RedisEmpty,
    /// Their connection to the broker is lost.
    BrokerAway,
}

/// `[[phase]]`: a part of the run with figures of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    pub from: Span,
    pub until: Span,
}

/// `[[expect]]`: a bound on a figure of the report.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// A JSON pointer into the report, such as `/broker/per_message`.
    pub figure: String,
    pub least: Option<f64>,
    pub most: Option<f64>,
    /// The bound is on the figure's ratio to what it is when this load is left out.
    pub without: Option<String>,
    /// What the bound is for.
    pub why: String,
}

fn one() -> u64 {
    1
}

fn one_recipient() -> u32 {
    1
}

fn normal() -> Class {
    Class::Normal
}

fn sender() -> String {
    "shop@sender.example".to_owned()
}

/// The limits of a scenario that come from a paceline.toml.
#[derive(Debug, Clone)]
pub struct Limits {
    pub reserves: Reserves,
    pub accounts: Vec<Account>,
    pub destinations: Vec<Destination>,
    pub tail: Tail,
    pub tenants: Vec<Named>,
    pub senders: Vec<Named>,
    pub recipient: Option<AnyRecipient>,
}

impl Scenario {
    /// Reads a scenario called `name`.
    ///
    /// # Errors
    /// A mistake of form with its line; else every mistake of sense at once.
    pub fn parse(name: &str, text: &str) -> Result<Scenario, BadScenario> {
        let bad = |e: toml::de::Error| BadScenario::Text { name: name.to_owned(), problem: e.to_string().trim_end().to_owned() };
        let scenario: Scenario = toml::from_str(text).map_err(bad)?;
        let problems = scenario.problems();
        if problems.is_empty() { Ok(scenario) } else { Err(BadScenario::Values { name: name.to_owned(), problems }) }
    }

    /// The same scenario on the limits of a configuration.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Scenario {
        let Limits { reserves, accounts, destinations, tail, tenants, senders, recipient } = limits;
        self.limits = reserves;
        (self.accounts, self.destinations, self.tail) = (accounts, destinations, Some(tail));
        (self.tenants, self.senders, self.recipient) = (tenants, senders, recipient);
        self.config = None;
        self
    }

    fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |ok: bool, what: String| {
            if !ok {
                found.push(what);
            }
        };
        let part = |p: f64| (0.0..=1.0).contains(&p);
        let fleet = &self.fleet;
        check(!self.duration.0.is_zero(), "duration: is zero".into());
        check((1..=2_000).contains(&fleet.workers), "[fleet] workers: 1 to 2000".into());
        check((1..=100_000).contains(&fleet.concurrency), "[fleet] concurrency: 1 to 100000".into());
        check(fleet.crash_every.is_none_or(|s| s >= Span::millis(100)), "[fleet] crash_every: at least 100ms".into());
        check(fleet.total_timeout >= Span::secs(1), "[fleet] total_timeout: at least 1s".into());
        check(part(self.limits.reserve) && part(self.limits.quota_reserve), "[limits]: a reserve is 0 to 1".into());
        check(!self.accounts.is_empty() || self.config.is_some(), "[[account]]: at least one is needed".into());
        for d in &self.destinations {
            check(!d.domains.is_empty(), format!("[[destination]] {}: has no domains", d.name));
            for text in &d.domains {
                check(Domain::parse(text).is_ok(), format!("[[destination]] {}: \"{text}\" is no domain", d.name));
            }
        }
        check(!self.loads.is_empty(), "[[load]]: without one nothing happens".into());
        for (i, load) in self.loads.iter().enumerate() {
            let at = format!("[[load]] {}", load.name);
            check(load.count.is_some() != load.rate.is_some(), format!("{at}: give a count or a rate"));
            check(load.count.is_none_or(|n| n <= 2_000_000), format!("{at}: count is at most 2000000"));
            check(!self.loads[..i].iter().any(|l| l.name == load.name), format!("{at}: is named twice"));
            check((1..=50).contains(&load.recipients), format!("{at}: recipients are 1 to 50"));
            check(paceline_core::EmailAddress::parse(&load.sender).is_ok(), format!("{at}: sender is no address"));
            check(!load.to.is_empty(), format!("{at}: to is empty"));
            for text in &load.to {
                let bad = domains::expand(text).err();
                check(bad.is_none(), format!("{at}: to: {}", bad.unwrap_or_default()));
            }
        }
        for (i, r) in self.receivers.iter().enumerate() {
            let at = format!("[[receiver]] {}", i + 1);
            check(!r.domains.is_empty(), format!("{at}: has no domains; \"*\" is any"));
            check(part(r.bad_recipients) && part(r.lost_answers), format!("{at}: a part is 0 to 1"));
            check(r.latency.is_none_or(|[a, b]| a <= b), format!("{at}: latency is [shortest, longest]"));
            check(r.outages.iter().all(|[a, b]| a < b), format!("{at}: an outage is [from, to]"));
            check(r.then.is_empty() || r.rate.is_some(), format!("{at}: then has no effect without rate"));
        }
        for e in &self.events {
            let needs = matches!(e.what, What::RedisAway | What::BrokerAway);
            check(!needs || e.lasts.is_some(), format!("[[event]] {:?}: say how long, for = \"20s\"", e.what));
        }
        for (i, p) in self.phases.iter().enumerate() {
            check(p.from < p.until, format!("[[phase]] {}: ends before it begins", p.name));
            check(!self.phases[..i].iter().any(|other| other.name == p.name), format!("[[phase]] {}: is named twice", p.name));
        }
        for e in &self.expects {
            let at = format!("[[expect]] {}", e.figure);
            check(e.figure.starts_with('/'), format!("{at}: a figure begins with /"));
            check(e.least.is_some() || e.most.is_some(), format!("{at}: give least or most"));
            let known = |name: &String| self.loads.iter().any(|l| l.name == *name);
            check(e.without.as_ref().is_none_or(known), format!("{at}: without names no load"));
        }
        found
    }
}
