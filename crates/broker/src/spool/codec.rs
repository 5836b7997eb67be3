//! Properties as bytes: a version, then each field with a tag. Lengths and counts are LEB128.

use bytes::Bytes;
use paceline_core::Timestamp;

use crate::{HeaderValue, Headers, Properties, message::is_broker_header};

const VERSION: u8 = 1;
const JSON: &str = "application/json";

// Fields; without CONTENT_TYPE it is JSON.
const MESSAGE_ID: u8 = 1;
const CONTENT_TYPE: u8 = 2;
const TIMESTAMP_S: u8 = 3;
const HEADER_FALSE: u8 = 8;
const HEADER_TRUE: u8 = 9;
const HEADER_INT: u8 = 10;
const HEADER_TEXT: u8 = 11;
const HEADER_BYTES: u8 = 12;

/// What is kept of `properties`: no header of a broker's own, whole seconds, a content type.
pub(super) fn encode(properties: &Properties) -> Vec<u8> {
    let mut out = vec![VERSION];
    if let Some(id) = &properties.message_id {
        field(&mut out, MESSAGE_ID, id.as_bytes());
    }
    if let Some(content_type) = properties.content_type.as_deref().filter(|t| *t != JSON) {
        field(&mut out, CONTENT_TYPE, content_type.as_bytes());
    }
    if let Some(timestamp) = properties.timestamp {
        out.push(TIMESTAMP_S);
        out.extend((timestamp.as_micros() / 1_000_000).to_le_bytes());
    }
    for (name, value) in properties.headers.iter().filter(|(name, _)| !is_broker_header(name)) {
        match value {
            HeaderValue::Bool(truth) => field(&mut out, if *truth { HEADER_TRUE } else { HEADER_FALSE }, name.as_bytes()),
            HeaderValue::Int(number) => {
                field(&mut out, HEADER_INT, name.as_bytes());
                out.extend(number.to_le_bytes());
            }
            HeaderValue::Text(text) => {
                field(&mut out, HEADER_TEXT, name.as_bytes());
                bytes(&mut out, text.as_bytes());
            }
            HeaderValue::Bytes(value) => {
                field(&mut out, HEADER_BYTES, name.as_bytes());
                bytes(&mut out, value);
            }
        }
    }
    out
}

fn field(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    bytes(out, value);
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    let mut length = value.len();
    while length >= 0x80 {
        out.push((length as u8) | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(value);
}

/// The properties in `encoded`; `None` when these are not bytes that [`encode`] wrote.
pub(super) fn decode(encoded: &[u8]) -> Option<Properties> {
    let mut rest = Rest(encoded);
    if rest.take(1)? != [VERSION] {
        return None;
    }
    let mut properties = Properties { content_type: Some(JSON.to_owned()), ..Properties::default() };
    let mut headers = Headers::new();
    while let Some(&tag) = rest.take(1).and_then(|b| b.first()) {
        match tag {
            MESSAGE_ID => properties.message_id = Some(rest.text()?),
            CONTENT_TYPE => properties.content_type = Some(rest.text()?),
            TIMESTAMP_S => properties.timestamp = Some(Timestamp::from_secs(rest.int()?)),
            _ => {
                let name = rest.text()?;
                let value = match tag {
                    HEADER_FALSE => HeaderValue::Bool(false),
                    HEADER_TRUE => HeaderValue::Bool(true),
                    HEADER_INT => HeaderValue::Int(rest.int()?),
                    HEADER_TEXT => HeaderValue::Text(rest.text()?),
                    HEADER_BYTES => HeaderValue::Bytes(Bytes::copy_from_slice(rest.bytes()?)),
                    _ => return None,
                };
                headers.insert(name, value);
            }
        }
    }
    properties.headers = headers;
    Some(properties)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let byte = *self.take(1)?.first()?;
            length |= usize::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return self.take(length);
            }
            shift += 7;
        }
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn int(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Properties {
        Properties {
            message_id: Some("m-1".to_owned()),
            content_type: Some("text/plain".to_owned()),
            timestamp: Some(Timestamp::from_secs(1_800_000_000)),
            headers: Headers::from([
                ("a".to_owned(), HeaderValue::Int(-3)),
                ("b".to_owned(), HeaderValue::Bool(true)),
                ("c".to_owned(), HeaderValue::Bool(false)),
                ("d".to_owned(), HeaderValue::Text("ä".repeat(200))),
                ("e".to_owned(), HeaderValue::Bytes(Bytes::from_static(b"\xff\x00"))),
            ]),
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        assert_eq!(decode(&encode(&full())), Some(full()));
        let plain = Properties { content_type: Some(JSON.to_owned()), ..Properties::default() };
        assert_eq!(encode(&Properties::default()), [VERSION]);
        assert_eq!(decode(&[VERSION]), Some(plain));
        let mut more = full();
        more.timestamp = Some(Timestamp::from_micros(1_800_000_000_999_999));
        more.headers.insert("x-death".to_owned(), "no".into());
        assert_eq!(decode(&encode(&more)), Some(full()));
    }

    #[test]
    fn other_bytes_are_nothing() {
        for bad in
            [&b""[..], b"\x02", b"\x01\x01\x05abc", b"\x01\x63\x00", b"\x01\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
        let whole = encode(&full());
        // Cut anywhere, it never panics.
        (0..whole.len()).for_each(|end| drop(decode(&whole[..end])));
    }
}
