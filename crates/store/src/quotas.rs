//! What quotas have granted, kept beyond a loss of the shared memory and of every worker.

use async_trait::async_trait;
use serde_json::Value as Json;

use crate::Error;

/// The memory behind the shared one.
#[async_trait]
pub trait Quotas: Send + Sync {
    /// Keeps all of these or, on an error, none; one that was seen later stays as it is. What counts no more is forgotten.
    async fn keep_quotas(&self, rows: &[QuotaRow]) -> Result<(), Error>;

    /// Everything kept, by quota and by whose grants it tells of.
    async fn quotas(&self) -> Result<Vec<QuotaRow>, Error>;
}

/// What was granted of one quota.
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaRow {
    pub quota: String,
    /// The worker that granted it by itself; `None`: all who share it.
    pub by: Option<String>,
    pub kept: Json,
    /// When, in microseconds of the limiter's clock; and until when any of it counts.
    pub at_us: u64,
    pub until_us: u64,
}
