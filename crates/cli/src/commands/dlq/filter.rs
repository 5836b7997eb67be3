//! Which dead letters: the same words for every command.

use clap::Args;
use paceline_core::{Class, Reason, Timestamp};
use paceline_store::{Filter, StateFilter};

use crate::config::parse_duration;

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

/// For commands that look: also at what is settled.
#[derive(Debug, Args)]
pub struct LookArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// unsettled (open, or in a job under way), open, replaying, discarding, replayed, discarded or all
    #[arg(long, value_name = "STATE", default_value_t, help_heading = "Filters")]
    state: StateFilter,
}

/// An RFC 3339 time, or how long ago.
pub(in crate::commands) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    match parse_duration(text) {
        Ok(ago) => Ok(Timestamp::from(std::time::SystemTime::now()) - ago),
        Err(_) => Err("write a time such as 2026-01-31T09:30:00Z, or how long ago, such as 24h".into()),
    }
}

impl FilterArgs {
    pub(super) fn filter(&self) -> Filter {
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
            ..Filter::default()
        }
    }

    /// The same as words of a command line, times as they are now.
    pub(super) fn words(&self) -> Vec<String> {
        let options = [
            ("--reason", self.reason.map(|r| r.to_string())),
            ("--class", self.class.map(|c| c.to_string())),
            ("--destination", self.destination.clone()),
            ("--account", self.account.clone()),
            ("--tenant", self.tenant.clone()),
            ("--since", self.since.map(|t| t.to_string())),
            ("--until", self.until.map(|t| t.to_string())),
            ("--id", self.id.clone()),
            ("--limit", self.limit.map(|n| n.to_string())),
        ];
        options.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?])).flatten().collect()
    }

    /// Whether an entry that was found by its id matches as well.
    pub(super) fn holds(&self, e: &paceline_core::DeadLetter) -> bool {
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

impl LookArgs {
    pub(super) fn filter(&self) -> Filter {
        Filter { state: self.state, ..self.filter.filter() }
    }
}
