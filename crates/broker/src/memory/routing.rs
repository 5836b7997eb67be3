//! Topic patterns.

/// Whether `key` matches a topic `pattern`: words between dots, `*` any one word, `#` any number of them.
pub(crate) fn topic_matches(pattern: &str, key: &str) -> bool {
    let (pattern, key): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), key.split('.').collect());
    words_match(&pattern, &key)
}

fn words_match(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern.split_first(), key.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((&"#", more)), rest) => words_match(more, key) || rest.is_some_and(|(_, keys)| words_match(pattern, keys)),
        (Some((word, more)), Some((k, keys))) => (*word == "*" || word == k) && words_match(more, keys),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::topic_matches;

    #[test]
    fn patterns() {
        for (pattern, key, want) in [
            ("critical.#", "critical.gmail.com", true),
            ("critical.#", "critical", true),
            ("critical.#", "high.gmail.com", false),
            ("#", "", true),
            ("sent.*.google", "sent.low.google", true),
            ("sent.*.google", "sent.google", false),
            ("*.low.#", "dead.low.google", true),
            ("a.#.b", "a.b", true),
            ("a.#.b", "a.x.y.b", true),
            ("a.#.b", "a.x.y", false),
        ] {
            assert_eq!(topic_matches(pattern, key), want, "{pattern} {key}");
        }
    }
}
