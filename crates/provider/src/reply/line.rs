//! A reply as one line of text, taken apart: basic code, enhanced code, the rest.

use super::words::head;

/// An enhanced status code such as 4.7.1 (RFC 3463).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enhanced(pub(crate) u8, pub(crate) u16, pub(crate) u16);

/// What a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The SMTP basic code, or an HTTP status.
    pub(super) code: Option<u16>,
    pub(super) enhanced: Option<Enhanced>,
    /// All but a code in front.
    pub(super) text: &'a str,
}

/// Reads `550-5.7.1 words`, `smtp; 550 5.7.1 words`, `HTTP/1.1 429 words`, `… said: 550 words`, or words alone.
pub(super) fn parse(line: &str) -> Line<'_> {
    let line = head(line).trim_start_matches(|c: char| c.is_whitespace() || "\"'<[(".contains(c));
    let (code, text) = match basic(line) {
        Some(code) => (Some(code), line.get(3..).unwrap_or_default().trim_start_matches(['-', ' ', ':'])),
        None => (quoted_code(line), line),
    };
    Line { code, enhanced: first_enhanced(text, code), text }
}

/// A three-digit code at the very start.
fn basic(text: &str) -> Option<u16> {
    let (digits, rest) = text.split_at_checked(3)?;
    // `550.` at the end of a sentence is a code, `550.5` is not.
    let ends = match rest.as_bytes().first() {
        Some(b'.') => rest.starts_with(". "),
        Some(b) => !b.is_ascii_alphanumeric(),
        None => true,
    };
    let code = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    ((200..600).contains(&code) && ends).then_some(code)
}

/// A code further on: one with an enhanced code behind it, or one that a word announces.
fn quoted_code(text: &str) -> Option<u16> {
    const ANNOUNCES: [&str; 12] =
        ["smtp", "said", "says", "error", "code", "status", "statuscode", "response", "reply", "http/1.1", "http/2", "returned"];
    let mut words = text
        .split(|c: char| c.is_whitespace() || ";:=,\"'()[]{}<>".contains(c))
        .map(|w| w.trim_matches(['.', '#']))
        .filter(|w| !w.is_empty())
        .peekable();
    let mut before = "";
    while let Some(word) = words.next() {
        if let Some(code) = basic(word).filter(|c| *c >= 400) {
            let announced = ANNOUNCES.iter().any(|a| before.eq_ignore_ascii_case(a));
            if announced || word.len() == 3 && words.peek().is_some_and(|next| enhanced(next).is_some()) {
                return Some(code);
            }
        }
        before = word;
    }
    None
}

/// The enhanced code in front, else the first one anywhere whose class fits the basic code.
fn first_enhanced(text: &str, code: Option<u16>) -> Option<Enhanced> {
    let tidy = |word: &str| word.trim_matches(|c: char| "#()[]<>:;,.\"'".contains(c)).to_owned();
    let mut words = text.split(|c: char| c.is_whitespace() || "=".contains(c)).map(tidy).filter(|w| !w.is_empty());
    let fits = |e: &Enhanced| code.is_none_or(|c| c / 100 == u16::from(e.0)) && e.0 != 2;
    let first = words.next()?;
    enhanced(&first).or_else(|| {
        std::iter::once(first.clone()).chain(words).find_map(|word| {
            let word = word.rsplit_once('-').map_or(word.as_str(), |(_, after)| after);
            enhanced(word).filter(fits)
        })
    })
}

/// Exactly an enhanced code, `5.7.1`.
pub(crate) fn enhanced(word: &str) -> Option<Enhanced> {
    let mut parts = word.split('.');
    let number = |part: Option<&str>| {
        part.filter(|p| !p.is_empty() && p.len() <= 3 && p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    };
    let (class, subject, detail) = (number(parts.next())?, number(parts.next())?, number(parts.next())?);
    let class = u8::try_from(class).ok().filter(|c| matches!(c, 2 | 4 | 5))?;
    parts.next().is_none().then_some(Enhanced(class, subject, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let some = |class, subject, detail| Some(Enhanced(class, subject, detail));
        for (line, code, enhanced, text) in [
            ("550 5.1.1 User unknown", Some(550), some(5, 1, 1), "5.1.1 User unknown"),
            ("550-5.7.26 This", Some(550), some(5, 7, 26), "5.7.26 This"),
            ("421", Some(421), None, ""),
            ("421-", Some(421), None, ""),
            (" \"550: no\"", Some(550), None, "no\""),
            ("550 sorry (#5.1.1)", Some(550), some(5, 1, 1), "sorry (#5.1.1)"),
            ("554 mx.example 5.7.1 no", Some(554), some(5, 7, 1), "mx.example 5.7.1 no"),
            ("550 listed 4.3.2 x 5.7.1", Some(550), some(5, 7, 1), "listed 4.3.2 x 5.7.1"),
            ("550 4.2.1 odd", Some(550), some(4, 2, 1), "4.2.1 odd"),
            ("550 1.2.3.4 listed", Some(550), None, "1.2.3.4 listed"),
            ("smtp; 452 4.2.2 full", Some(452), some(4, 2, 2), "smtp; 452 4.2.2 full"),
            ("host x[192.0.2.1] said: 550 no", Some(550), None, "host x[192.0.2.1] said: 550 no"),
            ("HTTP/1.1 429 Too Many", Some(429), None, "HTTP/1.1 429 Too Many"),
            ("{\"statusCode\":429,\"name\":\"x\"}", Some(429), None, "{\"statusCode\":429,\"name\":\"x\"}"),
            ("ends at 450 5.1.1", Some(450), None, "ends at 450 5.1.1"),
            ("we have 500 users", None, None, "we have 500 users"),
            ("5.1.1 unknown", None, some(5, 1, 1), "5.1.1 unknown"),
            ("5500 x", None, None, "5500 x"),
            ("999 x", None, None, "999 x"),
            ("550.1 x", None, None, "550.1 x"),
            ("\u{e9}\u{e9}\u{e9}", None, None, "\u{e9}\u{e9}\u{e9}"),
            ("", None, None, ""),
        ] {
            assert_eq!(parse(line), Line { code, enhanced, text }, "{line}");
        }
    }

    #[test]
    fn enhanced_codes_are_told_from_other_words() {
        for (word, want) in [
            ("4.7.1", Some(Enhanced(4, 7, 1))),
            ("4.7.999", Some(Enhanced(4, 7, 999))),
            ("4.7", None),
            ("4.7.1.2", None),
            ("3.7.1", None),
            ("4.7.1234", None),
            ("4..1", None),
            ("..", None),
            ("", None),
        ] {
            assert_eq!(enhanced(word), want, "{word}");
        }
    }
}
