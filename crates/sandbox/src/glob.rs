//! Patterns with `*` (any run of characters) and `?` (any one), upper and lower case alike.

/// A pattern, folded to lower case once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(Box<[u8]>);

impl Glob {
    pub(crate) fn new(pattern: &str) -> Glob {
        Glob(pattern.to_ascii_lowercase().into_bytes().into())
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (&self.0, text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where to go on when a later part does not fit: the last star, and one character further than last time.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p + 1, t));
                    p += 1;
                }
                Some(&c) if c == b'?' || c == text[t].to_ascii_lowercase() => {
                    p += 1;
                    t += 1;
                }
                _ => match star {
                    Some((after, from)) => {
                        (p, t) = (after, from + 1);
                        star = Some((after, from + 1));
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("*@gmail.com", "u@GMail.com", true),
            ("*@gmail.com", "u@gmail.com.evil.org", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "", false),
            ("u?@x.org", "u1@x.org", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), want, "{pattern} {text}");
        }
        assert!(!Glob::new(&"*a".repeat(30)).matches(&"b".repeat(100_000)), "and ends soon");
    }
}
