//! The trail of what operators did.

use async_trait::async_trait;
use paceline_core::Timestamp;
use serde_json::Value as Json;

use super::{Backend, Mode, Query, Row as _, Session, unknown};
use crate::{
    Audit, AuditEntry, Error,
    text::{KEY_BYTES, bounded},
};

#[async_trait]
impl<B: Backend> Audit for B {
    async fn audit(&self, subject: Option<&str>, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        call!(self, Mode::Read, |session| async { Ok(read(session, subject, limit).await?) })
    }
}

async fn read<S: Session>(session: &mut S, subject: Option<&str>, limit: u32) -> Result<Vec<AuditEntry>, sqlx::Error> {
    let mut query = Query::new("select at, action, subject, actor, note, detail from operator_audit");
    if let Some(subject) = subject {
        query.push(" where subject = ").bind(bounded(subject, KEY_BYTES).into_owned());
    }
    query.push(" order by id desc limit ").bind(limit);
    let entry = |row: &S::Row| {
        Ok(AuditEntry {
            at: row.time("at")?,
            action: row.text("action")?,
            subject: row.text("subject")?,
            by: row.text("actor")?,
            note: row.opt_text("note")?,
            detail: match row.json("detail")? {
                Json::Object(map) => map,
                _ => return Err(unknown("an audit entry")),
            },
        })
    };
    session.fetch(query).await?.iter().map(entry).collect()
}

/// Adds an entry; the answer is its number. Texts are bounded by the caller.
pub(super) async fn record<S: Session>(
    session: &mut S,
    now: Timestamp,
    action: &str,
    subject: &str,
    by: &str,
    note: Option<&str>,
    detail: Json,
) -> Result<i64, Error> {
    let rows = session
        .fetch(Query::with(
            "insert into operator_audit (at, action, subject, actor, note, detail) values ($1, $2, $3, $4, $5, $6) returning id",
            [now.into(), action.into(), subject.into(), by.into(), note.into(), detail.into()],
        ))
        .await?;
    Ok(rows.first().map_or(Ok(0), |row| row.int("id"))?)
}

/// Brings the numbers of an entry up to date while what it tells goes on.
pub(super) async fn update<S: Session>(session: &mut S, id: i64, detail: Json) -> Result<(), Error> {
    session.execute(Query::with("update operator_audit set detail = $2 where id = $1", [id.into(), detail.into()])).await?;
    Ok(())
}
