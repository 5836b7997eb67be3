//! An HTTP answer, and what any provider's answer says by its status and headers alone.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use paceline_core::{Outcome, ProviderAnswer, Rejected, Scope};
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// An answer as it came; the body cut at 64 KiB, or wherever the connection ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header's value, where it is readable text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim).filter(|v| !v.is_empty())
    }

    /// The body as JSON, where it is an object.
    pub(crate) fn object(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body as text, however broken it is; bounded by the caller that makes a [`ProviderAnswer`] of it.
    pub(crate) fn text(&self) -> String {
        // 4 bytes a character suffice for the 500 characters that are kept.
        String::from_utf8_lossy(&self.body[..self.body.len().min(4 * paceline_core::outcome::MAX_PROVIDER_MESSAGE)]).into_owned()
    }

    /// `Retry-After`, as seconds or as an HTTP date; dates gone by are no wait.
    pub(crate) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
            // More digits than fit is a very long wait all the same.
            return Some(Duration::from_secs(value.parse().unwrap_or(u32::MAX.into())));
        }
        Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
    }

    /// When a header such as `RateLimit-Reset` says that more may be sent: in so many seconds, or at a moment in seconds of
    /// the Unix epoch, which no wait is as long as.
    pub(crate) fn reset(&self, name: &str, now: SystemTime) -> Option<Duration> {
        const LONGEST_WAIT: f64 = 1e9;
        let seconds: f64 = self.header(name)?.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0)?;
        if seconds < LONGEST_WAIT {
            return Some(Duration::from_secs_f64(seconds));
        }
        // What is more than fits is no moment.
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds as u64))?;
        at.duration_since(now).ok()
    }

    pub(crate) fn says(&self, code: &str, words: &str) -> ProviderAnswer {
        ProviderAnswer::new(code, Some(self.status), words)
    }

    pub(crate) fn rejected(&self, what: Rejected, code: &str, words: &str) -> Outcome {
        Outcome::Rejected { what, answer: self.says(code, words) }
    }

    pub(crate) fn temporary(&self, code: &str, words: &str, now: SystemTime) -> Outcome {
        Outcome::Temporary { retry_after: self.retry_after(now), answer: self.says(code, words) }
    }

    /// Over a limit of the account; `wait` where the answer's own `Retry-After` says nothing.
    pub(crate) fn throttled(&self, code: &str, words: &str, wait: Option<Duration>, now: SystemTime) -> Outcome {
        let retry_after = self.retry_after(now).or(wait);
        Outcome::Throttled { scope: Scope::Account, retry_after, answer: self.says(code, words) }
    }

    /// An error in a form that is not the provider's: something in between has spoken. A refusal of the message is final,
    /// so it is not believed from there.
    pub(crate) fn by_stranger(&self, now: SystemTime) -> Outcome {
        match self.status {
            400 | 406 | 409 | 411 | 412 | 414..=419 | 422..=424 | 426..=428 | 430..=499 => {
                self.temporary("unexpected_answer", &self.text(), now)
            }
            _ => self.by_status(&self.text(), now),
        }
    }

    /// A 2xx that is not in the provider's form: something in between took the message, and may have passed it on.
    pub(crate) fn strange_success(&self) -> Outcome {
        Outcome::Uncertain { answer: self.says("unexpected_answer", &self.text()) }
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What a status that is not 2xx means where nothing more particular is known. The table of `docs/providers/http.md`.
    ///
    /// A redirect, 404 and the like say that the account is set up wrongly: the mail is kept and the account looked at.
    pub(crate) fn by_status(&self, words: &str, now: SystemTime) -> Outcome {
        let account = |code| self.rejected(Rejected::Account, code, words);
        let message = |code| self.rejected(Rejected::Message, code, words);
        match self.status {
            300..=399 => account("unexpected_redirect"),
            401 => account("unauthorized"),
            402 => account("payment_required"),
            403 => account("forbidden"),
            404 => account("not_found"),
            405 => account("method_not_allowed"),
            407 => account("proxy_authentication"),
            410 => account("gone"),
            408 | 421 | 425 => self.temporary("try_again", words, now),
            413 => message("too_large"),
            415 => message("unsupported_media_type"),
            420 | 429 => Outcome::Throttled {
                scope: Scope::Account,
                retry_after: self.retry_after(now),
                answer: self.says("rate_limited", words),
            },
            400..=499 => message("invalid_request"),
            502 => self.temporary("bad_gateway", words, now),
            503 => self.temporary("unavailable", words, now),
            504 => self.temporary("gateway_timeout", words, now),
            500..=599 => self.temporary("server_error", words, now),
            _ => self.temporary("unexpected_answer", words, now),
        }
    }
}

