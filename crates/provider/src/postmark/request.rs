//! The body of `POST /email` and `POST /email/withTemplate`.

use std::collections::BTreeMap;

use paceline_core::{Message, Outcome};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    address::{Names, Recipients, list, written},
    answer::refuse,
    json,
    tags::ID_KEY,
};

const MAX_TAG_CHARS: usize = 1000;
const MAX_METADATA: usize = 10;
const MAX_METADATA_KEY_CHARS: usize = 20;
const MAX_METADATA_VALUE_CHARS: usize = 80;

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message, stream: Option<&str>) -> Result<Vec<u8>, Box<Outcome>> {
    json::body(&Body::of(message, stream)?, message)
}

/// One message, as `/email` takes it and as it stands in a batch. What may be long comes last.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Body<'a> {
    from: String,
    to: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cc: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    bcc: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_model: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    html_body: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment<'a>>,
}

impl<'a> Body<'a> {
    pub(super) fn of(message: &'a Message, stream: Option<&'a str>) -> Result<Body<'a>, Box<Outcome>> {
        let full = |text: &'a Option<String>| text.as_deref().filter(|t| !t.is_empty());
        let (text, html) = (full(&message.text), full(&message.html));
        let template = message.template.as_ref();
        if template.is_none() && text.is_none() && html.is_none() {
            return refuse("text", "Postmark needs a body of at least one character");
        }
        if template.is_some() {
            let own = [("subject", full(&message.subject)), ("text", text), ("html", html)];
            if let Some((field, _)) = own.iter().find(|(_, value)| value.is_some()) {
                return refuse(field, "Postmark's templates bring subject and bodies of their own; leave it out");
            }
        }
        let mut tags = message.tags.clone();
        tags.dedup();
        if tags.len() > 1 {
            return refuse("tags", "Postmark takes one tag a message");
        }
        if tags.first().is_some_and(|tag| tag.chars().count() > MAX_TAG_CHARS) {
            return refuse("tags[0]", "a Postmark tag has at most 1,000 characters");
        }
        let recipients = Recipients::of(message);
        // An id is a number, an alias begins with a letter.
        let template_id = template.and_then(|t| t.id.parse().ok());
        Ok(Body {
            from: written(&message.from, Names::Encoded),
            to: list(&recipients.to, Names::Encoded),
            cc: list(&recipients.cc, Names::Encoded),
            bcc: list(&recipients.bcc, Names::Encoded),
            reply_to: message.reply_to.as_ref().map(|r| written(r, Names::Encoded)),
            subject: full(&message.subject),
            text_body: text,
            html_body: html,
            template_id,
            template_alias: template.filter(|_| template_id.is_none()).map(|t| t.id.as_str()),
            template_model: template.map(|t| &t.data),
            tag: message.tags.first().map(String::as_str).filter(|tag| !tag.is_empty()),
            metadata: metadata(message)?,
            headers: message.headers.iter().map(|(name, value)| Header { name, value }).collect(),
            attachments: message.attachments.iter().map(Attachment::of).collect(),
            message_stream: stream,
        })
    }
}

/// The message's metadata, and its id where there is room for it.
fn metadata(message: &Message) -> Result<BTreeMap<&str, &str>, Box<Outcome>> {
    if message.metadata.len() > MAX_METADATA {
        return refuse("metadata", "Postmark takes at most 10 entries");
    }
    let mut out = BTreeMap::new();
    for (key, value) in &message.metadata {
        let field = || format!("metadata.{key}");
        if key == ID_KEY {
            return refuse(&field(), "this key carries the message's id");
        }
        if key.chars().count() > MAX_METADATA_KEY_CHARS || value.chars().count() > MAX_METADATA_VALUE_CHARS {
            return refuse(&field(), "Postmark takes keys of at most 20 and values of at most 80 characters");
        }
        out.insert(key.as_str(), value.as_str());
    }
    if out.len() < MAX_METADATA && message.id.len() <= MAX_METADATA_VALUE_CHARS {
        out.insert(ID_KEY, message.id.as_str());
    }
    Ok(out)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Header<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attachment<'a> {
    name: &'a str,
    content: &'a str,
    content_type: &'a str,
    #[serde(rename = "ContentID", skip_serializing_if = "Option::is_none")]
    content_id: Option<String>,
}

impl<'a> Attachment<'a> {
    fn of(a: &'a paceline_core::message::Attachment) -> Attachment<'a> {
        Attachment {
            name: &a.filename,
            content: &a.content,
            content_type: &a.content_type,
            content_id: a.content_id.as_ref().map(|id| format!("cid:{id}")),
        }
    }
}
