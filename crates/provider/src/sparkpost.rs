//! SparkPost.
//!
//! `request` maps a message to the body of `POST /api/v1/transmissions`; `outcome` reads the answer. How each field is
//! mapped, what is refused and what each answer means stands in `docs/providers/sparkpost.md`.

mod request;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::{Message, Outcome, Rejected};
use reqwest::{
    Url,
    header::{AUTHORIZATION, HeaderMap},
};
use serde_json::{Map, Value};

use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    address::named,
    answer::{Answer, id},
    client::{Endpoint, append, base_url, credential},
};

const BASE_URL: &str = "https://api.sparkpost.com";
const PATH: &str = "/api/v1/transmissions";
/// A spent quota is looked at again after so long: SparkPost never says. Short enough for mail of a class that does not
/// wait for long.
const HOURLY_WAIT: Duration = Duration::from_secs(300);
const DAILY_WAIT: Duration = Duration::from_secs(600);
const MONTHLY_WAIT: Duration = Duration::from_secs(3600);

/// The provider `sparkpost`.
pub(crate) struct SparkPost {
    endpoint: Endpoint,
}

impl SparkPost {
    pub(crate) fn new(key: &Secret, base: Option<Url>, http: &HttpSettings, agent: &str) -> Result<SparkPost, BuildError> {
        let url = append(base_url(base, BASE_URL)?, PATH)?;
        let key = credential(AUTHORIZATION, "api_key", key, str::to_owned)?;
        Ok(SparkPost { endpoint: Endpoint::new(url, Some(key), http, agent)? })
    }
}

#[async_trait]
impl Provider for SparkPost {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let body = match request::request(attempt.message) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let exchange = self.endpoint.post(body, HeaderMap::new()).await;
        exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()))
    }

    /// SparkPost documents no idempotency.
    fn idempotent(&self) -> bool {
        false
    }
}

/// What an answer to the request for `message` means.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    let object = answer.object();
    if answer.is_success() {
        return match object.as_ref().and_then(|o| o.get("results")?.as_object()) {
            Some(results) => success(answer, results, message),
            None => answer.strange_success(),
        };
    }
    match object.and_then(|o| Said::of(&o)) {
        Some(said) => verdict(answer, &said, message, now),
        None => answer.by_stranger(now),
    }
}

/// Taken as a whole, in part, or for nobody. Which recipients were refused stands, if at all, in the words of
/// `rcpt_to_errors`; those that are not named there follow by event.
fn success(answer: &Answer, results: &Map<String, Value>, message: &Message) -> Outcome {
    let count = |key: &str| results.get(key).and_then(Value::as_u64);
    let refused = results.get("rcpt_to_errors").map_or_else(Vec::new, |errors| {
        let words = words(errors.as_array().map_or(&[], Vec::as_slice));
        let says = answer.says("rejected_recipient", &words);
        named(&words, message).into_iter().map(|email| (email, says.clone())).collect()
    });
    match (count("total_accepted_recipients"), id(results.get("id"))) {
        (Some(0), _) if count("total_rejected_recipients").is_some_and(|n| n > 0) => {
            let all = message.recipients().cloned().collect();
            answer.rejected(Rejected::Recipients(all), "rejected_recipient", &answer.text())
        }
        (None, None) => answer.strange_success(),
        (_, provider_id) => Outcome::Accepted { provider_id, refused },
    }
}

/// `{"errors": [{"message", "description", "code"}]}`
struct Said {
    codes: Vec<String>,
    words: String,
}

impl Said {
    fn of(object: &Map<String, Value>) -> Option<Said> {
        let errors = object.get("errors")?.as_array()?;
        let codes = errors.iter().filter_map(|e| id(e.get("code"))).collect();
        let words = words(errors);
        errors.iter().any(Value::is_object).then_some(Said { codes, words })
    }
}

fn words(errors: &[Value]) -> String {
    let text = |error: &Value, key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
    let both = |e: &Value| match (text(e, "message"), text(e, "description")) {
        (Some(message), Some(description)) => Some(format!("{message}: {description}")),
        (message, description) => message.or(description),
    };
    errors.iter().filter_map(both).collect::<Vec<_>>().join("; ")
}

fn verdict(answer: &Answer, said: &Said, message: &Message, now: SystemTime) -> Outcome {
    let words = &said.words;
    let has = |code: &str| said.codes.iter().any(|c| c == code);
    let rejected = |what, code| answer.rejected(what, code, words);
    match answer.status {
        420 | 429 if has("2103") => rejected(Rejected::Account, "sandbox_limit"),
        420 | 429 if has("2105") => answer.throttled("monthly_quota_exceeded", words, Some(MONTHLY_WAIT), now),
        420 | 429 if has("2102") => answer.throttled("daily_quota_exceeded", words, Some(DAILY_WAIT), now),
        420 | 429 if has("2101") => answer.throttled("hourly_quota_exceeded", words, Some(HOURLY_WAIT), now),
        500..=599 => answer.by_status(words, now),
        // The account may send, only not as this sender.
        400 | 422 if has("7001") => rejected(Rejected::Message, "sender_not_verified"),
        400 | 422 if has("7000") => rejected(Rejected::Message, "domain_blacklisted"),
        400 | 422 if has("5002") => rejected(Rejected::Recipients(message.recipients().cloned().collect()), "no_valid_recipient"),
        400 | 422 if has("1902") => rejected(Rejected::Message, "generation_rejected"),
        404 if has("1600") && message.template.is_some() => rejected(Rejected::Message, "template_not_found"),
        _ => answer.by_status(words, now),
    }
}

#[cfg(test)]
mod tests;
