//! The form of `POST /v3/<domain>/messages`: `multipart/form-data` where files travel along, else URL-encoded.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{Message, Outcome};
use reqwest::header::HeaderValue;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    address::{Names, Recipients, list, written},
    answer::refuse,
    json::expected_len,
    tags::ID_KEY,
};

const MAX_TAGS: usize = 3;
const MAX_TAG_CHARS: usize = 128;

/// A form, written.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) content_type: HeaderValue,
    pub(super) body: Vec<u8>,
}

/// Maps a message; everything in it that a provider is told arrives, or the message is refused with the field named.
pub(super) fn request(message: &Message) -> Result<Form, Box<Outcome>> {
    let fields = fields(message)?;
    if message.attachments.is_empty() {
        let mut form = form_urlencoded::Serializer::new(String::with_capacity(expected_len(message)));
        form.extend_pairs(&fields);
        let content_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        return Ok(Form { content_type, body: form.finish().into_bytes() });
    }
    multipart(&fields, message)
}

/// All but the files. What may be long comes last.
fn fields(message: &Message) -> Result<Vec<(String, String)>, Box<Outcome>> {
    let mut out: Vec<(String, String)> = Vec::with_capacity(16);
    let mut field = |name: &str, value: &str| out.push((name.to_owned(), value.to_owned()));
    let recipients = Recipients::of(message);
    field("from", &written(&message.from, Names::Encoded));
    for (name, list_of) in [("to", &recipients.to), ("cc", &recipients.cc), ("bcc", &recipients.bcc)] {
        if !list_of.is_empty() {
            field(name, &list(list_of, Names::Encoded));
        }
    }
    if let Some(subject) = &message.subject {
        field("subject", subject);
    }
    if let Some(reply_to) = &message.reply_to {
        field("h:Reply-To", &written(reply_to, Names::Encoded));
    }
    for (name, value) in &message.headers {
        field(&format!("h:{name}"), value);
    }
    let mut tags: Vec<&str> = Vec::with_capacity(MAX_TAGS);
    for (i, tag) in message.tags.iter().enumerate() {
        if tag.is_empty() || tag.len() > MAX_TAG_CHARS || !tag.is_ascii() {
            return refuse(&format!("tags[{i}]"), "a Mailgun tag has 1 to 128 ASCII characters");
        }
        if !tags.contains(&tag.as_str()) {
            tags.push(tag);
        }
    }
    if tags.len() > MAX_TAGS {
        return refuse("tags", "Mailgun takes at most 3 tags");
    }
    for tag in tags {
        field("o:tag", tag);
    }
    if message.metadata.contains_key(ID_KEY) {
        return refuse("metadata.paceline_id", "this key carries the message's id");
    }
    field(&format!("v:{ID_KEY}"), &message.id);
    for (key, value) in &message.metadata {
        field(&format!("v:{key}"), value);
    }
    let full = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    match &message.template {
        None if !full(&message.text) && !full(&message.html) => {
            return refuse("text", "Mailgun needs content of at least one character");
        }
        None => {
            for (name, content) in [("text", &message.text), ("html", &message.html)] {
                if let Some(content) = content.as_deref().filter(|c| !c.is_empty()) {
                    field(name, content);
                }
            }
        }
        Some(template) => {
            if let Some((name, _)) = [("text", &message.text), ("html", &message.html)].iter().find(|(_, text)| full(text)) {
                return refuse(name, "Mailgun's templates bring text and HTML of their own; leave it out");
            }
            field("template", &template.id);
            if !template.data.is_empty() {
                // Keys are strings and values came from JSON: this cannot fail.
                field("t:variables", &serde_json::to_string(&template.data).unwrap_or_default());
            }
        }
    }
    Ok(out)
}

fn multipart(fields: &[(String, String)], message: &Message) -> Result<Form, Box<Outcome>> {
    let mut files = Vec::with_capacity(message.attachments.len());
    // Made of all that is in the form, so that nothing in it can hold the boundary.
    let mut hash = Xxh3::new();
    for (name, value) in fields {
        hash.update(name.as_bytes());
        hash.update(value.as_bytes());
    }
    for (i, attachment) in message.attachments.iter().enumerate() {
        // Checked when the message was read.
        let Ok(content) = STANDARD.decode(&attachment.content) else {
            return refuse(&format!("attachments[{i}].content"), "is not valid base64");
        };
        hash.update(&content);
        files.push((attachment, content));
    }
    let boundary = format!("paceline-{:032x}", hash.digest128());
    let mut body = Vec::with_capacity(expected_len(message));
    let mut part = |head: &str, content: &[u8]| {
        body.extend_from_slice(format!("--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    };
    for (name, value) in fields {
        part(&format!("name=\"{}\"", quoted(name)), value.as_bytes());
    }
    for (attachment, content) in &files {
        // An inline file is referred to by its name.
        let (field, name) = match &attachment.content_id {
            Some(id) => ("inline", id.trim().trim_start_matches('<').trim_end_matches('>')),
            None => ("attachment", attachment.filename.as_str()),
        };
        let head = format!("name=\"{field}\"; filename=\"{}\"\r\nContent-Type: {}", quoted(name), attachment.content_type.trim());
        part(&head, content);
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    match HeaderValue::try_from(format!("multipart/form-data; boundary={boundary}")) {
        Ok(content_type) => Ok(Form { content_type, body }),
        // ASCII without control characters: it always is one.
        Err(_) => refuse("body", "cannot be written as a form"),
    }
}

/// As HTML forms write names: line breaks and quotes percent-encoded.
fn quoted(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}
