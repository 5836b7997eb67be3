//! `paceline dlq list|show|stats`.

use clap::{Args, Subcommand};
use paceline_core::{Class, Reason, Timestamp};
use paceline_dlq as dlq;
use paceline_store::{BurstRule, Filter, Stats};

use crate::{
    config::{Config, parse_duration},
    exit::Failure,
    output::{self, Format},
    services,
};

#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters, the latest first (100 unless --limit says otherwise)
    #[command(after_help = "Examples:
  paceline dlq list
  paceline dlq list --reason retry_budget_exhausted --since 24h
  paceline dlq list --destination google --limit 1000 --output json")]
    List(FilterArgs),
    /// Show one dead letter whole: headers, the original message, the provider's last words
    ///
    /// ID is the dead letter's own or its message's; where a message has several dead letters (one a recipient), all
    /// of them are shown.
    #[command(after_help = "Examples:
  paceline dlq show order-4711
  paceline dlq show order-4711 --output json | jq -r .body")]
    Show {
        id: String,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Count dead letters by reason, destination and domain, and point out bursts of 429 and 5xx answers
    #[command(after_help = "Examples:
  paceline dlq stats
  paceline dlq stats --since 1h --output json")]
    Stats(FilterArgs),
}

/// The same for every command on dead letters; everything given must hold.
#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Why it was given up on, such as retry_budget_exhausted
    #[arg(long, value_name = "REASON")]
    pub reason: Option<Reason>,
    /// critical, high, normal or low
    #[arg(long, value_name = "CLASS")]
    pub class: Option<Class>,
    /// A destination's name, or tail
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// An account's name
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// A tenant's name
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Given up on at this time or later: 2026-01-31T09:30:00Z, or 24h for the last 24 hours
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Timestamp>,
    /// Given up on before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Timestamp>,
    /// The dead letter's id, or its message's
    #[arg(long = "id", value_name = "ID", id = "filter_id")]
    pub id: Option<String>,
    /// No more than the latest so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: Option<u32>,
}

/// An RFC 3339 time, or how long ago.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    match parse_duration(text) {
        Ok(ago) => Ok(Timestamp::from(std::time::SystemTime::now()) - ago),
        Err(_) => Err("write a time such as 2026-01-31T09:30:00Z, or how long ago, such as 24h".into()),
    }
}

impl FilterArgs {
    fn filter(&self) -> Filter {
        Filter {
            reason: self.reason,
            class: self.class,
            destination: self.destination.clone(),
            account: self.account.clone(),
            tenant: self.tenant.clone(),
            since: self.since,
            until: self.until,
            id: self.id.clone(),
            limit: self.limit,
        }
    }
}

/// Asks the store and prints.
pub async fn run(config: &Config, command: &DlqCommand, format: Format) -> Result<(), Failure> {
    let store = services::store(config)?;
    match command {
        DlqCommand::List(args) => {
            let entries = dlq::list(&*store, &args.filter()).await?;
            output::list(format, &entries, &dlq::TABLE_COLUMNS, |e| dlq::table_row(e).to_vec())?;
        }
        DlqCommand::Show { id, filter } => show(&*store, id, filter, format).await?,
        DlqCommand::Stats(args) => {
            let stats = dlq::stats(&*store, &args.filter(), &BurstRule::default()).await?;
            output::object(format, &stats, people)?;
        }
    }
    Ok(())
}

async fn show(store: &dyn paceline_store::Store, id: &str, filter: &FilterArgs, format: Format) -> Result<(), Failure> {
    let mut shown = dlq::show(store, id).await?;
    shown.retain(|s| filter.holds(&s.entry));
    shown.truncate(filter.limit.unwrap_or(u32::MAX) as usize);
    match shown.as_slice() {
        [] => return Err(Failure::failed(format!("no dead letter matches {}", id.escape_debug()))),
        [one] if format == Format::Json => output::json(one)?,
        several if format == Format::Json => output::json(several)?,
        several => {
            let texts = several.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
            output::write(&texts.join("\n"))?;
        }
    }
    Ok(())
}

impl FilterArgs {
    fn holds(&self, e: &paceline_core::DeadLetter) -> bool {
        let is = |wanted: &Option<String>, got: &Option<String>| wanted.is_none() || wanted == got;
        self.reason.is_none_or(|r| r == e.reason)
            && self.class.is_none_or(|c| Some(c) == e.class)
            && is(&self.destination, &e.destination)
            && is(&self.account, &e.account)
            && is(&self.tenant, &e.tenant)
            && self.since.is_none_or(|t| e.died_at >= t)
            && self.until.is_none_or(|t| e.died_at < t)
            && self.id.as_ref().is_none_or(|id| *id == e.id || Some(id) == e.message_id.as_ref())
    }
}

/// Every field on a line of its own, the original message last.
fn whole(shown: &dlq::Shown) -> Result<String, Failure> {
    let value = serde_json::to_value(shown).map_err(|e| Failure::failed(e.to_string()))?;
    let mut rows = vec![];
    for (field, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        rows.push(vec![field.clone(), text]);
    }
    rows.sort_by_key(|row| matches!(row[0].as_str(), "body" | "body_base64"));
    Ok(output::table(&["FIELD", "VALUE"], &rows))
}

fn people(stats: &Stats) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let mut text = format!("{} dead letters\n", stats.total);
    if stats.total == 0 {
        return text;
    }
    let rows: Vec<_> = stats.by_reason.iter().map(|r| vec![r.reason.to_string(), r.count.to_string()]).collect();
    text.push_str(&format!("\n{}", output::table(&["REASON", "COUNT"], &rows)));
    let rows: Vec<_> = stats
        .counts
        .iter()
        .map(|c| {
            let (reason, newest) = (c.reason.to_string(), c.newest.to_string());
            vec![reason, or_dash(&c.destination), or_dash(&c.domain), c.count.to_string(), c.oldest.to_string(), newest]
        })
        .collect();
    let columns = ["REASON", "DESTINATION", "DOMAIN", "COUNT", "OLDEST", "NEWEST"];
    text.push_str(&format!("\n{}", output::table(&columns, &rows)));
    if !stats.bursts.is_empty() {
        let rows: Vec<_> = stats
            .bursts
            .iter()
            .map(|b| {
                let (kind, started, ended) = (b.kind.as_str().to_owned(), b.started_at.to_string(), b.ended_at.to_string());
                vec![kind, or_dash(&b.destination), b.domain.clone(), b.count.to_string(), started, ended]
            })
            .collect();
        let columns = ["BURST OF", "DESTINATION", "DOMAIN", "COUNT", "STARTED", "ENDED"];
        text.push_str(&format!("\n{}", output::table(&columns, &rows)));
    }
    text
}
