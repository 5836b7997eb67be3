//! What the fleet has learnt: circuits and adaptive rates, kept beyond a loss of the shared memory.

use async_trait::async_trait;
use serde_json::Value as Json;

use crate::Error;

/// The memory behind the shared one.
#[async_trait]
pub trait Learning: Send + Sync {
    /// Keeps all of these or, on an error, none; a scope that was learnt of later stays as it is.
    async fn keep_learnt(&self, rows: &[LearntRow]) -> Result<(), Error>;

    /// Everything kept, by account and destination.
    async fn learnt(&self) -> Result<Vec<LearntRow>, Error>;
}

/// What was learnt of one scope.
#[derive(Debug, Clone, PartialEq)]
pub struct LearntRow {
    pub account: String,
    /// `None`: the account itself.
    pub destination: Option<String>,
    pub learnt: Json,
    /// When, in microseconds since 1970, on the limiter's clock.
    pub at_us: u64,
}
