//! The generic provider: one JSON POST, for a service of one's own. The contract is `docs/providers/http.md`.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::{EmailAddress, Message, Outcome, ProviderAnswer, Rejected, Scope};
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Map, Value};

use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    answer::{Answer, unsupported},
    client::{Endpoint, bearer},
    json,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The provider `http`.
pub(crate) struct Http {
    endpoint: Endpoint,
}

impl Http {
    pub(crate) fn new(url: Url, token: Option<&Secret>, http: &HttpSettings, agent: &str) -> Result<Http, BuildError> {
        let token = token.map(|t| bearer("bearer_token", t)).transpose()?;
        Ok(Http { endpoint: Endpoint::new(url, token, http, agent)? })
    }
}

#[async_trait]
impl Provider for Http {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let Ok(key) = HeaderValue::from_str(attempt.idempotency_key) else {
            return unsupported("id", "cannot be an Idempotency-Key: it holds control characters");
        };
        let Some(body) = request(attempt.message) else {
            return unsupported("body", "cannot be written as JSON");
        };
        let exchange = self.endpoint.post(body, HeaderMap::from_iter([(IDEMPOTENCY_KEY, key)])).await;
        exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()))
    }

    /// The contract asks every receiver to honour `Idempotency-Key`.
    fn idempotent(&self) -> bool {
        true
    }
}

/// The message in its own form.
fn request(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(json::expected_len(message));
    serde_json::to_writer(&mut bytes, message).ok()?;
    Some(bytes)
}

/// What an answer means: its own word (`outcome`) first, else its status.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    let object = answer.object();
    if let Some(outcome) = object.as_ref().and_then(|o| spelled_out(o, answer, message, now)) {
        return outcome;
    }
    let id = || object.as_ref().and_then(|o| o.get("id")?.as_str()).filter(|id| id.len() <= 256).map(str::to_owned);
    match answer.status {
        // 409: carried out before, under the same key.
        200..=299 | 409 => Outcome::accepted(id()),
        _ => {
            let words = object.as_ref().and_then(|o| o.get("message")?.as_str()).map_or_else(|| answer.text(), str::to_owned);
            answer.by_status(&words, now)
        }
    }
}

/// The richer answer: `{"outcome": "throttled", "scope": "destination", "retry_after_s": 30, "code", "message", "recipients"}`.
/// An `outcome` that is not known counts as absent.
fn spelled_out(object: &Map<String, Value>, answer: &Answer, message: &Message, now: SystemTime) -> Option<Outcome> {
    let word = object.get("outcome")?.as_str()?;
    let text = |key| object.get(key).and_then(Value::as_str);
    let code = |otherwise: &'static str| text("code").filter(|c| is_code(c)).unwrap_or(otherwise).to_owned();
    let says = |otherwise| answer.says(&code(otherwise), text("message").unwrap_or_default());
    let seconds = object.get("retry_after_s").and_then(Value::as_f64).filter(|s| (0.0..=1e9).contains(s));
    let retry_after = seconds.map(Duration::from_secs_f64).or_else(|| answer.retry_after(now));
    let rejected = |what, otherwise| Outcome::Rejected { what, answer: says(otherwise) };
    Some(match word {
        "accepted" => Outcome::Accepted {
            provider_id: text("id").filter(|id| id.len() <= 256).map(str::to_owned),
            refused: refused(object, answer, message),
        },
        "throttled" => {
            let scope = object.get("scope").and_then(|s| serde_json::from_value(s.clone()).ok()).unwrap_or(Scope::Account);
            Outcome::Throttled { scope, retry_after, answer: says("rate_limited") }
        }
        "greylisted" => Outcome::Greylisted { retry_after, answer: says("greylisted") },
        "temporary" => Outcome::Temporary { retry_after, answer: says("temporary") },
        "reputation_block" => Outcome::ReputationBlock { retry_after, answer: says("reputation_block") },
        "uncertain" => Outcome::Uncertain { answer: says("uncertain") },
        "rejected_message" => rejected(Rejected::Message, "rejected_message"),
        "rejected_account" => rejected(Rejected::Account, "rejected_account"),
        "rejected_recipient" => {
            let mut gone: Vec<_> = refused(object, answer, message).into_iter().map(|(email, _)| email).collect();
            if gone.is_empty() {
                // Nobody of ours is named: all of them, then.
                gone = message.recipients().cloned().collect();
            }
            rejected(Rejected::Recipients(gone), "rejected_recipient")
        }
        _ => return None,
    })
}

/// `recipients`: addresses, or `{"email", "code", "message"}`. Only those that the message has.
fn refused(object: &Map<String, Value>, answer: &Answer, message: &Message) -> Vec<(EmailAddress, ProviderAnswer)> {
    let mut out: Vec<(EmailAddress, ProviderAnswer)> = Vec::new();
    for item in object.get("recipients").and_then(Value::as_array).into_iter().flatten() {
        let text = |key| item.get(key).and_then(Value::as_str);
        let Some(email) = item.as_str().or_else(|| text("email")).and_then(|e| EmailAddress::parse(e).ok()) else { continue };
        let code = text("code").filter(|c| is_code(c)).unwrap_or("rejected_recipient");
        let words = text("message").or_else(|| object.get("message").and_then(Value::as_str)).unwrap_or_default();
        for ours in message.recipients() {
            let same = ours.domain() == email.domain() && ours.local().eq_ignore_ascii_case(email.local());
            if same && !out.iter().any(|(e, _)| e == ours) {
                out.push((ours.clone(), answer.says(code, words)));
            }
        }
    }
    out
}

