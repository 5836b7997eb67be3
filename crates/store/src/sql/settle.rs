//! The life of a job after it was made: held, worked off, settled, ended.
//!
//! Every call here that writes holds the job's row, so that those of one job come one after the other.

use std::{collections::HashMap, time::Duration};

use paceline_core::Timestamp;
use serde_json::json;

use super::{Query, Row as _, Session, audit, entry, fitting, job_rows};
use crate::{
    Error, Item, ItemOutcome, Job, JobKind, JobState, Leased,
    text::{KEY_BYTES, WORDS_BYTES, bounded},
};

pub(super) async fn lease<S: Session>(session: &mut S, id: &str, owner: &str, ttl: Duration) -> Result<Leased, Error> {
    let Some(row) = job_rows::lock(session, id).await? else { return Ok(Leased::Unknown) };
    let now = session.now().await?;
    let owner = bounded(owner, KEY_BYTES);
    if row.job.state != JobState::Running {
        drop_unheld(session, &row, now).await?;
        return Ok(Leased::Ended(row.job.state));
    }
    if let Some((owner, until)) = row.held_by_another(&owner, now) {
        return Ok(Leased::Taken { owner, until });
    }
    let until = now + ttl;
    session
        .execute(Query::with(
            "update dead_letter_jobs set owner = $2, leased_until = $3 where id = $1",
            [id.into(), owner.as_ref().into(), until.into()],
        ))
        .await?;
    Ok(Leased::Yes(until))
}

pub(super) async fn release<S: Session>(session: &mut S, id: &str, owner: &str) -> Result<(), Error> {
    let Some(row) = job_rows::lock(session, id).await? else { return Ok(()) };
    if row.job.owner.as_deref() != Some(&*bounded(owner, KEY_BYTES)) {
        return Ok(());
    }
    if row.job.state != JobState::Running {
        // The runner settled what it did; the rest it did not begin.
        session.execute(Query::with("delete from dead_letter_job_items where job = $1 and state = 'live'", [id.into()])).await?;
    }
    session
        .execute(Query::with("update dead_letter_jobs set owner = null, leased_until = null where id = $1", [id.into()]))
        .await?;
    Ok(())
}

pub(super) async fn next<S: Session>(session: &mut S, id: &str, owner: &str, max: u32) -> Result<Vec<Item>, Error> {
    let Some(row) = job_rows::lock(session, id).await? else { return Ok(Vec::new()) };
    let now = session.now().await?;
    if !row.is_run_by(&bounded(owner, KEY_BYTES), now) {
        return Ok(Vec::new());
    }
    let mut handed = row.handed;
    let (items, gone) = oldest::<S>(session, id, max).await?;
    if !gone.is_empty() {
        // Entries deleted behind the program's back, or settled by a runner that came back late: the job must still end.
        let gone: Vec<_> =
            gone.into_iter().map(|seq| (seq, ItemOutcome::Failed("the entry is gone or settled already".to_owned()))).collect();
        settle(session, id, &gone).await?;
    }
    let ids: Vec<String> = items.iter().map(|item| item.letter.clone()).collect();
    let text = format!("select {}, {} from {} where id {}", entry::COLUMNS, entry::ORIGINAL, S::WHOLE, S::any(1));
    let mut letters = HashMap::new();
    for row in session.fetch(Query::with(text, [ids.into()])).await? {
        let letter = entry::letter(&row)?;
        letters.insert(letter.entry.id.clone(), letter);
    }
    let mut whole = Vec::with_capacity(items.len());
    for item in items {
        if let Some(letter) = letters.remove(&item.letter) {
            handed = handed.max(item.seq);
            whole.push(Item { seq: item.seq.unsigned_abs(), copy: item.copy, letter });
        }
    }
    if handed > row.handed {
        session.execute(Query::with("update dead_letter_jobs set handed = $2 where id = $1", [id.into(), handed.into()])).await?;
    }
    Ok(whole)
}

