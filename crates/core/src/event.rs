//! Events: what happened to a message, for producers. At most once, and without any address.

use serde::Serialize;

use crate::{Class, LastError, Reason, Timestamp};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Sent,
    Retrying,
    Throttled,
    Dead,
    Suppressed,
    Spilled,
    Cancelled,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Sent => "sent",
            Kind::Retrying => "retrying",
            Kind::Throttled => "throttled",
            Kind::Dead => "dead",
            Kind::Suppressed => "suppressed",
            Kind::Spilled => "spilled",
            Kind::Cancelled => "cancelled",
        }
    }
}

/// The body of an event, JSON; published with key `<event>.<class>.<destination>`.
#[derive(Debug, Clone, Serialize)]
pub struct Event<'a> {
    pub event: Kind,
    pub id: &'a str,
    pub class: Class,
    pub destination: &'a str,
    pub domain: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub tags: &'a [String],
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub metadata: &'a std::collections::BTreeMap<String, String>,
    pub at: Timestamp,
    pub attempts: u32,
    pub recipients: usize,
    /// The date of the grant that this attempt was sent under: microseconds of the limiter's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_at_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When it will be tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a LastError>,
}
