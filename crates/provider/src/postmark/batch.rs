//! `POST /email/batch` and `/email/batchWithTemplates`.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::{Message, Outcome};
use reqwest::header::HeaderMap;
use serde::Serialize;
use serde_json::Value;

use super::{Postmark, Said, outcome, request::Body, verdict};
use crate::{
    Attempt,
    answer::Answer,
    batch::{Batches, Called, Prepared},
    json,
};

/// Most messages of a call.
pub(super) const MAX: usize = 500;
/// Longest body of a call: Postmark takes 50 MB.
const MAX_BYTES: usize = 50_000_000;

/// The body of a batch: a list, or with templates an object.
#[derive(Serialize)]
#[serde(untagged)]
enum Batch<'a, 'b> {
    Plain(&'b [Body<'a>]),
    #[serde(rename_all = "PascalCase")]
    Templates {
        messages: &'b [Body<'a>],
    },
}

#[async_trait]
impl Batches for Postmark {
    async fn call(&self, attempts: &[Attempt<'_>], within: Duration) -> Called {
        let prepared = Prepared::of(attempts, |message| Body::of(message, self.stream.as_deref()));
        let messages = &prepared.messages;
        // All of one call are alike in this.
        let Some(template) = messages.first().map(|m| m.template.is_some()) else {
            return prepared.merged(Called::Each(Vec::new()));
        };
        let (endpoint, batch) = match template {
            true => (&self.template_batch, Batch::Templates { messages: &prepared.bodies }),
            false => (&self.plain_batch, Batch::Plain(&prepared.bodies)),
        };
        let called = match json::write(&batch, messages.iter().map(|m| json::expected_len(m)).sum()) {
            Ok(bytes) if bytes.len() > MAX_BYTES && messages.len() > 1 => Called::Divide,
            Ok(bytes) => {
                let exchange = endpoint.post_within(bytes, HeaderMap::new(), within).await;
                exchange.outcomes(messages.len(), |answer| outcomes(answer, messages, SystemTime::now()))
            }
            Err(refused) => Called::all(&refused, messages.len()),
        };
        prepared.merged(called)
    }
}

/// What an answer to the request for `messages` means: status 200 with a result for each, in order, or an error for all.
fn outcomes(answer: &Answer, messages: &[&Message], now: SystemTime) -> Called {
    let results: Option<Vec<Value>> = if answer.is_success() { serde_json::from_slice(&answer.body).ok() } else { None };
    let Some(results) = results.filter(|results| results.len() == messages.len()) else {
        let Some(first) = messages.first() else { return Called::Each(Vec::new()) };
        return match outcome(answer, first, now) {
            // A list of another length, or one result for all, does not say whom it speaks of.
            Outcome::Accepted { .. } => Called::all(&answer.strange_success(), messages.len()),
            other => Called::all(&other, messages.len()),
        };
    };
    let each = results.iter().zip(messages).map(|(result, message)| match result.as_object().and_then(Said::of) {
        Some(said) => verdict(answer, &said, message, now),
        None => Outcome::Uncertain { answer: answer.says("unexpected_answer", &result.to_string()) },
    });
    Called::Each(each.collect())
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
    fn each_has_a_result_of_its_own() {
        let body = json!([
            {"ErrorCode": 0, "Message": "OK", "MessageID": "id-0", "To": "u0@x.org"},
            {"ErrorCode": 406, "Message": "Found inactive addresses: u1@x.org."},
            {"ErrorCode": 300, "Message": "Invalid 'From' address: 'x'."},
            {"ErrorCode": 0, "Message": "OK", "MessageID": "id-3"},
            {"ErrorCode": 429, "Message": "Rate limit exceeded"},
            "nonsense",
        ]);
        let called = of(200, &body.to_string(), 6);
        assert_eq!(
            briefs(&called),
            [
                "accepted",
                "rejected_recipient inactive_recipient",
                "rejected_message invalid_request",
                "accepted",
                "throttled rate_limited 9s",
                "uncertain unexpected_answer",
            ]
        );
        let Called::Each(each) = called else { panic!("divided") };
        assert_eq!(gone(&each[1]), ["u1@x.org"]);
        assert_eq!(each[3], Outcome::accepted(Some("id-3".into())));
    }

    #[test]
    fn an_error_is_everybodys_unless_a_message_is_blamed() {
        let error = |code: i64| json!({"ErrorCode": code, "Message": "no"}).to_string();
        for (status, body, want) in [
            (401, error(10), ["rejected_account unauthorized"; 2]),
            (429, error(429), ["throttled rate_limited 9s"; 2]),
            (500, String::new(), ["temporary server_error 9s"; 2]),
            (422, error(405), ["rejected_account credits_exceeded"; 2]),
            (422, "<html>".to_owned(), ["temporary unexpected_answer 9s"; 2]),
            (200, "<html>".to_owned(), ["uncertain unexpected_answer"; 2]),
            (200, "[]".to_owned(), ["uncertain unexpected_answer"; 2]),
            (200, format!("[{}]", error(0)), ["uncertain unexpected_answer"; 2]),
            (200, error(0), ["uncertain unexpected_answer"; 2]),
        ] {
            assert_eq!(briefs(&of(status, &body, 2)), want, "{status} {body}");
        }
        for (status, code) in [(422, 402), (422, 410), (413, 0)] {
            assert_eq!(of(status, &error(code), 2), Called::Divide, "{status} {code}");
            assert_eq!(briefs(&of(status, &error(code), 1)).len(), 1, "{status} {code}: one alone has its outcome");
        }
        // Cut in the middle: some were sent, nobody knows which.
        assert_eq!(briefs(&of(200, &format!("[{},{{\"Err", error(0)), 2)), ["uncertain unexpected_answer"; 2]);
    }
}
