//! `dlq replay|discard`: a plan, an order, and what is done with a job that exists.

use std::{sync::Arc, time::SystemTime};

use clap::Args;
use paceline_core::{Rate, Timestamp};
use paceline_dlq::jobs::{self, Proposal};
use paceline_store::{Job, JobKind, JobState, NewJob, Store};
use serde::Serialize;

use super::{FilterArgs, about, command_line, follow, grouped};
use crate::{
    commands::{broker_is_up, operator::OperatorArgs},
    config::Config,
    exit::Failure,
    output::{self, Format},
    services,
};

// Filters come last: the heading of a flattened group is that of every option after it.

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Entries in so much time
    #[arg(long, value_name = "RATE", default_value_t = jobs::DEFAULT_RATE, conflicts_with = "JobArgs")]
    rate: Rate,
    #[command(flatten)]
    order: OrderArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    order: OrderArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Args)]
#[group(skip)]
struct OrderArgs {
    /// Do it; without this nothing is changed
    #[arg(long)]
    yes: bool,
    /// Leave it to the control processes to run
    #[arg(long, requires = "yes", conflicts_with = "JobArgs")]
    detach: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    job: JobArgs,
}

/// A job that exists.
#[derive(Debug, Args)]
#[group(multiple = false, conflicts_with = "FilterArgs")]
#[command(next_help_heading = "Jobs that exist")]
struct JobArgs {
    /// Go on with a job that was interrupted; it needs no new approval
    #[arg(long, value_name = "JOB")]
    resume: Option<String>,
    /// Follow a job that runs elsewhere
    #[arg(long, value_name = "JOB")]
    watch: Option<String>,
    /// End a job; what is not settled is open again
    #[arg(long, value_name = "JOB")]
    cancel: Option<String>,
}

/// What `dlq replay` and `dlq discard` have in common.
pub(super) struct Order<'a> {
    kind: JobKind,
    rate: Option<Rate>,
    filter: &'a FilterArgs,
    args: &'a OrderArgs,
}

impl ReplayArgs {
    pub(super) fn order(&self) -> Order<'_> {
        Order { kind: JobKind::Replay, rate: Some(self.rate), filter: &self.filter, args: &self.order }
    }
}

impl DiscardArgs {
    pub(super) fn order(&self) -> Order<'_> {
        Order { kind: JobKind::Discard, rate: None, filter: &self.filter, args: &self.order }
    }
}

pub(super) async fn run(config: &Config, store: Arc<dyn Store>, order: Order<'_>, format: Format) -> Result<(), Failure> {
    let Order { kind, rate, filter, args } = order;
    let OrderArgs { operator, yes, detach, job: existing } = args;
    if let Some(id) = &existing.cancel {
        return cancel(&*store, kind, id, operator, format).await;
    }
    if let Some(id) = &existing.watch {
        let job = find(&*store, kind, id).await?;
        return follow::watch(store, job, format).await;
    }
    if let Some(id) = &existing.resume {
        let job = find(&*store, kind, id).await?;
        return follow::work(config, store, job, format).await;
    }
    let selected = filter.filter();
    if !yes {
        let proposal = jobs::propose(&*store, kind, &selected, rate, Timestamp::from(SystemTime::now())).await?;
        return print(&order, proposal, format);
    }
    if kind == JobKind::Replay {
        // Before anything is ordered: what cannot be published now is better not begun.
        let broker = services::broker(config, "replay")?;
        let up = broker_is_up(&*broker, config).await;
        broker.close().await;
        up?;
    }
    let new = NewJob {
        kind,
        filter: jobs::selection(kind, selected.clone()),
        rate,
        by: operator.by(),
        note: operator.note().map(str::to_owned),
    };
    match store.create(&new).await? {
        None => {
            let proposal = jobs::propose(&*store, kind, &selected, rate, Timestamp::from(SystemTime::now())).await?;
            print(&order, proposal, format)
        }
        Some(job) if *detach => follow::print(&*store, &job, format).await,
        Some(job) => {
            crate::say(&format!("job {}: {} entries to {kind}", job.id, grouped(job.total)));
            follow::work(config, store, job, format).await
        }
    }
}

async fn find(store: &dyn Store, kind: JobKind, id: &str) -> Result<Job, Failure> {
    let job = store.job(id).await?.ok_or_else(|| unknown(id))?;
    if job.kind != kind {
        return Err(Failure::usage(format!("{} is a job to {}: use `paceline dlq {}`", job.id, job.kind, job.kind)));
    }
    Ok(job)
}

fn unknown(id: &str) -> Failure {
    Failure::failed(format!("there is no job {}; `paceline dlq jobs` lists them", id.escape_debug()))
}

async fn cancel(store: &dyn Store, kind: JobKind, id: &str, operator: &OperatorArgs, format: Format) -> Result<(), Failure> {
    let before = find(store, kind, id).await?;
    if before.state == JobState::Done {
        return Err(Failure::failed(format!("{} is done: there is nothing left to cancel", before.id)));
    }
    let job = store.cancel(id, &operator.by(), operator.note()).await?.ok_or_else(|| unknown(id))?;
    follow::print(store, &job, format).await
}

