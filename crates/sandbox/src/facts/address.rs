//! Addresses with and without names.

use std::borrow::Cow;

/// The address in `Name <local@domain>`, or the text as it is.
pub(super) fn address(text: Cow<'_, str>) -> Cow<'_, str> {
    let within = |text: &str| {
        let (start, end) = (text.rfind('<')? + 1, text.rfind('>')?);
        (start <= end).then_some(start..end)
    };
    match (within(&text), text) {
        (Some(range), Cow::Borrowed(text)) => Cow::Borrowed(&text[range]),
        (Some(range), Cow::Owned(text)) => Cow::Owned(text[range].to_owned()),
        (None, text) => text,
    }
}

/// The addresses of a list with names, which may hold commas within quotes.
pub(super) fn addresses(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices().chain([(text.len(), ',')]) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted || at == text.len() => {
                let one = text[start..at].trim();
                if !one.is_empty() {
                    out.push(address(one.into()).into_owned());
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    out
}
