//! Standing orders that every worker must learn soon: mail that must not be sent.

use async_trait::async_trait;
use paceline_core::{
    Timestamp,
    cancel::{Cancel, Selector},
};
use serde::Serialize;

use crate::Error;

/// Operators' cancel orders.
#[async_trait]
pub trait Cancels: Send + Sync {
    /// Gives the order. An order in force for the same selector is given anew instead: it counts from now, and ends at
    /// the later of the two times.
    async fn add_cancel(&self, selector: &Selector, until: Timestamp, by: &str, note: Option<&str>)
    -> Result<CancelOrder, Error>;

    /// Takes the order back; `None` where there is none with this id. One that is not in force stays as it is.
    async fn remove_cancel(&self, id: &str, by: &str, note: Option<&str>) -> Result<Option<CancelOrder>, Error>;

    /// The latest first: those in force, or also those that ended, until a purge.
    async fn cancels(&self, which: Which) -> Result<Vec<CancelOrder>, Error>;

    /// Another number after every change (an order that merely ends is none): cheap enough to ask every second.
    async fn cancels_version(&self) -> Result<i64, Error>;
}

/// Which orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    InForce,
    All,
}

/// An order and its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CancelOrder {
    /// Such as `c-20261122-2g9k0m7f4`.
    pub id: String,
    #[serde(flatten)]
    pub cancel: Cancel,
    pub by: String,
    pub note: Option<String>,
    pub removed_at: Option<Timestamp>,
    pub removed_by: Option<String>,
}
