//! Bounds of a store.

use std::time::Duration;

/// Bounds of the pool and of every call.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// To PostgreSQL; to a file, those that read (one more writes).
    pub max_connections: u32,
    /// How long a call waits for a connection, and for other processes at the same file.
    pub acquire_timeout: Duration,
    /// How long a call may take in all.
    pub call_timeout: Duration,
    /// How long bringing the schema up to date may take, waiting for another process that does so included.
    pub migrate_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_connections: 4,
            acquire_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            migrate_timeout: Duration::from_secs(120),
        }
    }
}
