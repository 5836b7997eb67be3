//! Between our types and lapin's.

use bytes::Bytes;
use lapin::{
    BasicProperties, Error, ErrorKind,
    types::{AMQPValue, ByteArray, FieldTable, ShortString},
};
use paceline_core::Timestamp;

use crate::{BrokerError, HeaderValue, Headers, Properties, is_broker_header};

/// Headers travel in one frame; RabbitMQ's is 128 KiB, and a longer one ends the connection.
const HEADERS_MAX_BYTES: usize = 100_000;
/// Buffers of at least this size are cut to what they hold.
const SHRINK_FROM_BYTES: usize = 64 * 1024;

/// The reply codes of AMQP that mean something to a caller.
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const RESOURCE_LOCKED: u16 = 405;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
}

/// An error in words, without lapin's wrapping.
pub(super) fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::InvalidChannelState(..) => "the channel is closed".to_owned(),
        ErrorKind::InvalidConnectionState(_) => "the connection is closed".to_owned(),
        ErrorKind::MissingHeartbeatError => "the broker fell silent".to_owned(),
        _ => error.to_string(),
    }
}

/// The reply code, where the broker answered with one.
fn reply_code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

pub(super) fn broker_error(error: &Error) -> BrokerError {
    let why = reason(error);
    match reply_code(error) {
        Some(code::NOT_FOUND) => BrokerError::Missing(why),
        Some(code::PRECONDITION_FAILED) => BrokerError::Different { name: String::new(), detail: why },
        Some(code::RESOURCE_LOCKED) => BrokerError::Busy,
        Some(code::ACCESS_REFUSED) => BrokerError::Refused(why),
        _ => BrokerError::Unreachable(why),
    }
}

/// Text as a short string, where it fits in 255 bytes.
pub(super) fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// A body as received, without copying it.
pub(super) fn body(mut data: Vec<u8>) -> Bytes {
    // A body that came in many frames has grown by doubling.
    if data.capacity() >= SHRINK_FROM_BYTES && data.capacity() - data.len() > data.len() / 8 {
        data.shrink_to_fit();
    }
    Bytes::from(data)
}

pub(super) fn properties_in(from: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
    Properties {
        message_id: text(from.message_id()),
        content_type: text(from.content_type()),
        timestamp: from.timestamp().map(|s| Timestamp::from_secs(i64::try_from(s).unwrap_or(i64::MAX))),
        headers: from.headers().as_ref().map(headers_in).unwrap_or_default(),
    }
}

fn headers_in(from: &FieldTable) -> Headers {
    let kept = from.inner().iter().filter(|(name, _)| !is_broker_header(name.as_str()));
    kept.filter_map(|(name, value)| Some((name.as_str().to_owned(), header_in(value)?))).collect()
}

fn header_in(value: &AMQPValue) -> Option<HeaderValue> {
    Some(match value {
        AMQPValue::Boolean(v) => HeaderValue::Bool(*v),
        AMQPValue::ShortShortInt(v) => HeaderValue::Int((*v).into()),
        AMQPValue::ShortShortUInt(v) => HeaderValue::Int((*v).into()),
        AMQPValue::ShortInt(v) => HeaderValue::Int((*v).into()),
        AMQPValue::ShortUInt(v) => HeaderValue::Int((*v).into()),
        AMQPValue::LongInt(v) => HeaderValue::Int((*v).into()),
        AMQPValue::LongUInt(v) => HeaderValue::Int((*v).into()),
        AMQPValue::LongLongInt(v) => HeaderValue::Int(*v),
        AMQPValue::Timestamp(v) => HeaderValue::Int(i64::try_from(*v).ok()?),
        AMQPValue::ShortString(v) => HeaderValue::Text(v.as_str().to_owned()),
        AMQPValue::LongString(v) => match std::str::from_utf8(v.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Bytes(Bytes::copy_from_slice(v.as_bytes())),
        },
        AMQPValue::ByteArray(v) => HeaderValue::Bytes(Bytes::copy_from_slice(v.as_slice())),
        AMQPValue::Float(_)
        | AMQPValue::Double(_)
        | AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::Void => return None,
    })
}

