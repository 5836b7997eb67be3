//! Mailgun.
//!
//! `request` maps a message to the form of `POST /v3/<domain>/messages`; `outcome` reads the answer. How each field is
//! mapped, what is refused and what each answer means stands in `docs/providers/mailgun.md`.

mod request;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{Domain, EmailAddress, Message, Outcome, Rejected};
use reqwest::{
    Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap},
};

use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    address::named,
    answer::{Answer, id},
    client::{Endpoint, append, base_url, credential},
};

const BASE_URL: &str = "https://api.mailgun.net";

/// What an account of this provider is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct MailgunSettings {
    pub api_key: Secret,
    /// The sending domain, which is part of the path.
    pub domain: Domain,
    /// Default `https://api.mailgun.net`; the European region is at `https://api.eu.mailgun.net`.
    pub base_url: Option<Url>,
}

/// The provider `mailgun`.
pub(crate) struct Mailgun {
    endpoint: Endpoint,
}

impl Mailgun {
    pub(crate) fn new(settings: &MailgunSettings, http: &HttpSettings, agent: &str) -> Result<Mailgun, BuildError> {
        let path = format!("/v3/{}/messages", settings.domain);
        let url = append(base_url(settings.base_url.clone(), BASE_URL)?, &path)?;
        let basic = |key: &str| format!("Basic {}", STANDARD.encode(format!("api:{key}")));
        let key = credential(AUTHORIZATION, "api_key", &settings.api_key, basic)?;
        Ok(Mailgun { endpoint: Endpoint::new(url, Some(key), http, agent)? })
    }
}

#[async_trait]
impl Provider for Mailgun {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let form = match request::request(attempt.message) {
            Ok(form) => form,
            Err(refused) => return *refused,
        };
        let exchange = self.endpoint.post(form.body, HeaderMap::from_iter([(CONTENT_TYPE, form.content_type)])).await;
        exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()))
    }

    /// Mailgun documents no idempotency.
    fn idempotent(&self) -> bool {
        false
    }
}

/// What an answer to the request for `message` means.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    let object = answer.object();
    if answer.is_success() {
        return match object.and_then(|o| id(o.get("id"))) {
            // Events name it without the brackets.
            Some(id) => Outcome::accepted(Some(id.trim_matches(['<', '>']).to_owned())),
            // What any path answers that is none of the API's: an unusable base_url.
            None if answer.text().contains("Mailgun Magnificent API") => {
                answer.rejected(Rejected::Account, "not_found", &answer.text())
            }
            None => answer.strange_success(),
        };
    }
    match object.and_then(|o| Some(o.get("message")?.as_str()?.to_owned())) {
        Some(words) => verdict(answer, &words, message, now),
        None => answer.by_stranger(now),
    }
}

/// Mailgun has no codes, only words.
fn verdict(answer: &Answer, words: &str, message: &Message, now: SystemTime) -> Outcome {
    let lower = words.to_ascii_lowercase();
    let says = |text: &str| lower.contains(text);
    let rejected = |what, code| answer.rejected(what, code, words);
    let limited = says("limit exceeded") && says("try again after");
    match answer.status {
        // Seen with 429 and 420; the time is only in the words.
        400..=499 if limited => answer.throttled("rate_limited", words, try_again_after(words, now), now),
        420 | 429 => answer.throttled("rate_limited", words, try_again_after(words, now), now),
        // "Parameters were valid but request failed": nothing about payment.
        402 => answer.temporary("request_failed", words, now),
        403 if says("large batches") => rejected(Rejected::Message, "too_many_recipients"),
        403 if says("rejected: ip") => rejected(Rejected::Account, "ip_not_allowed"),
        404 if says("domain not found") => rejected(Rejected::Account, "domain_not_found"),
        400 | 404 if says("template") && message.template.is_some() => rejected(Rejected::Message, "template_not_found"),
        // "Domain x is not allowed to send: …": unverified, a sandbox, a free account, one that is not activated.
        400 | 403 if says("not allowed to send") || says("for test purposes only") || says("activate your mailgun account") => {
            rejected(Rejected::Account, "not_allowed_to_send")
        }
        400 if says("too many recipients") => rejected(Rejected::Message, "too_many_recipients"),
        400 => match invalid_recipients(&lower, message) {
            Some(gone) => rejected(Rejected::Recipients(gone), "invalid_recipient"),
            None => rejected(Rejected::Message, "invalid_request"),
        },
        _ => answer.by_status(words, now),
    }
}

/// "… try again after Mon, 22 Jun 2015 19:50:00 GMT"
fn try_again_after(words: &str, now: SystemTime) -> Option<Duration> {
    let (_, date) = words.rsplit_once("try again after ")?;
    let date = date.trim().trim_end_matches('.');
    // "+0000" and "UTC" say the same as the GMT of HTTP.
    let date = date.strip_suffix("+0000").or(date.strip_suffix("UTC")).map(|d| format!("{d}GMT")).unwrap_or(date.to_owned());
    Some(httpdate::parse_http_date(&date).ok()?.duration_since(now).unwrap_or_default())
}

/// "to parameter is not a valid address": the recipients named, else the only one in that field.
fn invalid_recipients(lower: &str, message: &Message) -> Option<Vec<EmailAddress>> {
    if !lower.contains("not a valid address") {
        return None;
    }
    let field = lower.trim_start_matches(['\'', '"']).split([' ', '\'', '"']).next()?;
    let list = match field {
        "to" => &message.to,
        "cc" => &message.cc,
        "bcc" => &message.bcc,
        _ => return None,
    };
    match (named(lower, message), list.as_slice()) {
        (named, _) if !named.is_empty() => Some(named),
        (_, [only]) => Some(vec![only.email.clone()]),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
