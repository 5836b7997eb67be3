//! `paceline cancel`: mail that waits and must not be sent.

use std::time::SystemTime;

use clap::Args;
use paceline_core::{Timestamp, cancel::Selector};
use paceline_store::{CancelOrder, Store, Which};

use super::operator::OperatorArgs;
use crate::{
    config::{Config, parse_duration},
    exit::Failure,
    output::{self, Format},
    services,
};

#[derive(Debug, Args)]
#[group(skip)]
pub struct CancelArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// In force until then: 24h from now, or 2026-01-31T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = moment, default_value = "24h", conflicts_with_all = ["list", "remove"])]
    until: Timestamp,
    /// With --list: also those that have ended
    #[arg(long, requires = "list")]
    all: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct WhichArgs {
    /// The message with this id
    #[arg(long, value_name = "ID", value_parser = value)]
    id: Option<String>,
    /// Mail that carries this tag
    #[arg(long, value_name = "TAG", value_parser = value)]
    tag: Option<String>,
    /// Mail of this tenant
    #[arg(long, value_name = "NAME", value_parser = value)]
    tenant: Option<String>,
    /// Mail of this stream
    #[arg(long, value_name = "NAME", value_parser = value)]
    stream: Option<String>,
    /// List the orders in force
    #[arg(long)]
    list: bool,
    /// Take an order back
    #[arg(long, value_name = "ORDER")]
    remove: Option<String>,
}

impl WhichArgs {
    fn selector(&self) -> Option<Selector> {
        let WhichArgs { id, tag, tenant, stream, .. } = self;
        id.clone()
            .map(Selector::Id)
            .or_else(|| tag.clone().map(Selector::Tag))
            .or_else(|| tenant.clone().map(Selector::Tenant))
            .or_else(|| stream.clone().map(Selector::Stream))
    }
}

/// An RFC 3339 time, or how long from now.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    match parse_duration(text) {
        Ok(ahead) => Ok(Timestamp::from(SystemTime::now()) + ahead),
        Err(_) => Err("write a time such as 2026-01-31T09:30:00Z, or how long from now, such as 24h".into()),
    }
}

fn value(text: &str) -> Result<String, &'static str> {
    match () {
        () if text.is_empty() => Err("is empty"),
        () if text.len() > 512 => Err("is longer than 512 bytes"),
        () if text.chars().any(char::is_control) => Err("holds a control character, which no message may"),
        () => Ok(text.to_owned()),
    }
}

/// Gives an order, takes one back, or lists them.
pub async fn run(config: &Config, args: &CancelArgs, format: Format) -> Result<(), Failure> {
    let store = services::store(config)?;
    if let Some(selector) = args.which.selector() {
        return add(&*store, &selector, args, format).await;
    }
    if let Some(id) = &args.which.remove {
        let order = store.remove_cancel(id, &args.operator.by(), args.operator.note()).await?;
        let Some(order) = order else {
            let id = id.escape_debug();
            return Err(Failure::failed(format!("there is no order {id}; `paceline cancel --list` lists them")));
        };
        output::object(format, &order, |o| format!("{}: mail with {} goes out again\n", o.id, o.cancel.selector))?;
        return Ok(());
    }
    let orders = store.cancels(if args.all { Which::All } else { Which::InForce }).await?;
    output::list(format, &orders, &["ID", "CANCELS", "GIVEN", "UNTIL", "BY", "REMOVED", "NOTE"], row)?;
    Ok(())
}

async fn add(store: &dyn Store, selector: &Selector, args: &CancelArgs, format: Format) -> Result<(), Failure> {
    if args.until <= Timestamp::from(SystemTime::now()) {
        return Err(Failure::usage("--until: that time has passed"));
    }
    let order = store.add_cancel(selector, args.until, &args.operator.by(), args.operator.note()).await?;
    output::object(format, &order, |o| {
        format!(
            "{}: mail with {} that waits, or comes until {}, becomes dead letters `cancelled`; workers know within seconds.\n\
             `paceline cancel --remove {}` takes it back.\n",
            o.id, o.cancel.selector, o.cancel.until, o.id
        )
    })?;
    Ok(())
}

fn row(order: &CancelOrder) -> Vec<String> {
    let CancelOrder { id, cancel, by, note, removed_at, .. } = order;
    vec![
        id.clone(),
        cancel.selector.to_string(),
        cancel.since.to_string(),
        cancel.until.to_string(),
        by.clone(),
        removed_at.map_or_else(|| "-".to_owned(), |at| at.to_string()),
        note.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
