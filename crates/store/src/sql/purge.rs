//! Retention: what is old is deleted, a batch at a time.

use serde_json::json;

use super::{Backend, Mode, Query, Row as _, Session, audit, filter, in_time};
use crate::{
    Error, Purge,
    text::{KEY_BYTES, WORDS_BYTES, bounded},
};

/// Entries of one transaction.
const BATCH: u32 = 1000;

pub(super) async fn purge<B: Backend>(store: &B, purge: &Purge) -> Result<u64, Error> {
    if purge.dry_run {
        return in_time(store.call_timeout(), async {
            let mut session = store.begin(Mode::Read).await?;
            let answer = count(&mut session, purge).await;
            session.finish(answer).await
        })
        .await;
    }
    let mut deleted = 0;
    let mut trail = None;
    loop {
        let batch = in_time(store.call_timeout(), async {
            let mut session = store.begin(Mode::Write).await?;
            let answer = batch(&mut session, purge, deleted, &mut trail).await;
            session.finish(answer).await
        });
        let batch = batch.await?;
        deleted += batch;
        if batch < u64::from(BATCH) {
            break;
        }
    }
    in_time(store.call_timeout(), async {
        let mut session = store.begin(Mode::Write).await?;
        let answer = leftovers(&mut session, purge).await;
        session.finish(answer).await
    })
    .await?;
    Ok(deleted)
}

fn push_old(query: &mut Query, purge: &Purge) {
    query.push(" from dead_letters where died_at < ").bind(purge.before);
    filter::push_state(query, purge.state);
    query.push(" and not ").push(filter::LIVE);
}

async fn count<S: Session>(session: &mut S, purge: &Purge) -> Result<u64, Error> {
    let mut query = Query::new("select count(*) as count");
    push_old(&mut query, purge);
    let rows = session.fetch(query).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.count("count"))?)
}

async fn batch<S: Session>(session: &mut S, purge: &Purge, before: u64, trail: &mut Option<i64>) -> Result<u64, Error> {
    // Not while a job takes its selection.
    session.alone().await?;
    let mut query = Query::new("delete from dead_letters where id in (select id");
    push_old(&mut query, purge);
    query.push(" order by died_at limit ").bind(BATCH).push(")");
    let deleted = session.execute(query).await?;
    if deleted == 0 {
        return Ok(0);
    }
    let detail = json!({ "deleted": before + deleted, "before": purge.before.to_string(), "state": purge.state.to_string() });
    match *trail {
        Some(id) => audit::update(session, id, detail).await?,
        None => {
            let now = session.now().await?;
            let (by, note) = (bounded(&purge.by, KEY_BYTES), purge.note.as_deref().map(|n| bounded(n, WORDS_BYTES)));
            *trail = Some(audit::record(session, now, "purge", "dead-letters", &by, note.as_deref(), detail).await?);
        }
    }
    Ok(deleted)
}

/// What ended jobs and orders left behind.
async fn leftovers<S: Session>(session: &mut S, purge: &Purge) -> Result<(), Error> {
    session
        .execute(Query::with(
            "delete from dead_letter_job_items where state <> 'live'
             and job in (select id from dead_letter_jobs where finished_at < $1)",
            [purge.before.into()],
        ))
        .await?;
    session.execute(Query::with("delete from directives where until < $1 or removed_at < $1", [purge.before.into()])).await?;
    Ok(())
}
