//! Globs: `*` is any text, `?` any one character, everything else itself.
//!
//! Patterns come from the operator, texts from anyone: matching is linear in the text whatever both hold.

use std::fmt;

/// Longest pattern, in characters without its stars: one bit each, and one for the end.
const MAX_ELEMENTS: usize = 127;

/// A compiled pattern.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob {
    pattern: Box<str>,
    /// Bit i: element i of the pattern accepts this ASCII character.
    ascii: Box<[u128; 128]>,
    /// Likewise for the others, those that occur in the pattern.
    wide: Vec<(char, u128)>,
    /// Elements that accept any character (`?`).
    any: u128,
    /// States with a star: they stay, whatever comes.
    stay: u128,
    /// The state after the last element.
    end: u128,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGlob {
    #[error("is empty; `*` matches everything")]
    Empty,
    #[error("is longer than {MAX_ELEMENTS} characters")]
    TooLong,
}

impl Glob {
    pub fn new(pattern: &str) -> Result<Glob, BadGlob> {
        Glob::compile(pattern, false)
    }

    /// Upper and lower case are the same to it.
    pub fn ignoring_case(pattern: &str) -> Result<Glob, BadGlob> {
        Glob::compile(pattern, true)
    }

    fn compile(pattern: &str, ignore_case: bool) -> Result<Glob, BadGlob> {
        if pattern.is_empty() {
            return Err(BadGlob::Empty);
        }
        let elements = pattern.chars().filter(|&c| c != '*').count();
        if elements > MAX_ELEMENTS {
            return Err(BadGlob::TooLong);
        }
        let mut glob =
            Glob { pattern: pattern.into(), ascii: Box::new([0; 128]), wide: vec![], any: 0, stay: 0, end: 1 << elements };
        let mut at = 1;
        for c in pattern.chars() {
            match c {
                '*' => {
                    glob.stay |= at;
                    continue;
                }
                '?' => glob.any |= at,
                c if ignore_case => {
                    glob.accept(c, at);
                    c.to_lowercase().chain(c.to_uppercase()).for_each(|variant| glob.accept(variant, at));
                }
                c => glob.accept(c, at),
            }
            // The last of 127 elements moves to bit 127: never out of the word.
            at <<= 1;
        }
        Ok(glob)
    }

    fn accept(&mut self, c: char, bit: u128) {
        match self.ascii.get_mut(c as usize) {
            Some(mask) => *mask |= bit,
            None => match self.wide.iter_mut().find(|(w, _)| *w == c) {
                Some((_, mask)) => *mask |= bit,
                None => self.wide.push((c, bit)),
            },
        }
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_chars(text.chars())
    }

    /// Likewise, for a text that is not in one piece.
    pub fn matches_chars(&self, text: impl Iterator<Item = char>) -> bool {
        let mut states = 1u128;
        for c in text {
            let accepting = self.any
                | match self.ascii.get(c as usize) {
                    Some(mask) => *mask,
                    None => self.wide.iter().find(|(w, _)| *w == c).map_or(0, |(_, mask)| *mask),
                };
            states = ((states & accepting) << 1) | (states & self.stay);
            if states == 0 {
                return false;
            }
            if states & self.stay & self.end != 0 {
                return true;
            }
        }
        states & self.end != 0
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.pattern, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Short, obvious and exponential.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((&'*', rest)), _) => naive(rest, text) || text.split_first().is_some_and(|(_, t)| naive(pattern, t)),
            (Some((&p, rest)), Some((&c, t))) => (p == '?' || p == c) && naive(rest, t),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_matcher(pattern in "[ab?*é]{1,9}", text in "[abcé]{0,12}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(Glob::new(&pattern).unwrap().matches(&text), naive(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn any_text_matches_itself_and_stars(text in "\\PC{1,60}", other in "\\PC{0,60}") {
            if !text.contains(['*', '?']) {
                prop_assert!(Glob::new(&text).unwrap().matches(&text));
                prop_assert_eq!(Glob::new(&text).unwrap().matches(&other), text == other);
            }
            prop_assert!(Glob::new("*").unwrap().matches(&other));
        }
    }

    #[test]
    fn table() {
        for (pattern, text, want) in [
            ("password-*", "password-reset", true),
            ("password-*", "password-", true),
            ("password-*", "password", false),
            ("*", "", true),
            ("**", "", true),
            ("?", "", false),
            ("?", "é", true),
            ("a?c", "abbc", false),
            ("*ab", "aab", true),
            ("a*b*c", "axxbxxc", true),
            ("a*b*c", "axxcxxb", false),
            ("*.example", "x.Example", false),
        ] {
            assert_eq!(Glob::new(pattern).unwrap().matches(text), want, "{pattern} {text}");
        }
        for (pattern, text) in [("A*", "abc"), ("É", "é"), ("straße", "STRAßE")] {
            assert!(Glob::ignoring_case(pattern).unwrap().matches(text), "{pattern} {text}");
        }
        assert_eq!(Glob::new(""), Err(BadGlob::Empty));
        assert_eq!(Glob::new(&"x".repeat(128)), Err(BadGlob::TooLong));
        let longest = "x".repeat(127);
        assert!(Glob::new(&longest).unwrap().matches(&longest));
        assert!(Glob::new(&format!("{longest}*")).unwrap().matches(&"x".repeat(5000)));
        assert!(!Glob::new(&longest).unwrap().matches(&"x".repeat(128)));
    }

    #[test]
    fn hostile_texts_take_linear_steps() {
        // A backtracking matcher needs 10¹³ steps for this one.
        let glob = Glob::new(&format!("{}b", "*a".repeat(60))).unwrap();
        assert!(!glob.matches(&"a".repeat(1 << 20)));
    }
}
