//! Rows to entries.

use bytes::Bytes;
use paceline_core::{DeadLetter, Reason, Suppress, dead_letter::DeadLetterError};
use serde_json::Value;

use super::{Row, unknown};
use crate::{JobKind, Kept, Listed, State, Status, StoredDeadLetter};

/// The columns [`entry`] and [`status`] read, of `dead_letters`.
pub(super) const COLUMNS: &str = "id, message_id, recipient, class, destination, domain, account, tenant, stream, reason, \
     field, detail, enqueued_at, first_attempt_at, last_attempt_at, died_at, attempts, error_code, \
     cast(http_status as bigint) as http_status, provider_message, replay, settled, settled_at, dead_letters.job as job, \
     (select i.job from dead_letter_job_items i where i.letter = dead_letters.id and i.state = 'live') as live_job";

/// What [`letter`] reads besides, of the original.
pub(super) const ORIGINAL: &str = "amqp_message_id, content_type, headers, body";

pub(super) fn listed(row: &impl Row) -> Result<Listed, sqlx::Error> {
    Ok(Listed { entry: entry(row)?, status: status(row)? })
}

pub(super) fn kept(row: &impl Row) -> Result<Kept, sqlx::Error> {
    Ok(Kept { letter: letter(row)?, status: status(row)? })
}

pub(super) fn letter(row: &impl Row) -> Result<StoredDeadLetter, sqlx::Error> {
    let headers = match row.json("headers")? {
        Value::Object(map) => map,
        _ => return Err(unknown("headers")),
    };
    Ok(StoredDeadLetter {
        entry: entry(row)?,
        amqp_message_id: row.opt_text("amqp_message_id")?,
        content_type: row.opt_text("content_type")?,
        headers,
        body: Bytes::from(row.bytes("body")?),
    })
}

pub(super) fn reason(row: &impl Row) -> Result<Reason, sqlx::Error> {
    row.text("reason")?.parse().map_err(|_| unknown("a reason"))
}

fn entry(row: &impl Row) -> Result<DeadLetter, sqlx::Error> {
    let last_error = match row.opt_text("error_code")? {
        None => None,
        Some(code) => Some(DeadLetterError {
            code,
            http_status: row.opt_int("http_status")?.and_then(|s| u16::try_from(s).ok()),
            provider_message: row.opt_text("provider_message")?.unwrap_or_default(),
        }),
    };
    Ok(DeadLetter {
        id: row.text("id")?,
        message_id: row.opt_text("message_id")?,
        to: row.opt_text("recipient")?,
        class: row.opt_text("class")?.and_then(|c| c.parse().ok()),
        destination: row.opt_text("destination")?,
        domain: row.opt_text("domain")?,
        account: row.opt_text("account")?,
        tenant: row.opt_text("tenant")?,
        stream: row.opt_text("stream")?,
        reason: reason(row)?,
        field: row.opt_text("field")?,
        detail: row.opt_text("detail")?,
        enqueued_at: row.time("enqueued_at")?,
        first_attempt_at: row.opt_time("first_attempt_at")?,
        last_attempt_at: row.opt_time("last_attempt_at")?,
        died_at: row.time("died_at")?,
        attempts: u32::try_from(row.int("attempts")?).unwrap_or(u32::MAX),
        last_error,
        replay: row.opt_text("replay")?,
        suppress: Suppress::No,
    })
}

fn status(row: &impl Row) -> Result<Status, sqlx::Error> {
    let (settled, live) = (row.opt_text("settled")?, row.opt_text("live_job")?);
    let state = match (settled.as_deref(), &live) {
        (Some("replayed"), _) => State::Replayed,
        (Some("discarded"), _) => State::Discarded,
        (Some(_), _) => return Err(unknown("a state")),
        (None, Some(job)) => match JobKind::of_id(job) {
            JobKind::Replay => State::Replaying,
            JobKind::Discard => State::Discarding,
        },
        (None, None) => State::Open,
    };
    Ok(Status { state, job: live.or(row.opt_text("job")?), settled_at: row.opt_time("settled_at")? })
}