/// A provider's id for a message, where it is a text or a number of sensible length.
pub(crate) fn id(value: Option<&serde_json::Value>) -> Option<String> {
    let id = match value? {
        serde_json::Value::String(text) => text.trim().to_owned(),
        serde_json::Value::Number(number) => number.to_string(),
        _ => return None,
    };
    (1..=256).contains(&id.len()).then_some(id)
}

/// A message this provider cannot carry: refused before any call, with the field named.
pub(crate) fn unsupported(field: &str, problem: &str) -> Outcome {
    let answer = ProviderAnswer::new("unsupported", None, &format!("{field}: {problem}"));
    Outcome::Rejected { what: Rejected::Message, answer }
}

/// [`unsupported`], as the error of a request that is being put together.
pub(crate) fn refuse<T>(field: &str, problem: &str) -> Result<T, Box<Outcome>> {
    Err(Box::new(unsupported(field, problem)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    pub(crate) const NOW: Duration = Duration::from_secs(1_800_000_000);

    pub(crate) fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let headers = headers
            .iter()
            .map(|(n, v)| (HeaderName::try_from(*n).unwrap(), HeaderValue::from_bytes(v.as_bytes()).unwrap()))
            .collect();
        Answer { status, headers, body: body.into() }
    }

    /// A message from a named sender to two people, with `extra` over it.
    pub(crate) fn message(extra: serde_json::Value) -> paceline_core::Message {
        let mut body = serde_json::json!({
            "id": "order-1", "from": {"email": "shop@b.org", "name": "Shöp"}, "subject": "Hi", "text": "t",
            "to": ["u@gmail.com", {"email": "v@y.org", "name": "V"}],
        });
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        paceline_core::Message::parse(body.to_string().as_bytes(), None, 20 << 20).unwrap()
    }

    /// [`message`] with something in every field.
    pub(crate) fn full_message() -> paceline_core::Message {
        message(serde_json::json!({
            "class": "high", "stream": "receipts", "tenant": "acme",
            "cc": ["C@x.org", "U@gmail.com"], "bcc": [{"email": "w@z.org", "name": "W, Jr"}, "c@x.org"],
            "reply_to": {"email": "help@b.org", "name": "Help"}, "html": "<p>ü</p>",
            "headers": {"List-Unsubscribe": "<https://x>", "X-Note": "ünïcode"},
            "attachments": [
                {"filename": "a \"1\".pdf", "content_type": "application/pdf", "content": "aGk="},
                {"filename": "l.png", "content_type": "image/png", "content": "aGk=", "content_id": "logo"}],
            "tags": ["receipt"], "metadata": {"order": "1", "class": "high"},
        }))
    }

    /// Whom an outcome refuses, and whom it leaves.
    pub(crate) fn gone(outcome: &Outcome) -> Vec<String> {
        match outcome {
            Outcome::Rejected { what: Rejected::Recipients(gone), .. } => gone.iter().map(ToString::to_string).collect(),
            Outcome::Accepted { refused, .. } => refused.iter().map(|(email, _)| email.to_string()).collect(),
            _ => Vec::new(),
        }
    }

    /// Answers that no provider gives, whatever the provider: read by their status, and never as a final refusal of the
    /// message nor as an acceptance.
    pub(crate) fn strangers(outcome: impl Fn(&Answer) -> Outcome) {
        let deep = format!(r#"{{"message":{}"#, "[".repeat(60_000));
        let bodies: [Bytes; 9] = [
            Bytes::new(),
            Bytes::from_static(b"<html><h1>502 Bad Gateway</h1>"),
            Bytes::from_static(b"null"),
            Bytes::from_static(b"[]"),
            Bytes::from_static(br#"{"unheard":"of"}"#),
            Bytes::from_static(
                br#"{"message":7,"Message":[],"name":{},"ErrorCode":{},"errors":{"code":1},"results":3,"id":[],"MessageID":0.5}"#,
            ),
            Bytes::from_static(b"\xff\xfe\x00"),
            Bytes::from(deep),
            Bytes::from("x".repeat(64 * 1024)),
        ];
        for body in bodies {
            for (status, want) in [
                (200, "uncertain unexpected_answer"),
                (204, "uncertain unexpected_answer"),
                (302, "rejected_account unexpected_redirect"),
                (400, "temporary unexpected_answer 9s"),
                (401, "rejected_account unauthorized"),
                (403, "rejected_account forbidden"),
                (404, "rejected_account not_found"),
                (409, "temporary unexpected_answer 9s"),
                (413, "rejected_message too_large"),
                (422, "temporary unexpected_answer 9s"),
                (429, "throttled rate_limited 9s"),
                (500, "temporary server_error 9s"),
                (502, "temporary bad_gateway 9s"),
                (503, "temporary unavailable 9s"),
                (504, "temporary gateway_timeout 9s"),
            ] {
                let got = outcome(&answer(status, &[("retry-after", "9")], body.clone()));
                assert_eq!(brief(&got), want, "{status} {:?}", &body[..body.len().min(80)]);
                assert!(got.answer().unwrap().message.chars().count() <= paceline_core::outcome::MAX_PROVIDER_MESSAGE);
            }
        }
    }

    /// `outcome` as one line for tables: label, code, seconds to wait.
    pub(crate) fn brief(outcome: &Outcome) -> String {
        let wait = match outcome {
            Outcome::Throttled { retry_after, .. }
            | Outcome::Temporary { retry_after, .. }
            | Outcome::Greylisted { retry_after, .. }
            | Outcome::ReputationBlock { retry_after, .. } => *retry_after,
            _ => None,
        };
        let mut text = outcome.label().to_owned();
        if let Some(answer) = outcome.answer() {
            text = format!("{text} {}", answer.code);
        }
        if let Some(wait) = wait {
            text = format!("{text} {}s", wait.as_secs());
        }
        text
    }

    #[test]
    fn retry_after_in_both_forms() {
        for (value, want) in [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("Fri, 15 Jan 2027 08:01:40 GMT", Some(100)),
            ("Friday, 15-Jan-27 08:01:40 GMT", Some(100)),
            ("Fri, 15 Jan 2021 08:01:40 GMT", Some(0)),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("\u{e9}", None),
        ] {
            let got = answer(503, &[("retry-after", value)], "").retry_after(now());
            assert_eq!(got.map(|d| d.as_secs()), want, "{value:?}");
        }
    }

    #[test]
    fn every_status_means_something() {
        for (status, want) in [
            (301, "rejected_account unexpected_redirect"),
            (307, "rejected_account unexpected_redirect"),
            (400, "rejected_message invalid_request"),
            (401, "rejected_account unauthorized"),
            (402, "rejected_account payment_required"),
            (403, "rejected_account forbidden"),
            (404, "rejected_account not_found"),
            (405, "rejected_account method_not_allowed"),
            (407, "rejected_account proxy_authentication"),
            (408, "temporary try_again 9s"),
            (410, "rejected_account gone"),
            (413, "rejected_message too_large"),
            (415, "rejected_message unsupported_media_type"),
            (418, "rejected_message invalid_request"),
            (420, "throttled rate_limited 9s"),
            (421, "temporary try_again 9s"),
            (422, "rejected_message invalid_request"),
            (425, "temporary try_again 9s"),
            (429, "throttled rate_limited 9s"),
            (500, "temporary server_error 9s"),
            (502, "temporary bad_gateway 9s"),
            (503, "temporary unavailable 9s"),
            (504, "temporary gateway_timeout 9s"),
            (599, "temporary server_error 9s"),
            (101, "temporary unexpected_answer 9s"),
            (999, "temporary unexpected_answer 9s"),
        ] {
            assert_eq!(brief(&answer(status, &[("retry-after", "9")], "").by_status("", now())), want, "{status}");
        }
    }
}
