//! What quotas have granted.

use async_trait::async_trait;

use super::{Backend, Mode, Query, Row as _, Session};
use crate::{Error, QuotaRow, Quotas};

#[async_trait]
impl<B: Backend> Quotas for B {
    async fn keep_quotas(&self, rows: &[QuotaRow]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        call!(self, Mode::Write, |session| keep(session, rows))
    }

    async fn quotas(&self) -> Result<Vec<QuotaRow>, Error> {
        call!(self, Mode::Read, |session| async { Ok(read(session).await?) })
    }
}

async fn keep<S: Session>(session: &mut S, rows: &[QuotaRow]) -> Result<(), Error> {
    // Always in the same order: two workers that keep the same quotas wait for each other, never in a circle.
    let mut rows: Vec<&QuotaRow> = rows.iter().collect();
    rows.sort_by_key(|r| (&r.quota, &r.by));
    for row in &rows {
        let by = row.by.as_deref().unwrap_or("");
        session
            .execute(Query::with(
                "insert into quotas (quota, grantor, kept, at_us, until_us) values ($1, $2, $3, $4, $5)
                 on conflict (quota, grantor) do update
                 set kept = excluded.kept, at_us = excluded.at_us, until_us = excluded.until_us
                 where quotas.at_us <= excluded.at_us",
                [row.quota.as_str().into(), by.into(), row.kept.clone().into(), row.at_us.into(), row.until_us.into()],
            ))
            .await?;
    }
    let now_us = rows.iter().map(|r| r.at_us).max().unwrap_or(0);
    session.execute(Query::with("delete from quotas where until_us <= $1", [now_us.into()])).await?;
    Ok(())
}

async fn read<S: Session>(session: &mut S) -> Result<Vec<QuotaRow>, sqlx::Error> {
    let query = Query::new("select quota, grantor, kept, at_us, until_us from quotas order by quota, grantor");
    let row = |row: &S::Row| {
        let by = row.text("grantor")?;
        Ok(QuotaRow {
            quota: row.text("quota")?,
            by: (!by.is_empty()).then_some(by),
            kept: row.json("kept")?,
            at_us: row.count("at_us")?,
            until_us: row.count("until_us")?,
        })
    };
    session.fetch(query).await?.iter().map(row).collect()
}