struct Bare {
    seq: i64,
    copy: u32,
    letter: String,
}

/// The oldest live items that fit into an answer, and those whose entry is not there to be settled.
async fn oldest<S: Session>(session: &mut S, id: &str, max: u32) -> Result<(Vec<Bare>, Vec<u64>), Error> {
    let live = Query::with(
        "select seq, copy, letter from dead_letter_job_items where job = $1 and state = 'live' order by seq limit $2",
        [id.into(), max.into()],
    );
    let bare = |row: &S::Row| {
        let copy = u32::try_from(row.int("copy")?).unwrap_or(u32::MAX);
        Ok(Bare { seq: row.int("seq")?, copy, letter: row.text("letter")? })
    };
    let mut items = session.fetch(live).await?.iter().map(bare).collect::<Result<Vec<_>, sqlx::Error>>()?;

    let letters: Vec<String> = items.iter().map(|item| item.letter.clone()).collect();
    let text =
        format!("select id, cast(length(body) as bigint) as size from {} where id {} and settled is null", S::WHOLE, S::any(1));
    let mut sizes = HashMap::new();
    for row in session.fetch(Query::with(text, [letters.into()])).await? {
        sizes.insert(row.text("id")?, row.count("size")?);
    }
    let gone = items.iter().filter(|item| !sizes.contains_key(&item.letter)).map(|item| item.seq.unsigned_abs()).collect();
    items.retain(|item| sizes.contains_key(&item.letter));
    items.truncate(fitting(items.iter().map(|item| sizes.get(&item.letter).copied().unwrap_or_default())));
    Ok((items, gone))
}

pub(super) async fn settle<S: Session>(session: &mut S, id: &str, outcomes: &[(u64, ItemOutcome)]) -> Result<Job, Error> {
    let row = job_rows::lock(session, id).await?.ok_or_else(unknown_job)?;
    let mut done = Vec::new();
    let mut failed = 0u64;
    for (seq, outcome) in outcomes {
        let seq = i64::try_from(*seq).unwrap_or(i64::MAX);
        match outcome {
            ItemOutcome::Done => done.push(seq),
            ItemOutcome::Failed(error) => {
                failed += session
                    .execute(Query::with(
                        "update dead_letter_job_items set state = 'failed', error = $3
                         where job = $1 and seq = $2 and state <> 'failed'",
                        [id.into(), seq.into(), bounded(error, WORDS_BYTES).into_owned().into()],
                    ))
                    .await?;
            }
        }
    }
    let mut letters = Vec::new();
    if !done.is_empty() {
        let text = format!(
            "delete from dead_letter_job_items where job = $1 and seq {} and state <> 'failed' returning letter",
            S::any(2)
        );
        for row in session.fetch(Query::with(text, [id.into(), done.into()])).await? {
            letters.push(row.text("letter")?);
        }
    }
    record(session, row.job, letters, failed).await
}

pub(super) async fn discard_next<S: Session>(session: &mut S, id: &str, owner: &str, max: u32) -> Result<Job, Error> {
    let row = job_rows::lock(session, id).await?.ok_or_else(unknown_job)?;
    if row.job.kind != JobKind::Discard {
        return Err(Error::Refused("a job that discards nothing".to_owned()));
    }
    let now = session.now().await?;
    if !row.is_run_by(&bounded(owner, KEY_BYTES), now) {
        return Ok(row.job);
    }
    let rows = session
        .fetch(Query::with(
            "delete from dead_letter_job_items where job = $1 and state = 'live' and seq in
                 (select seq from dead_letter_job_items where job = $1 and state = 'live' order by seq limit $2)
             returning letter",
            [id.into(), max.into()],
        ))
        .await?;
    let letters = rows.iter().map(|row| row.text("letter")).collect::<Result<_, _>>()?;
    record(session, row.job, letters, 0).await
}

