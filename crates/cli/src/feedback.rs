//! What stands around the events of providers: whose are taken, and what they have an effect on.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_control::feedback::{Feedback, FeedbackSink, Fetch, SuppressionSink, Unfetched};
use paceline_provider::{FetchError, Fetcher, HttpSettings};
use paceline_store::Store;

use crate::{config::Config, exit::Failure};

/// By the configuration; connects to nothing.
pub fn feedback(config: &Config, store: &Arc<dyn Store>) -> Result<Feedback, Failure> {
    let accounts = config.accounts.iter().filter_map(|account| Some((account.name.clone(), account.feedback.clone()?)));
    let accounts: BTreeMap<_, _> = accounts.collect();
    let mut fetch: Option<Arc<dyn Fetch>> = None;
    if accounts.values().any(|scheme| scheme.needs_certificates()) {
        let fetcher = Fetcher::new(&HttpSettings::default())
            .map_err(|e| Failure::usage(format!("the certificates of Amazon SNS could not be fetched: {e}")))?;
        fetch = Some(Arc::new(Https(fetcher)));
    }
    let mut sinks: Vec<Arc<dyn FeedbackSink>> = vec![];
    if config.suppression.auto {
        sinks.push(Arc::new(SuppressionSink::new(store.clone())));
    }
    Ok(Feedback { accounts, fetch, classifier: config.classifier.clone(), sinks })
}

struct Https(Fetcher);

#[async_trait]
impl Fetch for Https {
    async fn get(&self, url: &str, max_bytes: usize) -> Result<Bytes, Unfetched> {
        self.0.get(url, max_bytes).await.map_err(|e| match e {
            FetchError::Status(400..=407 | 409..=428 | 430..=499) => Unfetched::Missing(e.to_string()),
            _ => Unfetched::Away(e.to_string()),
        })
    }
}
