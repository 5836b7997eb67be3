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

    /// The moment a header names in seconds of the Unix epoch, as a wait from now.
    pub(crate) fn until_unix_seconds(&self, name: &str, now: SystemTime) -> Option<Duration> {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.header(name)?.parse().ok()?))?;
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

/// A message this provider cannot carry: refused before any call, with the field named.
pub(crate) fn unsupported(field: &str, problem: &str) -> Outcome {
    let answer = ProviderAnswer::new("unsupported", None, &format!("{field}: {problem}"));
    Outcome::Rejected { what: Rejected::Message, answer }
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
