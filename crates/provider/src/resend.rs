//! Resend.
//!
//! `request` maps a message to the body of `POST /emails`; `outcome` reads the answer. How each field is mapped, what is
//! refused and what each answer means stands in `docs/providers/resend.md`.

mod batch;
mod request;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::{EmailAddress, Mailbox, Message, Outcome, Rejected};
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Map, Value};

use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    address::named,
    answer::{Answer, id, unsupported},
    client::{Endpoint, append, base_url, bearer},
};

const BASE_URL: &str = "https://api.resend.com";
const PATH: &str = "/emails";
const BATCH_PATH: &str = "/emails/batch";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_CHARS: usize = 256;
/// A spent quota is looked at again after so long where Resend does not say; short enough for mail of a class that does
/// not wait for long.
const DAILY_WAIT: Duration = Duration::from_secs(600);
const MONTHLY_WAIT: Duration = Duration::from_secs(3600);

/// The provider `resend`.
pub(crate) struct Resend {
    endpoint: Endpoint,
    batch: Endpoint,
}

impl Resend {
    pub(crate) fn new(key: &Secret, base: Option<Url>, http: &HttpSettings, agent: &str) -> Result<Resend, BuildError> {
        let base = base_url(base, BASE_URL)?;
        let batch = append(base.clone(), BATCH_PATH)?;
        let endpoint = Endpoint::new(append(base, PATH)?, Some(bearer("api_key", key)?), http, agent)?;
        Ok(Resend { batch: endpoint.at(batch.path()).with_long_answers(), endpoint })
    }
}

#[async_trait]
impl Provider for Resend {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let body = match request::request(attempt.message) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let key = match idempotency_key(attempt.idempotency_key) {
            Ok(key) => key,
            Err(refused) => return *refused,
        };
        let exchange = self.endpoint.post(body, key).await;
        exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()))
    }

    /// Resend remembers an `Idempotency-Key` for 24 hours.
    fn idempotent(&self) -> bool {
        true
    }

    fn max_batch(&self) -> usize {
        batch::MAX
    }

    /// Batches carry no files.
    fn batch_key(&self, message: &Message) -> Option<u64> {
        message.attachments.is_empty().then_some(0)
    }

    async fn send_batch(&self, attempts: &[Attempt<'_>]) -> Vec<Outcome> {
        crate::batch::send(self, attempts, batch::MAX, self.endpoint.total_timeout()).await
    }
}

fn idempotency_key(key: &str) -> Result<HeaderMap, Box<Outcome>> {
    match HeaderValue::from_str(key) {
        Ok(value) if (1..=MAX_KEY_CHARS).contains(&key.len()) => Ok(HeaderMap::from_iter([(IDEMPOTENCY_KEY, value)])),
        _ => Err(Box::new(unsupported("id", "cannot be an Idempotency-Key: Resend takes 1 to 256 printable characters"))),
    }
}

/// What an answer to the request for `message` means.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    let object = answer.object();
    if answer.is_success() {
        return match object.and_then(|o| id(o.get("id"))) {
            Some(id) => Outcome::accepted(Some(id)),
            None => answer.strange_success(),
        };
    }
    match object.and_then(|o| Said::of(&o)) {
        Some(said) => verdict(answer, &said, message, now),
        None => answer.by_stranger(now),
    }
}

/// `{"statusCode": 422, "name": "validation_error", "message": "…"}`
struct Said {
    name: String,
    words: String,
}

impl Said {
    fn of(object: &Map<String, Value>) -> Option<Said> {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        Some(Said { name: text("name")?.to_owned(), words: text("message").unwrap_or_default().to_owned() })
    }
}

fn verdict(answer: &Answer, said: &Said, message: &Message, now: SystemTime) -> Outcome {
    let words = &said.words;
    let lower = words.to_ascii_lowercase();
    let account = |code| answer.rejected(Rejected::Account, code, words);
    let at_fault = |code| answer.rejected(Rejected::Message, code, words);
    match (answer.status, said.name.as_str()) {
        (_, "rate_limit_exceeded") => answer.throttled("rate_limited", words, answer.reset("ratelimit-reset", now), now),
        (_, "daily_quota_exceeded") => answer.throttled("daily_quota_exceeded", words, Some(DAILY_WAIT), now),
        (_, "monthly_quota_exceeded") => answer.throttled("monthly_quota_exceeded", words, Some(MONTHLY_WAIT), now),
        (429, _) => answer.throttled("rate_limited", words, answer.reset("ratelimit-reset", now), now),
        (_, "concurrent_idempotent_requests") => answer.temporary("concurrent_request", words, now),
        // An earlier call with this key and another list of recipients, say, was carried out: this one must not be.
        (_, "invalid_idempotent_request") => at_fault("idempotency_key_reused"),
        (500..=599, _) => answer.by_status(words, now),
        (_, "missing_api_key" | "invalid_api_key" | "restricted_api_key") => account("unauthorized"),
        (_, "suspended_api_key" | "inactive_api_key") => account("suspended"),
        (403, "validation_error") if lower.contains("testing emails") => account("test_mode"),
        // The account may send, only not as this sender.
        (403, "validation_error") if lower.contains("domain") => at_fault("sender_not_verified"),
        (_, "invalid_from_address") => at_fault("invalid_sender"),
        (_, "security_error") => at_fault("security_error"),
        (404, "not_found") if message.template.is_some() && lower.contains("template") => at_fault("template_not_found"),
        (400 | 422, _) => match invalid_recipients(&lower, message) {
            Some(gone) => answer.rejected(Rejected::Recipients(gone), "invalid_recipient", words),
            None => at_fault("invalid_request"),
        },
        _ => answer.by_status(words, now),
    }
}

/// "Invalid `to` field …": the recipients named, else the only one in that field.
fn invalid_recipients(lower: &str, message: &Message) -> Option<Vec<EmailAddress>> {
    if !lower.contains("invalid") {
        return None;
    }
    let lists: [(&str, &[Mailbox]); 3] = [("`to`", &message.to), ("`cc`", &message.cc), ("`bcc`", &message.bcc)];
    let (_, list) = lists.into_iter().find(|(field, _)| lower.contains(field))?;
    match (named(lower, message), list) {
        (named, _) if !named.is_empty() => Some(named),
        (_, [only]) => Some(vec![only.email.clone()]),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
