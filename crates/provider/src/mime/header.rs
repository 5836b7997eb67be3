//! Header lines: folded at 76 characters, encoded words (RFC 2047) where ASCII does not do.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::Mailbox;

const WIDTH: usize = 76;
/// Longest encoded word (RFC 2047, 2).
const MAX_WORD: usize = 75;
const WORD_FRAME: usize = "=?utf-8?b??=".len();

/// Whether `value` can stand as it is: printable ASCII without space at the ends and without a piece too long for a line.
pub(super) fn is_foldable(value: &str) -> bool {
    let longest = || value.split(' ').map(str::len).max().unwrap_or_default();
    value.bytes().all(|b| matches!(b, b' '..=b'~'))
        && value.trim() == value
        && longest() <= 900
        && !value.contains(&" ".repeat(60))
}

/// An unstructured header such as `Subject`.
pub(super) fn text(out: &mut String, name: &str, value: &str) {
    if is_foldable(value) && !value.contains("=?") {
        return verbatim(out, name, value);
    }
    let mut line = Line::start(out, name);
    line.encoded(value);
    line.end();
}

/// A header whose value is ASCII and may have a structure of its own: folded at spaces, nothing else.
pub(super) fn verbatim(out: &mut String, name: &str, value: &str) {
    let mut line = Line::start(out, name);
    let mut rest = value;
    while !rest.is_empty() {
        // A piece: the spaces before a word and the word. The first space is the one that `word` writes.
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let end = rest[spaces..].find(' ').map_or(rest.len(), |at| spaces + at);
        line.word(if rest.len() == value.len() { &rest[..end] } else { &rest[1..end] });
        rest = &rest[end..];
    }
    line.end();
}

/// A list of addresses with display names; nothing for an empty list.
pub(super) fn addresses(out: &mut String, name: &str, list: &[Mailbox]) {
    if list.is_empty() {
        return;
    }
    let mut line = Line::start(out, name);
    for (i, mailbox) in list.iter().enumerate() {
        let comma = if i + 1 < list.len() { "," } else { "" };
        match mailbox.name.as_deref().filter(|name| !name.is_empty()) {
            None => line.word(&format!("{}{comma}", mailbox.email)),
            Some(name) => {
                match phrase(name) {
                    Some(phrase) => line.word(&phrase),
                    None => line.encoded(name),
                }
                line.word(&format!("<{}>{comma}", mailbox.email));
            }
        }
    }
    line.end();
}

/// A display name as an atom or a quoted string; `None` where it needs encoded words.
fn phrase(name: &str) -> Option<String> {
    if name.len() > 60 || name.contains("=?") || !name.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return None;
    }
    let atoms = |b: u8| b.is_ascii_alphanumeric() || b" !#$%&'*+-/=?^_`{|}~".contains(&b);
    if name.bytes().all(atoms) && name.trim() == name && !name.contains("  ") {
        return Some(name.to_owned());
    }
    Some(format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// One header, as it grows.
struct Line<'a> {
    out: &'a mut String,
    column: usize,
    fresh: bool,
}

impl<'a> Line<'a> {
    fn start(out: &'a mut String, name: &str) -> Line<'a> {
        out.push_str(name);
        out.push(':');
        Line { out, column: name.len() + 1, fresh: true }
    }

    /// A space and `word`, on the next line where this one is full; a header's first line is never empty.
    fn word(&mut self, word: &str) {
        if !self.fresh && self.column + 1 + word.len() > WIDTH {
            self.out.push_str("\r\n");
            self.column = 0;
        }
        self.out.push(' ');
        self.out.push_str(word);
        self.column += 1 + word.len();
        self.fresh = false;
    }

    /// `value` as encoded words, none of which splits a character.
    fn encoded(&mut self, value: &str) {
        let mut rest = value;
        while !rest.is_empty() {
            let left = WIDTH.saturating_sub(self.column + 1 + WORD_FRAME);
            // What is left of this line, if it is worth it.
            let room = if self.fresh && left >= 16 { left } else { MAX_WORD - WORD_FRAME };
            let mut end = rest.len().min(room / 4 * 3);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            self.word(&format!("=?utf-8?b?{}?=", STANDARD.encode(&rest[..end])));
            rest = &rest[end..];
        }
    }

    fn end(self) {
        self.out.push_str("\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(value: &str) -> String {
        let mut out = String::new();
        text(&mut out, "Subject", value);
        out
    }

    #[test]
    fn plain_text_stays_and_folds() {
        assert_eq!(subject("Hello  you"), "Subject: Hello  you\r\n");
        let long = subject(&"word ".repeat(40).trim_end().replacen("word word", "word  word", 5));
        assert!(long.lines().all(|l| l.len() <= 76) && long.lines().count() == 3, "{long}");
        assert_eq!(
            long.replace("\r\n ", " ").trim_end(),
            format!("Subject: {}", "word  word ".repeat(5) + "word ".repeat(30).trim_end())
        );
    }

    #[test]
    fn what_would_be_misread_is_encoded() {
        for value in ["Grüße", "=?utf-8?q?x?=", " ends ", "a\tb", &"x".repeat(1200), &format!("a{}b", " ".repeat(200)), "\u{1}"]
        {
            let line = subject(value);
            assert!(line.lines().all(|l| l.len() <= 76 && l.contains("=?utf-8?b?")), "{line}");
        }
    }

    #[test]
    fn names_as_atoms_strings_and_words() {
        for (name, want) in [
            ("Ann Other", "Ann Other <a@b.org>"),
            ("Other, Ann", "\"Other, Ann\" <a@b.org>"),
            ("a\"b\\", "\"a\\\"b\\\\\" <a@b.org>"),
            ("", "a@b.org"),
            ("Zoë", "=?utf-8?b?Wm/Dqw==?= <a@b.org>"),
        ] {
            let mailbox: Mailbox = serde_json::from_value(serde_json::json!({"email": "a@b.org", "name": name})).unwrap();
            let mut out = String::new();
            addresses(&mut out, "To", &[mailbox]);
            assert_eq!(out, format!("To: {want}\r\n"));
        }
    }
}
