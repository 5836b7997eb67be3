//! One POST over a pooled HTTP/1.1 connection, and whether the request was written.
//!
//! How "written" is known: the body handed to the HTTP client notes the moment it is first read from, which is right
//! before its bytes go to the socket. A call that ends before that moment (no address, refused, TLS, time-out while
//! connecting, a pooled connection found closed) cannot have been acted upon: the server never saw a complete request.
//! The client itself repeats a call only in that case, on a pooled connection that had been closed. From that moment
//! on, a call without the head of an answer is of unknown fate.

use std::{
    error::Error as _,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use paceline_core::{Outcome, ProviderAnswer};
use reqwest::{
    Client, Method, Request, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};

use crate::{BuildError, HttpSettings, Secret, answer::Answer, batch::Called};

/// Longest answer body read; what is longer is cut, and its connection closed.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Likewise of answers to batches: 500 messages with every recipient named.
const MAX_LONG_ANSWER_BYTES: usize = 4 << 20;

/// What came of a POST.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// The head of an answer was read.
    Answered(Answer),
    /// The request was certainly not carried out.
    NotSent { code: &'static str, problem: String },
    /// The request was written, and no answer came.
    Unknown { code: &'static str, problem: String },
}

impl Exchange {
    /// The outcome, with `read` for what an answer means.
    pub(crate) fn outcome(self, read: impl FnOnce(&Answer) -> Outcome) -> Outcome {
        self.read(read).unwrap_or_else(|unanswered| unanswered)
    }

    /// The outcomes of `messages` that were posted together, with `read` for what an answer means.
    pub(crate) fn outcomes(self, messages: usize, read: impl FnOnce(&Answer) -> Called) -> Called {
        self.read(read).unwrap_or_else(|unanswered| Called::all(&unanswered, messages))
    }

    /// What `read` makes of the answer; `Err` with what no answer means.
    fn read<T>(self, read: impl FnOnce(&Answer) -> T) -> Result<T, Outcome> {
        Err(match self {
            Exchange::Answered(answer) => return Ok(read(&answer)),
            Exchange::NotSent { code, problem } => {
                Outcome::Temporary { retry_after: None, answer: ProviderAnswer::new(code, None, &problem) }
            }
            Exchange::Unknown { code, problem } => Outcome::Uncertain { answer: ProviderAnswer::new(code, None, &problem) },
        })
    }
}

/// A header that carries a credential.
pub(crate) type Credential = (HeaderName, HeaderValue);

/// `Authorization: Bearer …`; `field` names the setting in errors.
pub(crate) fn bearer(field: &'static str, token: &Secret) -> Result<Credential, BuildError> {
    credential(AUTHORIZATION, field, token, |token| format!("Bearer {token}"))
}

/// A header made of a secret, which must be in printable ASCII without spaces.
pub(crate) fn credential(
    name: HeaderName,
    field: &'static str,
    secret: &Secret,
    value: impl FnOnce(&str) -> String,
) -> Result<Credential, BuildError> {
    let secret = secret.expose();
    let usable = !secret.is_empty() && secret.bytes().all(|b| (33..=126).contains(&b));
    let value = usable.then(|| HeaderValue::try_from(value(secret)).ok()).flatten();
    let mut value = value.ok_or(BuildError::Header { field })?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// A client for one account's one endpoint; URL and headers are made once.
pub(crate) struct Endpoint {
    client: Client,
    url: Url,
    headers: HeaderMap,
    max_answer_bytes: usize,
    total_timeout: Duration,
}

impl Endpoint {
    pub(crate) fn new(
        url: Url,
        credential: Option<Credential>,
        settings: &HttpSettings,
        user_agent: &str,
    ) -> Result<Endpoint, BuildError> {
        check_base_url(&url)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = HeaderValue::from_str(user_agent).map_err(|_| BuildError::Header { field: "user_agent" })?;
        headers.insert(USER_AGENT, agent);
        headers.extend(credential);
        let total_timeout = settings.total_timeout;
        Ok(Endpoint { client: client(&url, settings)?, url, headers, max_answer_bytes: MAX_ANSWER_BYTES, total_timeout })
    }

    /// The same account at another path, over the same connections.
    pub(crate) fn at(&self, path: &str) -> Endpoint {
        let mut url = self.url.clone();
        url.set_path(path);
        let (client, headers) = (self.client.clone(), self.headers.clone());
        Endpoint { client, url, headers, max_answer_bytes: self.max_answer_bytes, total_timeout: self.total_timeout }
    }

    /// For answers that speak of many messages.
    pub(crate) fn with_long_answers(self) -> Endpoint {
        Endpoint { max_answer_bytes: MAX_LONG_ANSWER_BYTES, ..self }
    }

    /// How long a call may take in all.
    pub(crate) fn total_timeout(&self) -> Duration {
        self.total_timeout
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Posts `body` once, as JSON unless `extra` says otherwise.
    pub(crate) async fn post(&self, body: Vec<u8>, extra: HeaderMap) -> Exchange {
        self.post_within(body, extra, self.total_timeout).await
    }

    /// Likewise, with another total time-out.
    pub(crate) async fn post_within(&self, body: Vec<u8>, extra: HeaderMap, within: Duration) -> Exchange {
        let written = Arc::new(AtomicBool::new(false));
        let mut request = Request::new(Method::POST, self.url.clone());
        *request.timeout_mut() = Some(within);
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().extend(extra);
        let body = Tracked { data: Some(Bytes::from(body)), written: Arc::clone(&written) };
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let mut response = match self.client.execute(request).await {
            Ok(response) => response,
            Err(error) => return failed(&error, written.load(Ordering::Acquire)),
        };
        // From here on the status is known: a body that is cut, slow or endless changes nothing about that.
        let mut body = BytesMut::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = self.max_answer_bytes - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                break;
            }
        }
        let status = response.status().as_u16();
        Exchange::Answered(Answer { status, headers: std::mem::take(response.headers_mut()), body: body.freeze() })
    }
}

/// Checks a provider's URL: http or https, a host, no credentials, query or fragment.
///
/// # Errors
/// [`BuildError::Url`] with what is wrong; credentials in it are not repeated.
pub fn check_base_url(url: &Url) -> Result<(), BuildError> {
    let problem = if !matches!(url.scheme(), "http" | "https") {
        "the scheme must be http or https"
    } else if !url.has_host() {
        "a host is missing"
    } else if !url.username().is_empty() || url.password().is_some() {
        "credentials do not belong in the URL"
    } else if url.fragment().is_some() || url.query().is_some_and(str::is_empty) {
        "a fragment or an empty query has no meaning here"
    } else {
        return Ok(());
    };
    let mut shown = url.clone();
    // Neither fails where there is a host; where there is none, there are no credentials either.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.set_query(None);
    Err(BuildError::Url { url: shown.to_string(), problem })
}

/// Whether mail and key would cross a network unencrypted: `http://` to anything but this machine itself.
pub fn is_plaintext_to_elsewhere(url: &Url) -> bool {
    url.scheme() == "http" && !is_this_machine(url.host_str().unwrap_or_default())
}

/// Whether a host name or address can be nothing but this machine.
pub(crate) fn is_this_machine(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The `base_url` of the configuration, else the provider's public address.
pub(crate) fn base_url(configured: Option<Url>, public: &str) -> Result<Url, BuildError> {
    match configured {
        Some(url) => Ok(url),
        None => Url::parse(public).map_err(|_| BuildError::Url { url: public.to_owned(), problem: "is no URL" }),
    }
}

/// `base` with `path` appended to whatever path it has.
pub(crate) fn append(mut base: Url, path: &str) -> Result<Url, BuildError> {
    check_base_url(&base)?;
    if base.query().is_some() {
        return Err(BuildError::Url { url: base.to_string(), problem: "a query has no meaning in a base_url" });
    }
    let joined = format!("{}{path}", base.path().trim_end_matches('/'));
    base.set_path(&joined);
    Ok(base)
}

pub(crate) fn client(url: &Url, settings: &HttpSettings) -> Result<Client, BuildError> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Lost races are fine: then another one is installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let mut builder = Client::builder()
        .http1_only()
        .no_proxy()
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.read_timeout)
        .timeout(settings.total_timeout)
        .pool_idle_timeout(settings.max_idle)
        .pool_max_idle_per_host(settings.pool_size);
    if url.scheme() == "http" {
        // Nothing to verify, so nothing is read: plain HTTP works where no certificate authorities are installed.
        builder = builder.tls_certs_only([]);
    } else if let Some(path) = &settings.ca_file {
        let problem = |problem: String| BuildError::CaFile { path: path.clone(), problem };
        let pem = std::fs::read(path).map_err(|e| problem(e.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| problem(chain(&e)))?;
        if certificates.is_empty() {
            return Err(problem("it holds no certificate".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| BuildError::Tls(chain(&e)))
}

fn failed(error: &reqwest::Error, written: bool) -> Exchange {
    let problem = chain(error);
    if error.is_connect() || !written {
        let code = match error {
            e if e.is_dns() => "dns_failed",
            e if e.is_timeout() => "connect_timeout",
            _ => "connection_failed",
        };
        return Exchange::NotSent { code, problem };
    }
    let code = if error.is_timeout() { "timeout" } else { "connection_lost" };
    Exchange::Unknown { code, problem }
}

/// The causes of an error, outermost left out where it only says "error sending request", without the URL.
pub(crate) fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
        cause = error.source();
    }
    if text.is_empty() && error.is_timeout() {
        text.push_str("timed out");
    }
    text
}

/// A body in one piece that notes when it is taken.
struct Tracked {
    data: Option<Bytes>,
    written: Arc<AtomicBool>,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.written.store(true, Ordering::Release);
        Poll::Ready(self.data.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, Bytes::len) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_path_is_appended_to_any_prefix() {
        for (base, want) in [
            ("https://api.sendgrid.com", "https://api.sendgrid.com/v3/mail/send"),
            ("http://127.0.0.1:8026/", "http://127.0.0.1:8026/v3/mail/send"),
            ("https://gw.example/out/sendgrid//", "https://gw.example/out/sendgrid/v3/mail/send"),
        ] {
            assert_eq!(append(url(base), "/v3/mail/send").unwrap().as_str(), want);
        }
        for bad in
            ["ftp://x.org", "https://user:pw@x.org", "https://x.org?", "https://x.org?key=1", "https://x.org#a", "mailto:a@b.c"]
        {
            let error = append(url(bad), "/v3").unwrap_err().to_string();
            assert!(!error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn plaintext_is_fine_only_at_home() {
        for (text, elsewhere) in [
            ("http://127.0.0.1:1", false),
            ("http://127.8.8.8", false),
            ("http://[::1]:80/x", false),
            ("http://localhost", false),
            ("http://api.localhost", false),
            ("https://mail.example", false),
            ("http://mail.example", true),
            ("http://10.0.0.1", true),
            ("http://localhost.example", true),
        ] {
            assert_eq!(is_plaintext_to_elsewhere(&url(text)), elsewhere, "{text}");
        }
    }

    #[test]
    fn tokens_that_would_break_the_header_are_refused() {
        for bad in ["", "a b", "a\r\nX: y", "clé"] {
            let secret = Secret::new(bad);
            assert!(matches!(bearer("api_key", &secret), Err(BuildError::Header { field: "api_key" })), "{bad:?}");
        }
    }
}
