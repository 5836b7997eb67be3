//! `paceline suppress`: recipients that must not be mailed.

mod export;
mod import;

use std::time::SystemTime;

use clap::{Args, Subcommand};
use paceline_core::{
    Domain, EmailAddress, Timestamp,
    address::BadAddress,
    suppression::{Kind, listed_form},
};
use paceline_store::{Merged, NewSuppression, Order, Store, Suppression, SuppressionFilter, Trail, is_reason};
use serde::Serialize;

use super::{cancel::moment as ahead, dlq::ago, operator::OperatorArgs};
use crate::{
    config::Config,
    exit::Failure,
    output::{self, Format},
    services,
};
pub use export::ExportArgs;
pub use import::ImportArgs;

#[derive(Debug, Subcommand)]
pub enum SuppressCommand {
    /// List entries, the latest change first (100 unless --limit says otherwise)
    #[command(after_help = "Examples:
  paceline suppress list
  paceline suppress list --kind soft --since 7d
  paceline suppress list --address user@example.com --output json")]
    List(ListArgs),
    /// Put addresses on the list
    ///
    /// An address that is listed already keeps its entry, unless the new one is hard and the old one soft, or the new one
    /// holds longer.
    #[command(after_help = "Examples:
  paceline suppress add user@example.com
  paceline suppress add a@example.com b@example.com --kind soft --reason mailbox_full --until 30d")]
    Add(AddArgs),
    /// Take addresses off the list; exit 1 if one was not on it
    ///
    /// What died meanwhile is sent by `dlq replay --reason suppressed`.
    #[command(after_help = "Examples:
  paceline suppress remove user@example.com --note 'asked for it'")]
    Remove(RemoveArgs),
    /// Put the addresses of a file on the list: one a line, plain or as `suppress export` writes them
    ///
    /// A line that begins with { is a JSON object with `address` and any of kind, reason, source, note, by, until and
    /// created_at; what it lacks comes from the options. Lines that are no address are refused and named, the others are
    /// taken; exit 1 if any was refused. Importing a file again changes nothing.
    #[command(after_help = "Examples:
  paceline suppress import bounces.txt --reason bounce --source old-provider
  paceline suppress import suppressions.ndjson --output json
  echo user@example.com | paceline suppress import -")]
    Import(ImportArgs),
    /// Write entries, one JSON object a line, or their addresses alone
    #[command(after_help = "Examples:
  paceline suppress export > suppressions.ndjson
  paceline suppress export --reason complaint --to complaints.ndjson
  paceline suppress export --format addresses | wc -l")]
    Export(ExportArgs),
}

/// Which entries; everything given must hold.
#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
struct FilterArgs {
    /// hard or soft
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Such as bounce, complaint, manual, mailbox_full
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Option<String>,
    /// Where entries come from, such as an account's name
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Addresses of this domain
    #[arg(long, value_name = "DOMAIN", value_parser = domain)]
    domain: Option<Domain>,
    /// This address
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Option<EmailAddress>,
    /// Listed at this time or later: 2026-01-31T09:30:00Z, or 24h for the last 24 hours
    #[arg(long, value_name = "TIME", value_parser = ago)]
    since: Option<Timestamp>,
    /// Listed before this time
    #[arg(long, value_name = "TIME", value_parser = ago)]
    until: Option<Timestamp>,
    /// Also entries that ended within the last week
    #[arg(long)]
    ended: bool,
}

impl FilterArgs {
    fn filter(&self) -> SuppressionFilter {
        SuppressionFilter {
            kind: self.kind,
            reason: self.reason.clone(),
            source: self.source.clone(),
            domain: self.domain.clone(),
            address: self.address.clone(),
            since: self.since,
            until: self.until,
            ended: self.ended,
        }
    }
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// No more than the latest so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Filters")]
    limit: u32,
}

