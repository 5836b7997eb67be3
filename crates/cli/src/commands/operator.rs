//! Who orders something, and why: for the audit trail.

use clap::Args;

/// Goes to the audit trail.
#[derive(Debug, Args)]
#[command(next_help_heading = "For the audit trail")]
pub struct OperatorArgs {
    /// Who orders it [default: $USER@host]
    #[arg(long, value_name = "NAME", value_parser = words)]
    by: Option<String>,
    /// Why, such as a ticket's number
    #[arg(long, value_name = "TEXT", value_parser = words)]
    note: Option<String>,
}

impl OperatorArgs {
    pub(crate) fn by(&self) -> String {
        self.by.clone().unwrap_or_else(|| {
            let user = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
            let user = words(&user).unwrap_or_else(|_| "somebody".to_owned());
            format!("{user}@{}", host())
        })
    }

    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// This machine's name; `localhost` where it cannot be read.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    words(&name).unwrap_or_else(|_| "localhost".to_owned())
}

fn words(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    match () {
        () if text.is_empty() => Err("is empty"),
        () if text.len() > 500 => Err("is longer than 500 bytes"),
        () if text.chars().any(char::is_control) => Err("holds a line break or another control character"),
        () => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_always_named() {
        let by = |by: Option<&str>| OperatorArgs { by: by.map(str::to_owned), note: None }.by();
        assert_eq!(by(Some("ann")), "ann");
        let (user, host) = by(None).split_once('@').map(|(u, h)| (u.to_owned(), h.to_owned())).unwrap();
        assert!(!user.is_empty() && !host.is_empty() && !host.contains('\n'), "{user} {host}");
        assert!(words("a\nb").is_err() && words("  ").is_err() && words(&"x".repeat(501)).is_err());
    }
}
