//! Rows to entries, and filters to SQL.

use paceline_core::{DeadLetter, Timestamp, dead_letter::DeadLetterError};
use sqlx::{Postgres, QueryBuilder, Row, postgres::PgRow};

use super::time::Tz;
use crate::{
    Filter,
    text::{KEY_BYTES, bounded},
};

/// The columns [`entry`] reads.
pub(super) const ENTRY_COLUMNS: &str = "id, message_id, recipient, class, destination, domain, account, tenant, stream, reason, \
     field, detail, enqueued_at, first_attempt_at, last_attempt_at, died_at, attempts, error_code, http_status, \
     provider_message, replay";

pub(super) fn entry(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    let time = |name: &str| row.try_get::<Option<Tz>, _>(name).map(|t| t.map(|t| t.0));
    let code: Option<String> = row.try_get("error_code")?;
    let last_error = match code {
        None => None,
        Some(code) => Some(DeadLetterError {
            code,
            http_status: row.try_get::<Option<i32>, _>("http_status")?.and_then(|s| u16::try_from(s).ok()),
            provider_message: row.try_get::<Option<String>, _>("provider_message")?.unwrap_or_default(),
        }),
    };
    Ok(DeadLetter {
        id: row.try_get("id")?,
        message_id: row.try_get("message_id")?,
        to: row.try_get("recipient")?,
        class: row.try_get::<Option<String>, _>("class")?.and_then(|c| c.parse().ok()),
        destination: row.try_get("destination")?,
        domain: row.try_get("domain")?,
        account: row.try_get("account")?,
        tenant: row.try_get("tenant")?,
        stream: row.try_get("stream")?,
        reason: reason(row)?,
        field: row.try_get("field")?,
        detail: row.try_get("detail")?,
        enqueued_at: time("enqueued_at")?.unwrap_or_default(),
        first_attempt_at: time("first_attempt_at")?,
        last_attempt_at: time("last_attempt_at")?,
        died_at: time("died_at")?.unwrap_or_default(),
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
        last_error,
        replay: row.try_get("replay")?,
    })
}

pub(super) fn reason(row: &PgRow) -> Result<paceline_core::Reason, sqlx::Error> {
    let text: &str = row.try_get("reason")?;
    text.parse().map_err(|_| sqlx::Error::Decode("an entry has a reason this version does not know: update it".into()))
}

pub(super) fn time(row: &PgRow, name: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get::<Tz, _>(name).map(|t| t.0)
}

/// Adds `where …`, for a query on `dead_letters`.
pub(super) fn push_where(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    let key = |text: &str| bounded(text, KEY_BYTES).into_owned();
    query.push(" where true");
    if let Some(reason) = filter.reason {
        query.push(" and reason = ").push_bind(reason.as_str());
    }
    if let Some(class) = filter.class {
        query.push(" and class = ").push_bind(class.as_str());
    }
    for (column, value) in [("destination", &filter.destination), ("account", &filter.account), ("tenant", &filter.tenant)] {
        if let Some(value) = value {
            query.push(format_args!(" and {column} = ")).push_bind(key(value));
        }
    }
    if let Some(since) = filter.since {
        query.push(" and died_at >= ").push_bind(Tz(since));
    }
    if let Some(until) = filter.until {
        query.push(" and died_at < ").push_bind(Tz(until));
    }
    if let Some(id) = &filter.id {
        query.push(" and (id = ").push_bind(key(id)).push(" or message_id = ").push_bind(key(id)).push(")");
    }
}

/// Adds the order of lists and the limit.
pub(super) fn push_latest(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    query.push(" order by died_at desc, id");
    if let Some(limit) = filter.limit {
        query.push(" limit ").push_bind(i64::from(limit));
    }
}
