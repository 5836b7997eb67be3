//! The body of `POST /v3/mail/send`.

use std::collections::BTreeMap;

use paceline_core::{EmailAddress, Mailbox, Message, Outcome};
use serde::{Serialize, Serializer, ser::SerializeMap};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    address::{Recipients, ascii},
    answer::refuse,
    json,
    tags::ID_KEY,
};

const MAX_CATEGORIES: usize = 10;
const MAX_CATEGORY_CHARS: usize = 255;
const MAX_CUSTOM_ARGS_BYTES: usize = 10_000;
/// Headers SendGrid refuses beside those that no message can set.
const RESERVED_HEADERS: [&str; 2] = ["x-sg-id", "x-sg-eid"];

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message) -> Result<Vec<u8>, Box<Outcome>> {
    json::body(&Body::of(message)?, message)
}

impl<'a> Body<'a> {
    pub(super) fn of(message: &'a Message) -> Result<Body<'a>, Box<Outcome>> {
        let mut content = Vec::with_capacity(2);
        for (kind, value) in [("text/plain", &message.text), ("text/html", &message.html)] {
            // SendGrid refuses empty parts; an empty one beside a full one adds nothing.
            content.extend(value.as_deref().filter(|v| !v.is_empty()).map(|value| Content { kind, value }));
        }
        if content.is_empty() && message.template.is_none() {
            return refuse("text", "SendGrid needs content of at least one character");
        }
        let subject = message.subject.as_deref().filter(|s| !s.is_empty());
        if subject.is_none() && message.template.is_none() {
            return refuse("subject", "SendGrid needs one, except with a template that brings its own");
        }
        let mut categories: Vec<&str> = Vec::with_capacity(message.tags.len());
        for (i, tag) in message.tags.iter().enumerate() {
            if tag.is_empty() || tag.chars().count() > MAX_CATEGORY_CHARS {
                return refuse(&format!("tags[{i}]"), "a SendGrid category has 1 to 255 characters");
            }
            if !categories.contains(&tag.as_str()) {
                categories.push(tag);
            }
        }
        if categories.len() > MAX_CATEGORIES {
            return refuse("tags", "SendGrid takes at most 10 categories");
        }
        if let Some(name) = message.headers.keys().find(|n| RESERVED_HEADERS.iter().any(|r| r.eq_ignore_ascii_case(n))) {
            return refuse(&format!("headers.{name}"), "SendGrid keeps this header for itself");
        }
        if message.metadata.contains_key(ID_KEY) {
            return refuse("metadata.paceline_id", "this key carries the message's id");
        }
        let args_bytes: usize = message.metadata.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
        if args_bytes + ID_KEY.len() + message.id.len() > MAX_CUSTOM_ARGS_BYTES {
            return refuse("metadata", "SendGrid takes at most 10,000 bytes of custom_args");
        }
        let recipients = Recipients::of(message);
        let template = message.template.as_ref();
        Ok(Body {
            personalizations: vec![Personalization {
                to: Address::all(&recipients.to),
                cc: Address::all(&recipients.cc),
                bcc: Address::all(&recipients.bcc),
                custom_args: None,
                dynamic_template_data: template.map(|t| &t.data).filter(|d| !d.is_empty()),
            }],
            from: Address::of(&message.from),
            custom_args: Some(CustomArgs(message)),
            reply_to: message.reply_to.as_ref().map(Address::of),
            subject,
            content,
            template_id: template.map(|t| t.id.as_str()),
            attachments: message.attachments.iter().map(Attachment::of).collect(),
            headers: &message.headers,
            categories,
        })
    }

    /// Several of the same [`Body::shared`] in one, each in a personalization with its own arguments. `None` of none.
    pub(super) fn joined(bodies: Vec<Body<'a>>) -> Option<Body<'a>> {
        let mut bodies = bodies.into_iter().map(|mut body| {
            let args = body.custom_args.take();
            if let Some(only) = body.personalizations.first_mut() {
                only.custom_args = args;
            }
            body
        });
        let mut joined = bodies.next()?;
        joined.personalizations.extend(bodies.flat_map(|body| body.personalizations));
        Some(joined)
    }

    /// Stands for all but the recipients, their data and the arguments: what messages of one request share.
    pub(super) fn shared(self) -> u64 {
        struct Hash(Xxh3);
        impl std::io::Write for Hash {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut hash = Hash(Xxh3::new());
        let shared = Body { personalizations: Vec::new(), custom_args: None, ..self };
        // A hash takes any bytes, and all keys are strings.
        let _ = serde_json::to_writer(&mut hash, &shared);
        hash.0.digest()
    }
}

/// The body of a request.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    personalizations: Vec<Personalization<'a>>,
    from: Address<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_args: Option<CustomArgs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<Address<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    content: Vec<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "headers")]
    headers: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    categories: Vec<&'a str>,
}

#[derive(Serialize)]
struct Personalization<'a> {
    to: Vec<Address<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cc: Vec<Address<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bcc: Vec<Address<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_args: Option<CustomArgs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dynamic_template_data: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize)]
struct Address<'a> {
    email: &'a EmailAddress,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> Address<'a> {
    fn all(mailboxes: &[&'a Mailbox]) -> Vec<Address<'a>> {
        mailboxes.iter().map(|m| Address::of(m)).collect()
    }

    fn of(mailbox: &'a Mailbox) -> Address<'a> {
        Address { email: &mailbox.email, name: mailbox.name.as_deref().filter(|n| !n.is_empty()) }
    }
}

#[derive(Serialize)]
struct Content<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    value: &'a str,
}

#[derive(Serialize)]
struct Attachment<'a> {
    content: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    filename: &'a str,
    disposition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_id: Option<&'a str>,
}

impl<'a> Attachment<'a> {
    fn of(a: &'a paceline_core::message::Attachment) -> Attachment<'a> {
        Attachment {
            content: &a.content,
            kind: &a.content_type,
            filename: &a.filename,
            disposition: if a.content_id.is_some() { "inline" } else { "attachment" },
            content_id: a.content_id.as_deref(),
        }
    }
}

struct CustomArgs<'a>(&'a Message);

impl Serialize for CustomArgs<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(1 + self.0.metadata.len()))?;
        map.serialize_entry(ID_KEY, &self.0.id)?;
        for (key, value) in &self.0.metadata {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// Values with other than ASCII characters travel as RFC 2047 encoded words: SendGrid leaves that to its callers.
fn headers<S: Serializer>(headers: &&BTreeMap<String, String>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(headers.iter().map(|(name, value)| (name, ascii(value))))
}
