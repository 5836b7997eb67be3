//! The message, version 1: what a producer publishes, checked when read.

use std::{collections::BTreeMap, fmt};

use base64::Engine as _;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{Class, Domain, EmailAddress, Mailbox, Timestamp};

/// Most recipients (`to`, `cc` and `bcc` together) of one message.
pub const MAX_RECIPIENTS: usize = 50;
/// Longest `id`, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// One e-mail to send. Every value of this type has passed the checks of [`Message::parse`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    #[serde(default, skip_serializing)]
    v: Version,
    /// Identity, for de-duplication and as the provider's idempotency key. Never empty after parsing.
    #[serde(default)]
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub from: Mailbox,
    pub to: Vec<Mailbox>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<Mailbox>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<Mailbox>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<Mailbox>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A template kept at the provider, with its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    pub id: String,
    #[serde(default)]
    pub data: serde_json::Map<String, serde_json::Value>,
}

/// A file carried along; `content` is base64 and has been checked to be so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    pub filename: String,
    pub content_type: String,
    pub content: String,
    /// Set for an inline image; referred to as `cid:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Version;

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match u64::deserialize(d)? {
            1 => Ok(Version),
            other => Err(de::Error::custom(format_args!("version {other} is not known; this is version 1"))),
        }
    }
}

/// Why a message cannot be sent as it is, and which field is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidMessage {
    /// Path of the field, such as `to[2].email`; `body` where the document as a whole is at fault.
    pub field: String,
    /// What is wrong with it. Holds no address and no content.
    pub problem: String,
}

impl InvalidMessage {
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        InvalidMessage { field: field.into(), problem: problem.to_string() }
    }
}

impl Message {
    /// Reads and checks a message.
    ///
    /// `message_id` (the AMQP property) stands in for a missing `id`. `max_bytes` bounds the body.
    ///
    /// # Errors
    /// [`InvalidMessage`] names the first field at fault. It never panics, whatever the bytes.
    pub fn parse(body: &[u8], message_id: Option<&str>, max_bytes: usize) -> Result<Message, InvalidMessage> {
        if body.len() > max_bytes {
            return Err(InvalidMessage::new(
                "body",
                format_args!("{} bytes are more than max_message_bytes = {max_bytes}", body.len()),
            ));
        }
        // A byte order mark is no JSON; say so instead of "expected value".
        if body.starts_with(b"\xef\xbb\xbf") {
            return Err(InvalidMessage::new("body", "starts with a byte order mark; send plain UTF-8 JSON"));
        }
        let mut message: Message = match serde_json::from_slice(body) {
            Ok(message) => message,
            // The fast path does not track where it is; only what fails is read again, with the path.
            Err(error) => return Err(locate(body, &error)),
        };
        if message.id.is_empty() {
            match message_id {
                Some(id) if !id.is_empty() => message.id = id.to_owned(),
                _ => return Err(InvalidMessage::new("id", "is missing, and the AMQP message_id is not set either")),
            }
        }
        message.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<(), InvalidMessage> {
        let id_byte = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if self.id.len() > MAX_ID_BYTES || !self.id.bytes().all(id_byte) {
            return Err(InvalidMessage::new("id", "must be 1 to 128 of A-Z a-z 0-9 . _ : -"));
        }
        if self.to.is_empty() {
            return Err(InvalidMessage::new("to", "needs at least one address"));
        }
        let count = self.recipient_count();
        if count > MAX_RECIPIENTS {
            let over = if self.to.len() > MAX_RECIPIENTS {
                "to"
            } else if self.to.len() + self.cc.len() > MAX_RECIPIENTS {
                "cc"
            } else {
                "bcc"
            };
            return Err(InvalidMessage::new(over, format_args!("{count} recipients in all; at most {MAX_RECIPIENTS}")));
        }
        if self.text.is_none() && self.html.is_none() && self.template.is_none() {
            return Err(InvalidMessage::new("text", "at least one of text, html and template is needed"));
        }
        let lines = [("stream", &self.stream), ("tenant", &self.tenant), ("subject", &self.subject), ("account", &self.account)];
        for (field, value) in lines {
            if let Some(value) = value {
                one_line(field, value)?;
            }
        }
        if let Some(template) = &self.template {
            if template.id.is_empty() {
                return Err(InvalidMessage::new("template.id", "is empty"));
            }
            one_line("template.id", &template.id)?;
        }
        for (name, value) in &self.headers {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            let field = || format!("headers.{shown}");
            if name.is_empty() || !name.bytes().all(|b| (33..=126).contains(&b) && b != b':') {
                return Err(InvalidMessage::new(field(), "a header name is printable ASCII without spaces or colons"));
            }
            if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                return Err(InvalidMessage::new(field(), "this header is made from the message's own fields"));
            }
            one_line(&field(), value)?;
        }
        for (i, a) in self.attachments.iter().enumerate() {
            if a.filename.is_empty() {
                return Err(InvalidMessage::new(format!("attachments[{i}].filename"), "is empty"));
            }
            one_line(&format!("attachments[{i}].filename"), &a.filename)?;
            one_line(&format!("attachments[{i}].content_type"), &a.content_type)?;
            if !a.content_type.split_once('/').is_some_and(|(t, s)| !t.trim().is_empty() && !s.trim().is_empty()) {
                return Err(InvalidMessage::new(
                    format!("attachments[{i}].content_type"),
                    "must be a media type such as application/pdf",
                ));
            }
            if let Some(cid) = &a.content_id {
                one_line(&format!("attachments[{i}].content_id"), cid)?;
            }
            if !is_base64(&a.content) {
                return Err(InvalidMessage::new(format!("attachments[{i}].content"), "is not valid base64"));
            }
        }
        for (i, tag) in self.tags.iter().enumerate() {
            one_line(&format!("tags[{i}]"), tag)?;
        }
        for (key, value) in &self.metadata {
            one_line("metadata", key)?;
            if value.contains('\0') {
                return Err(InvalidMessage::new("metadata", "a value contains NUL"));
            }
        }
        Ok(())
    }

