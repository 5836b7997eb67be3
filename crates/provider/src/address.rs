//! Addresses as providers want them: each once, with display names, and found again in what a provider says.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::{EmailAddress, Mailbox, Message};

/// The recipients, each address once, where it stands first: some providers refuse repetitions, others send twice.
pub(crate) struct Recipients<'a> {
    pub(crate) to: Vec<&'a Mailbox>,
    pub(crate) cc: Vec<&'a Mailbox>,
    pub(crate) bcc: Vec<&'a Mailbox>,
}

impl<'a> Recipients<'a> {
    pub(crate) fn of(message: &'a Message) -> Recipients<'a> {
        let mut seen: Vec<&EmailAddress> = Vec::with_capacity(message.recipient_count());
        let mut once = |list: &'a [Mailbox]| -> Vec<&'a Mailbox> {
            let mut out = Vec::with_capacity(list.len());
            for mailbox in list {
                // At most 50: comparing each with each is cheaper than hashing.
                if !seen.iter().any(|s| same(s, &mailbox.email)) {
                    seen.push(&mailbox.email);
                    out.push(mailbox);
                }
            }
            out
        };
        Recipients { to: once(&message.to), cc: once(&message.cc), bcc: once(&message.bcc) }
    }
}

/// Whether providers take these for one address: they do not tell upper from lower case.
pub(crate) fn same(a: &EmailAddress, b: &EmailAddress) -> bool {
    a.domain() == b.domain() && a.local().eq_ignore_ascii_case(b.local())
}

/// The recipients that `words` name, as the message has them.
pub(crate) fn named(words: &str, message: &Message) -> Vec<EmailAddress> {
    let words = words.to_ascii_lowercase();
    let mut out: Vec<EmailAddress> = Vec::new();
    for email in message.recipients() {
        if !out.contains(email) && holds(&words, &email.to_string().to_ascii_lowercase()) {
            out.push(email.clone());
        }
    }
    out
}

/// Whether `address` stands in `words` as a whole, and not as the end of a longer one.
fn holds(words: &str, address: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || "!#$%&*+-/=?^_{|}~@".contains(c);
    words.match_indices(address).any(|(at, _)| {
        let (before, after) = (&words[..at], &words[at + address.len()..]);
        let mut after = after.chars();
        let follows = match after.next() {
            // A full stop ends a sentence, or goes on with the domain.
            Some('.') => after.next().is_some_and(part),
            Some(c) => part(c),
            None => false,
        };
        !before.ends_with(|c| part(c) || c == '.') && !follows
    })
}

/// How a display name is written beside its address.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Names {
    /// By RFC 5322 and 2047: as it is, in quotes, or as encoded words. ASCII, but for addresses that are not.
    Encoded,
    /// Likewise, never in quotes.
    EncodedWithoutQuotes,
    /// In quotes where it must be, in UTF-8.
    Utf8,
    /// As it is.
    Bare,
}

/// `name <local@domain>`, or the address alone.
pub(crate) fn written(mailbox: &Mailbox, names: Names) -> String {
    let email = &mailbox.email;
    let Some(name) = mailbox.name.as_deref().filter(|name| !name.is_empty()) else { return email.to_string() };
    let atoms = |b: u8| b.is_ascii_alphanumeric() || b" !#$%&'*+-/=?^_`{|}~".contains(&b) || !b.is_ascii();
    let plain = name.bytes().all(atoms) && name.trim() == name && !name.contains("=?");
    let quoted = || Cow::Owned(format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")));
    let name = match names {
        Names::Bare => Cow::Borrowed(name),
        Names::Utf8 if plain => Cow::Borrowed(name),
        Names::Utf8 => quoted(),
        Names::Encoded | Names::EncodedWithoutQuotes if plain && name.is_ascii() => Cow::Borrowed(name),
        Names::Encoded if name.is_ascii() && !name.contains("=?") => quoted(),
        Names::Encoded | Names::EncodedWithoutQuotes => encoded_words(name).into(),
    };
    format!("{name} <{email}>")
}

/// Several, separated by commas.
pub(crate) fn list(mailboxes: &[&Mailbox], names: Names) -> String {
    mailboxes.iter().map(|m| written(m, names)).collect::<Vec<_>>().join(", ")
}

/// A header value in ASCII: as it is, else as encoded words.
pub(crate) fn ascii(value: &str) -> Cow<'_, str> {
    if value.is_ascii() { value.into() } else { encoded_words(value).into() }
}

