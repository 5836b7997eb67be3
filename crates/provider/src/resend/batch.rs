//! `POST /emails/batch`.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::{Message, Outcome};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

use super::{Resend, Said, idempotency_key, outcome, request::Body, verdict};
use crate::{
    Attempt,
    answer::{Answer, id},
    batch::{Batches, Called, Prepared},
    json,
};

/// Most messages of a call.
pub(super) const MAX: usize = 100;
/// Longest body of a call: what Resend takes of one message with all its files.
const MAX_BYTES: usize = 40_000_000;
const VALIDATION: HeaderName = HeaderName::from_static("x-batch-validation");
/// What is well formed is sent, whatever the others are.
const PERMISSIVE: HeaderValue = HeaderValue::from_static("permissive");

#[async_trait]
impl Batches for Resend {
    async fn call(&self, attempts: &[Attempt<'_>], within: Duration) -> Called {
        let prepared = Prepared::of(attempts, Body::of);
        let messages = &prepared.messages;
        if messages.is_empty() {
            return prepared.merged(Called::Each(Vec::new()));
        }
        let called = match json::write(&prepared.bodies, messages.iter().map(|m| json::expected_len(m)).sum()) {
            Ok(bytes) if bytes.len() > MAX_BYTES && messages.len() > 1 => Called::Divide,
            Ok(bytes) => match headers(attempts) {
                Ok(headers) => {
                    let exchange = self.batch.post_within(bytes, headers, within).await;
                    exchange.outcomes(messages.len(), |answer| outcomes(answer, messages, SystemTime::now()))
                }
                Err(refused) => Called::all(&refused, messages.len()),
            },
            Err(refused) => Called::all(&refused, messages.len()),
        };
        prepared.merged(called)
    }
}

/// The key stands for exactly these messages: it protects a batch that is repeated as it was, and nothing else.
fn headers(attempts: &[Attempt<'_>]) -> Result<HeaderMap, Box<Outcome>> {
    let mut hash = Xxh3::new();
    for attempt in attempts {
        hash.update(attempt.idempotency_key.as_bytes());
        hash.update(b"\n");
    }
    let mut headers = idempotency_key(&format!("batch-{:032x}", hash.digest128()))?;
    headers.insert(VALIDATION, PERMISSIVE);
    Ok(headers)
}

/// What an answer to the request for `messages` means: `{"data": [{"id"}], "errors": [{"index", "message"}]}`, where `data`
/// has those that were taken, in order; or an error for all.
fn outcomes(answer: &Answer, messages: &[&Message], now: SystemTime) -> Called {
    if !answer.is_success() {
        return match messages.first() {
            Some(first) => Called::all(&outcome(answer, first, now), messages.len()),
            None => Called::Each(Vec::new()),
        };
    }
    let read = answer.object().and_then(|object| read(answer, &object, messages, now));
    read.unwrap_or_else(|| Called::all(&answer.strange_success(), messages.len()))
}

/// `None` where the answer does not tell who was taken.
fn read(answer: &Answer, object: &Map<String, Value>, messages: &[&Message], now: SystemTime) -> Option<Called> {
    let mut out: Vec<Option<Outcome>> = vec![None; messages.len()];
    for error in object.get("errors").and_then(Value::as_array).into_iter().flatten() {
        let index = usize::try_from(error.get("index")?.as_u64()?).ok()?;
        let words = error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
        // Permissive validation refuses what would have been refused with 422.
        let said = Said { name: "validation_error".to_owned(), words };
        let as_if = Answer { status: 422, ..answer.clone() };
        let (place, message) = (out.get_mut(index)?, messages.get(index)?);
        *place = Some(verdict(&as_if, &said, message, now));
    }
    let mut ids = object.get("data")?.as_array()?.iter().map(|taken| id(taken.get("id")));
    for outcome in out.iter_mut().filter(|outcome| outcome.is_none()) {
        *outcome = Some(Outcome::accepted(Some(ids.next()??)));
    }
    let whole = ids.next().is_none();
    whole.then(|| Called::Each(out.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        answer::tests::{answer, gone, message, now},
        batch::tests::briefs,
    };

    fn of(status: u16, body: &str, n: usize) -> Called {
        let messages: Vec<_> = (0..n).map(|i| message(json!({"id": format!("m-{i}"), "to": [format!("u{i}@x.org")]}))).collect();
        outcomes(&answer(status, &[("retry-after", "9")], body.to_owned()), &messages.iter().collect::<Vec<_>>(), now())
    }

    #[test]
    fn those_taken_and_those_not() {
        let body = json!({
            "data": [{"id": "id-0"}, {"id": "id-2"}],
            "errors": [{"index": 1, "message": "Invalid `to` field: u1@x.org"}, {"index": 3, "message": "Missing `subject` field."}],
        });
        let called = of(200, &body.to_string(), 4);
        let want = ["accepted", "rejected_recipient invalid_recipient", "accepted", "rejected_message invalid_request"];
        assert_eq!(briefs(&called), want);
        let Called::Each(each) = called else { panic!("divided") };
        assert_eq!((&each[2], gone(&each[1])), (&Outcome::accepted(Some("id-2".into())), vec!["u1@x.org".to_owned()]));
        assert_eq!(briefs(&of(200, r#"{"data":[{"id":"a"},{"id":"b"}]}"#, 2)), ["accepted", "accepted"]);
    }

    #[test]
    fn an_answer_that_does_not_say_who_was_taken_is_uncertain() {
        for body in [
            "<html>",
            "{}",
            r#"{"data":[]}"#,
            r#"{"data":[{"id":"a"}]}"#,
            r#"{"data":[{"id":"a"},{"id":"b"},{"id":"c"}]}"#,
            r#"{"data":[{"id":"a"},{}]}"#,
            r#"{"data":[{"id":"a"}],"errors":[{"index":7,"message":"x"}]}"#,
            r#"{"data":[{"id":"a"}],"errors":[{"message":"x"}]}"#,
        ] {
            assert_eq!(briefs(&of(200, body, 2)), ["uncertain unexpected_answer"; 2], "{body}");
        }
    }

    #[test]
    fn an_error_is_everybodys_unless_a_message_is_blamed() {
        let error = |name: &str| json!({"statusCode": 1, "name": name, "message": "no"}).to_string();
        for (status, name, want) in [
            (401, "missing_api_key", "rejected_account unauthorized"),
            (429, "rate_limit_exceeded", "throttled rate_limited 9s"),
            (409, "concurrent_idempotent_requests", "temporary concurrent_request 9s"),
            (500, "application_error", "temporary server_error 9s"),
        ] {
            assert_eq!(briefs(&of(status, &error(name), 2)), [want; 2], "{name}");
        }
        for (status, name) in [(422, "validation_error"), (413, "payload_too_large"), (409, "invalid_idempotent_request")] {
            assert_eq!(of(status, &error(name), 2), Called::Divide, "{name}");
            assert_eq!(briefs(&of(status, &error(name), 1)).len(), 1, "{name}: one alone has its outcome");
        }
    }

    #[test]
    fn the_key_is_of_these_messages_in_this_order() {
        let (a, b) = (message(json!({"id": "a"})), message(json!({"id": "b"})));
        let attempt = |m| Attempt { message: m, idempotency_key: &m.id };
        let key = |attempts: &[Attempt<'_>]| headers(attempts).unwrap()["idempotency-key"].to_str().unwrap().to_owned();
        let both = key(&[attempt(&a), attempt(&b)]);
        assert_eq!(both, key(&[attempt(&a), attempt(&b)]));
        assert_ne!(both, key(&[attempt(&b), attempt(&a)]));
        assert_ne!(both, key(&[attempt(&a)]));
    }
}
