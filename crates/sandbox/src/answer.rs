//! Answers in the forms of the APIs that the sandbox speaks.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};

use crate::{api::Api, facts::Recipient};

/// An answer before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

/// Whose limit a throttled request ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Account,
    Destination,
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const MESSAGE_ID: HeaderName = HeaderName::from_static("x-message-id");
const LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const RESEND_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

impl Answer {
    pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Answer {
        // All statuses here are constants or were checked when the scenario was read.
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Answer { status, headers: vec![(CONTENT_TYPE, JSON)], body: body.into() }
    }

    fn with(mut self, name: HeaderName, value: &str) -> Answer {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// The message has been taken as the `seq`th, for so many recipients.
    pub(crate) fn accepted(api: Api, seq: u64, recipients: usize) -> Answer {
        match api {
            Api::SendGrid => Answer { status: StatusCode::ACCEPTED, headers: Vec::with_capacity(1), body: Bytes::new() }
                .with(MESSAGE_ID, &format!("sandbox-{seq}")),
            Api::Http => Answer::json(200, format!("{{\"id\":\"sandbox-{seq}\"}}")),
            Api::Ses => Answer::json(200, format!("{{\"MessageId\":\"0102000000000000-{}-000000\"}}", uuid(seq))),
            Api::Postmark => {
                // By hand, as batches have many of them.
                let id = uuid(seq);
                Answer::json(
                    200,
                    format!(
                        "{{\"SubmittedAt\":\"2026-01-01T00:00:00Z\",\"MessageID\":\"{id}\",\"ErrorCode\":0,\"Message\":\"OK\"}}"
                    ),
                )
            }
            Api::Mailgun => Answer::json(
                200,
                json!({"id": format!("<{seq}.sandbox@mailgun.example>"), "message": "Queued. Thank you."}).to_string(),
            ),
            Api::Resend => Answer::json(200, format!("{{\"id\":\"{}\"}}", uuid(seq))),
            Api::SparkPost => {
                let id = format!("11668787{seq:010}");
                let results = json!({"total_rejected_recipients": 0, "total_accepted_recipients": recipients, "id": id});
                Answer::json(200, json!({"results": results}).to_string())
            }
        }
    }

    /// What the API says along with this status. A 2xx is an acceptance with that status.
    pub(crate) fn of_status(api: Api, status: u16, seq: u64, recipients: usize) -> Answer {
        match (api, status) {
            (_, 200..=299) => {
                let accepted = Answer::accepted(api, seq, recipients);
                Answer { status: StatusCode::from_u16(status).unwrap_or(accepted.status), ..accepted }
            }
            (Api::SparkPost, 420) => error(api, 420, "2101", "Exceed Sending Limit (hourly)"),
            (Api::Mailgun, 420) | (_, 429) => {
                let throttled = Answer::throttled(api, Whose::Account, None);
                Answer { status: StatusCode::from_u16(status).unwrap_or(throttled.status), ..throttled }
            }
            (_, 401) => Answer::unauthorized(api),
            _ => {
                let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
                Answer::refused(api, status, reason, None)
            }
        }
    }

    /// A refusal with words, and the field at fault where there is one.
    pub(crate) fn refused(api: Api, status: u16, words: &str, field: Option<&str>) -> Answer {
        let in_words = || match field {
            Some(field) => format!("{field}: {words}"),
            None => words.to_owned(),
        };
        match api {
            Api::SendGrid => {
                let body = json!({"errors": [{"message": words, "field": field, "help": null}]});
                Answer::json(status, body.to_string())
            }
            Api::Http => Answer::json(status, json!({"message": in_words()}).to_string()),
            _ => error(api, status, code(api, status), &in_words()),
        }
    }

    pub(crate) fn unauthorized(api: Api) -> Answer {
        match api {
            Api::Ses => error(api, 403, "MissingAuthenticationTokenException", "Missing Authentication Token"),
            Api::Postmark => error(api, 401, "10", "Bad or missing API token."),
            // The one answer of Mailgun's that is no JSON.
            Api::Mailgun => Answer { headers: Vec::new(), ..Answer::json(401, "Forbidden") },
            Api::Resend => error(api, 401, "missing_api_key", "Missing API key in the authorization header."),
            Api::SparkPost => Answer::json(401, json!({"errors": [{"message": "Unauthorized."}]}).to_string()),
            Api::SendGrid | Api::Http => {
                Answer::refused(api, 401, "The provided authorization grant is invalid, expired, or revoked", None)
            }
        }
    }

    /// Too fast. SendGrid names the time only as `X-RateLimit-Reset`, Mailgun in its words; `Retry-After` comes with `wait`.
    pub(crate) fn throttled(api: Api, whose: Whose, wait: Option<Duration>) -> Answer {
        let seconds = wait.map(|w| w.as_secs() + u64::from(w.subsec_nanos() > 0));
        let until = SystemTime::now() + Duration::from_secs(seconds.unwrap_or(1).max(1));
        let answer = match api {
            Api::SendGrid => {
                let reset = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                Answer::json(429, Bytes::from_static(br#"{"errors":[{"field":null,"message":"too many requests"}]}"#))
                    .with(LIMIT_REMAINING, "0")
                    .with(LIMIT_RESET, &reset.to_string())
            }
            Api::Http => {
                let scope = if whose == Whose::Account { "account" } else { "destination" };
                let mut body =
                    json!({"outcome": "throttled", "scope": scope, "code": "rate_limited", "message": "too many requests"});
                if let Some(wait) = wait {
                    body["retry_after_s"] = wait.as_secs_f64().into();
                }
                Answer::json(429, body.to_string())
            }
            Api::Ses => error(api, 429, "TooManyRequestsException", "Maximum sending rate exceeded."),
            Api::Postmark => error(api, 429, "429", "Rate limit exceeded"),
            Api::Mailgun => {
                let date = httpdate::fmt_http_date(until);
                let words =
                    format!("Domain mailgun.example is not allowed to send: request limit exceeded, try again after {date}");
                error(api, 429, "", &words)
            }
            Api::Resend => error(api, 429, "rate_limit_exceeded", "Too many requests. You can only make 5 requests per second.")
                .with(RESEND_RESET, &seconds.unwrap_or(1).to_string()),
            Api::SparkPost => error(api, 429, "", "Too many requests"),
        };
        match seconds {
            Some(seconds) => answer.with(RETRY_AFTER, &seconds.to_string()),
            None => answer,
        }
    }

    /// This recipient is at fault.
    pub(crate) fn rejected(api: Api, recipient: &Recipient<'_>) -> Answer {
        let Recipient { email, list, personalization, index } = recipient;
        match api {
            Api::SendGrid => {
                let field = format!("personalizations.{personalization}.{list}.{index}.email");
                Answer::refused(api, 400, "Does not contain a valid address.", Some(&field))
            }
            Api::Http => {
                let body = json!({"outcome": "rejected_recipient", "recipients": [email], "message": "no such mailbox"});
                Answer::json(422, body.to_string())
            }
            Api::Ses => error(api, 400, "BadRequestException", &format!("Illegal address: {email}")),
            Api::Postmark => {
                let words = format!(
                    "You tried to send to a recipient that has been marked as inactive. Found inactive addresses: {email}. \
                     Inactive recipients are ones that have generated a hard bounce, a spam complaint, or a manual suppression."
                );
                error(api, 422, "406", &words)
            }
            Api::Mailgun => {
                error(api, 400, "", &format!("'{list}' parameter is not a valid address. please check documentation"))
            }
            Api::Resend => error(api, 422, "validation_error", &format!("Invalid `{list}` field: {email} is no address.")),
            Api::SparkPost => error(api, 400, "5002", "At least one valid recipient is required"),
        }
    }
}

/// What each API calls an error of this status.
fn code(api: Api, status: u16) -> &'static str {
    match (api, status) {
        (Api::Ses, 403) => "AccessDeniedException",
        (Api::Ses, 404) => "NotFoundException",
        (Api::Ses, 503) => "ServiceUnavailable",
        (Api::Ses, 500..) => "InternalFailure",
        (Api::Ses, 400..) => "BadRequestException",
        (Api::Postmark, 400..=499) => "300",
        (Api::Postmark, 503) => "100",
        (Api::Postmark, _) => "500",
        (Api::Resend, 404) => "not_found",
        (Api::Resend, 405) => "method_not_allowed",
        (Api::Resend, 409) => "concurrent_idempotent_requests",
        (Api::Resend, 503) => "service_unavailable",
        (Api::Resend, 500..) => "application_error",
        (Api::Resend, _) => "validation_error",
        (Api::SparkPost, 403) => "1100",
        (Api::SparkPost, 404) => "1600",
        (Api::SparkPost, _) => "1400",
        _ => "",
    }
}

/// An error in the form of an API that has one form for all.
pub(crate) fn error(api: Api, status: u16, code: &str, words: &str) -> Answer {
    let body = match api {
        Api::Postmark => json!({"ErrorCode": code.parse().unwrap_or(300), "Message": words}),
        Api::Resend => json!({"statusCode": status, "name": code, "message": words}),
        Api::SparkPost if !code.is_empty() => json!({"errors": [{"message": words, "code": code}]}),
        Api::SparkPost | Api::SendGrid => json!({"errors": [{"message": words}]}),
        Api::Ses | Api::Mailgun | Api::Http => json!({"message": words}),
    };
    let answer = Answer::json(status, Value::to_string(&body));
    if api == Api::Ses && !code.is_empty() { answer.with(ERROR_TYPE, code) } else { answer }
}

/// An id in the form of a UUID that tells the number.
fn uuid(seq: u64) -> String {
    format!("5a4db0c5-0000-4000-8000-{seq:012x}")
}
