//! Bounds for text from outside: PostgreSQL takes no NUL in text, and an index row no more than about 2.7 kB.

use std::borrow::Cow;

use serde_json::Value;

/// For columns an index or a filter uses.
pub(crate) const KEY_BYTES: usize = 512;
/// For words that are only shown.
pub(crate) const WORDS_BYTES: usize = 4096;

/// NUL becomes U+FFFD, and what is longer than `max_bytes` is cut at a character's edge.
pub(crate) fn bounded(text: &str, max_bytes: usize) -> Cow<'_, str> {
    let cut = &text[..text.floor_char_boundary(max_bytes)];
    if cut.contains('\0') { Cow::Owned(cut.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(cut) }
}

/// The same for every string and key in a JSON value, lengths apart: `jsonb` refuses `\u0000`.
pub(crate) fn without_nul(value: &Value) -> Value {
    match value {
        Value::String(s) => Value::String(s.replace('\0', "\u{fffd}")),
        Value::Array(items) => Value::Array(items.iter().map(without_nul).collect()),
        Value::Object(map) => map.iter().map(|(k, v)| (k.replace('\0', "\u{fffd}"), without_nul(v))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_characters_edge_and_holds_no_nul() {
        assert_eq!(bounded("plain", 512), "plain");
        assert_eq!(bounded("aéé", 4), "aé");
        assert_eq!(bounded("a\0b", 512), "a\u{fffd}b");
        assert_eq!(bounded("", 0), "");
        assert_eq!(without_nul(&serde_json::json!({"a\0": ["\0", 1]})), serde_json::json!({"a\u{fffd}": ["\u{fffd}", 1]}));
    }
}
