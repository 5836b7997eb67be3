//! A message in this worker's hands.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_broker::{Properties, Settle};
use paceline_core::{CancelSet, Domain, InvalidMessage, Journey, Lane, Message, Reason, Timestamp};
use paceline_limiter::{BucketSpec, Cost};

use crate::{
    flows::{Counted, Flow},
    limits,
};

/// A body up to this many bytes is kept parsed while it waits; a larger one is parsed again when its turn comes.
pub(crate) const KEEP_PARSED: usize = 64 << 10;

/// Which consumer of which lane a delivery came from. When that consumer is lost, so are the deliveries not in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) lane: usize,
    pub(crate) epoch: u64,
    /// Order of delivery.
    pub(crate) seq: u64,
}

/// When a message is given up on that still waits then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// What its age is counted from.
    pub(crate) born: Timestamp,
    expires_at: Option<Timestamp>,
    pub(crate) at: Timestamp,
}

impl End {
    /// Mail for later is new when its time has come.
    pub(crate) fn of(message: &Message, journey: &Journey, max_age: Duration) -> End {
        let born = message.not_before.map_or(journey.enqueued_at, |at| at.max(journey.enqueued_at));
        End { born, expires_at: message.expires_at, at: born }.under(max_age)
    }

    /// The same where mail may become so old, and no older.
    pub(crate) fn under(self, max_age: Duration) -> End {
        let old = self.born + max_age;
        End { at: self.expires_at.map_or(old, |at| at.min(old)), ..self }
    }
}

/// A valid message that waits for its grant or is being sent.
pub(crate) struct Item {
    pub(crate) origin: Origin,
    pub(crate) arrived: tokio::time::Instant,
    pub(crate) settle: Settle,
    pub(crate) body: Bytes,
    pub(crate) properties: Properties,
    pub(crate) parsed: Option<Box<Message>>,
    pub(crate) id: Arc<str>,
    pub(crate) lane: Lane,
    /// The domain of the first `to`.
    pub(crate) domain: Domain,
    pub(crate) journey: Journey,
    /// Of the body as the producer published it.
    pub(crate) digest: u64,
    pub(crate) end: End,
    /// Accounts that may send it, the preferred one first.
    pub(crate) choices: Arc<[usize]>,
    pub(crate) account: usize,
    /// The account that has just refused itself to it.
    pub(crate) refused_by: Option<usize>,
    /// Calls, among the journey's attempts, whose claims were withdrawn: their accounts were refused.
    pub(crate) unclaimed: u32,
    /// To that account, by whoever sent it.
    pub(crate) pinned: bool,
    /// The label of its tenant's flows, where it has a tenant.
    pub(crate) tenant: Option<Arc<str>>,
    /// The flow it came from.
    pub(crate) flow: Option<Arc<Flow>>,
    /// One of those that its tenant holds of the lane.
    pub(crate) counted: Option<Counted>,
    pub(crate) buckets: Arc<[BucketSpec]>,
    /// The version of the limits that `buckets` come from.
    pub(crate) limits: u64,
    pub(crate) cost: Cost,
    pub(crate) recipients: usize,
}

impl Item {
    /// Whose turn it is with it at what is shared, and the label that says what that is worth.
    pub(crate) fn turn(&self) -> (&Arc<str>, Option<&Arc<str>>) {
        match self.flow.as_ref().or(self.counted.as_ref().map(|counted| &counted.flow)) {
            Some(flow) => (&flow.turn, Some(&flow.label)),
            None => (&self.lane.destination, None),
        }
    }

    /// Where all mail where it comes from is its tenant's, what binds its tenant binds all of it.
    pub(crate) fn suit_its_flow(&mut self) {
        if self.flow.as_ref().is_some_and(|flow| self.tenant.as_ref() == Some(&flow.label)) {
            self.buckets = limits::of_its_tenants_flow(&self.buckets);
        }
    }

    /// The routing key by which it comes back to where it is.
    pub(crate) fn key(&self) -> String {
        match &self.flow {
            Some(flow) if flow.lane == self.lane => flow.key(),
            _ => self.lane.to_string(),
        }
    }

    /// The message, parsed now if it was not kept.
    pub(crate) fn message(&mut self, max_bytes: usize) -> Result<Box<Message>, InvalidMessage> {
        match self.parsed.take() {
            Some(message) => Ok(message),
            None => Message::parse(&self.body, self.properties.message_id.as_deref(), max_bytes).map(Box::new),
        }
    }

    /// Keeps the message parsed, where it is not too large for that.
    pub(crate) fn keep(&mut self, message: Box<Message>) {
        self.parsed = (self.body.len() <= KEEP_PARSED).then_some(message);
    }

    /// The message's id; of a replay with its batch: a provider that honours the key would take it for the original, or
    /// for what went to other recipients of it.
    pub(crate) fn idempotency_key(&self) -> Cow<'_, str> {
        match &self.journey.replay {
            None => Cow::Borrowed(&self.id),
            Some(replay) => Cow::Owned(format!("{}.{replay}", self.id)),
        }
    }

    /// Whether an operator has ordered not to send it.
    pub(crate) fn cancelled(&self, orders: &CancelSet, max_bytes: usize, now: Timestamp) -> bool {
        if orders.is_empty() {
            return false;
        }
        match &self.parsed {
            Some(message) => orders.covers(message, &self.journey, now),
            None => Message::parse(&self.body, self.properties.message_id.as_deref(), max_bytes)
                .is_ok_and(|message| orders.covers(&message, &self.journey, now)),
        }
    }

    /// Why it is given up on, where its time is over.
    pub(crate) fn over(&self, now: Timestamp) -> Option<Reason> {
        // Whatever has become of it, a replay of expired mail sends nothing.
        let reason = || if self.end.expires_at == Some(self.end.at) { Reason::Expired } else { self.journey.too_old() };
        (self.end.at <= now).then(reason)
    }
}

impl std::fmt::Debug for Item {
    /// The id only: nothing of a message belongs in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Item").field("id", &self.id).field("origin", &self.origin).finish_non_exhaustive()
    }
}
