//! The trail of what operators did.

use async_trait::async_trait;
use paceline_core::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Error;

/// What operators did. Entries are written by the calls that do it, in the same transaction; there is no other way in
/// and none out.
#[async_trait]
pub trait Audit: Send + Sync {
    /// The latest first, `limit` at most; of one `subject`, such as a job's id, where given.
    async fn audit(&self, subject: Option<&str>, limit: u32) -> Result<Vec<AuditEntry>, Error>;
}

/// One thing done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditEntry {
    pub at: Timestamp,
    /// Such as `replay.created`, `discard.done`, `replay.cancelled`, `purge`, `cancel.added`, `cancel.renewed`, `cancel.removed`,
    /// `suppression.added`, `suppression.imported`, `suppression.removed`, `pause.added`, `pause.changed`, `pause.removed`,
    /// `limit.set`, `limit.changed`, `limit.reset`.
    pub action: String,
    /// The id of the job or order it was done to; `dead-letters` for a purge; an address or
    /// `suppressions` for a change of the suppression list; what is paused, such as `account main`; the name of a limit.
    pub subject: String,
    pub by: String,
    pub note: Option<String>,
    /// Numbers and the selection.
    pub detail: Map<String, Value>,
}