/// Codes end up in metrics-like places and tables: short words only.
fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::tests::{answer, brief, now};

    fn message() -> Message {
        let body = r#"{"id":"m-1","from":{"email":"s@b.org","name":"S"},"to":["U@gmail.com","v@y.org"],"text":"t","metadata":{"k":"v"}}"#;
        Message::parse(body.as_bytes(), None, 1 << 20).unwrap()
    }

    #[test]
    fn the_request_is_the_message_and_reads_back_as_it() {
        let bytes = request(&message()).unwrap();
        assert_eq!(Message::parse(&bytes, None, 1 << 20).unwrap(), message());
    }

    #[test]
    fn answers() {
        let deep = "[".repeat(60_000);
        let table: &[(u16, &str, &str)] = &[
            (200, "", "accepted"),
            (200, r#"{"id":"p-1"}"#, "accepted"),
            (202, "<html>", "accepted"),
            (204, "", "accepted"),
            (200, &deep, "accepted"),
            (409, r#"{"message":"seen"}"#, "accepted"),
            (200, r#"{"outcome":"accepted","recipients":["v@y.org"]}"#, "accepted rejected_recipient"),
            (200, r#"{"outcome":"throttled","retry_after_s":2.5}"#, "throttled rate_limited 2s"),
            (429, r#"{"outcome":"throttled","retry_after_s":-1}"#, "throttled rate_limited 9s"),
            (200, r#"{"outcome":"throttled","retry_after_s":1e300,"code":"slow_down"}"#, "throttled slow_down 9s"),
            (200, r#"{"outcome":"greylisted","code":"a b"}"#, "greylisted greylisted 9s"),
            (500, r#"{"outcome":"rejected_message","code":"spam"}"#, "rejected_message spam"),
            (
                200,
                r#"{"outcome":"rejected_recipient","recipients":[{"email":"u@gmail.com"}]}"#,
                "rejected_recipient rejected_recipient",
            ),
            (200, r#"{"outcome":"rejected_account"}"#, "rejected_account rejected_account"),
            (200, r#"{"outcome":"reputation_block"}"#, "reputation_block reputation_block 9s"),
            (200, r#"{"outcome":"temporary"}"#, "temporary temporary 9s"),
            (200, r#"{"outcome":"uncertain"}"#, "uncertain uncertain"),
            (200, r#"{"outcome":"fine by me"}"#, "accepted"),
            (503, r#"{"outcome":7}"#, "temporary unavailable 9s"),
            (429, "", "throttled rate_limited 9s"),
            (302, "", "rejected_account unexpected_redirect"),
            (401, "", "rejected_account unauthorized"),
            (422, r#"{"message":"no"}"#, "rejected_message invalid_request"),
            (500, "\u{0}\u{fffd}", "temporary server_error 9s"),
        ];
        for (status, body, want) in table {
            let answer = answer(*status, &[("retry-after", "9")], body.to_string());
            assert_eq!(brief(&outcome(&answer, &message(), now())), *want, "{status} {}", &body[..body.len().min(80)]);
        }
    }

    #[test]
    fn who_and_whose() {
        let of = |body: &str| outcome(&answer(200, &[], body.to_owned()), &message(), now());
        let v = EmailAddress::parse("v@y.org").unwrap();
        let u = EmailAddress::parse("U@gmail.com").unwrap();
        let said = |code: &str, words: &str| ProviderAnswer::new(code, Some(200), words);
        assert_eq!(of(r#"{"id":"p-1"}"#), Outcome::accepted(Some("p-1".into())));
        let body = r#"{"outcome":"accepted","id":"p","recipients":[{"email":"v@y.org","code":"full","message":"box full"},"x@x.org",5,{},"v@y.org"]}"#;
        assert_eq!(
            of(body),
            Outcome::Accepted { provider_id: Some("p".into()), refused: vec![(v.clone(), said("full", "box full"))] }
        );
        let gone = |body| match of(body) {
            Outcome::Rejected { what: Rejected::Recipients(gone), .. } => gone,
            other => panic!("{other:?}"),
        };
        assert_eq!(gone(r#"{"outcome":"rejected_recipient","recipients":["u@GMAIL.com"]}"#), std::slice::from_ref(&u));
        assert_eq!(gone(r#"{"outcome":"rejected_recipient","recipients":["nobody@x.org"]}"#), [u, v]);
        let scope = |body: &str| match of(body) {
            Outcome::Throttled { scope, .. } => scope,
            other => panic!("{other:?}"),
        };
        assert_eq!(scope(r#"{"outcome":"throttled","scope":"destination"}"#), Scope::Destination);
        assert_eq!(scope(r#"{"outcome":"throttled","scope":"galaxy"}"#), Scope::Account);
    }
}
