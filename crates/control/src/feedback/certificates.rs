//! The certificates of Amazon SNS: fetched once a day, however many requests name however many of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_core::Timestamp;
use tracing::warn;

use super::{Refusal, sns::PublicKey};

/// Longest certificate or answer read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Certificates kept; Amazon uses a few at a time.
const MAX_KEPT: usize = 32;
/// How long a certificate is used before it is fetched again.
const KEPT_FOR: Duration = Duration::from_secs(86_400);
/// Fetches in a minute at most: a stranger could name any number of addresses.
const MAX_FETCHES: usize = 20;
const MINUTE: Duration = Duration::from_secs(60);

/// Reads a document over HTTPS.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// The body of a 200 answer to a GET, of at most `max_bytes`. Bounded in time; follows no redirect.
    ///
    /// # Errors
    /// Why there is none.
    async fn get(&self, url: &str, max_bytes: usize) -> Result<Bytes, Unfetched>;
}

/// Why there is no document, in words for a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfetched {
    /// The server has answered that there is none: asking again brings nothing else.
    Missing(String),
    Away(String),
}

/// What has been fetched.
pub(super) struct Certificates {
    fetch: Option<Arc<dyn Fetch>>,
    kept: Mutex<HashMap<String, (PublicKey, Timestamp)>>,
    /// When the last ones were fetched. Held while one is, so that one address is asked once.
    fetched: tokio::sync::Mutex<Vec<Timestamp>>,
}

impl Certificates {
    pub(super) fn new(fetch: Option<Arc<dyn Fetch>>) -> Certificates {
        Certificates { fetch, kept: Mutex::default(), fetched: tokio::sync::Mutex::default() }
    }

    /// The key of the certificate at `url`, whose host has been checked.
    pub(super) async fn key(&self, url: &str, now: Timestamp) -> Result<PublicKey, Refusal> {
        if let Some(key) = self.kept(url, now) {
            return Ok(key);
        }
        let mut fetched = self.fetched.lock().await;
        if let Some(key) = self.kept(url, now) {
            return Ok(key);
        }
        fetched.retain(|at| now.since(*at) < MINUTE);
        if fetched.len() >= MAX_FETCHES {
            return Err(Refusal::Amazon);
        }
        fetched.push(now);
        let pem = self.get(url).await.map_err(|why| match why {
            Unfetched::Missing(_) => Refusal::Certificate,
            Unfetched::Away(_) => Refusal::Amazon,
        });
        let key = PublicKey::of_certificate(&pem?)?;
        if !key.is_valid(now) {
            return Err(Refusal::Certificate);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(url.to_owned(), (key.clone(), now));
        Ok(key)
    }

    /// Asks an address of SNS that does something when it is asked.
    pub(super) async fn visit(&self, url: &str) -> Result<(), Refusal> {
        self.get(url).await.map(|_| ()).map_err(|_| Refusal::Amazon)
    }

    fn kept(&self, url: &str, now: Timestamp) -> Option<PublicKey> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, since) = kept.get(url)?;
        (now.since(*since) < KEPT_FOR && key.is_valid(now)).then(|| key.clone())
    }

    async fn get(&self, url: &str) -> Result<Bytes, Unfetched> {
        let Some(fetch) = &self.fetch else { return Err(Unfetched::Away("nothing is fetched here".to_owned())) };
        fetch.get(url, MAX_ANSWER_BYTES).await.inspect_err(|why| match why {
            Unfetched::Missing(why) => warn!(%why, "Amazon SNS has nothing at an address of its own that was shown"),
            Unfetched::Away(why) => warn!(%why, "Amazon SNS could not be asked"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Away(AtomicUsize);

    #[async_trait]
    impl Fetch for Away {
        async fn get(&self, _: &str, _: usize) -> Result<Bytes, Unfetched> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(Unfetched::Away("away".into()))
        }
    }

    #[tokio::test]
    async fn strangers_cannot_have_amazon_asked_without_end() {
        let away = Arc::new(Away::default());
        let certificates = Certificates::new(Some(away.clone()));
        let now = Timestamp::from_secs(1_800_000_000);
        for i in 0..100 {
            let url = format!("https://sns.us-east-1.amazonaws.com/{i}.pem");
            assert_eq!(certificates.key(&url, now).await, Err(Refusal::Amazon));
        }
        assert_eq!(away.0.load(Ordering::Relaxed), MAX_FETCHES);
        assert_eq!(certificates.key("https://sns.us-east-1.amazonaws.com/a.pem", now + MINUTE).await, Err(Refusal::Amazon));
        assert_eq!(away.0.load(Ordering::Relaxed), MAX_FETCHES + 1);
    }
}
