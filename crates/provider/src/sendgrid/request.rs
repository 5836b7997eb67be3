//! The body of `POST /v3/mail/send`.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{EmailAddress, Mailbox, Message, Outcome};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::answer::unsupported;

/// The `custom_args` key that carries the message's id into SendGrid's events.
const ID_ARG: &str = "paceline_id";
const MAX_CATEGORIES: usize = 10;
const MAX_CATEGORY_CHARS: usize = 255;
const MAX_CUSTOM_ARGS_BYTES: usize = 10_000;
/// Headers SendGrid refuses beside those that no message can set.
const RESERVED_HEADERS: [&str; 2] = ["x-sg-id", "x-sg-eid"];

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message) -> Result<Vec<u8>, Box<Outcome>> {
    let refuse = |field: &str, problem: &str| Err(Box::new(unsupported(field, problem)));
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
    if message.metadata.contains_key(ID_ARG) {
        return refuse("metadata.paceline_id", "this key carries the message's id");
    }
    let args_bytes: usize = message.metadata.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
    if args_bytes + ID_ARG.len() + message.id.len() > MAX_CUSTOM_ARGS_BYTES {
        return refuse("metadata", "SendGrid takes at most 10,000 bytes of custom_args");
    }
    let recipients = Recipients::of(message);
    let template = message.template.as_ref();
    let body = Body {
        personalizations: [Personalization {
            to: &recipients.to,
            cc: &recipients.cc,
            bcc: &recipients.bcc,
            dynamic_template_data: template.map(|t| &t.data).filter(|d| !d.is_empty()),
        }],
        from: Address::of(&message.from),
        custom_args: CustomArgs(message),
        reply_to: message.reply_to.as_ref().map(Address::of),
        subject,
        content,
        template_id: template.map(|t| t.id.as_str()),
        attachments: message.attachments.iter().map(Attachment::of).collect(),
        headers: &message.headers,
        categories,
    };
    let large: usize = message.attachments.iter().map(|a| a.content.len() + 128).sum();
    let text = message.text.as_ref().map_or(0, String::len) + message.html.as_ref().map_or(0, String::len);
    let mut bytes = Vec::with_capacity(1024 + large + text + text / 8);
    match serde_json::to_writer(&mut bytes, &body) {
        Ok(()) => Ok(bytes),
        // A vector takes any bytes and all keys are strings: this does not happen.
        Err(_) => refuse("body", "cannot be written as JSON"),
    }
}

/// The recipients as they are sent: each address once, where it stands first, as SendGrid demands.
pub(super) struct Recipients<'a> {
    pub(super) to: Vec<Address<'a>>,
    pub(super) cc: Vec<Address<'a>>,
    pub(super) bcc: Vec<Address<'a>>,
}

impl<'a> Recipients<'a> {
    pub(super) fn of(message: &'a Message) -> Recipients<'a> {
        let mut seen: Vec<&EmailAddress> = Vec::with_capacity(message.recipient_count());
        let mut once = |list: &'a [Mailbox]| -> Vec<Address<'a>> {
            let mut out = Vec::with_capacity(list.len());
            for mailbox in list {
                // At most 50: comparing each with each is cheaper than hashing.
                if !seen.iter().any(|s| same(s, &mailbox.email)) {
                    seen.push(&mailbox.email);
                    out.push(Address::of(mailbox));
                }
            }
            out
        };
        Recipients { to: once(&message.to), cc: once(&message.cc), bcc: once(&message.bcc) }
    }
}

/// Whether SendGrid takes these for one address: it does not tell upper from lower case.
pub(super) fn same(a: &EmailAddress, b: &EmailAddress) -> bool {
    a.domain() == b.domain() && a.local().eq_ignore_ascii_case(b.local())
}

#[derive(Serialize)]
struct Body<'a> {
    personalizations: [Personalization<'a>; 1],
    from: Address<'a>,
    custom_args: CustomArgs<'a>,
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
    to: &'a [Address<'a>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    cc: &'a [Address<'a>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    bcc: &'a [Address<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    dynamic_template_data: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize)]
pub(super) struct Address<'a> {
    pub(super) email: &'a EmailAddress,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> Address<'a> {
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
        map.serialize_entry(ID_ARG, &self.0.id)?;
        for (key, value) in &self.0.metadata {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// Values with other than ASCII characters travel as RFC 2047 encoded words: SendGrid leaves that to its callers.
fn headers<S: Serializer>(headers: &&BTreeMap<String, String>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(headers.iter().map(|(name, value)| (name, encoded(value))))
}

fn encoded(value: &str) -> std::borrow::Cow<'_, str> {
    if value.is_ascii() {
        return value.into();
    }
    // 45 bytes make 60 characters of base64, and with "=?UTF-8?B?" and "?=" 72: under the 75 of an encoded word.
    let mut words = Vec::new();
    let mut rest = value;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.floor_char_boundary(45));
        words.push(format!("=?UTF-8?B?{}?=", STANDARD.encode(word)));
        rest = after;
    }
    words.join(" ").into()
}
