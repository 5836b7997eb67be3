//! A message as the bytes of an Internet mail (RFC 5322, MIME), for the providers that send or store it as such.
//!
//! - Pure: the same message and date give the same bytes, boundaries and `Message-ID` included.
//! - All lines end in CRLF and none is longer than 998 bytes. Bodies are 7-bit: quoted-printable or base64 where the
//!   content is not. Only addresses with a non-ASCII local part bring 8-bit headers (SMTPUTF8).
//! - `bcc` is nowhere in it, and neither are `tags` and `metadata`: recipients would see them.
//! - What cannot be written is refused with the field named.

mod header;

use std::time::{Duration, SystemTime};

use lettre::message::{
    Body, MultiPart, SinglePart,
    header::{ContentDisposition, ContentTransferEncoding, ContentType, Header, HeaderName, HeaderValue},
};
use paceline_core::{Message, Outcome, Timestamp, message::Attachment};
use xxhash_rust::xxh3::xxh3_128;

use crate::answer::unsupported;

/// Longest line, without its CRLF (RFC 5322, 2.1.1).
const MAX_LINE: usize = 998;
/// Longest line of a body that goes as it is.
const MAX_PLAIN_LINE: usize = 76;
const MAX_CONTENT_TYPE: usize = 255;

/// Writes `message`, dated `date`.
///
/// # Errors
/// The outcome that names what this message has and a mail cannot carry.
pub(crate) fn build(message: &Message, date: Timestamp) -> Result<Vec<u8>, Box<Outcome>> {
    if message.template.is_some() {
        return refuse("template", "templates are kept at a provider; plain mail needs text or html");
    }
    let mut mail = headers(message, date)?.into_bytes();
    match content(message)? {
        Part::Single(part) => mail.extend(part.formatted()),
        Part::Multi(part) => mail.extend(part.formatted()),
    }
    match mail.split(|&b| b == b'\n').any(|line| line.len() > MAX_LINE + 1) {
        // A header name or a content type of absurd length; nothing else comes out that long.
        true => refuse("headers", "one is longer than 998 characters in a piece"),
        false => Ok(mail),
    }
}

/// `<id@domain>`: the same for every attempt at a message, made from its id and its sender's domain.
fn message_id(message: &Message) -> String {
    let id = &message.id;
    let mut local = String::with_capacity(id.len() + 8);
    for (i, c) in id.char_indices() {
        // What may not stand in a dot-atom becomes `=XX`; ids hold no `=`, so two ids never become one.
        let dot_fits = c == '.' && i > 0 && i + 1 < id.len() && !id[..i].ends_with('.');
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || dot_fits {
            local.push(c);
        } else {
            for byte in c.to_string().bytes() {
                local.push_str(&format!("={byte:02X}"));
            }
        }
    }
    format!("<{local}@{}>", message.from.email.domain())
}

fn headers(message: &Message, date: Timestamp) -> Result<String, Box<Outcome>> {
    let mut out = String::with_capacity(1024);
    let own = |name: &str| message.headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    if !own("date") {
        header::verbatim(&mut out, "Date", &rfc5322_date(date));
    }
    header::addresses(&mut out, "From", std::slice::from_ref(&message.from));
    header::addresses(&mut out, "To", &message.to);
    header::addresses(&mut out, "Cc", &message.cc);
    header::addresses(&mut out, "Reply-To", message.reply_to.as_slice());
    if let Some(subject) = &message.subject {
        header::text(&mut out, "Subject", subject);
    }
    if !own("message-id") {
        header::verbatim(&mut out, "Message-ID", &message_id(message));
    }
    let mut once: Vec<String> = Vec::new();
    for (name, value) in &message.headers {
        let lower = name.to_ascii_lowercase();
        if matches!(lower.as_str(), "date" | "message-id" | "sender" | "in-reply-to" | "references") {
            if once.contains(&lower) {
                return refuse(&format!("headers.{name}"), "a mail has this header once only");
            }
            once.push(lower);
        } else if lower == "content-disposition" || lower == "content-id" {
            return refuse(&format!("headers.{name}"), "this header belongs to an attachment");
        }
        // ASCII may be structured, or encoded by the producer already: it goes as it is.
        if header::is_foldable(value) {
            header::verbatim(&mut out, name, value);
        } else {
            header::text(&mut out, name, value);
        }
    }
    out.push_str("MIME-Version: 1.0\r\n");
    Ok(out)
}

fn rfc5322_date(date: Timestamp) -> String {
    // A `Timestamp` lies between the years 1970 and 9999, which is what can be written.
    let date = SystemTime::UNIX_EPOCH + Duration::from_micros(date.as_micros().unsigned_abs());
    httpdate::fmt_http_date(date).replace("GMT", "+0000")
}

enum Part {
    Single(SinglePart),
    Multi(MultiPart),
}

impl Part {
    fn within(self, outer: MultiPart) -> MultiPart {
        match self {
            Part::Single(part) => outer.singlepart(part),
            Part::Multi(part) => outer.multipart(part),
        }
    }
}