    /// Recipients in `to`, `cc` and `bcc` together: what the message costs its buckets.
    pub fn recipient_count(&self) -> usize {
        self.to.len() + self.cc.len() + self.bcc.len()
    }

    /// All recipients: `to`, then `cc`, then `bcc`.
    pub fn recipients(&self) -> impl Iterator<Item = &EmailAddress> {
        self.to.iter().chain(&self.cc).chain(&self.bcc).map(|m| &m.email)
    }

    /// The domain of the first `to`: it decides the destination.
    pub fn domain(&self) -> &Domain {
        self.to[0].email.domain()
    }

    /// Takes these recipients out, wherever they stand. May leave no `to`: the caller then has nothing to send.
    pub fn remove_recipients(&mut self, gone: &[EmailAddress]) {
        for list in [&mut self.to, &mut self.cc, &mut self.bcc] {
            list.retain(|m| !gone.contains(&m.email));
        }
    }
}

/// Headers that Paceline or the provider writes from the message's own fields.
const OWN_HEADERS: [&str; 12] = [
    "from",
    "to",
    "cc",
    "bcc",
    "subject",
    "reply-to",
    "content-type",
    "content-transfer-encoding",
    "mime-version",
    "received",
    "return-path",
    "dkim-signature",
];

fn one_line(field: &str, value: &str) -> Result<(), InvalidMessage> {
    if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        return Err(InvalidMessage::new(field, "contains CR, LF or NUL"));
    }
    Ok(())
}

/// Checks in pieces, so that a large attachment is never held twice.
fn is_base64(content: &str) -> bool {
    let mut buffer = [0u8; 3072];
    let chunks = content.as_bytes().chunks(4096);
    let last = chunks.len().saturating_sub(1);
    chunks.enumerate().all(|(i, chunk)| {
        let engine = base64::engine::general_purpose::STANDARD;
        // Padding may stand at the very end only.
        (i == last || !chunk.ends_with(b"=")) && engine.decode_slice(chunk, &mut buffer).is_ok()
    })
}

