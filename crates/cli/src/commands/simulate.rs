//! `paceline simulate`.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use paceline_simulator::{
    Account, AnyRecipient, Checked, Destination, Limits, Named, Progress, Report, Reserves, SHIPPED, Scenario, Tail, random,
    shipped, simulate,
};
use serde::Serialize;

use crate::{
    config::{self, Config},
    exit::Failure,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// A scenario's file, or the name of a shipped one
    #[arg(value_name = "SCENARIO", required_unless_present_any = ["list", "random"], conflicts_with_all = ["list", "random"])]
    pub scenario: Option<PathBuf>,
    /// Names the shipped scenarios
    #[arg(long)]
    pub list: bool,
    /// Runs the small fleet that this number stands for, as the tests do with 500 of them
    #[arg(long, value_name = "SEED", conflicts_with = "list")]
    pub random: Option<u64>,
    /// Prints a shipped scenario instead of running it, to begin one's own with
    #[arg(long, conflicts_with_all = ["list", "random"])]
    pub print: bool,
    /// Another seed than the scenario's
    #[arg(long, conflicts_with_all = ["list", "random"])]
    pub seed: Option<u64>,
    /// Another number of workers than the scenario's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=2000), conflicts_with = "list")]
    pub workers: Option<u16>,
    /// Takes only this part of the messages that a load publishes at once, such as 0.1
    #[arg(long, value_name = "PART", conflicts_with = "list")]
    pub scale: Option<f64>,
}

/// A row of `--list`.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    about: String,
}

/// More than any scenario needs.
const MAX_BYTES: u64 = 1 << 20;

/// Runs a scenario on a thread of its own. Exit 1 where a promise or an expectation does not hold.
pub async fn run(args: SimulateArgs, format: Format) -> Result<(), Failure> {
    if args.list {
        let rows = SHIPPED.iter().map(|s| Ok(Row { name: s.name, about: read(s.name, s.text)?.about }));
        let rows = rows.collect::<Result<Vec<_>, Failure>>()?;
        return Ok(output::list(format, &rows, &["NAME", "ABOUT"], |r| vec![r.name.to_owned(), r.about.clone()])?);
    }
    let scenario = match (&args.scenario, args.random) {
        (Some(which), _) => {
            let (name, text) = text_of(which)?;
            if args.print {
                return Ok(output::write(&text)?);
            }
            on_configuration(read(&name, &text)?, which)?
        }
        (None, seed) => random(seed.unwrap_or(0)),
    };
    let scenario = adjusted(scenario, &args)?;
    let said = tokio::task::spawn_blocking(move || {
        let mut meter = Meter::new();
        let report = simulate(&scenario, &mut |p| meter.show(p));
        meter.clear();
        report
    });
    let report = said.await.map_err(|e| Failure::failed(format!("the simulation ended: {e}")))?;
    let report = report.map_err(|e| Failure::usage(e.to_string()))?;
    output::object(format, &report, text)?;
    if report.holds() { Ok(()) } else { Err(Failure::Reported) }
}

fn read(name: &str, text: &str) -> Result<Scenario, Failure> {
    Scenario::parse(name, text).map_err(|e| Failure::usage(e.to_string()))
}

/// A file where there is one of that name, else a shipped scenario.
fn text_of(which: &Path) -> Result<(String, String), Failure> {
    let name = which.display().to_string();
    if !which.exists()
        && let Some(found) = shipped(&name)
    {
        return Ok((name, found.text.to_owned()));
    }
    let cannot = |e: std::io::Error| {
        Failure::usage(format!("{name}: cannot be read: {e}; `paceline simulate --list` names the shipped scenarios"))
    };
    if std::fs::metadata(which).map_err(cannot)?.len() > MAX_BYTES {
        return Err(Failure::usage(format!("{name}: is larger than any scenario")));
    }
    Ok((name.clone(), std::fs::read_to_string(which).map_err(cannot)?))
}

/// Takes limits from the configuration that the scenario names, relative to the scenario's own file.
fn on_configuration(scenario: Scenario, file: &Path) -> Result<Scenario, Failure> {
    let Some(path) = scenario.config.clone() else { return Ok(scenario) };
    let path = file.parent().map_or(path.clone(), |dir| dir.join(&path));
    let config = Config::load(Some(&path))?;
    if config.accounts.is_empty() {
        return Err(Failure::usage(format!("{}: no [[account]] is configured", path.display())));
    }
    Ok(scenario.with_limits(limits(&config)))
}

fn limits(config: &Config) -> Limits {
    let rate = |l: Option<config::Limit>| l.map(|l| l.rate);
    let burst = |l: Option<config::Limit>| l.map(|l| l.burst);
    let named = |n: &config::NamedLimit| Named {
        name: n.name.clone(),
        rate: rate(n.limit),
        burst: burst(n.limit),
        quota: n.quota.clone(),
    };
    let account = |a: &config::Account| Account {
        name: a.name.clone(),
        rate: rate(a.limit),
        max_rate: None,
        burst: burst(a.limit),
        quota: a.quota.clone(),
        concurrency: a.fleet_concurrency,
    };
    let destination = |d: &config::Destination| Destination {
        name: d.name.clone(),
        domains: d.domains.iter().map(ToString::to_string).collect(),
        rate: rate(d.limit),
        max_rate: None,
        burst: burst(d.limit),
        fleet_rate: rate(d.fleet),
        fleet_burst: burst(d.fleet),
        quota: d.quota.clone(),
        concurrency: d.concurrency,
    };
    Limits {
        reserves: Reserves { reserve: config.limits.reserve, quota_reserve: config.limits.quota_reserve },
        accounts: config.accounts.iter().map(account).collect(),
        destinations: config.destinations.iter().map(destination).collect(),
        tail: Tail { rate: config.tail.rate, burst: Some(config.tail.burst) },
        tenants: config.tenants.iter().map(named).collect(),
        senders: config.senders.iter().map(named).collect(),
        recipient: config.recipient.as_ref().map(|r| AnyRecipient {
            rate: rate(r.limit),
            burst: burst(r.limit),
            quota: r.quota.clone(),
        }),
    }
}

