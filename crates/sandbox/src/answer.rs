//! Answers in the forms of the APIs that the sandbox speaks.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::json;

use crate::facts::Recipient;

/// Which provider is being played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Api {
    SendGrid,
    Http,
}

impl Api {
    /// By the end of the path; whatever stands before it is a prefix.
    pub(crate) fn of_path(path: &str) -> Api {
        if path.ends_with("/v3/mail/send") { Api::SendGrid } else { Api::Http }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Api::SendGrid => "sendgrid",
            Api::Http => "http",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Api> {
        [Api::SendGrid, Api::Http].into_iter().find(|api| api.name() == name)
    }
}

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

impl Answer {
    fn json(status: u16, body: impl Into<Bytes>) -> Answer {
        // All statuses here are constants or were checked when the scenario was read.
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Answer { status, headers: vec![(CONTENT_TYPE, JSON)], body: body.into() }
    }

    fn with(mut self, name: HeaderName, value: &str) -> Answer {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// The message has been taken as the `seq`th.
    pub(crate) fn accepted(api: Api, seq: u64) -> Answer {
        match api {
            Api::SendGrid => Answer { status: StatusCode::ACCEPTED, headers: Vec::with_capacity(1), body: Bytes::new() }
                .with(MESSAGE_ID, &format!("sandbox-{seq}")),
            Api::Http => Answer::json(200, format!("{{\"id\":\"sandbox-{seq}\"}}")),
        }
    }

    /// What the API says along with this status. A 2xx is an acceptance with that status.
    pub(crate) fn of_status(api: Api, status: u16, seq: u64) -> Answer {
        match (api, status) {
            (_, 200..=299) => {
                let accepted = Answer::accepted(api, seq);
                Answer { status: StatusCode::from_u16(status).unwrap_or(accepted.status), ..accepted }
            }
            (_, 429) => Answer::throttled(api, Whose::Account, None),
            (_, 401) => Answer::unauthorized(api),
            _ => {
                let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
                Answer::refused(api, status, reason, None)
            }
        }
    }

    /// A refusal with words, and the field at fault where there is one.
    pub(crate) fn refused(api: Api, status: u16, words: &str, field: Option<&str>) -> Answer {
        let body = match api {
            Api::SendGrid => json!({"errors": [{"message": words, "field": field, "help": null}]}),
            Api::Http => match field {
                Some(field) => json!({"message": format!("{field}: {words}")}),
                None => json!({"message": words}),
            },
        };
        Answer::json(status, body.to_string())
    }

    pub(crate) fn unauthorized(api: Api) -> Answer {
        let words = "The provided authorization grant is invalid, expired, or revoked";
        Answer::refused(api, 401, words, None)
    }

    /// Too fast. SendGrid names the time only as `X-RateLimit-Reset`; `Retry-After` comes with `wait`.
    pub(crate) fn throttled(api: Api, whose: Whose, wait: Option<Duration>) -> Answer {
        let seconds = wait.map(|w| w.as_secs() + u64::from(w.subsec_nanos() > 0));
        let answer = match api {
            Api::SendGrid => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                Answer::json(429, Bytes::from_static(br#"{"errors":[{"field":null,"message":"too many requests"}]}"#))
                    .with(LIMIT_REMAINING, "0")
                    .with(LIMIT_RESET, &(now + seconds.unwrap_or(1).max(1)).to_string())
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
        };
        match seconds {
            Some(seconds) => answer.with(RETRY_AFTER, &seconds.to_string()),
            None => answer,
        }
    }

    /// This recipient is at fault.
    pub(crate) fn rejected(api: Api, recipient: &Recipient<'_>) -> Answer {
        match api {
            Api::SendGrid => {
                let Recipient { personalization, list, index, .. } = recipient;
                let field = format!("personalizations.{personalization}.{list}.{index}.email");
                Answer::refused(api, 400, "Does not contain a valid address.", Some(&field))
            }
            Api::Http => {
                let body =
                    json!({"outcome": "rejected_recipient", "recipients": [recipient.email], "message": "no such mailbox"});
                Answer::json(422, body.to_string())
            }
        }
    }
}