#[derive(Serialize)]
struct Plan {
    #[serde(flatten)]
    proposal: Proposal,
    /// What would do it; nothing where there is nothing to do.
    would_run: Option<String>,
}

fn print(order: &Order<'_>, proposal: Proposal, format: Format) -> Result<(), Failure> {
    let mut words = vec!["dlq".to_owned(), order.kind.to_string()];
    words.extend(order.filter.words());
    words.extend(order.rate.iter().flat_map(|rate| ["--rate".to_owned(), rate.to_string()]));
    words.push("--yes".to_owned());
    let would_run = (proposal.plan.total > 0).then(|| command_line(&words));
    output::object(format, &Plan { proposal, would_run }, people)?;
    Ok(())
}

fn people(plan: &Plan) -> String {
    let Plan { proposal: Proposal { kind, plan, left_out, expired, rate, estimated_s }, would_run } = plan;
    let mut text = match plan.total {
        0 => format!("No open dead letter matches: nothing to {kind}.\n"),
        1 => "1 open dead letter matches.\n".to_owned(),
        n => format!("{} open dead letters match.\n", grouped(n)),
    };
    if plan.total > 0 {
        let rows: Vec<_> = plan.by_reason.iter().map(|r| vec![r.reason.to_string(), grouped(r.count)]).collect();
        text.push_str(&format!("\n{}\n", output::table(&["REASON", "COUNT"], &rows)));
    }
    if let (Some(oldest), Some(newest)) = (plan.oldest, plan.newest) {
        text.push_str(&format!("They died between {oldest} and {newest}.\n"));
    }
    if *kind == JobKind::Replay {
        if plan.uncertain > 0 {
            text.push_str(&format!(
                "Duplicate risk: nobody knows whether {} of them were sent (uncertain, poison).\n",
                grouped(plan.uncertain)
            ));
        }
        match expired {
            Some(0) => {}
            Some(n) => text.push_str(&format!("{} have passed their expires_at and would die again.\n", grouped(*n))),
            None => text.push_str("They are too many to count those that have passed their expires_at.\n"),
        }
    }
    for left in left_out {
        let (count, reason) = (grouped(left.count), left.reason);
        text.push_str(&format!("Left out: {count} {reason}, which would die again; --reason {reason} takes them.\n"));
    }
    if plan.settled > 0 {
        let settled = grouped(plan.settled);
        text.push_str(&format!("Not taken again: {settled} that are settled, or in a job under way.\n"));
    }
    if let (Some(rate), Some(seconds), 1..) = (rate, estimated_s, plan.total) {
        text.push_str(&format!("At {rate} it takes {}.\n", about(*seconds)));
    }
    if let Some(line) = would_run {
        text.push_str(&format!("\nNothing was changed. This does it:\n  {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use paceline_core::Reason;
    use paceline_store::ReasonCount;

    use super::*;

    fn plan(total: u64) -> Plan {
        let count = |reason, count| ReasonCount { reason, count };
        let at = Timestamp::from_secs(1_800_000_000);
        let plan = paceline_store::Plan {
            total,
            by_reason: vec![count(Reason::MaxAgeExceeded, total)],
            uncertain: 3,
            settled: 1200,
            oldest: Some(at),
            newest: Some(at),
        };
        let rate = Some(jobs::DEFAULT_RATE);
        let left_out = vec![count(Reason::InvalidMessage, 7)];
        let proposal = Proposal { kind: JobKind::Replay, plan, left_out, expired: Some(2), rate, estimated_s: Some(50.0) };
        Plan { proposal, would_run: Some("paceline dlq replay --yes".into()) }
    }

    #[test]
    fn a_plan_says_all_that_matters() {
        let text = people(&plan(1000));
        for words in [
            "1,000 open dead letters match.",
            "max_age_exceeded  1,000",
            "nobody knows whether 3 of them were sent",
            "2 have passed their expires_at",
            "Left out: 7 invalid_message",
            "--reason invalid_message takes them",
            "Not taken again: 1,200",
            "At 20/s it takes about 50 s.",
            "Nothing was changed. This does it:\n  paceline dlq replay --yes\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_plans_json_has_every_figure() {
        let json = serde_json::to_value(plan(1000)).unwrap();
        for (field, want) in [("kind", "replay"), ("rate", "20/s"), ("would_run", "paceline dlq replay --yes")] {
            assert_eq!(json[field], want, "{field}");
        }
        for (field, want) in [("total", 1000), ("uncertain", 3), ("settled", 1200), ("expired", 2)] {
            assert_eq!(json[field], want, "{field}");
        }
        assert_eq!((&json["left_out"][0]["reason"], &json["estimated_s"]), (&"invalid_message".into(), &50.0.into()));
        assert_eq!(json["by_reason"][0]["count"], 1000);
    }
}
