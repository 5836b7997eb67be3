//! The body of `POST /api/v1/transmissions`.

use std::collections::BTreeMap;

use paceline_core::{Class, EmailAddress, Message, Outcome};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    address::{Names, Recipients, list, written},
    answer::refuse,
    json,
    tags::ID_KEY,
};

const MAX_TAGS: usize = 10;
const MAX_METADATA_BYTES: usize = 1000;

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message) -> Result<Vec<u8>, Box<Outcome>> {
    let mut tags: Vec<&str> = Vec::with_capacity(message.tags.len());
    for tag in &message.tags {
        if !tags.contains(&tag.as_str()) {
            tags.push(tag);
        }
    }
    if tags.len() > MAX_TAGS {
        return refuse("tags", "SparkPost takes at most 10 tags a recipient");
    }
    let recipients = Recipients::of(message);
    let header_to = list(&recipients.to, Names::Utf8);
    let everybody = recipients.to.iter().chain(&recipients.cc).chain(&recipients.bcc);
    let body = Body {
        options: Options { transactional: message.class != Some(Class::Low) },
        recipients: everybody
            .map(|m| Recipient { address: To { email: &m.email, header_to: &header_to }, tags: &tags })
            .collect(),
        metadata: metadata(message)?,
        substitution_data: message.template.as_ref().map(|t| &t.data).filter(|data| !data.is_empty()),
        content: match &message.template {
            Some(template) => Content::Template { template_id: by_template(message, &template.id)? },
            None => Content::Inline(Inline::of(message, list(&recipients.cc, Names::Utf8))?),
        },
    };
    json::body(&body, message)
}

/// With a template SparkPost refuses content and *silently ignores* everything else of the mail: so that is refused here.
fn by_template<'a>(message: &Message, id: &'a str) -> Result<&'a str, Box<Outcome>> {
    let given = [
        ("subject", message.subject.is_some()),
        ("text", message.text.is_some()),
        ("html", message.html.is_some()),
        ("reply_to", message.reply_to.is_some()),
        ("cc", !message.cc.is_empty()),
        ("headers", !message.headers.is_empty()),
        ("attachments", !message.attachments.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => refuse(field, "SparkPost's templates bring their own; leave it out"),
        None => Ok(id),
    }
}

fn metadata(message: &Message) -> Result<BTreeMap<&str, &str>, Box<Outcome>> {
    if message.metadata.contains_key(ID_KEY) {
        return refuse("metadata.paceline_id", "this key carries the message's id");
    }
    let mut out: BTreeMap<&str, &str> = message.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    out.insert(ID_KEY, &message.id);
    if serde_json::to_vec(&out).map_or(0, |bytes| bytes.len()) > MAX_METADATA_BYTES {
        return refuse("metadata", "SparkPost takes at most 1,000 bytes, the message's id included");
    }
    Ok(out)
}

#[derive(Serialize)]
struct Body<'a> {
    options: Options,
    recipients: Vec<Recipient<'a>>,
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    substitution_data: Option<&'a Map<String, Value>>,
    content: Content<'a>,
}

/// Whether a recipient's unsubscription from campaigns stops this mail: it stops class `low` only.
#[derive(Serialize)]
struct Options {
    transactional: bool,
}

/// Everybody gets a copy; the `To` that all of them see is the same.
#[derive(Serialize)]
struct Recipient<'a> {
    address: To<'a>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [&'a str],
}

#[derive(Serialize)]
struct To<'a> {
    email: &'a EmailAddress,
    header_to: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Template { template_id: &'a str },
    Inline(Inline<'a>),
}

#[derive(Serialize)]
struct Inline<'a> {
    from: From<'a>,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<File<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inline_images: Vec<File<'a>>,
}

impl<'a> Inline<'a> {
    fn of(message: &'a Message, cc: String) -> Result<Inline<'a>, Box<Outcome>> {
        let full = |text: &'a Option<String>| text.as_deref().filter(|t| !t.is_empty());
        let (text, html) = (full(&message.text), full(&message.html));
        if text.is_none() && html.is_none() {
            return refuse("text", "SparkPost needs content of at least one character");
        }
        let Some(subject) = full(&message.subject) else {
            return refuse("subject", "SparkPost needs one, except with a template that brings its own");
        };
        let mut headers: BTreeMap<&str, String> = message.headers.iter().map(|(n, v)| (n.as_str(), literal(v))).collect();
        if !cc.is_empty() {
            headers.insert("Cc", literal(&cc));
        }
        let (mut attachments, mut inline_images) = (Vec::new(), Vec::new());
        for a in &message.attachments {
            let file = |name| File { name, kind: &a.content_type, data: &a.content };
            match &a.content_id {
                Some(id) => inline_images.push(file(id)),
                None => attachments.push(file(&a.filename)),
            }
        }
        Ok(Inline {
            from: From { email: &message.from.email, name: message.from.name.as_deref().map(literal) },
            subject: literal(subject),
            reply_to: message.reply_to.as_ref().map(|r| literal(&written(r, Names::Utf8))),
            text: text.map(literal),
            html: html.map(literal),
            headers,
            attachments,
            inline_images,
        })
    }
}

#[derive(Serialize)]
struct From<'a> {
    email: &'a EmailAddress,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a str,
}

/// Text in which SparkPost's template language finds nothing to replace: `{{` and `}}` become its own words for them.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (plain, braces) = rest.split_at(at);
        out.push_str(plain);
        let brace = if braces.starts_with('{') { '{' } else { '}' };
        let run = braces.len() - braces.trim_start_matches(brace).len();
        // An opening brace by itself, then two closing ones: a word in between would make three opening ones of it, and
        // closing braces that close nothing are harmless.
        if run == 1 || (brace == '}' && out.ends_with('{')) {
            out.push_str(&braces[..run]);
        } else {
            let word = if brace == '{' { "opening" } else { "closing" };
            for _ in 0..(run - run % 2) / 2 - run % 2 {
                out.push_str(&format!("{{{{{word}_double_curly()}}}}"));
            }
            if run % 2 == 1 {
                out.push_str(&format!("{{{{{word}_triple_curly()}}}}"));
            }
        }
        rest = &braces[run..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_taken_as_they_are() {
        let (o2, o3) = ("{{opening_double_curly()}}", "{{opening_triple_curly()}}");
        let (c2, c3) = ("{{closing_double_curly()}}", "{{closing_triple_curly()}}");
        for (text, want) in [
            ("a {b} c", "a {b} c".to_owned()),
            ("{{name}}", format!("{o2}name{c2}")),
            ("{{{name}}}", format!("{o3}name{c3}")),
            ("{{{{x", format!("{o2}{o2}x")),
            ("{{{{{x", format!("{o2}{o3}x")),
            ("@media{a{b:c}}", format!("@media{{a{{b:c{c2}")),
            ("@media{a{}}", "@media{a{}}".to_owned()),
            ("{{}}", format!("{o2}{c2}")),
            ("ü{{", format!("ü{o2}")),
            ("", String::new()),
        ] {
            assert_eq!(literal(text), want, "{text}");
        }
    }
}
