//! Mistakes in the configuration, each with its place.

use std::{fmt, sync::Arc};

use serde::Serialize;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    File {
        name: Arc<str>,
        line: usize,
        column: usize,
    },
    /// The variable's name.
    Environment(String),
    /// Given nowhere: the default.
    Nowhere,
}

/// One mistake, or one setting that does not do anything yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub origin: Origin,
    /// Path of the key, such as `account[0].rate`; empty for the document as a whole.
    pub key: String,
    pub problem: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Nowhere => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.origin, self.problem),
            key => write!(f, "{}: {key}: {}", self.origin, self.problem),
        }
    }
}

/// For `--output json`: `{place, file, line, column, environment, key, problem}`, with nulls for what does not apply.
impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let (file, at, environment) = match &self.origin {
            Origin::File { name, line, column } => (Some(name), Some((line, column)), None),
            Origin::Environment(name) => (None, None, Some(name)),
            Origin::Nowhere => (None, None, None),
        };
        let mut out = s.serialize_struct("Problem", 7)?;
        out.serialize_field("place", &self.origin.to_string())?;
        out.serialize_field("file", &file.map(|f| &**f))?;
        out.serialize_field("line", &at.map(|(line, _)| line))?;
        out.serialize_field("column", &at.map(|(_, column)| column))?;
        out.serialize_field("environment", &environment)?;
        out.serialize_field("key", &self.key)?;
        out.serialize_field("problem", &self.problem)?;
        out.end()
    }
}

/// The configuration cannot be used; every reason at once, in order of place.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
    /// Settings that are understood but not in force yet, as for a good configuration.
    pub warnings: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// ` ; did you mean …?` for a word that is close to a known one.
pub(super) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let close = |k: &&str| distance(word, k) <= 1.max(word.chars().count() / 3);
    known.into_iter().filter(close).min_by_key(|k| distance(word, k))
}

/// Edits that turn one into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let known = ["rate", "max_rate", "burst", "concurrency"];
        for (word, want) in [
            ("rat", Some("rate")),
            ("rates", Some("rate")),
            ("maxrate", Some("max_rate")),
            ("colour", None),
            ("concurency", Some("concurrency")),
        ] {
            assert_eq!(did_you_mean(word, known), want, "{word}");
        }
    }
}
