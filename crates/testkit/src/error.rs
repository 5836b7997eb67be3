//! What can go wrong while the stage is set, each with what to do about it.

use std::path::{Path, PathBuf};

/// Why an instance could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is nowhere on this machine.
    #[error("`{program}` is not installed: install the Debian package `{package}`, or run `ops/test`, which does it")]
    Missing { program: String, package: String },
    /// The service ended, or did not become ready in time.
    #[error("{service} {what}; its log ends with:\n{log}")]
    Service { service: String, what: String, log: String },
    /// A helper program failed.
    #[error("{program} failed: {output}")]
    Program { program: String, output: String },
    /// An operation on a file or a process failed.
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

impl Error {
    /// For `map_err`: which operation failed on which path.
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { what, path, source }
    }
}

/// The value, or a panic that shows the whole chain of causes: the end of the road for a test's preparation.
#[track_caller]
pub(crate) fn must<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match std::error::Error::source(&error) {
            Some(cause) => panic!("{error}: {cause}"),
            None => panic!("{error}"),
        },
    }
}

/// The last lines of a log file, for a message.
pub(crate) fn tail(path: &Path) -> String {
    const LINES: usize = 30;
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
