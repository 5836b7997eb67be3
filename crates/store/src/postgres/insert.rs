//! Many entries in one statement.

use std::collections::HashSet;

use paceline_core::{DeadLetter, Timestamp};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use super::time::Tz;
use crate::{
    StoredDeadLetter, Written,
    text::{KEY_BYTES, WORDS_BYTES, bounded, without_nul},
};

/// One statement for any number of rows: an array a column.
const INSERT: &str = "
insert into dead_letters
    (id, message_id, recipient, class, destination, domain, account, tenant, stream, reason, field, detail,
     enqueued_at, first_attempt_at, last_attempt_at, died_at, attempts, error_code, http_status, provider_message,
     replay, amqp_message_id, content_type, headers, body)
select * from unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[],
    $16::timestamptz[], $17::bigint[], $18::text[], $19::integer[], $20::text[], $21::text[], $22::text[],
    $23::text[], $24::jsonb[], $25::bytea[])
on conflict (id) do nothing
returning id";

pub(super) async fn insert(connection: &mut PgConnection, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, sqlx::Error> {
    // Every process inserts in the same order: two of them with the same ids wait for each other, never in a circle.
    let mut order: Vec<usize> = (0..letters.len()).collect();
    order.sort_by(|a, b| letters[*a].entry.id.cmp(&letters[*b].entry.id));
    let text = |max: usize, of: fn(&StoredDeadLetter) -> Option<&str>| -> Vec<Option<String>> {
        order.iter().map(|i| of(&letters[*i]).map(|t| bounded(t, max).into_owned())).collect()
    };
    let key = |of| text(KEY_BYTES, of);
    let words = |of| text(WORDS_BYTES, of);
    let time = |of: fn(&DeadLetter) -> Option<Timestamp>| -> Vec<Option<Tz>> {
        order.iter().map(|i| of(&letters[*i].entry).map(Tz)).collect()
    };
    let attempts: Vec<i64> = order.iter().map(|i| i64::from(letters[*i].entry.attempts)).collect();
    let status: Vec<Option<i32>> =
        order.iter().map(|i| letters[*i].entry.last_error.as_ref()?.http_status.map(i32::from)).collect();
    let headers: Vec<Json<Value>> =
        order.iter().map(|i| Json(without_nul(&Value::Object(letters[*i].headers.clone())))).collect();
    let bodies: Vec<&[u8]> = order.iter().map(|i| &*letters[*i].body).collect();

    let inserted: Vec<String> = sqlx::query_scalar(INSERT)
        .bind(key(|l| Some(&l.entry.id)))
        .bind(key(|l| l.entry.message_id.as_deref()))
        .bind(key(|l| l.entry.to.as_deref()))
        .bind(key(|l| l.entry.class.map(|c| c.as_str())))
        .bind(key(|l| l.entry.destination.as_deref()))
        .bind(key(|l| l.entry.domain.as_deref()))
        .bind(key(|l| l.entry.account.as_deref()))
        .bind(key(|l| l.entry.tenant.as_deref()))
        .bind(key(|l| l.entry.stream.as_deref()))
        .bind(key(|l| Some(l.entry.reason.as_str())))
        .bind(words(|l| l.entry.field.as_deref()))
        .bind(words(|l| l.entry.detail.as_deref()))
        .bind(time(|e| Some(e.enqueued_at)))
        .bind(time(|e| e.first_attempt_at))
        .bind(time(|e| e.last_attempt_at))
        .bind(time(|e| Some(e.died_at)))
        .bind(attempts)
        .bind(key(|l| l.entry.last_error.as_ref().map(|e| e.code.as_str())))
        .bind(status)
        .bind(words(|l| l.entry.last_error.as_ref().map(|e| e.provider_message.as_str())))
        .bind(key(|l| l.entry.replay.as_deref()))
        .bind(key(|l| l.amqp_message_id.as_deref()))
        .bind(key(|l| l.content_type.as_deref()))
        .bind(headers)
        .bind(bodies)
        .fetch_all(&mut *connection)
        .await?;

    let mut written = vec![Written::Known; letters.len()];
    let mut new: HashSet<String> = inserted.into_iter().collect();
    let mut old: Vec<usize> = Vec::new();
    for i in order {
        if new.remove(&letters[i].entry.id) {
            written[i] = Written::New;
        } else {
            old.push(i);
        }
    }
    for i in with_another_body(connection, letters, &old).await? {
        written[i] = Written::IdTaken;
    }
    Ok(written)
}

/// Which of `old`, whose ids were there before, differ from what is stored.
async fn with_another_body(
    connection: &mut PgConnection,
    letters: &[StoredDeadLetter],
    old: &[usize],
) -> Result<Vec<usize>, sqlx::Error> {
    if old.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = old.iter().map(|i| letters[*i].entry.id.as_str()).collect();
    let bodies: Vec<&[u8]> = old.iter().map(|i| &*letters[*i].body).collect();
    let differing: Vec<i64> = sqlx::query_scalar(
        "select given.nth from unnest($1::text[], $2::bytea[]) with ordinality as given (id, body, nth)
         join dead_letters stored on stored.id = given.id where stored.body <> given.body",
    )
    .bind(ids)
    .bind(bodies)
    .fetch_all(connection)
    .await?;
    // `nth` counts from 1.
    Ok(differing.into_iter().filter_map(|nth| old.get(usize::try_from(nth - 1).ok()?).copied()).collect())
}
