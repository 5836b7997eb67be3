//! A GET over HTTPS, for the little that is read beside sending: the certificates that a provider signs its events with.

use bytes::{Bytes, BytesMut};
use reqwest::{Client, Url};

use crate::{BuildError, HttpSettings, client};

/// Reads documents over HTTPS, bounded in size and time.
pub struct Fetcher {
    client: Client,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the address is not one of https")]
    NotHttps,
    #[error("no answer: {0}")]
    Failed(String),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

impl Fetcher {
    /// # Errors
    /// [`BuildError`] where TLS cannot be set up, or the settings' `ca_file` cannot be used.
    pub fn new(settings: &HttpSettings) -> Result<Fetcher, BuildError> {
        // Any address of this scheme has it set up the same.
        let https = Url::parse("https://localhost").map_err(|e| BuildError::Tls(e.to_string()))?;
        Ok(Fetcher { client: client::client(&https, settings)? })
    }

    /// The body of a 200 answer, of at most `max_bytes`. Follows no redirect; bounded by the settings' time-outs.
    ///
    /// # Errors
    /// [`FetchError`] says why there is none.
    pub async fn get(&self, url: &str, max_bytes: usize) -> Result<Bytes, FetchError> {
        let url = Url::parse(url).ok().filter(|url| url.scheme() == "https").ok_or(FetchError::NotHttps)?;
        let failed = |error: reqwest::Error| FetchError::Failed(client::chain(&error));
        let mut response = self.client.get(url).send().await.map_err(failed)?;
        if response.status() != 200 {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > max_bytes {
                return Err(FetchError::TooLong(max_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}