/// Reads the failed document again, this time keeping track of the path.
fn locate(body: &[u8], first: &serde_json::Error) -> InvalidMessage {
    if std::str::from_utf8(body).is_err() {
        return InvalidMessage::new("body", "is not UTF-8");
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let failed = serde_path_to_error::deserialize::<_, Message>(&mut reader).err();
    let (path, problem) = match failed {
        Some(e) => (e.path().to_string(), e.inner().to_string()),
        None => (String::from("."), first.to_string()),
    };
    // serde_json quotes what it read in two of its messages: keep the kind, not the content.
    let problem = without_content(&problem);
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| problem.strip_prefix(start)?.split('`').next());
    let base = if first.is_syntax() || first.is_eof() || path == "." || path == "?" { "" } else { path.as_str() };
    let field = match (base, named) {
        ("", None) => "body".to_owned(),
        ("", Some(name)) => name.to_owned(),
        // For an unknown field the path already ends in it; for a missing one it names the parent.
        (base, Some(name)) if base == name || base.ends_with(&format!(".{name}")) => base.to_owned(),
        (base, Some(name)) => format!("{base}.{name}"),
        (base, None) => base.to_owned(),
    };
    InvalidMessage { field: field.chars().filter(|c| !c.is_control()).take(120).collect(), problem }
}

