//! What providers say later: deliveries, deferrals, bounces, complaints.
//!
//! `POST /v1/feedback/{account}` takes each provider's own webhooks. A request is told from forged ones by that provider's
//! scheme, its events are brought to one form, published to `<prefix>.feedback` with confirm, and only then is it answered
//! 200; whatever goes wrong on the way is for the provider to repeat. A worker takes the queue's events, from providers
//! and from others who publish there, and hands them to the [`FeedbackSink`]s.
//!
//! - Verification and reading are functions of `(headers, body, key, now)`, one file a provider.
//! - Bodies, batches, what is remembered and what is fetched are all bounded; strangers can have nothing parsed that is
//!   larger than [`MAX_BODY_BYTES`].
//! - Duplicates within the last 200,000 events of a process go no further; effects bear them all the same.
//! - No address and no secret is in a log or a metric.

mod certificates;
mod consume;
mod intake;
mod mailgun;
mod metrics;
mod postmark;
mod read;
mod refusal;
mod resend;
mod scheme;
mod seen;
mod sendgrid;
mod ses;
mod sns;
mod sparkpost;
mod suppress;

use std::{collections::BTreeMap, sync::Arc};

use axum::Router;
use paceline_broker::Broker;
use paceline_classifier::Classifier;
use prometheus_client::registry::Registry;

pub use certificates::{Fetch, Unfetched};
use consume::Worker;
pub use consume::{FeedbackSink, Received};
use intake::Intake;
use metrics::Metrics;
use read::Batch;
pub use refusal::Refusal;
pub use scheme::{BadKey, Scheme};
pub use suppress::SuppressionSink;

/// Longest body taken.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Most events in one body.
pub const MAX_EVENTS: usize = 10_000;

/// What feedback stands on.
pub struct Feedback {
    /// The accounts that take events, by name.
    pub accounts: BTreeMap<String, Scheme>,
    /// Needed where a scheme [`Scheme::needs_certificates`].
    pub fetch: Option<Arc<dyn Fetch>>,
    /// Tells the destination of a recipient.
    pub classifier: Arc<Classifier>,
    /// What events have an effect on, in this order.
    pub sinks: Vec<Arc<dyn FeedbackSink>>,
}

impl Feedback {
    /// The route, and what works off `queue`.
    pub(crate) fn parts(self, broker: Arc<dyn Broker>, queue: String, registry: &mut Registry) -> (Router, Worker) {
        let Feedback { accounts, fetch, classifier, sinks } = self;
        let metrics = Metrics::register(registry, &accounts);
        let intake = Intake::new(accounts, broker.clone(), fetch, metrics.clone());
        (intake::router(Arc::new(intake)), Worker { broker, queue, classifier, sinks, metrics })
    }
}
