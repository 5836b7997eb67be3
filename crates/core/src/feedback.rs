//! What is said of a mail after a provider has accepted it: the body of messages in `<prefix>.feedback`.

use serde::{Deserialize, Serialize};

use crate::{EmailAddress, ProviderAnswer, Timestamp};

/// The key under which a message's id goes to providers and comes back in their events.
pub const ID_KEY: &str = "paceline_id";

/// Longest body of an event, in bytes.
pub const MAX_EVENT_BYTES: usize = 64 << 10;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The receiving server has taken it.
    Delivered,
    /// The receiving server does not take it yet; the provider keeps trying.
    Deferred,
    /// It did not arrive, and nothing sent to this recipient will.
    HardBounce,
    /// It did not arrive; that says nothing lasting about the recipient.
    SoftBounce,
    /// The recipient called it spam.
    Complained,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Delivered, Kind::Deferred, Kind::HardBounce, Kind::SoftBounce, Kind::Complained];

    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Delivered => "delivered",
            Kind::Deferred => "deferred",
            Kind::HardBounce => "hard_bounce",
            Kind::SoftBounce => "soft_bounce",
            Kind::Complained => "complained",
        }
    }
}

/// Whose word it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The receiving side: it says how the destination takes mail.
    #[default]
    Receiver,
    /// The provider, which did not try: its own list of suppressed recipients, its own check of content.
    Provider,
}

/// One thing that happened to one recipient's mail. JSON; fields not known here are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The same for every delivery of the same event by its account's provider.
    pub event_id: String,
    pub account: String,
    pub kind: Kind,
    #[serde(default)]
    pub source: Source,
    pub recipient: EmailAddress,
    /// Ours, where the provider carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The provider's id for the message, as it was given when the message was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// The provider's word for what happened, the SMTP basic code, and what the receiving server said.
    pub answer: ProviderAnswer,
    /// Such as `5.1.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enhanced_status: Option<String>,
    /// When it happened, by the provider's clock.
    pub at: Timestamp,
}

/// The body is no event.
#[derive(Debug, thiserror::Error)]
pub enum BadEvent {
    #[error("is {0} bytes long, more than {MAX_EVENT_BYTES}")]
    TooLong(usize),
    /// What stands there is not repeated: it may be an address.
    #[error("is not a feedback event; it breaks off or has another form at line {line}, column {column}")]
    Form { line: usize, column: usize },
}

impl Event {
    /// Reads the body of a message in the queue.
    ///
    /// # Errors
    /// Says what is wrong, without repeating what the body holds.
    pub fn parse(body: &[u8]) -> Result<Event, BadEvent> {
        if body.len() > MAX_EVENT_BYTES {
            return Err(BadEvent::TooLong(body.len()));
        }
        serde_json::from_slice(body).map_err(|e| BadEvent::Form { line: e.line(), column: e.column() })
    }

    /// As it travels.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and names of variants alone: writing them cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The basic code and the enhanced status that a receiving server's words begin with, each where it is there:
/// `550 5.1.1 user unknown`, `smtp; 550-5.1.1 …`, `5.1.1 …`.
pub fn codes(words: &str) -> (Option<u16>, Option<String>) {
    let words = words.trim_start();
    let words = words.strip_prefix("smtp;").unwrap_or(words).trim_start();
    let mut tokens = words.split([' ', '-', '\t', '\r', '\n']).filter(|t| !t.is_empty());
    let first = tokens.next().unwrap_or_default();
    match basic_code(first) {
        Some(code) => (Some(code), tokens.next().and_then(enhanced_status)),
        None => (None, enhanced_status(first)),
    }
}

/// A reply code of SMTP: three digits, 2xx, 4xx or 5xx.
pub fn basic_code(text: &str) -> Option<u16> {
    let code: u16 = (text.len() == 3).then(|| text.parse().ok()).flatten()?;
    matches!(code, 200..=299 | 400..=599).then_some(code)
}

/// An enhanced status code (RFC 3463), with what surrounds it taken off: `#5.1.1:`.
pub fn enhanced_status(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| !c.is_ascii_digit());
    let mut parts = text.split('.');
    let mut part =
        |most: usize| parts.next().is_some_and(|p| (1..=most).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()));
    let well_formed = part(1) && part(3) && part(3) && parts.next().is_none();
    (well_formed && matches!(text.as_bytes()[0], b'2' | b'4' | b'5')).then(|| text.to_owned())
}

