//! Twilio SendGrid, v3 Mail Send.
//!
//! `request` maps a message to the body of `POST /v3/mail/send`; `outcome` reads the answer. How each field is mapped,
//! what is refused and what each answer means stands in `docs/providers/sendgrid.md`.

mod batch;
mod request;

use std::time::SystemTime;

use async_trait::async_trait;
use paceline_core::{EmailAddress, Message, Outcome, Rejected, Scope};
use reqwest::{Url, header::HeaderMap};
use serde_json::Value;

use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    address::{Recipients, same},
    answer::Answer,
    client::{Endpoint, append, base_url, bearer},
};

const BASE_URL: &str = "https://api.sendgrid.com";
const PATH: &str = "/v3/mail/send";

/// The provider `sendgrid`.
pub(crate) struct SendGrid {
    endpoint: Endpoint,
}

impl SendGrid {
    pub(crate) fn new(key: &Secret, base: Option<Url>, http: &HttpSettings, agent: &str) -> Result<SendGrid, BuildError> {
        let url = append(base_url(base, BASE_URL)?, PATH)?;
        Ok(SendGrid { endpoint: Endpoint::new(url, Some(bearer("api_key", key)?), http, agent)? })
    }
}

#[async_trait]
impl Provider for SendGrid {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let body = match request::request(attempt.message) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let exchange = self.endpoint.post(body, HeaderMap::new()).await;
        exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()))
    }

    /// SendGrid documents no idempotency.
    fn idempotent(&self) -> bool {
        false
    }

    fn max_batch(&self) -> usize {
        batch::MAX
    }

    /// Messages that differ in recipients, template data and metadata only. Files would have to be compared whole.
    fn batch_key(&self, message: &Message) -> Option<u64> {
        if message.attachments.is_empty() { request::Body::of(message).ok().map(request::Body::shared) } else { None }
    }

    async fn send_batch(&self, attempts: &[Attempt<'_>]) -> Vec<Outcome> {
        crate::batch::send(self, attempts, batch::MAX, self.endpoint.total_timeout()).await
    }
}

/// What an answer to the request for `message` means.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    if answer.is_success() {
        return success(answer);
    }
    let errors = errors(answer);
    let words = match &errors {
        Some(errors) => errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join("; "),
        None => answer.text(),
    };
    let says = |text: &str| words.to_ascii_lowercase().contains(text);
    let names = |field: &str| errors.iter().flatten().any(|e| e.field.split('.').next() == Some(field));
    match answer.status {
        // Seen with more than one status: the words decide.
        400..=403 | 429 if says("maximum credits exceeded") => answer.rejected(Rejected::Account, "credits_exceeded", &words),
        // The account may send, only not as this sender: holding up all its other mail would be wrong.
        403 if names("from") || says("verified sender identity") => {
            answer.rejected(Rejected::Message, "sender_not_verified", &words)
        }
        429 => Outcome::Throttled {
            scope: Scope::Account,
            retry_after: answer.retry_after(now).or_else(|| answer.reset("x-ratelimit-reset", now)),
            answer: answer.says("rate_limited", &words),
        },
        _ if errors.is_none() => answer.by_stranger(now),
        400 => match errors.as_deref().and_then(|e| recipients_at_fault(e, message)) {
            Some(recipients) => answer.rejected(Rejected::Recipients(recipients), "invalid_recipient", &words),
            None => answer.by_status(&words, now),
        },
        _ => answer.by_status(&words, now),
    }
}

fn success(answer: &Answer) -> Outcome {
    let id = answer.header("x-message-id").filter(|id| id.len() <= 256).map(str::to_owned);
    // SendGrid answers 202 with an empty body. Another 2xx without an id and with a body comes from something that
    // stands between: it may or may not have passed the message on.
    if answer.status == 202 || id.is_some() || answer.body.is_empty() {
        return Outcome::accepted(id);
    }
    answer.strange_success()
}

struct ApiError {
    message: String,
    field: String,
}

/// `{"errors": [{"message", "field", "help"}]}`, or `None` where the answer has another form.
fn errors(answer: &Answer) -> Option<Vec<ApiError>> {
    let object = answer.object()?;
    let list = object.get("errors")?.as_array()?;
    let text = |error: &Value, key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let errors: Vec<_> = list
        .iter()
        .filter(|error| error.is_object())
        .map(|e| ApiError { message: text(e, "message"), field: text(e, "field").replace('[', ".").replace(']', "") })
        .collect();
    (!errors.is_empty()).then_some(errors)
}

/// The recipients that errors name by position (`personalizations.0.to.1.email`), where nothing else is at fault.
fn recipients_at_fault(errors: &[ApiError], message: &Message) -> Option<Vec<EmailAddress>> {
    let sent = Recipients::of(message);
    let mut gone = Vec::new();
    for error in errors {
        let mut parts = error.field.split('.');
        if parts.next() != Some("personalizations") || parts.next() != Some("0") {
            return None;
        }
        let list = match parts.next()? {
            "to" => &sent.to,
            "cc" => &sent.cc,
            "bcc" => &sent.bcc,
            _ => return None,
        };
        let index: usize = parts.next()?.parse().ok()?;
        let email: &EmailAddress = &list.get(index)?.email;
        if !matches!(parts.next(), None | Some("email")) {
            return None;
        }
        if !gone.contains(email) {
            gone.push(email.clone());
        }
    }
    // The same address given twice was sent once: both stand for the one that was refused.
    let again: Vec<_> = message.recipients().filter(|r| !gone.contains(r) && gone.iter().any(|g| same(g, r))).cloned().collect();
    gone.extend(again);
    Some(gone)
}

#[cfg(test)]
mod tests;
