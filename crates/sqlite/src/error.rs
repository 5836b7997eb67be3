//! Errors as what the operator can do about them. None carries content of the file.

use std::path::Path;

use rusqlite::ErrorCode;

/// A file cannot be opened as what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the directory of {path} does not exist: create it, or name another path")]
    NoDirectory { path: String },
    #[error(
        "{path} cannot be opened: {reason}; it must be a file that this user may read and write, in a directory where it may make files"
    )]
    Denied { path: String, reason: String },
    #[error("{path} is read-only: give this user write access to the file and its directory, or name another path")]
    ReadOnly { path: String },
    #[error("{path} is not a SQLite database: name another path, or move that file away")]
    NotADatabase { path: String },
    #[error("{path} is a SQLite database, but no {what}: name another path")]
    Foreign { path: String, what: &'static str },
    #[error(
        "{path} is damaged ({reason}): stop what uses it, keep a copy, and rescue what can be read with `sqlite3 {path} .recover`"
    )]
    Damaged { path: String, reason: String },
    #[error(
        "{path} was written by a newer version (schema {found}, this one knows {known}): run that version, or name another path"
    )]
    Newer { path: String, found: i64, known: i64 },
    #[error("{path} is busy: another process has been writing to it for {} s; try again", crate::open::PATIENCE.as_secs())]
    Busy { path: String },
    #[error("the disk of {path} is full: make room")]
    Full { path: String },
    #[error("{path} cannot be used: {reason}")]
    Failed { path: String, reason: String },
}

impl OpenError {
    pub(crate) fn of(path: &Path, error: &rusqlite::Error) -> OpenError {
        let (path, reason) = (path.display().to_string(), reason(error));
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path },
            Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged { path, reason },
            Some(ErrorCode::ReadOnly) => OpenError::ReadOnly { path },
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => OpenError::Denied { path, reason },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Busy { path },
            Some(ErrorCode::DiskFull) => OpenError::Full { path },
            _ => OpenError::Failed { path, reason },
        }
    }
}

/// A job was not, or not certainly, stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nothing was stored; the same job may succeed once there is room.
    #[error("the disk of {path} is full: make room")]
    Full { path: String },
    /// Nothing was stored; the same job may succeed later.
    #[error("{path} is busy: another process has been writing to it for {} s", crate::open::PATIENCE.as_secs())]
    Busy { path: String },
    /// The file or its disk. After a failed commit (`uncertain`) a crash may still bring the job back.
    #[error("{path} cannot be written: {reason}; is its disk full, over quota or failing?")]
    Unusable { path: String, reason: String, uncertain: bool },
    /// This job alone: no other suffered from it, and it will never succeed.
    #[error("it cannot be stored: {reason}")]
    Refused { reason: String },
    /// The writer has ended.
    #[error("{path} is closed")]
    Closed { path: String },
}

impl WriteError {
    pub(crate) fn of(path: &str, error: &rusqlite::Error, at_commit: bool) -> WriteError {
        let (path, reason) = (path.to_owned(), reason(error));
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => WriteError::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => WriteError::Busy { path },
            Some(
                ErrorCode::TooBig
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::ParameterOutOfRange
                | ErrorCode::ApiMisuse
                | ErrorCode::Unknown,
            )
            | None => WriteError::Refused { reason },
            Some(_) => WriteError::Unusable { path, reason, uncertain: at_commit },
        }
    }

    /// Whether it is the job's own fault.
    pub fn is_refusal(&self) -> bool {
        matches!(self, WriteError::Refused { .. })
    }
}

/// What SQLite says, with its code: the text alone is often just "disk I/O error".
fn reason(error: &rusqlite::Error) -> String {
    match error.sqlite_error() {
        Some(code) => format!("{error} (SQLite code {})", code.extended_code),
        None => error.to_string(),
    }
}
