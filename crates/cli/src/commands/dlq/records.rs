//! `dlq jobs|audit`.

use clap::Args;
use paceline_store::{AuditEntry, Job, JobState, Store};

use super::grouped;
use crate::{
    exit::Failure,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub struct JobsArgs {
    /// No more than the latest so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only what was done to this: a job's or an order's id, or dead-letters for purges
    #[arg(long, value_name = "ID")]
    subject: Option<String>,
    /// No more than the latest so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

pub(super) async fn jobs(store: &dyn Store, args: &JobsArgs, format: Format) -> Result<(), Failure> {
    let jobs = store.jobs(args.limit).await?;
    let columns = ["ID", "STATE", "TOTAL", "DONE", "FAILED", "LEFT", "RATE", "CREATED", "BY", "RUN BY", "NOTE"];
    output::list(format, &jobs, &columns, row)?;
    Ok(())
}

fn row(job: &Job) -> Vec<String> {
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let runs = (job.state == JobState::Running).then(|| job.owner.clone().unwrap_or_else(|| "nobody".into()));
    vec![
        job.id.clone(),
        job.state.to_string(),
        grouped(job.total),
        grouped(job.done),
        grouped(job.failed),
        grouped(job.left()),
        dash(job.rate.map(|r| r.to_string())),
        job.created_at.to_string(),
        job.by.clone(),
        dash(runs),
        dash(job.note.clone()),
    ]
}

pub(super) async fn audit(store: &dyn Store, args: &AuditArgs, format: Format) -> Result<(), Failure> {
    let entries = store.audit(args.subject.as_deref(), args.limit).await?;
    let row = |e: &AuditEntry| {
        let detail = serde_json::Value::Object(e.detail.clone()).to_string();
        let note = e.note.clone().unwrap_or_else(|| "-".into());
        vec![e.at.to_string(), e.action.clone(), e.subject.clone(), e.by.clone(), note, detail]
    };
    output::list(format, &entries, &["AT", "ACTION", "SUBJECT", "BY", "NOTE", "DETAIL"], row)?;
    Ok(())
}