/// What happened to a message, for producers: the body of the events `delivered`, `deferred`, `bounced` and `complained`.
/// At most once, and without any address.
#[derive(Debug, Clone, Serialize)]
pub struct Notice<'a> {
    pub event: &'static str,
    pub kind: Kind,
    pub source: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    pub destination: &'a str,
    pub domain: &'a str,
    pub account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<&'a str>,
    pub code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enhanced_status: Option<&'a str>,
    pub at: Timestamp,
}

impl<'a> Notice<'a> {
    pub fn of(event: &'a Event, destination: &'a str) -> Notice<'a> {
        Notice {
            event: match event.kind {
                Kind::HardBounce | Kind::SoftBounce => "bounced",
                other => other.as_str(),
            },
            kind: event.kind,
            source: event.source,
            id: event.message_id.as_deref(),
            destination,
            domain: event.recipient.domain().as_str(),
            account: &event.account,
            provider_id: event.provider_id.as_deref(),
            code: &event.answer.code,
            status: event.answer.status,
            enhanced_status: event.enhanced_status.as_deref(),
            at: event.at,
        }
    }
}

/// What a provider carries under [`ID_KEY`], where it has the form of a message's id.
pub fn message_id(text: &str) -> Option<String> {
    let byte = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    ((1..=128).contains(&text.len()) && text.bytes().all(byte)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            event_id: "e-1".into(),
            account: "main".into(),
            kind: Kind::HardBounce,
            source: Source::Receiver,
            recipient: EmailAddress::parse("jo@x.org").unwrap(),
            message_id: Some("order-1".into()),
            provider_id: None,
            answer: ProviderAnswer::new("Invalid Address", Some(550), "550 5.1.1 <jo@x.org> unknown"),
            enhanced_status: Some("5.1.1".into()),
            at: Timestamp::from_secs(1_800_000_000),
        }
    }

    #[test]
    fn events_round_trip_and_bear_fields_of_later_versions() {
        let json = event().to_json();
        assert_eq!(Event::parse(&json).unwrap(), event());
        let mut later: serde_json::Value = serde_json::from_slice(&json).unwrap();
        later["new"] = 1.into();
        assert_eq!(Event::parse(later.to_string().as_bytes()).unwrap(), event());
        let least = br#"{"event_id":"1","account":"a","kind":"deferred","recipient":"u@x.org","at":"2027-01-15T08:00:00Z",
            "answer":{"code":"","status":null,"message":""}}"#;
        assert_eq!(Event::parse(least).unwrap().source, Source::Receiver);
    }

    #[test]
    fn what_is_no_event_is_refused_without_its_content() {
        let nested = "[".repeat(60_000);
        for bad in ["", "{}", "[]", "null", nested.as_str(), r#"{"event_id":"1","kind":"opened"}"#] {
            assert!(matches!(Event::parse(bad.as_bytes()), Err(BadEvent::Form { .. })), "{bad:.40}");
        }
        assert!(matches!(Event::parse(&vec![b' '; MAX_EVENT_BYTES + 1]), Err(BadEvent::TooLong(_))));
        let mut bad: serde_json::Value = serde_json::from_slice(&event().to_json()).unwrap();
        bad["recipient"] = "secret@".into();
        assert!(!Event::parse(bad.to_string().as_bytes()).unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn notices_name_no_recipient() {
        let event = event();
        let json = serde_json::to_string(&Notice::of(&event, "tail")).unwrap();
        assert!(!json.contains("jo@") && json.contains(r#""event":"bounced","kind":"hard_bounce""#), "{json}");
    }

    #[test]
    fn codes_in_words() {
        for (words, code, enhanced) in [
            ("550 5.1.1 user unknown", Some(550), Some("5.1.1")),
            ("smtp; 550-5.1.1 The email account", Some(550), Some("5.1.1")),
            ("421 4.7.0 [TSS04] Messages", Some(421), Some("4.7.0")),
            ("550 #5.1.0 Address rejected.", Some(550), Some("5.1.0")),
            ("452 4.2.2: full", Some(452), Some("4.2.2")),
            ("5.7.515 Access denied", None, Some("5.7.515")),
            ("250 OK", Some(250), None),
            ("550 mailbox unavailable", Some(550), None),
            ("554 10.0.0.1 listed", Some(554), None),
            ("Recipient address rejected", None, None),
            ("999 9.9.9", None, None),
            ("", None, None),
            ("+12 1", None, None),
        ] {
            assert_eq!(codes(words), (code, enhanced.map(str::to_owned)), "{words}");
        }
    }

    #[test]
    fn ids_that_are_none_are_left_out() {
        for (id, ours) in [("order-1", true), ("", false), ("a b", false), ("\r\n", false)] {
            assert_eq!(message_id(id).is_some(), ours, "{id:?}");
        }
    }
}
