//! Entries, one after the other in the caller's transaction.

use std::time::SystemTime;

use paceline_core::Timestamp;
use serde_json::Value as Json;

use super::SqliteSession;
use crate::{
    StoredDeadLetter, Written,
    sql::{Query, Row as _, Session as _, Value},
    text::{KEY_BYTES, WORDS_BYTES, bounded, without_nul},
};

const ENTRY: &str = "
insert into dead_letters
    (id, message_id, recipient, class, destination, domain, account, tenant, stream, reason, field, detail,
     enqueued_at, first_attempt_at, last_attempt_at, died_at, attempts, error_code, http_status, provider_message,
     replay, stored_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
on conflict (id) do nothing
returning seq";

const ORIGINAL: &str =
    "insert into dead_letter_originals (letter, amqp_message_id, content_type, headers, body) values ($1, $2, $3, $4, $5)";

const SAME_BODY: &str = "
select count(*) as count from dead_letters join dead_letter_originals on letter = seq where id = $1 and body = $2";

pub(super) async fn insert(session: &mut SqliteSession, letters: &[StoredDeadLetter]) -> Result<Vec<Written>, sqlx::Error> {
    let now = Timestamp::from(SystemTime::now());
    let mut written = Vec::with_capacity(letters.len());
    for letter in letters {
        let rows = session.fetch(Query::with(ENTRY, entry(letter, now))).await?;
        written.push(match rows.first() {
            Some(row) => {
                let headers = without_nul(&Json::Object(letter.headers.clone()));
                let original = [
                    row.int("seq")?.into(),
                    key(letter.amqp_message_id.as_deref()),
                    key(letter.content_type.as_deref()),
                    headers.into(),
                    letter.body.clone().into(),
                ];
                session.execute(Query::with(ORIGINAL, original)).await?;
                Written::New
            }
            None => {
                let same = Query::with(SAME_BODY, [letter.entry.id.as_str().into(), letter.body.clone().into()]);
                let rows = session.fetch(same).await?;
                if rows.first().map_or(Ok(0), |row| row.count("count"))? == 1 { Written::Known } else { Written::IdTaken }
            }
        });
    }
    Ok(written)
}

fn entry(letter: &StoredDeadLetter, now: Timestamp) -> [Value; 22] {
    let entry = &letter.entry;
    let error = entry.last_error.as_ref();
    [
        key(Some(&entry.id)),
        key(entry.message_id.as_deref()),
        key(entry.to.as_deref()),
        key(entry.class.map(|c| c.as_str())),
        key(entry.destination.as_deref()),
        key(entry.domain.as_deref()),
        key(entry.account.as_deref()),
        key(entry.tenant.as_deref()),
        key(entry.stream.as_deref()),
        key(Some(entry.reason.as_str())),
        words(entry.field.as_deref()),
        words(entry.detail.as_deref()),
        entry.enqueued_at.into(),
        entry.first_attempt_at.into(),
        entry.last_attempt_at.into(),
        entry.died_at.into(),
        entry.attempts.into(),
        key(error.map(|e| e.code.as_str())),
        error.and_then(|e| e.http_status).map(i64::from).into(),
        words(error.map(|e| e.provider_message.as_str())),
        key(entry.replay.as_deref()),
        now.into(),
    ]
}

fn key(text: Option<&str>) -> Value {
    Value::Text(text.map(|t| bounded(t, KEY_BYTES).into_owned()))
}

fn words(text: Option<&str>) -> Value {
    Value::Text(text.map(|t| bounded(t, WORDS_BYTES).into_owned()))
}
