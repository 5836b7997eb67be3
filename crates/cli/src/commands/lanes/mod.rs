//! `paceline lanes`: what waits where, what binds it, and when it will be done; what is wrong at a destination.

mod paint;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use paceline_control::lanes::{Lanes, Seen};
use paceline_core::lanes::{LaneState, LaneStatus};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    config::{Config, parse_duration},
    exit::Failure,
    output::{self, Format},
    services,
    signals::Signals,
};

#[derive(Debug, Args)]
pub struct LanesArgs {
    /// Show lanes in which nothing waits as well
    #[arg(long)]
    all: bool,
    /// Say what is wrong at a destination, or at a lane's, and what to do
    #[arg(long, value_name = "NAME", conflicts_with_all = ["all", "watch"])]
    explain: Option<String>,
    /// Show it again and again, in place on a terminal, until Ctrl-C; with --output json an array a line
    #[arg(long)]
    watch: bool,
    /// With --watch, how often
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = often)]
    every: Duration,
}

fn often(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(d) if (Duration::from_millis(200)..=Duration::from_secs(3600)).contains(&d) => Ok(d),
        Ok(_) => Err("must be between 200ms and 1h".to_owned()),
        Err(e) => Err(e),
    }
}

/// Looks once, or until told to end.
pub async fn run(config: &Config, args: &LanesArgs, format: Format) -> Result<(), Failure> {
    let broker = services::broker(config, "lanes")?;
    let store = services::store(config)?;
    let lanes = services::lanes(config, &broker, &store, &services::reports(config)?, false);
    super::broker_is_up(&*broker, config).await?;
    let result = match &args.explain {
        Some(name) => explain(&lanes, name, format).await,
        None if args.watch => watch(&lanes, args, format).await,
        None => list(&lanes.look().await, args.all, format),
    };
    broker.close().await;
    result
}

async fn explain(lanes: &Lanes, name: &str, format: Format) -> Result<(), Failure> {
    let seen = lanes.look().await;
    tell(&seen);
    let explained = lanes.explain(name, &seen).ok_or_else(|| {
        let name = name.escape_debug();
        Failure::usage(format!("--explain: there is no lane and no destination {name}; `paceline lanes --all` lists them"))
    })?;
    output::object(format, &explained, paint::explained)?;
    Ok(())
}

fn list(seen: &Seen, all: bool, format: Format) -> Result<(), Failure> {
    tell(seen);
    match format {
        Format::Json => output::json(&seen.lanes)?,
        Format::Table => output::write(&table(seen, all))?,
    }
    Ok(())
}

/// What could not be seen, to whoever sits in front of it.
fn tell(seen: &Seen) {
    seen.problems.iter().for_each(|problem| crate::say(problem));
    if seen.reports.is_empty() {
        crate::say("no worker reports: only what waits is known");
    }
}

fn table(seen: &Seen, all: bool) -> String {
    let shown: Vec<&LaneStatus> = seen.lanes.iter().filter(|l| all || of_interest(l)).collect();
    if shown.is_empty() {
        return format!("Nothing waits in {} lanes; --all shows them.\n", seen.lanes.len());
    }
    paint::table(&shown)
}

fn of_interest(lane: &LaneStatus) -> bool {
    let at_rest = matches!(lane.state, LaneState::Idle | LaneState::Unattended | LaneState::Flowing | LaneState::Paced);
    lane.depth != Some(0) || !at_rest || lane.actual_per_s > 0.0
}

async fn watch(lanes: &Lanes, args: &LanesArgs, format: Format) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut ticks = interval(args.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let in_place = format == Format::Table && io::stdout().is_terminal();
    let mut first = true;
    loop {
        let seen = tokio::select! {
            () = signals.end() => break,
            seen = async { ticks.tick().await; lanes.look().await } => seen,
        };
        match format {
            Format::Json => output::json(&seen.lanes)?,
            Format::Table if in_place => output::write(&paint::screen(&page(&seen, args.all), size(), first))?,
            Format::Table => output::write(&format!("{}{}", if first { "" } else { "\n" }, page(&seen, args.all)))?,
        }
        first = false;
    }
    Ok(())
}

/// A table, with what could not be seen below it.
fn page(seen: &Seen, all: bool) -> String {
    let mut page = table(seen, all);
    seen.problems.iter().for_each(|problem| page.push_str(&format!("({problem})\n")));
    if seen.reports.is_empty() {
        page.push_str("(no worker reports: only what waits is known)\n");
    }
    page
}

/// Columns and lines.
fn size() -> (usize, usize) {
    let size = terminal_size::terminal_size_of(io::stdout());
    size.map_or((120, 40), |(width, height)| (width.0.into(), height.0.into()))
}
