//! Dead letters: kept, listed, paged through.

use async_trait::async_trait;

use super::{Backend, Mode, Query, Row as _, Session, entry, filter, fitting, stats};
use crate::{
    BurstRule, DeadLetters, Error, Filter, Kept, Listed, MAX_ID_BYTES, Position, Stats, StoredDeadLetter, Written,
    text::{KEY_BYTES, bounded},
};

#[async_trait]
impl<B: Backend> DeadLetters for B {
    async fn insert(&self, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, Error> {
        let usable = |id: &str| !id.is_empty() && id.len() <= MAX_ID_BYTES && !id.contains('\0');
        if !letters.iter().all(|l| usable(&l.entry.id)) {
            return Err(Error::Refused("an id that is empty, too long or holds NUL".to_owned()));
        }
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        call!(self, Mode::Write, |session| async { Ok(session.insert(letters).await?) })
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<Listed>, Error> {
        call!(self, Mode::Read, |session| list(session, filter))
    }

    async fn page(&self, filter: &Filter, after: Option<&Position>, max: u32) -> Result<Vec<Kept>, Error> {
        call!(self, Mode::Snapshot, |session| page(session, filter, after, max))
    }

    async fn get(&self, id: &str) -> Result<Option<StoredDeadLetter>, Error> {
        call!(self, Mode::Read, |session| get(session, id))
    }

    async fn stats(&self, filter: &Filter, rule: &BurstRule) -> Result<Stats, Error> {
        call!(self, Mode::Snapshot, |session| async { Ok(stats::read(session, filter, rule).await?) })
    }
}

async fn list<S: Session>(session: &mut S, filter: &Filter) -> Result<Vec<Listed>, Error> {
    let mut query = Query::new(format!("select {} from dead_letters", entry::COLUMNS));
    filter::push_where(&mut query, filter);
    filter::push_state(&mut query, filter.state);
    filter::push_latest(&mut query, filter.limit);
    let rows = session.fetch(query).await?;
    Ok(rows.iter().map(entry::listed).collect::<Result<_, _>>()?)
}

async fn get<S: Session>(session: &mut S, id: &str) -> Result<Option<StoredDeadLetter>, Error> {
    let text = format!("select {}, {} from {} where id = $1", entry::COLUMNS, entry::ORIGINAL, S::WHOLE);
    let rows = session.fetch(Query::with(text, [bounded(id, KEY_BYTES).into_owned().into()])).await?;
    Ok(rows.first().map(entry::letter).transpose()?)
}

async fn page<S: Session>(session: &mut S, filter: &Filter, after: Option<&Position>, max: u32) -> Result<Vec<Kept>, Error> {
    // Sizes first: how many bodies make an answer is known before one is read.
    let mut query = Query::new(format!("select id, cast(length(body) as bigint) as size from {}", S::WHOLE));
    filter::push_where(&mut query, filter);
    filter::push_state(&mut query, filter.state);
    if let Some(after) = after {
        filter::push_after(&mut query, after);
    }
    filter::push_latest(&mut query, Some(max));
    let rows = session.fetch(query).await?;
    let sizes = rows.iter().map(|row| row.count("size")).collect::<Result<Vec<_>, _>>()?;
    let ids = rows[..fitting(sizes.into_iter())].iter().map(|row| row.text("id")).collect::<Result<Vec<_>, _>>()?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = Query::new(format!("select {}, {} from {} where id ", entry::COLUMNS, entry::ORIGINAL, S::WHOLE));
    let n = query.value(ids);
    query.push(&S::any(n));
    filter::push_latest(&mut query, None);
    let rows = session.fetch(query).await?;
    Ok(rows.iter().map(entry::kept).collect::<Result<_, _>>()?)
}
