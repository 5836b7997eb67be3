//! The body of `POST /emails`.

use std::collections::BTreeMap;

use paceline_core::{Mailbox, Message, Outcome};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    address::{Names, Recipients, written},
    answer::refuse,
    json,
    tags::{Pair, pairs},
};

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message) -> Result<Vec<u8>, Box<Outcome>> {
    json::body(&Body::of(message)?, message)
}

/// One message, as `/emails` takes it and as it stands in a batch. What may be long comes last.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    from: String,
    to: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cc: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bcc: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<Template<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment<'a>>,
}

impl<'a> Body<'a> {
    pub(super) fn of(message: &'a Message) -> Result<Body<'a>, Box<Outcome>> {
        let full = |text: &'a Option<String>| text.as_deref().filter(|t| !t.is_empty());
        let (subject, text, html) = (full(&message.subject), full(&message.text), full(&message.html));
        match &message.template {
            None if text.is_none() && html.is_none() => {
                return refuse("text", "Resend needs content of at least one character");
            }
            None if subject.is_none() => {
                return refuse("subject", "Resend needs one, except with a template that brings its own");
            }
            Some(_) => {
                if let Some((field, _)) = [("text", text), ("html", html)].iter().find(|(_, value)| value.is_some()) {
                    return refuse(field, "Resend takes a template or content, not both");
                }
            }
            None => {}
        }
        // Resend reads `from` by rules of its own: neither quotes nor encoded words, so what they would protect must not
        // be there.
        if message.from.name.as_deref().is_some_and(|name| name.contains(['<', '>', '"'])) {
            return refuse("from.name", "Resend takes no quotes and angle brackets in a sender's name");
        }
        let recipients = Recipients::of(message);
        let all = |list: &[&Mailbox]| list.iter().map(|m| written(m, Names::EncodedWithoutQuotes)).collect();
        Ok(Body {
            from: written(&message.from, Names::Bare),
            to: all(&recipients.to),
            cc: all(&recipients.cc),
            bcc: all(&recipients.bcc),
            reply_to: message.reply_to.as_ref().map(|r| written(r, Names::EncodedWithoutQuotes)),
            subject,
            text,
            html,
            template: message.template.as_ref().map(Template::of).transpose()?,
            headers: &message.headers,
            attachments: message.attachments.iter().map(Attachment::of).collect(),
            tags: pairs(message, "Resend")?,
        })
    }
}

#[derive(Serialize)]
struct Template<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    variables: &'a Map<String, Value>,
}

impl<'a> Template<'a> {
    fn of(template: &'a paceline_core::message::Template) -> Result<Template<'a>, Box<Outcome>> {
        if let Some((key, _)) = template.data.iter().find(|(_, value)| !(value.is_string() || value.is_number())) {
            return refuse(&format!("template.data.{key}"), "Resend's template variables are texts and numbers");
        }
        Ok(Template { id: &template.id, variables: &template.data })
    }
}

#[derive(Serialize)]
struct Attachment<'a> {
    filename: &'a str,
    content: &'a str,
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_id: Option<&'a str>,
}

impl<'a> Attachment<'a> {
    fn of(a: &'a paceline_core::message::Attachment) -> Attachment<'a> {
        Attachment {
            filename: &a.filename,
            content: &a.content,
            content_type: &a.content_type,
            content_id: a.content_id.as_deref(),
        }
    }
}
