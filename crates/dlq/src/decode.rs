//! A delivery of the dead-letter queue to what is stored. Pure but for the random ids of entries that bring none.
//!
//! Everything here comes from outside: anyone with access to the broker can publish to the queue.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use paceline_broker::{Delivery, HeaderValue, Headers, header_text};
use paceline_core::{Class, DeadLetter, Journey, Reason, Timestamp, dead_letter::HEADER};
use paceline_store::{MAX_ID_BYTES, StoredDeadLetter};
use serde_json::{Map, Value};

/// What is stored for a delivery. Never fails: without a readable header the entry says so.
pub(crate) fn decode(delivery: &Delivery, now: Timestamp) -> StoredDeadLetter {
    let properties = &delivery.properties;
    let readable = header_text(&properties.headers, HEADER)
        .and_then(|text| serde_json::from_str::<DeadLetter>(&text).ok())
        .filter(|entry| is_usable_id(&entry.id));
    let known = readable.is_some();
    StoredDeadLetter {
        entry: readable.unwrap_or_else(|| unreadable(delivery, now)),
        amqp_message_id: properties.message_id.clone(),
        content_type: properties.content_type.clone(),
        headers: headers_json(&properties.headers, known),
        body: delivery.body.clone(),
    }
}

/// The same message as an entry that holds nothing but its bytes: for what the store refuses otherwise.
pub(crate) fn bytes_only(letter: &StoredDeadLetter, why: &str, now: Timestamp) -> StoredDeadLetter {
    let mut entry = DeadLetter::new(raw_id(), Reason::InvalidMessage, &Journey::starting(now), now);
    entry.field = Some(HEADER.to_owned());
    entry.detail = Some(format!("dead letter that the store refused to take whole: {why}"));
    StoredDeadLetter { entry, amqp_message_id: None, content_type: None, headers: Map::new(), body: letter.body.clone() }
}

/// The entry under another id: for one whose id belongs to an entry with another body.
pub(crate) fn renamed(letter: &StoredDeadLetter) -> StoredDeadLetter {
    let mut letter = letter.clone();
    let kept = letter.entry.id.floor_char_boundary(MAX_ID_BYTES - 40);
    letter.entry.id.truncate(kept);
    letter.entry.id.push_str(&format!("~{:016x}", rand::random::<u64>()));
    letter
}

fn is_usable_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_ID_BYTES && !id.chars().any(char::is_control)
}

/// Random, not a digest: two messages that are alike are two.
fn raw_id() -> String {
    format!("raw-{:032x}", rand::random::<u128>())
}

fn unreadable(delivery: &Delivery, now: Timestamp) -> DeadLetter {
    let properties = &delivery.properties;
    let journey = Journey::from_headers(|name| header_text(&properties.headers, name), properties.timestamp, now);
    let mut entry = DeadLetter::new(raw_id(), Reason::InvalidMessage, &journey, now);
    entry.message_id = properties.message_id.clone();
    entry.class = delivery.routing_key.split('.').next().and_then(|word| word.parse::<Class>().ok());
    entry.field = Some(HEADER.to_owned());
    entry.detail = Some("dead letter without a readable header".to_owned());
    entry
}

/// Headers as JSON; bytes, and text with NUL (which `jsonb` has no room for), as `{"base64": …}`. A header that was
/// read into the entry is left out.
fn headers_json(headers: &Headers, entry_was_read: bool) -> Map<String, Value> {
    let encoded = |bytes: &[u8]| serde_json::json!({ "base64": BASE64.encode(bytes) });
    headers
        .iter()
        .filter(|(name, _)| !(entry_was_read && name.as_str() == HEADER))
        .map(|(name, value)| {
            let value = match value {
                HeaderValue::Bool(truth) => Value::Bool(*truth),
                HeaderValue::Int(number) => Value::from(*number),
                HeaderValue::Text(text) if text.contains('\0') => encoded(text.as_bytes()),
                HeaderValue::Text(text) => Value::String(text.clone()),
                HeaderValue::Bytes(bytes) => encoded(bytes),
            };
            (name.clone(), value)
        })
        .collect()
}
