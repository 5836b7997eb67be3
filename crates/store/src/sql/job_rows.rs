//! Rows of jobs and their items.

use paceline_core::Timestamp;

use super::{Query, Row, Session, unknown};
use crate::{Error, Job, JobKind, JobState};

const COLUMNS: &str = "id, kind, state, actor, note, filter, rate, total, done, failed, handed, created_at, finished_at, \
     cancelled_by, owner, leased_until";

/// A job and what only the store knows of it.
pub(super) struct JobRow {
    pub(super) job: Job,
    /// The highest item a runner was ever given.
    pub(super) handed: i64,
}

impl JobRow {
    /// Until when another than `owner` holds it.
    pub(super) fn held_by_another(&self, owner: &str, now: Timestamp) -> Option<(String, Timestamp)> {
        let (holder, until) = self.held(now)?;
        (holder != owner).then(|| (holder.to_owned(), until))
    }

    /// Who holds it, and until when.
    pub(super) fn held(&self, now: Timestamp) -> Option<(&str, Timestamp)> {
        let until = self.job.leased_until.filter(|until| *until > now)?;
        Some((self.job.owner.as_deref()?, until))
    }

    pub(super) fn is_run_by(&self, owner: &str, now: Timestamp) -> bool {
        self.job.state == JobState::Running && self.held(now).is_some_and(|(holder, _)| holder == owner)
    }
}

/// Selects jobs: `rest` begins after `from`.
pub(super) fn select(rest: &str) -> Query {
    Query::new(format!("select {COLUMNS} from dead_letter_jobs {rest}"))
}

pub(super) async fn find<S: Session>(session: &mut S, id: &str) -> Result<Option<JobRow>, Error> {
    one(session, id, "").await
}

/// The same, and nobody else changes it or its items until the transaction ends.
pub(super) async fn lock<S: Session>(session: &mut S, id: &str) -> Result<Option<JobRow>, Error> {
    one(session, id, S::FOR_UPDATE).await
}

async fn one<S: Session>(session: &mut S, id: &str, end: &str) -> Result<Option<JobRow>, Error> {
    // No id has NUL, which PostgreSQL does not take in a text.
    if id.contains('\0') {
        return Ok(None);
    }
    let mut query = select("where id = ");
    query.bind(id).push(end);
    let rows = session.fetch(query).await?;
    Ok(rows.first().map(row).transpose()?)
}

pub(super) async fn many<S: Session>(session: &mut S, query: Query) -> Result<Vec<Job>, Error> {
    let rows = session.fetch(query).await?;
    Ok(rows.iter().map(|r| row(r).map(|r| r.job)).collect::<Result<_, _>>()?)
}

fn row(row: &impl Row) -> Result<JobRow, sqlx::Error> {
    let kind = match row.text("kind")?.as_str() {
        "replay" => JobKind::Replay,
        "discard" => JobKind::Discard,
        _ => return Err(unknown("a kind of job")),
    };
    let job = Job {
        id: row.text("id")?,
        kind,
        state: row.text("state")?.parse::<JobState>().map_err(|()| unknown("a job's state"))?,
        by: row.text("actor")?,
        note: row.opt_text("note")?,
        filter: serde_json::from_value(row.json("filter")?).map_err(|_| unknown("a filter"))?,
        rate: row.opt_text("rate")?.map(|r| r.parse().map_err(|_| unknown("a rate"))).transpose()?,
        total: row.count("total")?,
        done: row.count("done")?,
        failed: row.count("failed")?,
        created_at: row.time("created_at")?,
        finished_at: row.opt_time("finished_at")?,
        cancelled_by: row.opt_text("cancelled_by")?,
        owner: row.opt_text("owner")?,
        leased_until: row.opt_time("leased_until")?,
    };
    Ok(JobRow { job, handed: row.int("handed")? })
}
