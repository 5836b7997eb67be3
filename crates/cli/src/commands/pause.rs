//! `paceline pause` and `paceline resume`: mail that is held back without losing its place.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use paceline_core::{Class, Pause, PauseScope, Timestamp, lane::TAIL};
use paceline_store::{Standing, Which};

use super::{cancel::moment, operator::OperatorArgs};
use crate::{
    config::Config,
    exit::Failure,
    output::{self, Format},
    services,
};

#[derive(Debug, Subcommand)]
pub enum PauseCommand {
    /// Pause an account: no call is made through it
    #[command(after_help = "Examples:
  paceline pause account main --note 'TICKET-17'
  paceline pause account main --for 30min")]
    Account(AccountArgs),
    /// Pause a destination, through whichever account; `tail` is every domain that no destination names
    #[command(after_help = "Examples:
  paceline pause destination google --until 2h
  paceline pause destination tail")]
    Destination(DestinationArgs),
    /// Pause a class: critical, high, normal or low
    #[command(after_help = "Examples:
  paceline pause class low --for 1h --by ann --note 'sale tonight'")]
    Class(ClassArgs),
    /// List the pauses in force, or all there were
    #[command(after_help = "Examples:
  paceline pause list
  paceline pause list --all --output json")]
    List(ListArgs),
}

#[derive(Debug, Args)]
pub struct AccountArgs {
    /// As the configuration calls it
    name: String,
    #[command(flatten)]
    when: WhenArgs,
}

#[derive(Debug, Args)]
pub struct DestinationArgs {
    /// As the configuration calls it, or `tail`
    name: String,
    #[command(flatten)]
    when: WhenArgs,
}

#[derive(Debug, Args)]
pub struct ClassArgs {
    /// critical, high, normal or low
    class: Class,
    #[command(flatten)]
    when: WhenArgs,
}

#[derive(Debug, Args)]
struct WhenArgs {
    /// Over by itself then: 2h from now, or 2026-01-31T09:30:00Z [default: when somebody resumes]
    #[arg(long, visible_alias = "for", value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Also those that are over
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Subcommand)]
pub enum ResumeCommand {
    /// Resume an account
    #[command(after_help = "Examples:
  paceline resume account main")]
    Account(ResumeArgs),
    /// Resume a destination
    #[command(after_help = "Examples:
  paceline resume destination tail --note 'answer from the postmaster'")]
    Destination(ResumeArgs),
    /// Resume a class
    #[command(after_help = "Examples:
  paceline resume class low")]
    Class(ResumeArgs),
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// What was paused
    name: String,
    #[command(flatten)]
    operator: OperatorArgs,
}

/// Pauses, or lists pauses.
pub async fn run(config: &Config, command: &PauseCommand, format: Format) -> Result<(), Failure> {
    let (scope, when) = match command {
        PauseCommand::List(args) => {
            let pauses = services::store(config)?.pauses(if args.all { Which::All } else { Which::InForce }).await?;
            output::list(format, &pauses, &["PAUSED", "SINCE", "UNTIL", "BY", "RESUMED", "NOTE"], row)?;
            return Ok(());
        }
        PauseCommand::Account(args) => (PauseScope::Account(args.name.clone()), &args.when),
        PauseCommand::Destination(args) => (PauseScope::Destination(args.name.clone()), &args.when),
        PauseCommand::Class(args) => (PauseScope::Class(args.class), &args.when),
    };
    known(config, &scope)?;
    if when.until.is_some_and(|until| until <= Timestamp::from(SystemTime::now())) {
        return Err(Failure::usage("--until: that time has passed"));
    }
    let store = services::store(config)?;
    let pause = store.pause(&scope, when.until, &when.operator.by(), when.operator.note()).await?;
    output::object(format, &pause, |p| {
        let until = p.order.until.map_or_else(|| "until somebody resumes it".to_owned(), |until| format!("until {until}"));
        format!(
            "{scope} is paused {until}: its mail waits in its lanes. Workers know within two seconds.\n\
             `paceline resume {scope}` ends the pause.\n"
        )
    })?;
    Ok(())
}

/// Ends a pause.
pub async fn resume(config: &Config, command: &ResumeCommand, format: Format) -> Result<(), Failure> {
    let (kind, args) = match command {
        ResumeCommand::Account(args) => ("account", args),
        ResumeCommand::Destination(args) => ("destination", args),
        ResumeCommand::Class(args) => ("class", args),
    };
    let scope = PauseScope::new(kind, args.name.clone()).ok_or_else(|| {
        Failure::usage(format!("there is no class {}; use critical, high, normal or low", args.name.escape_debug()))
    })?;
    let store = services::store(config)?;
    let ended = store.resume(&scope, &args.operator.by(), args.operator.note()).await?;
    let Some(ended) = ended else {
        // A pause may be of something that the configuration no longer has; a mistyped name is more likely.
        known(config, &scope)?;
        return Err(Failure::failed(format!("{scope} is not paused; `paceline pause list` says what is")));
    };
    output::object(format, &ended, |_| format!("{scope} goes on: workers know within two seconds.\n"))?;
    Ok(())
}

/// That there is such a thing to pause.
fn known(config: &Config, scope: &PauseScope) -> Result<(), Failure> {
    let (name, there) = match scope {
        PauseScope::Account(name) => (name, config.accounts.iter().map(|a| a.name.as_str()).collect()),
        PauseScope::Destination(name) => (name, destinations(config)),
        PauseScope::Class(_) => return Ok(()),
    };
    missing(scope.kind(), name, &there)
}

/// All names of destinations, the tail's last.
pub(super) fn destinations(config: &Config) -> Vec<&str> {
    config.destinations.iter().map(|d| d.name.as_str()).chain([TAIL]).collect()
}

/// Says what there is where a name is not among them.
pub(super) fn missing(what: &str, name: &str, there: &Vec<&str>) -> Result<(), Failure> {
    if there.contains(&name) {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(Failure::usage(match there.is_empty() {
        true => format!("there is no {what} {name}: the configuration has none"),
        false => format!("there is no {what} {name}; the configuration has {}", there.join(", ")),
    }))
}

fn row(pause: &Standing<Pause>) -> Vec<String> {
    let or_dash = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |at| at.to_string());
    vec![
        pause.order.scope.to_string(),
        pause.order.since.to_string(),
        or_dash(pause.order.until),
        pause.by.clone(),
        or_dash(pause.removed_at),
        pause.note.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
