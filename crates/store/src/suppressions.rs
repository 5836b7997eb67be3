//! Recipients that must not be mailed.

use async_trait::async_trait;
use paceline_core::{
    Domain, EmailAddress, Timestamp,
    suppression::{Change, Kind},
};
use serde::Serialize;

use crate::Error;

/// The suppression list. Addresses are told apart by their listed form, `paceline_core::suppression::listed_form`.
#[async_trait]
pub trait Suppressions: Send + Sync {
    /// Lists all of these or, on an error, none; the answers are in their order. See [`Merged`] for what is listed
    /// already. With a `trail` it is an operator's order that the audit trail tells of, once for all the calls that a
    /// trail goes through.
    async fn suppress(&self, new: &[NewSuppression], trail: Option<&mut Trail>) -> Result<Vec<Merged>, Error>;

    /// Takes addresses off the list; which of them were on it and in force. Written to the audit trail.
    async fn unsuppress(&self, addresses: &[EmailAddress], by: &str, note: Option<&str>) -> Result<Vec<bool>, Error>;

    /// The entry of one address, in force or ended; not a removed one.
    async fn suppression(&self, address: &EmailAddress) -> Result<Option<Suppression>, Error>;

    /// Entries that match, after a place in that order: at most `max`. Empty at the end. Only in [`Order::Earliest`] no
    /// entry is left out where the list changes between two pages; one that changes may then come twice.
    async fn suppressions(
        &self,
        filter: &SuppressionFilter,
        order: Order,
        after: Option<i64>,
        max: u32,
    ) -> Result<Vec<Suppression>, Error>;

    /// Another number after every change (an entry that merely ends is none): cheap enough to ask every second.
    async fn suppressions_version(&self) -> Result<i64, Error>;

    /// What changed after a version, in order, at most `max` changes; from 0 on that is the whole list.
    async fn suppression_changes(&self, after: i64, max: u32) -> Result<Changes, Error>;

    /// How many dead letters `rejected_recipient` each of these has had since then; in their order.
    async fn refusals(&self, addresses: &[EmailAddress], since: Timestamp) -> Result<Vec<u64>, Error>;
}

/// An address to be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSuppression {
    pub address: EmailAddress,
    pub kind: Kind,
    /// A word, such as `bounce`, `complaint`, `manual`, `mailbox_full`; see [`is_reason`].
    pub reason: String,
    /// Where it comes from, such as an account or a file.
    pub source: Option<String>,
    pub note: Option<String>,
    pub by: String,
    /// Not in force from this time on; `None`: for ever.
    pub until: Option<Timestamp>,
    /// `None`: now. For entries that are taken over from elsewhere.
    pub created_at: Option<Timestamp>,
}

/// Whether a word can be a reason: 1 to 64 of `a-z 0-9 _ -`.
pub fn is_reason(word: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    (1..=64).contains(&word.len()) && word.bytes().all(plain)
}

/// What became of an address to be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Merged {
    /// It was not listed, or its entry had ended.
    Added,
    /// Its entry was soft and is hard now, for the new reason and until the later of the two ends.
    Hardened,
    /// Its entry is of the same kind and ends later now, or never.
    Extended,
    /// Listed already, as firmly and as long.
    Known,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suppression {
    pub address: String,
    pub kind: Kind,
    pub reason: String,
    pub source: Option<String>,
    pub note: Option<String>,
    pub by: String,
    pub created_at: Timestamp,
    pub until: Option<Timestamp>,
    /// The entry's place in lists.
    #[serde(skip)]
    pub version: i64,
}

/// Which entries; all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SuppressionFilter {
    pub kind: Option<Kind>,
    pub reason: Option<String>,
    pub source: Option<String>,
    pub domain: Option<Domain>,
    pub address: Option<EmailAddress>,
    /// Listed at this time or later.
    pub since: Option<Timestamp>,
    /// Listed before this time.
    pub until: Option<Timestamp>,
    /// Also those that have ended.
    pub ended: bool,
}

/// The order of pages, by an entry's last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Latest,
    Earliest,
}

/// Changes of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// What is known with these.
    pub version: i64,
    /// There are further ones already.
    pub more: bool,
    /// Removals up to this version may be forgotten: whoever knows an older one begins anew, from 0.
    pub forgotten: i64,
}

/// An order's entry in the audit trail, for all the calls the order takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    /// What is written: [`Trail::ADDED`] or [`Trail::IMPORTED`].
    pub action: &'static str,
    pub by: String,
    pub note: Option<String>,
    /// What the entry says besides, such as the name of a file.
    pub source: Option<String>,
    pub(crate) id: Option<i64>,
    /// By [`Merged`].
    pub(crate) counts: [u64; 4],
}

impl Trail {
    /// The action of an order that names its addresses.
    pub const ADDED: &'static str = "suppression.added";
    /// The action of one that brings a file of them.
    pub const IMPORTED: &'static str = "suppression.imported";

    pub fn new(action: &'static str, by: String, note: Option<String>, source: Option<String>) -> Trail {
        Trail { action, by, note, source, id: None, counts: [0; 4] }
    }
}