/// `mixed(alternative(text, related(html, inline…)), attachments…)`, without the layers that hold one part only.
fn content(message: &Message) -> Result<Part, Box<Outcome>> {
    let hash = xxh3_128(message.id.as_bytes());
    // `=_` stands in no quoted-printable, no base64 and, by `encoding`, in no plain text: no body can hold a boundary.
    let layer = |letter: char, kind: &str| -> Result<MultiPart, Box<Outcome>> {
        let kind = format!("{kind}; boundary=\"=_{letter}{hash:032x}\"");
        match ContentType::parse(&kind) {
            Ok(kind) => Ok(MultiPart::builder().header(kind).build()),
            // Only the digits differ from one message to the next.
            Err(_) => refuse("id", "makes no boundary"),
        }
    };
    let mut inline = Vec::new();
    let mut attached = Vec::new();
    for (i, attachment) in message.attachments.iter().enumerate() {
        let to = if attachment.content_id.is_some() && message.html.is_some() { &mut inline } else { &mut attached };
        to.push(file(i, attachment)?);
    }
    // A lone text gets its last line break from the end of the mail.
    let alone = message.attachments.is_empty() && (message.text.is_none() || message.html.is_none());
    let html = match &message.html {
        None => None,
        Some(html) => {
            let html = Part::Single(text(ContentType::TEXT_HTML, html, alone));
            Some(match inline.is_empty() {
                true => html,
                false => {
                    let related = html.within(layer('r', "multipart/related; type=\"text/html\"")?);
                    Part::Multi(inline.into_iter().fold(related, MultiPart::singlepart))
                }
            })
        }
    };
    let plain = message.text.as_ref().map(|plain| Part::Single(text(ContentType::TEXT_PLAIN, plain, alone)));
    let body = match (plain, html) {
        (Some(plain), Some(html)) => Part::Multi(html.within(plain.within(layer('a', "multipart/alternative")?))),
        (Some(only), None) | (None, Some(only)) => only,
        // A checked message has one of text, html and template.
        (None, None) => return refuse("text", "text or html is needed"),
    };
    Ok(match attached.is_empty() {
        true => body,
        false => {
            let mixed = body.within(layer('m', "multipart/mixed")?);
            Part::Multi(attached.into_iter().fold(mixed, MultiPart::singlepart))
        }
    })
}

fn text(kind: ContentType, content: &str, alone: bool) -> SinglePart {
    let mut content = crlf(content);
    if alone && content.ends_with("\r\n") {
        content.truncate(content.len() - 2);
    }
    let encoding = encoding(&content);
    // lettre gives back what it finds unfit for the encoding; base64 fits everything.
    let body = Body::new_with_encoding(content, encoding).unwrap_or_else(Body::new);
    SinglePart::builder().header(kind).body(body)
}

/// Every kind of line break as CRLF. A bare CR in a body is how mail is smuggled past servers.
fn crlf(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 32);
    let mut rest = text;
    while let Some(at) = rest.find(['\r', '\n']) {
        out.push_str(&rest[..at]);
        out.push_str("\r\n");
        let line_break = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[at + line_break..];
    }
    out.push_str(rest);
    out
}

/// As it is where no server on the way could touch it, else what is shorter.
fn encoding(text: &str) -> ContentTransferEncoding {
    let plain_line = |line: &str| {
        line.len() <= MAX_PLAIN_LINE
            && !line.starts_with("From ")
            && !line.ends_with([' ', '\t'])
            && line.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'))
    };
    if !text.contains("=_") && text.split("\r\n").all(plain_line) {
        return ContentTransferEncoding::SevenBit;
    }
    let foreign = text.bytes().filter(|b| !b.is_ascii()).count();
    if foreign * 5 > text.len() { ContentTransferEncoding::Base64 } else { ContentTransferEncoding::QuotedPrintable }
}

fn file(i: usize, attachment: &Attachment) -> Result<SinglePart, Box<Outcome>> {
    let field = |name: &str| format!("attachments[{i}].{name}");
    let kind = content_type(&field("content_type"), &attachment.content_type)?;
    let mut part = SinglePart::builder().header(kind);
    part = match &attachment.content_id {
        None => part.header(ContentDisposition::attachment(&attachment.filename)),
        Some(id) => {
            let id = id.trim().trim_start_matches('<').trim_end_matches('>');
            if id.is_empty() || id.len() > 200 || !id.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'<' | b'>')) {
                return refuse(&field("content_id"), "must be 1 to 200 printable ASCII characters without spaces");
            }
            part.header(ContentId(id.to_owned())).header(ContentDisposition::inline_with_name(&attachment.filename))
        }
    };
    Ok(part.body(Body::dangerous_pre_encoded(wrapped(&attachment.content), ContentTransferEncoding::Base64)))
}

/// Base64 in lines of 76; a checked message holds it in one piece, without white space.
fn wrapped(base64: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(base64.len() + base64.len() / 38 + 2);
    for (i, line) in base64.as_bytes().chunks(76).enumerate() {
        if i > 0 {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(line);
    }
    out
}

fn content_type(field: &str, kind: &str) -> Result<ContentType, Box<Outcome>> {
    match ContentType::parse(kind) {
        Ok(_) if kind.len() > MAX_CONTENT_TYPE => refuse(field, "is longer than 255 characters"),
        Ok(_) if kind.trim_start().to_ascii_lowercase().starts_with("multipart/") => {
            refuse(field, "an attachment is one part and cannot be multipart")
        }
        Ok(kind) => Ok(kind),
        Err(_) => refuse(field, "is no media type such as application/pdf"),
    }
}

fn refuse<T>(field: &str, problem: &str) -> Result<T, Box<Outcome>> {
    Err(Box::new(unsupported(field, problem)))
}

/// `Content-ID: <…>`; lettre's own would encode and fold it as text.
#[derive(Clone)]
struct ContentId(String);

impl Header for ContentId {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Content-ID")
    }

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(ContentId(text.trim_matches(['<', '>']).to_owned()))
    }

    fn display(&self) -> HeaderValue {
        let value = format!("<{}>", self.0);
        HeaderValue::dangerous_new_pre_encoded(Self::name(), value.clone(), value)
    }
}

#[cfg(test)]
mod tests;
