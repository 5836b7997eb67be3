//! The body of `POST /v2/email/outbound-emails`.
//!
//! A message of text and HTML goes as `Simple`, one of a template as `Template`. Headers and attachments make it `Raw`:
//! a whole mail, in which they stand as they were given.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{Mailbox, Message, Outcome, Timestamp};
use serde::Serialize;

use crate::{
    address::{Names, Recipients, ascii, written},
    answer::refuse,
    json, mime,
    tags::{Pair, pairs},
};

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message, configuration_set: Option<&str>, now: Timestamp) -> Result<Vec<u8>, Box<Outcome>> {
    let recipients = Recipients::of(message);
    let all = |list: &[&Mailbox]| list.iter().map(|m| written(m, Names::Encoded)).collect();
    let content = content(message, now)?;
    // A raw mail says by itself where answers go.
    let reply_to = message.reply_to.as_ref().filter(|_| !matches!(content, Content::Raw(_)));
    let body = Body {
        from_email_address: written(&message.from, Names::Encoded),
        destination: Destination {
            to_addresses: all(&recipients.to),
            cc_addresses: all(&recipients.cc),
            bcc_addresses: all(&recipients.bcc),
        },
        reply_to_addresses: reply_to.map(|r| written(r, Names::Encoded)).into_iter().collect(),
        content,
        email_tags: pairs(message, "SES")?.into_iter().map(Tag::of).collect(),
        configuration_set_name: configuration_set,
    };
    json::body(&body, message)
}

fn content(message: &Message, now: Timestamp) -> Result<Content<'_>, Box<Outcome>> {
    let full = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    if let Some(template) = &message.template {
        let own = [("subject", full(&message.subject)), ("text", full(&message.text)), ("html", full(&message.html))];
        if let Some((field, _)) = own.iter().find(|(_, given)| *given) {
            return refuse(field, "SES templates bring subject and bodies of their own; leave it out");
        }
        if !message.attachments.is_empty() {
            return refuse("attachments", "goes with text and html; SES is sent templates without attachments");
        }
        return Ok(Content::Template(Template {
            template_name: &template.id,
            // Keys are strings and values came from JSON: this cannot fail.
            template_data: serde_json::to_string(&template.data).unwrap_or_default(),
            headers: message.headers.iter().map(|(name, value)| Header { name, value: ascii(value).into_owned() }).collect(),
        }));
    }
    match &message.subject {
        Some(subject) if message.attachments.is_empty() && message.headers.is_empty() => Ok(Content::Simple(Simple {
            subject: Text::of(subject),
            body: Parts { text: message.text.as_deref().map(Text::of), html: message.html.as_deref().map(Text::of) },
        })),
        _ => Ok(Content::Raw(Raw { data: STANDARD.encode(mime::build(message, now)?) })),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    from_email_address: String,
    destination: Destination,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reply_to_addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    email_tags: Vec<Tag<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_set_name: Option<&'a str>,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Destination {
    to_addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cc_addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bcc_addresses: Vec<String>,
}

#[derive(Serialize)]
enum Content<'a> {
    Simple(Simple<'a>),
    Raw(Raw),
    Template(Template<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Simple<'a> {
    subject: Text<'a>,
    body: Parts<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Parts<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<Text<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Text<'a> {
    data: &'a str,
    charset: &'static str,
}

impl<'a> Text<'a> {
    fn of(data: &'a str) -> Text<'a> {
        Text { data, charset: "UTF-8" }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    data: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Template<'a> {
    template_name: &'a str,
    template_data: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Header<'a> {
    name: &'a str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Tag<'a> {
    name: &'a str,
    value: &'a str,
}

impl<'a> Tag<'a> {
    fn of(Pair { name, value }: Pair<'a>) -> Tag<'a> {
        Tag { name, value }
    }
}