/// Properties to publish with; an error names the one that AMQP cannot carry.
pub(super) fn properties_out(from: Properties, persistent: bool) -> Result<BasicProperties, String> {
    let long = |what: &str| format!("its {what} is longer than 255 bytes");
    let content_type = from.content_type.as_deref().unwrap_or("application/json");
    let mut out = BasicProperties::default()
        .with_delivery_mode(if persistent { 2 } else { 1 })
        .with_content_type(short(content_type).ok_or_else(|| long("content type"))?);
    if let Some(id) = from.message_id {
        out = out.with_message_id(ShortString::try_new(id).map_err(|_| long("message id"))?);
    }
    if let Some(time) = from.timestamp {
        out = out.with_timestamp(u64::try_from(time.as_micros() / 1_000_000).unwrap_or(0));
    }
    if !from.headers.is_empty() {
        out = out.with_headers(headers_out(from.headers)?);
    }
    Ok(out)
}

fn headers_out(mut headers: Headers) -> Result<FieldTable, String> {
    headers.retain(|name, _| !is_broker_header(name));
    let mut total: usize = headers.iter().map(|(name, value)| wire_bytes(name, value)).sum();
    if total > HEADERS_MAX_BYTES {
        // What a producer put there must not keep its mail from moving: foreign headers yield, the largest first.
        let mut foreign: Vec<_> = headers
            .iter()
            .filter(|(name, _)| !name.starts_with("x-paceline-"))
            .map(|(name, value)| (wire_bytes(name, value), name.clone()))
            .collect();
        foreign.sort_unstable();
        while total > HEADERS_MAX_BYTES {
            let (bytes, name) = foreign.pop().ok_or("its headers are larger than 100 kB")?;
            headers.remove(&name);
            total -= bytes;
        }
    }
    let mut table = FieldTable::default();
    for (name, value) in headers {
        // A name that does not fit cannot have come from AMQP.
        let Ok(name) = ShortString::try_new(name) else { continue };
        table.insert(
            name,
            match value {
                HeaderValue::Bool(v) => AMQPValue::Boolean(v),
                HeaderValue::Int(v) => AMQPValue::LongLongInt(v),
                HeaderValue::Text(v) => AMQPValue::LongString(v.into()),
                HeaderValue::Bytes(v) => AMQPValue::ByteArray(ByteArray::from(v.to_vec())),
            },
        );
    }
    Ok(table)
}

fn wire_bytes(name: &str, value: &HeaderValue) -> usize {
    let value = match value {
        HeaderValue::Bool(_) => 1,
        HeaderValue::Int(_) => 8,
        HeaderValue::Text(text) => 4 + text.len(),
        HeaderValue::Bytes(bytes) => 4 + bytes.len(),
    };
    2 + name.len() + value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(headers: Headers) -> Headers {
        let out = properties_out(Properties { headers, ..Properties::default() }, true).unwrap();
        properties_in(&out).headers
    }

    #[test]
    fn headers_round_trip() {
        let headers = Headers::from([
            ("t".to_owned(), "ä".into()),
            ("n".to_owned(), HeaderValue::Int(i64::MIN)),
            ("b".to_owned(), HeaderValue::Bool(true)),
            ("x".to_owned(), HeaderValue::Bytes(Bytes::from_static(b"\xff\0"))),
        ]);
        assert_eq!(round_trip(headers.clone()), headers);
    }

    #[test]
    fn large_foreign_headers_yield_to_ours() {
        let text = |n: usize| HeaderValue::Text("x".repeat(n));
        let headers = Headers::from([
            ("big".to_owned(), text(90_000)),
            ("small".to_owned(), text(10)),
            ("x-paceline-last-error".to_owned(), text(20_000)),
        ]);
        let names: Vec<_> = round_trip(headers).into_keys().collect();
        assert_eq!(names, ["small", "x-paceline-last-error"]);
        let ours = Headers::from([("x-paceline-x".to_owned(), text(200_000))]);
        assert!(properties_out(Properties { headers: ours, ..Properties::default() }, true).is_err());
    }

    #[test]
    fn death_headers_do_not_pass() {
        let headers = Headers::from([("x-death".to_owned(), "x".into()), ("x-first-death-queue".to_owned(), "q".into())]);
        assert!(round_trip(headers).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let long = Properties { message_id: Some("x".repeat(256)), ..Properties::default() };
        assert!(properties_out(long, true).unwrap_err().contains("message id"));
    }

    #[test]
    fn a_grown_body_is_cut_to_size() {
        let mut data = Vec::with_capacity(1 << 20);
        data.resize(600_000, 1);
        assert_eq!(body(data).len(), 600_000);
    }
}
