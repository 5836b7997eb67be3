//! What the embedded adapters share: a SQLite file opened one way, its schema by numbered migrations, and a writer
//! thread with group commit. Only this crate names rusqlite; adapters use it as [`rusqlite`].
//!
//! - [`open`] makes or opens a file in WAL mode with `synchronous=FULL` and brings its schema up to date. Every way in
//!   which that can fail is an [`OpenError`] that names the path and what to do.
//! - [`Writer`] is the one thread of this process that writes: it takes what has queued up, runs it in one transaction
//!   and answers once that is on disk, so that a hundred callers share one fsync.
//! - [`Lock`] says which process may do what only one may; the kernel releases it, however that process ends.
//!
//! A full disk or an I/O error rolls back the transaction, everybody in it hears why, and the next one tries again.

mod disk;
mod error;
mod lock;
mod open;
mod writer;

pub use disk::{Space, space};
pub use error::{OpenError, WriteError};
pub use lock::{Lock, LockError};
pub use open::{Schema, open, reader};
pub use rusqlite;
pub use writer::{Work, Writer};