/// `invalid type: string "secret", expected …` → `invalid type: string, expected …`.
fn without_content(problem: &str) -> String {
    if let Some((_, rest)) = problem.strip_prefix("unknown variant `").and_then(|p| p.rsplit_once("`, expected one of")) {
        // Only where the quoted text itself holds no such words is the split the right one; either way nothing leaks.
        return format!("unknown value, expected one of{rest}");
    }
    for kind in ["string \"", "integer `", "floating point `", "boolean `", "character `"] {
        let Some(at) = problem.find(kind) else { continue };
        let Some(end) = problem.rfind(", expected") else { continue };
        if problem.starts_with("invalid") && at < end {
            let word = kind.trim_end_matches(['"', '`']).trim_end();
            return format!("{}{word}{}", &problem[..at], &problem[end..]);
        }
    }
    problem.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 10 << 20;

    fn parse(body: &str) -> Result<Message, InvalidMessage> {
        Message::parse(body.as_bytes(), None, MAX)
    }

    fn field(body: &str) -> String {
        parse(body).expect_err(body).field
    }

    fn with(extra: &str) -> String {
        format!(r#"{{"id":"a","from":"a@b.org","to":["u@gmail.com"],"text":"hi",{extra}}}"#)
    }

    #[test]
    fn a_full_message() {
        let m = parse(
            r#"{"v":1,"id":"order-1:2.3_x","class":"high","stream":"receipts","tenant":"acme",
            "from":{"email":"shop@b.org","name":"Shöp"},"to":["u@Gmail.com",{"email":"v@y.org"}],"cc":[],"bcc":["w@z.org"],
            "reply_to":"r@b.org","subject":"Hi","text":"t","html":"<p>","headers":{"List-Unsubscribe":"<x>"},
            "attachments":[{"filename":"a.pdf","content_type":"application/pdf","content":"aGk="}],
            "tags":["t"],"metadata":{"k":"v"},"account":"ses","not_before":"2026-01-01T00:00:00Z","expires_at":"2027-01-01T00:00:00+01:00"}"#,
        )
        .unwrap();
        assert_eq!(m.recipient_count(), 3);
        assert_eq!(m.domain().as_str(), "gmail.com");
        let again = Message::parse(&serde_json::to_vec(&m).unwrap(), None, MAX).unwrap();
        assert_eq!(again, m);
    }

    #[test]
    fn the_amqp_message_id_stands_in() {
        let body = br#"{"from":"a@b.org","to":["u@gmail.com"],"text":"hi"}"#;
        assert_eq!(Message::parse(body, Some("x-1"), MAX).unwrap().id, "x-1");
        assert_eq!(Message::parse(body, None, MAX).unwrap_err().field, "id");
        assert_eq!(Message::parse(body, Some("bad id"), MAX).unwrap_err().field, "id");
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (body, want) in [
            ("", "body"),
            ("{", "body"),
            ("null", "body"),
            ("[]", "body"),
            ("\"x\"", "body"),
            (r#"{"id":"a"}"#, "from"),
            (r#"{"id":"a","from":"a@b.org","text":"x"}"#, "to"),
            (r#"{"id":"a","from":"a@b.org","to":[],"text":"x"}"#, "to"),
            (r#"{"id":"a","from":"a@b.org","to":["u@gmail.com"]}"#, "text"),
            (r#"{"id":7,"from":"a@b.org","to":["u@gmail.com"],"text":"x"}"#, "id"),
            (r#"{"id":"a b","from":"a@b.org","to":["u@gmail.com"],"text":"x"}"#, "id"),
            (r#"{"id":"a","from":"a@b.org","to":"u@gmail.com","text":"x"}"#, "to"),
            (r#"{"id":"a","from":"a@b.org","to":["u@gmail.com","nobody"],"text":"x"}"#, "to[1]"),
            (r#"{"id":"a","from":"a@b.org","to":[{"email":"u@x"}],"text":"x"}"#, "to[0].email"),
            (r#"{"id":"a","from":{"email":"a@b.org","name":"x\r\nBcc: y@z.org"},"to":["u@gmail.com"],"text":"x"}"#, "from"),
            (r#"{"id":"a","from":{"name":"x"},"to":["u@gmail.com"],"text":"x"}"#, "from.email"),
            (&with(r#""colour":"red""#), "colour"),
            (&with(r#""v":2"#), "v"),
            (&with(r#""class":"urgent""#), "class"),
            (&with(r#""subject":"a\r\nBcc: x@y.org""#), "subject"),
            (&with(r#""headers":{"X-A":"a\nb"}"#), "headers.X-A"),
            (&with(r#""headers":{"X A":"a"}"#), "headers.X A"),
            (&with(r#""headers":{"Bcc":"x@y.org"}"#), "headers.Bcc"),
            (&with(r#""headers":{"X-A":5}"#), "headers.X-A"),
            (&with(r#""attachments":[{"filename":"a","content_type":"a/b","content":"a===" }]"#), "attachments[0].content"),
            (&with(r#""attachments":[{"filename":"a","content_type":"a/b" }]"#), "attachments[0].content"),
            (&with(r#""attachments":[{"filename":"a","content_type":"pdf","content":"" }]"#), "attachments[0].content_type"),
            (&with(r#""not_before":"tomorrow""#), "not_before"),
            (&with(r#""id":"b""#), "id"),
            (&with(r#""template":{"data":{}}"#), "template.id"),
            (&with(r#""metadata":{"k":1}"#), "metadata.k"),
            (&with(&format!(r#""cc":[{}]"#, vec!["\"u@x.org\""; 60].join(","))), "cc"),
        ] {
            assert_eq!(field(body), want, "{body}");
        }
    }

    #[test]
    fn hostile_bytes_are_refused_without_harm() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for body in
            [with(&format!(r#""metadata":{deep}"#)), with(&format!(r#""template":{{"id":"t","data":{{"a":{deep}}}}}"#)), deep]
        {
            assert!(parse(&body).is_err());
        }
        assert_eq!(Message::parse(b"{\"id\":\"\xff\"}", None, MAX).unwrap_err().problem, "is not UTF-8");
        assert_eq!(Message::parse(&[b' '; 100], None, 99).unwrap_err().field, "body");
        assert_eq!(Message::parse(b"\xef\xbb\xbf{}", None, MAX).unwrap_err().field, "body");
    }

    #[test]
    fn problems_hold_no_content() {
        for body in [
            with(r#""class":"me@secret.org""#),
            r#"{"id":"a","from":"a@b.org","to":"me@secret.org, expected \"x","text":"x"}"#.to_owned(),
            r#"{"id":"a","from":"a@b.org","to":["me@secret"],"text":"x"}"#.to_owned(),
        ] {
            let e = parse(&body).unwrap_err();
            assert!(!e.to_string().contains("secret"), "{e}");
        }
    }

    #[test]
    fn large_base64_is_checked_to_its_end() {
        let good = "QUJD".repeat(5000);
        assert!(is_base64(&good));
        assert!(is_base64(""));
        assert!(!is_base64(&format!("{good}A")));
        assert!(!is_base64(&format!("{}QQ=={}", "QUJD".repeat(1023), "QUJD")));
        assert!(!is_base64("QUJD\r\nQUJD"));
    }
}
