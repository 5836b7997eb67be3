//! What only one process may do.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Somebody else has the lock, or nobody can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    #[error("process {} holds it", pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string()))]
    Held { pid: Option<u32> },
    #[error("{path} cannot be locked: {reason}")]
    Failed { path: String, reason: String },
}

/// An advisory lock on a file of its own, held until dropped. The kernel releases it when the process ends, however it
/// ends. Two locks of one process exclude each other too.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says at once who has it. The file stays behind when the lock is released: removing it could
    /// let two processes lock two files of the same name.
    pub fn take(path: &Path) -> Result<Lock, LockError> {
        let failed = |error: std::io::Error| LockError::Failed { path: path.display().to_string(), reason: error.to_string() };
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(LockError::Held { pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Only for the message that others get.
        let _ = file.set_len(0);
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let first = Lock::take(&path).unwrap();
        assert_eq!(Lock::take(&path).unwrap_err(), LockError::Held { pid: Some(std::process::id()) });
        drop(first);
        Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&dir.path().join("no/x")), Err(LockError::Failed { .. })));
    }
}
