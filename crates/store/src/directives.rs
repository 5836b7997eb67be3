//! Standing orders about what may go how fast: pauses, and limits in place of the configured ones.

use async_trait::async_trait;
use paceline_core::{LimitName, LimitOrder, Pause, PauseScope, Rate, Timestamp};
use serde::Serialize;

use crate::{Error, Which};

/// Operators' pauses and limits. About one thing at most one order stands: who orders anew replaces it, its end
/// included.
#[async_trait]
pub trait Directives: Send + Sync {
    /// Holds mail back: until then, or until somebody resumes.
    async fn pause(
        &self,
        scope: &PauseScope,
        until: Option<Timestamp>,
        by: &str,
        note: Option<&str>,
    ) -> Result<Standing<Pause>, Error>;

    /// Ends a pause; `None` where there is none in force.
    async fn resume(&self, scope: &PauseScope, by: &str, note: Option<&str>) -> Result<Option<Standing<Pause>>, Error>;

    /// The latest first: those in force, or also those that ended, until a purge.
    async fn pauses(&self, which: Which) -> Result<Vec<Standing<Pause>>, Error>;

    /// Sets a rate: until then, or until somebody takes it back.
    async fn set_limit(
        &self,
        name: &LimitName,
        rate: Rate,
        until: Option<Timestamp>,
        by: &str,
        note: Option<&str>,
    ) -> Result<Standing<LimitOrder>, Error>;

    /// Takes a rate back; `None` where there is none in force.
    async fn reset_limit(&self, name: &LimitName, by: &str, note: Option<&str>) -> Result<Option<Standing<LimitOrder>>, Error>;

    /// As [`Directives::pauses`].
    async fn limit_orders(&self, which: Which) -> Result<Vec<Standing<LimitOrder>>, Error>;

    /// Another number after every change (an order that merely ends is none): cheap enough to ask every second.
    async fn directives_version(&self) -> Result<i64, Error>;
}

/// An order and its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing<T> {
    /// Such as `p-20261122-2g9k0m7f4` for a pause, `l-…` for a limit.
    pub id: String,
    #[serde(flatten)]
    pub order: T,
    pub by: String,
    pub note: Option<String>,
    pub removed_at: Option<Timestamp>,
    pub removed_by: Option<String>,
}