fn adjusted(mut scenario: Scenario, args: &SimulateArgs) -> Result<Scenario, Failure> {
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    scenario.fleet.workers = args.workers.map_or(scenario.fleet.workers, usize::from);
    if let Some(scale) = args.scale {
        if !(scale > 0.0 && scale <= 1.0) {
            return Err(Failure::usage("--scale: more than 0, at most 1"));
        }
        for load in &mut scenario.loads {
            load.count = load.count.map(|n| ((n as f64 * scale) as u64).max(1));
        }
    }
    Ok(scenario)
}

/// A line that says how far it is, for whoever sits in front of it.
struct Meter {
    on: bool,
    shown: Option<Instant>,
}

impl Meter {
    fn new() -> Meter {
        Meter { on: std::io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, p: Progress<'_>) {
        if !self.on || self.shown.is_some_and(|at| at.elapsed() < Duration::from_millis(200)) {
            return;
        }
        self.shown = Some(Instant::now());
        let without = p.without.map_or(String::new(), |load| format!("without {load}: "));
        let Progress { at, of, submitted, done, .. } = p;
        // Where standard error is closed there is nobody to tell.
        let _ = write!(std::io::stderr(), "\r\x1b[K{without}{at:.0?} of {of:.0?}, {done} of {submitted} messages");
    }

    fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(report: &Report) -> String {
    let Report { messages: m, limiter, broker, .. } = report;
    let mut out = format!(
        "{}\nSeed {}: {} s with {} workers, {} crashes.\n\n{} messages: {} sent, {} left, {} lost, {} sent twice ({} wrongly); dead: {}\n\n",
        report.about,
        report.seed,
        report.simulated_s,
        report.workers,
        report.crashes,
        m.submitted,
        m.sent,
        m.left,
        m.lost,
        m.doubled,
        m.wrongly_doubled,
        words(&m.dead),
    );
    let columns = ["LOAD", "MESSAGES", "SENT", "PER S", "SHARE", "P50 S", "P95 S", "P99 S", "HOPS", "DEFERRED"];
    let row = |kind: &str, name: &str, f: &paceline_simulator::Figures| {
        let figures = [f.sent_per_s, f.share, f.p50_s, f.p95_s, f.p99_s, f.hops_per_message, f.deferred_share];
        let head = [format!("{kind}{name}"), f.submitted.to_string(), f.sent.to_string()];
        head.into_iter().chain(figures.map(|n| n.to_string())).collect::<Vec<_>>()
    };
    let loads = report.loads.iter().map(|(name, f)| row("", name, f));
    let classes = report.classes.iter().map(|(name, f)| row("class ", name, f));
    out += &output::table(&columns, &loads.chain(classes).collect::<Vec<_>>());
    let phases =
        report.phases.iter().map(|(name, p)| vec![name.clone(), p.accepted_per_s.to_string(), p.deferred_share.to_string()]);
    if !report.phases.is_empty() {
        out += "\n";
        out += &output::table(&["PHASE", "ACCEPTED PER S", "DEFERRED"], &phases.collect::<Vec<_>>());
    }
    let buckets = report.buckets.iter().map(|(key, b)| {
        let figures = [b.allowed_per_s, b.used_per_s, b.used, b.overshoot];
        std::iter::once(key.clone()).chain(figures.map(|n| n.to_string())).collect()
    });
    out += "\n";
    out += &output::table(&["LIMIT", "PER S", "USED PER S", "USED", "OVERSHOOT"], &buckets.collect::<Vec<Vec<_>>>());
    out += &format!("{} limits of single domains and recipients: overshoot {}\n", report.narrow.buckets, report.narrow.overshoot);
    for (key, slots) in &report.slots {
        out += &format!("{key}: at most {} of {} calls at a time\n", slots.most, slots.limit);
    }
    out += &format!(
        "\nLimiter: {} calls a message, {} a second by a worker, {} by the busiest\nBroker: {} operations a message: {} deliveries, {} acks, {} returns, published {}\n",
        limiter.per_message,
        limiter.per_s,
        limiter.worst_per_s,
        broker.per_message,
        broker.deliveries,
        broker.acks,
        broker.returns,
        words(&broker.published),
    );
    if !report.broken.is_empty() || !report.expects.is_empty() {
        out += "\n";
    }
    report.broken.iter().for_each(|what| out += &format!("BROKEN  {what}\n"));
    report.expects.iter().for_each(|e| out += &expectation(e));
    out
}

fn expectation(e: &Checked) -> String {
    let bounds = [("least", e.least), ("most", e.most)];
    let bounds = bounds.iter().filter_map(|(word, b)| b.map(|b| format!("at {word} {b}"))).collect::<Vec<_>>().join(", ");
    let found = e.found.map_or("no such figure".to_owned(), |n| n.to_string());
    let without = e.without.as_deref().map_or(String::new(), |load| format!(" of what it is without {load}"));
    let word = if e.holds { "holds " } else { "FAILED" };
    format!("{word}  {} = {found}{without}, {bounds}: {}\n", e.figure, e.why)
}

fn words(counts: &std::collections::BTreeMap<&'static str, u64>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
}
