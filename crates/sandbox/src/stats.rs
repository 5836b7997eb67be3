//! Exact counts, as `GET /sandbox/stats` shows them.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a sandbox has seen since it started or was last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests read in full, whatever became of them. A batch counts as if each of its messages had come by itself.
    pub requests: u64,
    /// Requests taken for delivery, those with no answer included.
    pub accepted: u64,
    /// Recipients of accepted requests.
    pub accepted_recipients: u64,
    /// Requests whose `Idempotency-Key` had been accepted before (`http` and `resend`); not counted as accepted again.
    pub duplicates: u64,
    /// Requests answered with something else than acceptance.
    pub refused: u64,
    /// Requests left without an answer.
    pub hung: u64,
    /// Connections closed in place of an answer.
    pub dropped: u64,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Accepted requests by the domain of the first recipient; domains beyond the first thousand count as `other`.
    pub accepted_by_domain: BTreeMap<String, u64>,
    /// Lines of arrivals that could not be written.
    pub arrivals_lost: u64,
}

const MAX_DOMAINS: usize = 1000;

impl Stats {
    pub(crate) fn count_accepted(&mut self, recipients: u64, domain: &str) {
        self.accepted += 1;
        self.accepted_recipients += recipients;
        match self.accepted_by_domain.get_mut(domain) {
            Some(n) => *n += 1,
            None => {
                let domain = if self.accepted_by_domain.len() < MAX_DOMAINS { domain } else { "other" };
                *self.accepted_by_domain.entry(domain.to_owned()).or_default() += 1;
            }
        }
    }
}