/// Marks entries whose items were just removed, counts, and ends the job when nothing is left.
async fn record<S: Session>(session: &mut S, mut job: Job, letters: Vec<String>, failed: u64) -> Result<Job, Error> {
    let now = session.now().await?;
    job.done += letters.len() as u64;
    job.failed += failed;
    if !letters.is_empty() {
        let settled = match job.kind {
            JobKind::Replay => "replayed",
            JobKind::Discard => "discarded",
        };
        let text =
            format!("update dead_letters set settled = $2, settled_at = $3, job = $4 where id {} and settled is null", S::any(1));
        session.execute(Query::with(text, [letters.into(), settled.into(), now.into(), job.id.as_str().into()])).await?;
    }
    let ends = job.state == JobState::Running && job.left() == 0;
    if ends {
        job = Job { state: JobState::Done, finished_at: Some(now), owner: None, leased_until: None, ..job };
        let detail = json!({ "total": job.total, "done": job.done, "failed": job.failed });
        audit::record(session, now, &format!("{}.done", job.kind), &job.id, &job.by, job.note.as_deref(), detail).await?;
    }
    session
        .execute(Query::with(
            "update dead_letter_jobs set done = $2, failed = $3, state = $4, finished_at = $5, owner = $6, leased_until = $7
             where id = $1",
            [
                job.id.as_str().into(),
                job.done.into(),
                job.failed.into(),
                job.state.as_str().into(),
                job.finished_at.into(),
                job.owner.clone().into(),
                job.leased_until.into(),
            ],
        ))
        .await?;
    Ok(job)
}

pub(super) async fn cancel<S: Session>(session: &mut S, id: &str, by: &str, note: Option<&str>) -> Result<Option<Job>, Error> {
    let Some(row) = job_rows::lock(session, id).await? else { return Ok(None) };
    let now = session.now().await?;
    if row.job.state != JobState::Running {
        drop_unheld(session, &row, now).await?;
        return Ok(Some(row.job));
    }
    let (by, note) = (bounded(by, KEY_BYTES), note.map(|n| bounded(n, WORDS_BYTES)));
    session
        .execute(Query::with(
            "delete from dead_letter_job_items where job = $1 and state = 'live' and seq > $2",
            [id.into(), row.handed.into()],
        ))
        .await?;
    drop_unheld(session, &row, now).await?;
    session
        .execute(Query::with(
            "update dead_letter_jobs set state = 'cancelled', finished_at = $2, cancelled_by = $3 where id = $1",
            [id.into(), now.into(), by.as_ref().into()],
        ))
        .await?;
    let job = row.job;
    let detail = json!({ "total": job.total, "done": job.done, "failed": job.failed });
    audit::record(session, now, &format!("{}.cancelled", job.kind), id, &by, note.as_deref(), detail).await?;
    Ok(job_rows::find(session, id).await?.map(|row| row.job))
}

/// Lets go of what a lost runner had of a job that is or becomes cancelled. The items stay on record: what they name
/// may have been published.
async fn drop_unheld<S: Session>(session: &mut S, row: &job_rows::JobRow, now: Timestamp) -> Result<(), Error> {
    if row.held(now).is_none() {
        session.execute(Query::with(format!("{DROP} and job = $1"), [row.job.id.as_str().into()])).await?;
    }
    Ok(())
}

/// The same for every cancelled job.
pub(super) async fn drop_all_unheld<S: Session>(session: &mut S) -> Result<(), Error> {
    let now = session.now().await?;
    let of_cancelled = "and job in (select id from dead_letter_jobs where state = 'cancelled'
                                    and (leased_until is null or leased_until <= $1))";
    session.execute(Query::with(format!("{DROP} {of_cancelled}"), [now.into()])).await?;
    Ok(())
}

const DROP: &str = "update dead_letter_job_items set state = 'dropped', \
     error = 'the job was cancelled while a runner that never came back had this entry: it may have gone out' \
     where state = 'live'";

fn unknown_job() -> Error {
    Error::Refused("no such job".to_owned())
}
