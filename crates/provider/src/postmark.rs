//! Postmark.
//!
//! `request` maps a message to the body of `POST /email`, or of `/email/withTemplate`; `outcome` reads the answer. How
//! each field is mapped, what is refused and what each answer means stands in `docs/providers/postmark.md`.

mod batch;
mod request;

use std::time::SystemTime;

use async_trait::async_trait;
use paceline_core::{EmailAddress, Message, Outcome, ProviderAnswer, Rejected, Suppress};
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName},
};
use serde_json::{Map, Value};

use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    address::named,
    answer::{Answer, id},
    client::{Endpoint, append, base_url, credential},
};

const BASE_URL: &str = "https://api.postmarkapp.com";
const PATH: &str = "/email";
const TEMPLATE_PATH: &str = "/email/withTemplate";
const BATCH_PATH: &str = "/email/batch";
const TEMPLATE_BATCH_PATH: &str = "/email/batchWithTemplates";
const TOKEN: HeaderName = HeaderName::from_static("x-postmark-server-token");

/// What an account of this provider is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct PostmarkSettings {
    pub server_token: Secret,
    /// The stream that messages go to; Postmark's default is `outbound`.
    pub message_stream: Option<String>,
    /// Default `https://api.postmarkapp.com`.
    pub base_url: Option<Url>,
}

/// The provider `postmark`.
pub(crate) struct Postmark {
    plain: Endpoint,
    template: Endpoint,
    plain_batch: Endpoint,
    template_batch: Endpoint,
    stream: Option<String>,
}

impl Postmark {
    pub(crate) fn new(settings: PostmarkSettings, http: &HttpSettings, agent: &str) -> Result<Postmark, BuildError> {
        let base = base_url(settings.base_url, BASE_URL)?;
        let token = credential(TOKEN, "server_token", &settings.server_token, str::to_owned)?;
        let path = |path: &str| Ok(append(base.clone(), path)?.path().to_owned());
        let plain = Endpoint::new(append(base.clone(), PATH)?, Some(token), http, agent)?;
        Ok(Postmark {
            template: plain.at(&path(TEMPLATE_PATH)?),
            plain_batch: plain.at(&path(BATCH_PATH)?).with_long_answers(),
            template_batch: plain.at(&path(TEMPLATE_BATCH_PATH)?).with_long_answers(),
            plain,
            stream: settings.message_stream,
        })
    }
}

#[async_trait]
impl Provider for Postmark {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let body = match request::request(attempt.message, self.stream.as_deref()) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let endpoint = if attempt.message.template.is_some() { &self.template } else { &self.plain };
        let exchange = endpoint.post(body, HeaderMap::new()).await;
        exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()))
    }

    /// Postmark documents no idempotency.
    fn idempotent(&self) -> bool {
        false
    }

    fn max_batch(&self) -> usize {
        batch::MAX
    }

    /// Templates have a path of their own.
    fn batch_key(&self, message: &Message) -> Option<u64> {
        Some(message.template.is_some().into())
    }

    async fn send_batch(&self, attempts: &[Attempt<'_>]) -> Vec<Outcome> {
        crate::batch::send(self, attempts, batch::MAX, self.plain.total_timeout()).await
    }
}

/// What an answer to the request for `message` means.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    match answer.object().and_then(|object| Said::of(&object)) {
        Some(said) => verdict(answer, &said, message, now),
        None if answer.is_success() => answer.strange_success(),
        None => answer.by_stranger(now),
    }
}

/// `{"ErrorCode": 0, "Message": "OK", "MessageID": "…"}`, of a message by itself or as one of a batch.
struct Said {
    code: i64,
    words: String,
    id: Option<String>,
}

impl Said {
    fn of(object: &Map<String, Value>) -> Option<Said> {
        let id = id(object.get("MessageID"));
        let code = match object.get("ErrorCode") {
            Some(Value::Number(code)) => code.as_i64()?,
            Some(Value::String(code)) => code.parse().ok()?,
            // Left out where delivery may be delayed; the id says that the message was taken.
            None if id.is_some() => 0,
            _ => return None,
        };
        let words = object.get("Message").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Said { code, words, id })
    }
}

/// Postmark's own codes collide with HTTP statuses (400, 401, 429, 500 …): they count only beside a status that does not
/// say enough.
fn verdict(answer: &Answer, said: &Said, message: &Message, now: SystemTime) -> Outcome {
    let words = &said.words;
    let rejected = |what, code| answer.rejected(what, code, words);
    match (answer.status, said.code) {
        (_, 100) => answer.temporary("maintenance", words, now),
        (200..=299, 0) => Outcome::Accepted { provider_id: said.id.clone(), refused: inactive(answer, words, message) },
        (200..=299 | 400 | 406 | 422, code) => match code {
            10 => rejected(Rejected::Account, "unauthorized"),
            300 => match invalid_recipients(words, message) {
                Some(gone) => rejected(Rejected::Recipients(gone), "invalid_recipient"),
                None => rejected(Rejected::Message, "invalid_request"),
            },
            // The account may send, only not as this sender.
            400 | 401 => rejected(Rejected::Message, "sender_not_verified"),
            405 => rejected(Rejected::Account, "credits_exceeded"),
            406 => {
                let mut gone = named(words, message);
                if gone.is_empty() {
                    // Nothing was sent to anybody: all are inactive.
                    gone = message.recipients().cloned().collect();
                }
                let answer = answer.says("inactive_recipient", words).suppressing(Suppress::Now);
                Outcome::Rejected { what: Rejected::Recipients(gone), answer }
            }
            411 => rejected(Rejected::Message, "forbidden_attachment"),
            412 => rejected(Rejected::Account, "account_pending"),
            413 => rejected(Rejected::Account, "account_may_not_send"),
            429 => answer.throttled("rate_limited", words, None, now),
            500..=599 if answer.is_success() => answer.temporary("server_error", words, now),
            1101 => rejected(Rejected::Message, "template_not_found"),
            _ => rejected(Rejected::Message, "invalid_request"),
        },
        _ => answer.by_status(words, now),
    }
}

/// "Message OK, but will not deliver to these inactive addresses: …": they are refused, the others have it.
fn inactive(answer: &Answer, words: &str, message: &Message) -> Vec<(EmailAddress, ProviderAnswer)> {
    let Some((_, addresses)) = words.split_once("inactive addresses") else { return Vec::new() };
    let says = answer.says("inactive_recipient", words).suppressing(Suppress::Now);
    named(addresses, message).into_iter().map(|email| (email, says.clone())).collect()
}

/// "Invalid 'To' address: 'x'.", "Error parsing 'Cc': …": the recipients named, else the only one in that field.
fn invalid_recipients(words: &str, message: &Message) -> Option<Vec<EmailAddress>> {
    let lists = [("'to'", &message.to), ("'cc'", &message.cc), ("'bcc'", &message.bcc)];
    let lower = words.to_ascii_lowercase();
    let (_, list) = lists.into_iter().find(|(field, _)| lower.contains(field))?;
    match (named(words, message), list.as_slice()) {
        (named, _) if !named.is_empty() => Some(named),
        (_, [only]) => Some(vec![only.email.clone()]),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
