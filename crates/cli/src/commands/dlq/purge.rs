//! `dlq purge`: retention.

use std::time::{Duration, SystemTime};

use clap::Args;
use paceline_core::Timestamp;
use paceline_store::{Purge, State, StateFilter, Store};
use serde::Serialize;

use super::{command_line, grouped};
use crate::{
    commands::operator::OperatorArgs,
    config::{parse_duration, show_duration},
    exit::Failure,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub struct PurgeArgs {
    /// Those that died longer ago than this, such as 90d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older_than: Duration,
    /// all, unsettled, open, replayed or discarded; entries in a job under way always stay
    #[arg(long, value_name = "STATE", default_value_t = StateFilter::All)]
    state: StateFilter,
    /// Do it; without this nothing is deleted
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Serialize)]
struct Planned {
    before: Timestamp,
    total: u64,
    by_state: Vec<StateCount>,
    would_run: Option<String>,
}

#[derive(Serialize)]
struct StateCount {
    state: State,
    count: u64,
}

#[derive(Serialize)]
struct Purged {
    before: Timestamp,
    purged: u64,
}

pub(super) async fn run(store: &dyn Store, args: &PurgeArgs, format: Format) -> Result<(), Failure> {
    let before = Timestamp::from(SystemTime::now()) - args.older_than;
    let purge = Purge {
        before,
        state: args.state,
        by: args.operator.by(),
        note: args.operator.note().map(str::to_owned),
        dry_run: !args.yes,
    };
    if args.yes {
        let purged = store.purge(&purge).await?;
        output::object(format, &Purged { before, purged }, |p| format!("{} dead letters deleted\n", grouped(p.purged)))?;
        return Ok(());
    }
    let mut by_state = Vec::new();
    for state in [State::Open, State::Replayed, State::Discarded] {
        if args.state.holds(state) {
            let count = store.purge(&Purge { state: StateFilter::Only(state), ..purge.clone() }).await?;
            by_state.push(StateCount { state, count });
        }
    }
    let total = by_state.iter().map(|s| s.count).sum();
    let words = ["dlq", "purge", "--older-than", &show_duration(args.older_than), "--state", &args.state.to_string(), "--yes"];
    let would_run = (total > 0).then(|| command_line(&words.map(str::to_owned)));
    output::object(format, &Planned { before, total, by_state, would_run }, people)?;
    Ok(())
}

fn people(plan: &Planned) -> String {
    let mut text = format!("{} dead letters died before {}.\n", grouped(plan.total), plan.before);
    if let Some(line) = &plan.would_run {
        let rows: Vec<_> = plan.by_state.iter().map(|s| vec![s.state.to_string(), grouped(s.count)]).collect();
        text.push_str(&format!("\n{}\n", output::table(&["STATE", "COUNT"], &rows)));
        text.push_str(&format!("Nothing was deleted. This does it:\n  {line}\n"));
    }
    text
}