/// What new entries say.
#[derive(Debug, Args)]
struct EntryArgs {
    /// hard: no mail at all; soft: see [suppression] critical_through_soft
    #[arg(long, value_name = "KIND", default_value_t = Kind::Hard)]
    kind: Kind,
    /// A word for why: bounce, complaint, manual, mailbox_full, unsubscribed, … (a-z 0-9 _ -)
    #[arg(long, value_name = "REASON", default_value = "manual", value_parser = reason)]
    reason: String,
    /// Where it comes from, such as a provider's name
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The entry ends then: 2026-01-31T09:30:00Z, or 30d for 30 days from now [default: never]
    #[arg(long, value_name = "TIME", value_parser = ahead)]
    until: Option<Timestamp>,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl EntryArgs {
    fn entry(&self, address: EmailAddress) -> NewSuppression {
        NewSuppression {
            address,
            kind: self.kind,
            reason: self.reason.clone(),
            source: self.source.clone(),
            note: self.operator.note().map(str::to_owned),
            by: self.operator.by(),
            until: self.until,
            created_at: None,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let past = self.until.is_some_and(|until| until <= Timestamp::from(SystemTime::now()));
        if past { Err(Failure::usage("--until: that time has passed")) } else { Ok(()) }
    }

    fn trail(&self, action: &'static str, source: Option<String>) -> Trail {
        Trail::new(action, self.operator.by(), self.operator.note().map(str::to_owned), source)
    }
}

#[derive(Debug, Args)]
pub struct AddArgs {
    #[arg(value_name = "ADDRESS", required = true, value_parser = address)]
    addresses: Vec<EmailAddress>,
    #[command(flatten)]
    entry: EntryArgs,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[arg(value_name = "ADDRESS", required = true, value_parser = address)]
    addresses: Vec<EmailAddress>,
    #[command(flatten)]
    operator: OperatorArgs,
}

fn address(text: &str) -> Result<EmailAddress, BadAddress> {
    EmailAddress::parse(text)
}

fn domain(text: &str) -> Result<Domain, BadAddress> {
    Domain::parse(text)
}

fn reason(word: &str) -> Result<String, &'static str> {
    if is_reason(word) { Ok(word.to_owned()) } else { Err("must be 1 to 64 of a-z 0-9 _ -") }
}

/// Does what it is asked to and prints the result.
pub async fn run(config: &Config, command: &SuppressCommand, format: Format) -> Result<(), Failure> {
    let store = services::store(config)?;
    match command {
        SuppressCommand::List(args) => list(&*store, args, format).await,
        SuppressCommand::Add(args) => add(&*store, args, format).await,
        SuppressCommand::Remove(args) => remove(&*store, args, format).await,
        SuppressCommand::Import(args) => import::run(&*store, args, format).await,
        SuppressCommand::Export(args) => export::run(&*store, args, format).await,
    }
}

async fn list(store: &dyn Store, args: &ListArgs, format: Format) -> Result<(), Failure> {
    let entries = store.suppressions(&args.filter.filter(), Order::Latest, None, args.limit).await?;
    let columns = ["ADDRESS", "KIND", "REASON", "SOURCE", "SINCE", "UNTIL", "BY", "NOTE"];
    output::list(format, &entries, &columns, |entry: &Suppression| {
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            entry.address.clone(),
            entry.kind.to_string(),
            entry.reason.clone(),
            dash(&entry.source),
            entry.created_at.to_string(),
            entry.until.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            entry.by.clone(),
            dash(&entry.note),
        ]
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Added {
    address: String,
    result: Merged,
}

async fn add(store: &dyn Store, args: &AddArgs, format: Format) -> Result<(), Failure> {
    args.entry.check()?;
    let new: Vec<_> = args.addresses.iter().map(|address| args.entry.entry(address.clone())).collect();
    let mut trail = args.entry.trail(Trail::ADDED, args.entry.source.clone());
    let results = store.suppress(&new, Some(&mut trail)).await?;
    let added = args.addresses.iter().map(listed_form).zip(results).map(|(address, result)| Added { address, result });
    let added: Vec<_> = added.collect();
    output::list(format, &added, &["ADDRESS", "RESULT"], |one| {
        let result = match one.result {
            Merged::Added => "listed; workers know within seconds",
            Merged::Hardened => "was soft, is hard now",
            Merged::Extended => "was listed, holds longer now",
            Merged::Known => "was listed already; nothing changed",
        };
        vec![one.address.clone(), result.to_owned()]
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Removed {
    address: String,
    removed: bool,
}

async fn remove(store: &dyn Store, args: &RemoveArgs, format: Format) -> Result<(), Failure> {
    let results = store.unsuppress(&args.addresses, &args.operator.by(), args.operator.note()).await?;
    let removed = args.addresses.iter().map(listed_form).zip(results).map(|(address, removed)| Removed { address, removed });
    let removed: Vec<_> = removed.collect();
    output::list(format, &removed, &["ADDRESS", "RESULT"], |one| {
        vec![one.address.clone(), if one.removed { "may be mailed again" } else { "was not listed" }.to_owned()]
    })?;
    if removed.iter().all(|one| one.removed) { Ok(()) } else { Err(Failure::Reported) }
}
