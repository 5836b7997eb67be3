//! What the fleet has learnt.

use async_trait::async_trait;

use super::{Backend, Mode, Query, Row as _, Session};
use crate::{Error, Learning, LearntRow};

#[async_trait]
impl<B: Backend> Learning for B {
    async fn keep_learnt(&self, rows: &[LearntRow]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        call!(self, Mode::Write, |session| keep(session, rows))
    }

    async fn learnt(&self) -> Result<Vec<LearntRow>, Error> {
        call!(self, Mode::Read, |session| async { Ok(read(session).await?) })
    }
}

async fn keep<S: Session>(session: &mut S, rows: &[LearntRow]) -> Result<(), Error> {
    // Always in the same order: two workers that keep the same scopes wait for each other, never in a circle.
    let mut rows: Vec<&LearntRow> = rows.iter().collect();
    rows.sort_by_key(|r| (&r.account, &r.destination));
    for row in rows {
        let destination = row.destination.as_deref().unwrap_or("");
        session
            .execute(Query::with(
                "insert into learnt (account, destination, learnt, at_us) values ($1, $2, $3, $4)
                 on conflict (account, destination) do update set learnt = excluded.learnt, at_us = excluded.at_us
                 where learnt.at_us <= excluded.at_us",
                [row.account.as_str().into(), destination.into(), row.learnt.clone().into(), row.at_us.into()],
            ))
            .await?;
    }
    Ok(())
}

async fn read<S: Session>(session: &mut S) -> Result<Vec<LearntRow>, sqlx::Error> {
    let query = Query::new("select account, destination, learnt, at_us from learnt order by account, destination");
    let row = |row: &S::Row| {
        let destination = row.text("destination")?;
        Ok(LearntRow {
            account: row.text("account")?,
            destination: (!destination.is_empty()).then_some(destination),
            learnt: row.json("learnt")?,
            at_us: row.count("at_us")?,
        })
    };
    session.fetch(query).await?.iter().map(row).collect()
}
