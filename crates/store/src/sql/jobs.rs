//! Jobs over dead letters, each call in a transaction of its own.

use std::time::Duration;

use async_trait::async_trait;

use super::{Backend, Mode, Query, Row as _, Session, job_rows, plan, purge, settle};
use crate::{Error, FailedItem, Filter, Item, ItemOutcome, Job, Jobs, Leased, NewJob, Plan, Purge};

#[async_trait]
impl<B: Backend> Jobs for B {
    async fn plan(&self, filter: &Filter) -> Result<Plan, Error> {
        call!(self, Mode::Snapshot, |session| plan::plan(session, filter))
    }

    async fn create(&self, new: &NewJob) -> Result<Option<Job>, Error> {
        call!(self, Mode::Write, |session| settle::drop_all_unheld(session))?;
        call!(self, Mode::Write, |session| plan::create(session, new))
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, Error> {
        call!(self, Mode::Read, |session| async { Ok(job_rows::find(session, id).await?.map(|row| row.job)) })
    }

    async fn jobs(&self, limit: u32) -> Result<Vec<Job>, Error> {
        let mut query = job_rows::select("order by created_at desc, id desc limit ");
        query.bind(limit);
        call!(self, Mode::Read, |session| job_rows::many(session, query))
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Job>, Error> {
        call!(self, Mode::Read, |session| abandoned(session, limit))
    }

    async fn lease(&self, id: &str, owner: &str, ttl: Duration) -> Result<Leased, Error> {
        call!(self, Mode::Write, |session| settle::lease(session, id, owner, ttl))
    }

    async fn release(&self, id: &str, owner: &str) -> Result<(), Error> {
        call!(self, Mode::Write, |session| settle::release(session, id, owner))
    }

    async fn next(&self, id: &str, owner: &str, max: u32) -> Result<Vec<Item>, Error> {
        call!(self, Mode::Write, |session| settle::next(session, id, owner, max))
    }

    async fn settle(&self, id: &str, _owner: &str, outcomes: &[(u64, ItemOutcome)]) -> Result<Job, Error> {
        call!(self, Mode::Write, |session| settle::settle(session, id, outcomes))
    }

    async fn discard_next(&self, id: &str, owner: &str, max: u32) -> Result<Job, Error> {
        call!(self, Mode::Write, |session| settle::discard_next(session, id, owner, max))
    }

    async fn cancel(&self, id: &str, by: &str, note: Option<&str>) -> Result<Option<Job>, Error> {
        call!(self, Mode::Write, |session| settle::cancel(session, id, by, note))
    }

    async fn failures(&self, id: &str, limit: u32) -> Result<Vec<FailedItem>, Error> {
        call!(self, Mode::Read, |session| failures(session, id, limit))
    }

    async fn purge(&self, what: &Purge) -> Result<u64, Error> {
        purge::purge(self, what).await
    }
}

async fn abandoned<S: Session>(session: &mut S, limit: u32) -> Result<Vec<Job>, Error> {
    let now = session.now().await?;
    let mut query = job_rows::select("where state = 'running' and (leased_until is null or leased_until <= ");
    query.bind(now).push(") order by created_at, id limit ").bind(limit);
    job_rows::many(session, query).await
}

async fn failures<S: Session>(session: &mut S, id: &str, limit: u32) -> Result<Vec<FailedItem>, Error> {
    let query = Query::with(
        "select seq, letter, coalesce(error, '') as error from dead_letter_job_items
         where job = $1 and state <> 'live' order by seq limit $2",
        [id.replace('\0', "").into(), limit.into()],
    );
    let item = |row: &S::Row| Ok(FailedItem { seq: row.count("seq")?, id: row.text("letter")?, error: row.text("error")? });
    Ok(session.fetch(query).await?.iter().map(item).collect::<Result<_, sqlx::Error>>()?)
}