fn encoded_words(value: &str) -> String {
    // 45 bytes make 60 characters of base64, and with "=?UTF-8?B?" and "?=" 72: under the 75 of an encoded word.
    let mut words = Vec::new();
    let mut rest = value;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.floor_char_boundary(45));
        words.push(format!("=?UTF-8?B?{}?=", STANDARD.encode(word)));
        rest = after;
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mailbox(name: &str) -> Mailbox {
        serde_json::from_value(json!({"email": "a@b.org", "name": name})).unwrap()
    }

    #[test]
    fn names_in_every_way() {
        for (name, encoded, unquoted, utf8) in [
            ("", "a@b.org", "a@b.org", "a@b.org"),
            ("Ann Other", "Ann Other <a@b.org>", "Ann Other <a@b.org>", "Ann Other <a@b.org>"),
            ("Other, A", "\"Other, A\" <a@b.org>", "=?UTF-8?B?T3RoZXIsIEE=?= <a@b.org>", "\"Other, A\" <a@b.org>"),
            ("a\"b\\", "\"a\\\"b\\\\\" <a@b.org>", "=?UTF-8?B?YSJiXA==?= <a@b.org>", "\"a\\\"b\\\\\" <a@b.org>"),
            ("Zoë", "=?UTF-8?B?Wm/Dqw==?= <a@b.org>", "=?UTF-8?B?Wm/Dqw==?= <a@b.org>", "Zoë <a@b.org>"),
            ("Zoë, X", "=?UTF-8?B?Wm/DqywgWA==?= <a@b.org>", "=?UTF-8?B?Wm/DqywgWA==?= <a@b.org>", "\"Zoë, X\" <a@b.org>"),
            ("=?x?=", "=?UTF-8?B?PT94Pz0=?= <a@b.org>", "=?UTF-8?B?PT94Pz0=?= <a@b.org>", "\"=?x?=\" <a@b.org>"),
        ] {
            let m = mailbox(name);
            let got = [Names::Encoded, Names::EncodedWithoutQuotes, Names::Utf8].map(|names| written(&m, names));
            assert_eq!(got, [encoded, unquoted, utf8], "{name}");
        }
        assert_eq!(written(&mailbox("Zoë, X"), Names::Bare), "Zoë, X <a@b.org>");
        assert_eq!(list(&[&mailbox("A"), &mailbox("")], Names::Utf8), "A <a@b.org>, a@b.org");
    }

    #[test]
    fn recipients_are_found_in_words_as_a_whole() {
        let body = r#"{"id":"m","from":"s@b.org","to":["U@gmail.com","o'neil@x.org"],"cc":["bu@gmail.com"],"text":"t"}"#;
        let m = Message::parse(body.as_bytes(), None, 1 << 20).unwrap();
        for (words, want) in [
            ("no such user: u@gmail.com.", &["U@gmail.com"][..]),
            ("[u@GMAIL.com, O'Neil@x.org]", &["U@gmail.com", "o'neil@x.org"]),
            ("bu@gmail.com", &["bu@gmail.com"]),
            ("<bu@gmail.com> 'u@gmail.com'", &["U@gmail.com", "bu@gmail.com"]),
            ("u@gmail.com.br", &[]),
            ("x.u@gmail.com", &[]),
            ("u@gmail.community", &[]),
            ("", &[]),
        ] {
            let got: Vec<_> = named(words, &m).iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{words}");
        }
    }
}
