//! The database's address: a file.

use std::path::PathBuf;

use crate::Error;

/// Reads `sqlite:///absolute/path.db`, `sqlite:relative.db` or a plain path.
pub(super) fn parse(path_or_url: &str) -> Result<PathBuf, Error> {
    let bad = |why: &str| Err(Error::Misconfigured(format!("the address of the database {why}").into()));
    let path = match path_or_url.strip_prefix("sqlite:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        // Another scheme's address may hold a password: it is not repeated.
        None if path_or_url.contains("://") => return bad("does not begin with sqlite:"),
        None => path_or_url,
    };
    if path.is_empty() || path == ":memory:" {
        return bad("names no file; write sqlite:///var/lib/paceline/paceline.db or sqlite:paceline.db");
    }
    if path.contains(['?', '#']) || path.chars().any(char::is_control) {
        return bad("takes nothing but a path after sqlite:");
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path() {
        for (text, path) in [
            ("sqlite:///var/lib/paceline.db", "/var/lib/paceline.db"),
            ("sqlite:/var/lib/paceline.db", "/var/lib/paceline.db"),
            ("sqlite:paceline.db", "paceline.db"),
            ("sqlite:./a b.db", "./a b.db"),
            ("sqlite://paceline.db", "paceline.db"),
            ("paceline.db", "paceline.db"),
        ] {
            assert_eq!(parse(text).unwrap(), PathBuf::from(path), "{text}");
        }
        for text in ["", "sqlite:", "sqlite://", "sqlite::memory:", "sqlite:a.db?mode=ro", "a\0b", "postgres://u:secret@h/d"] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, Error::Misconfigured(_)) && !error.in_full().contains("secret"), "{text:?}");
        }
    }
}
