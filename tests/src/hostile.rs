//! Bodies that are no message, each with the field at fault.

use bytes::Bytes;
use serde_json::{Value, json};

/// One bad body.
#[derive(Debug, Clone)]
pub struct Hostile {
    pub kind: &'static str,
    /// What a dead letter's `field` begins with.
    pub field: &'static str,
    pub body: Bytes,
}

/// How many kinds there are.
pub fn kinds() -> usize {
    KINDS.len() + RAW.len()
}

/// The nth of an endless supply, all kinds in turn; no two bodies are equal. `max_bytes` is the longest that is allowed.
pub fn body(n: usize, max_bytes: usize) -> Hostile {
    let at = n % kinds();
    match KINDS.get(at) {
        Some((kind, field, fields)) => {
            let body = Bytes::from(good(n, &fields()).to_string());
            Hostile { kind, field, body }
        }
        None => {
            let (kind, field, make) = RAW[at - KINDS.len()];
            Hostile { kind, field, body: make(n, max_bytes).into() }
        }
    }
}

type Fields = fn() -> Vec<(&'static str, Value)>;

/// A good message but for these fields; a field that is `Value::Null` is left out.
fn good(n: usize, fields: &[(&'static str, Value)]) -> Value {
    let mut message = json!({
        "id": format!("hostile-{n}"), "from": "a@sender.example", "to": ["u@gmail.com"], "subject": format!("n {n}"), "text": "t",
    });
    for (name, value) in fields {
        message[*name] = value.clone();
    }
    if let Some(object) = message.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    message
}

fn many(count: usize) -> Value {
    (0..count).map(|i| json!(format!("u{i}@gmail.com"))).collect()
}

fn attachment(field: &str, value: Value) -> Value {
    let mut a = json!({ "filename": "a.pdf", "content_type": "application/pdf", "content": "aGk=" });
    a[field] = value;
    json!([a])
}

const KINDS: &[(&str, &str, Fields)] = &[
    ("id of a wrong type", "id", || vec![("id", json!(5))]),
    ("id with a space", "id", || vec![("id", json!("a b"))]),
    ("id too long", "id", || vec![("id", json!("x".repeat(129)))]),
    ("no id at all", "id", || vec![("id", Value::Null)]),
    ("unknown version", "v", || vec![("v", json!(2))]),
    ("unknown field", "colour", || vec![("colour", json!("red"))]),
    ("unknown class", "class", || vec![("class", json!("urgent"))]),
    ("no sender", "from", || vec![("from", Value::Null)]),
    ("sender without @", "from", || vec![("from", json!("nobody"))]),
    ("header injection by the sender", "from", || vec![("from", json!("a@b.example\r\nBcc: x@y.example"))]),
    ("unknown field of the sender", "from", || vec![("from", json!({ "email": "a@b.example", "phone": "1" }))]),
    ("no recipients", "to", || vec![("to", Value::Null)]),
    ("empty list of recipients", "to", || vec![("to", json!([]))]),
    ("recipients no list", "to", || vec![("to", json!("u@gmail.com"))]),
    ("bad second recipient", "to[1]", || vec![("to", json!(["u@gmail.com", "u@"]))]),
    ("NUL in a recipient", "to[0]", || vec![("to", json!(["u\u{0}@gmail.com"]))]),
    ("header injection by a name", "to[0]", || vec![("to", json!([{ "email": "u@gmail.com", "name": "U\r\nX: y" }]))]),
    ("60 recipients", "to", || vec![("to", many(60))]),
    ("60 recipients with copies", "cc", || vec![("to", many(30)), ("cc", many(30))]),
    ("no content", "text", || vec![("text", Value::Null)]),
    ("header injection by a value", "headers.X-A", || vec![("headers", json!({ "X-A": "b\r\nBcc: x@y.example" }))]),
    ("header name with a colon", "headers", || vec![("headers", json!({ "X-A: b": "c" }))]),
    ("header of the message itself", "headers.Subject", || vec![("headers", json!({ "Subject": "c" }))]),
    ("line break in the subject", "subject", || vec![("subject", json!("a\nb"))]),
    ("NUL in the stream", "stream", || vec![("stream", json!("a\u{0}b"))]),
    ("broken base64", "attachments[0].content", || vec![("attachments", attachment("content", json!("a*b=")))]),
    ("attachment without a name", "attachments[0].filename", || vec![("attachments", attachment("filename", json!("")))]),
    ("attachment of no type", "attachments[0].content_type", || vec![("attachments", attachment("content_type", json!("pdf")))]),
    ("attachments no list", "attachments", || vec![("attachments", json!({ "a": 1 }))]),
    ("time without a zone", "not_before", || vec![("not_before", json!("2026-01-01 00:00"))]),
    ("time as a number", "expires_at", || vec![("expires_at", json!(1_800_000_000))]),
    ("tag of a wrong type", "tags[0]", || vec![("tags", json!([5]))]),
    ("metadata of a wrong type", "metadata", || vec![("metadata", json!({ "k": {} }))]),
    ("template without an id", "template.id", || vec![("template", json!({ "id": "", "data": {} }))]),
    ("account that is not configured", "account", || vec![("account", json!("nowhere"))]),
];

type Make = fn(usize, usize) -> Vec<u8>;

const RAW: &[(&str, &str, Make)] = &[
    ("nothing but blanks", "body", |n, _| b" ".repeat(n + 1)),
    ("plain words", "body", |n, _| format!("hello {n}").into_bytes()),
    ("cut short", "body", |n, _| format!("{{\"id\":\"hostile-{n}\",\"from\":").into_bytes()),
    ("null", "body", |n, _| format!("null{}", " ".repeat(n)).into_bytes()),
    ("a list", "", |n, _| format!("[\"{n}\"]").into_bytes()),
    ("a number", "body", |n, _| n.to_string().into_bytes()),
    ("something after the end", "body", |n, _| format!("{} {{}}", good(n, &[])).into_bytes()),
    ("byte order mark", "body", |n, _| [b"\xef\xbb\xbf".as_slice(), good(n, &[]).to_string().as_bytes()].concat()),
    ("Latin-1", "body", |n, _| {
        let text = good(n, &[("subject", json!(format!("caf@@ {n}")))]).to_string();
        let (before, after) = text.split_once("@@").unwrap_or((&text, ""));
        [before.as_bytes(), b"\xe9", after.as_bytes()].concat()
    }),
    ("bytes", "body", |n, _| (0..64).map(|i| (n * 31 + i * 97) as u8 | 0x80).chain(n.to_le_bytes()).collect()),
    ("half of a surrogate pair", "", |n, _| good(n, &[]).to_string().replace("\"t\"", "\"\\ud83d\"").into_bytes()),
    ("a field twice", "subject", |n, _| good(n, &[]).to_string().replacen('{', "{\"subject\":\"first\",", 1).into_bytes()),
    ("a thousand levels", "", |n, _| {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        good(n, &[("template", json!({ "id": "x", "data": { "deep": "@@" } }))]).to_string().replace("\"@@\"", &deep).into_bytes()
    }),
    ("too long", "body", |n, max| good(n, &[("text", json!("x".repeat(max)))]).to_string().into_bytes()),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use paceline_core::Message;

    use super::*;

    const MAX: usize = 10_000;

    #[test]
    fn every_kind_is_invalid_at_its_field_and_no_two_bodies_are_equal() {
        assert!(kinds() >= 30, "{}", kinds());
        let mut seen = BTreeSet::new();
        for n in 0..kinds() * 3 {
            let hostile = body(n, MAX);
            assert!(seen.insert(hostile.body.clone()), "{}", hostile.kind);
            match Message::parse(&hostile.body, None, MAX) {
                // Only the configuration tells which accounts there are.
                Ok(_) => assert_eq!(hostile.field, "account", "{}", hostile.kind),
                Err(error) => assert!(error.field.starts_with(hostile.field), "{}: {error}", hostile.kind),
            }
        }
    }
}
