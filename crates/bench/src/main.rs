//! The worker against a bare loop: how much of what this machine can do is left when mail is carried with care.
//!
//! Both run in alternation on the same private broker and sandbox, over the same lanes, and the provider sees the same
//! requests. `docs/benchmarks.md` says what is measured and how to read it; `ops/bench` and `ops/profile` start it.

mod cpu;
mod mail;
mod profile;
mod report;
mod run;
mod stage;

use std::{error::Error, io::Write as _, path::PathBuf, process::ExitCode};

use clap::Parser;

use mail::{Api, Mix};
use profile::Perf;
use run::{Client, Plan, Run};
use stage::Stage;

/// What ends the program, in words for the person who started it.
type Failure = Box<dyn Error>;

/// Carries the same mail by a bare loop and by one worker, in turn, and compares.
#[derive(Parser)]
struct Arguments {
    /// Pairs of measured runs
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Messages a run
    #[arg(long, default_value_t = 160_000)]
    messages: u32,
    /// Two short rounds: to see that it works, not to measure
    #[arg(long)]
    quick: bool,
    /// Three classes and four destinations instead of one lane
    #[arg(long)]
    mixed: bool,
    /// A queue listens to all events
    #[arg(long)]
    events: bool,
    /// Measure a worker on embedded parts (spool, SQLite) instead of one on RabbitMQ, Redis and PostgreSQL
    #[arg(long)]
    embedded: bool,
    /// Both sides send to Postmark: the worker up to 100 messages a call, the bare loop one
    #[arg(long)]
    batch: bool,
    /// Run one side only
    #[arg(long, value_name = "CLIENT", value_parser = client)]
    only: Option<Client>,
    /// Run the client of --only (default: worker) once under `perf record`, and write here where its time went
    #[arg(long, value_name = "DIRECTORY")]
    profile: Option<PathBuf>,
}

fn client(name: &str) -> Result<Client, String> {
    let all = [Client::Bare, Client::Worker, Client::Embedded];
    all.into_iter().find(|c| c.to_string() == name).ok_or_else(|| "bare, worker or embedded".to_owned())
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse() {
        Arguments { profile: Some(dir), only, mixed, events, batch, messages, .. } => {
            profile(only.unwrap_or(Client::Worker), mix(mixed), (events, api(batch)), messages, dir).await
        }
        arguments => compare(&arguments).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(arguments: &Arguments) -> Result<(), Failure> {
    let (rounds, messages) = if arguments.quick { (2, 5000) } else { (arguments.rounds, arguments.messages) };
    let mix = mix(arguments.mixed);
    let worker = if arguments.embedded { Client::Embedded } else { Client::Worker };
    let clients = arguments.only.map_or_else(|| vec![Client::Bare, worker], |only| vec![only]);
    let stage = Stage::set(arguments.events, api(arguments.batch)).await?;
    let mut plans = Plans { mix, number: 0 };
    for &client in &clients {
        // What both sides find warm, the first of them would otherwise warm up for the other.
        let warm = Run::measure(&stage, plans.next(client, (messages / 10).max(1)), |_| Ok(())).await?;
        exact(&warm)?;
    }
    say(&format!("RabbitMQ {}, {messages} messages a run, {} lanes\n", stage.rabbitmq.version().await, mix.lanes().len()))?;
    say(&report::head())?;
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for &client in &clients {
            let run = Run::measure(&stage, plans.next(client, messages), |_| Ok(())).await?;
            say(&report::line(&round.to_string(), &run))?;
            runs.push(run);
        }
    }
    for &client in &clients {
        say(&report::medians(client, &runs))?;
    }
    for &client in &clients {
        let bytes = runs.iter().filter(|run| run.client == client).map(|run| run.request_bytes).collect();
        say(&format!("{client} posts {:.0} bytes a message", report::median(bytes)))?;
    }
    runs.iter().try_for_each(exact)?;
    let ratios = report::ratios(&runs);
    if !ratios.is_empty() {
        let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        say(&format!("ratios of the rounds: {}", shown.join(" ")))?;
        say(&format!("ratio of processor time, bare to worker, without the rest: {:.2}", report::cpu_ratio(&runs)))?;
        say(&format!("ratio {:.2}", report::median(ratios)))?;
    }
    Ok(())
}

async fn profile(client: Client, mix: Mix, (events, api): (bool, Api), messages: u32, dir: PathBuf) -> Result<(), Failure> {
    std::fs::create_dir_all(&dir)?;
    let stage = Stage::set(events, api).await?;
    let mut plans = Plans { mix, number: 0 };
    let data = dir.join("perf.data");
    let run = Run::measure(&stage, plans.next(client, messages), |process| Perf::start(process, &data)).await?;
    say(&report::head())?;
    say(&report::line("perf", &run))?;
    let program = stage.program(if client == Client::Bare { "bare" } else { "paceline" });
    let text = profile::analyse(&data, &program, run.cpu_us[cpu::Who::Client as usize])?;
    std::fs::write(dir.join("profile.txt"), &text)?;
    say(&format!("\n{text}"))
}

fn exact(run: &Run) -> Result<(), Failure> {
    if run.exact.holds() {
        return Ok(());
    }
    Err(format!("not every message arrived exactly once with {}: {}", run.client, run.exact).into())
}

/// Runs in the order they happen.
struct Plans {
    mix: Mix,
    number: u32,
}

impl Plans {
    fn next(&mut self, client: Client, messages: u32) -> Plan {
        self.number += 1;
        Plan { client, mix: self.mix, messages, number: self.number }
    }
}

fn mix(mixed: bool) -> Mix {
    if mixed { Mix::Mixed } else { Mix::One }
}

fn api(batch: bool) -> Api {
    if batch { Api::Postmark } else { Api::SendGrid }
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}
