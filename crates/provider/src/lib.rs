//! One attempt at one provider API, read for what its answer means.
//!
//! - [`Provider::send`] never fails: whatever happens on the way is an [`Outcome`].
//! - One file a provider. Over HTTP each is two pure functions, `request(&Message)` and `outcome(&Answer, &Message,
//!   now)`, around one shared client that knows whether a request was written.
//! - **What was not written is `Temporary`, what was written and not answered is `Uncertain`.** Nothing here ever sends
//!   a written request a second time.
//! - What a provider cannot carry is refused with the field named, never dropped.
//! - Keys are [`Secret`]s: they are in no log, no error and no `Debug`.

mod address;
mod answer;
mod batch;
mod capture;
mod client;
mod fetch;
mod http;
mod json;
mod mailgun;
mod mime;
mod postmark;
mod reply;
mod resend;
mod secret;
mod sendgrid;
mod ses;
mod smtp;
mod smtp_reply;
mod sparkpost;
mod tags;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use paceline_core::{Message, Outcome};
pub use reqwest::Url;

pub use crate::{
    client::{check_base_url, is_plaintext_to_elsewhere},
    fetch::{FetchError, Fetcher},
    mailgun::MailgunSettings,
    postmark::PostmarkSettings,
    reply::{Action, BadReplyRule, Category, ReplyRule, ReplyRuleText, ReplyRules, Verdict},
    secret::Secret,
    ses::{AwsCredentials, SesSettings},
    smtp::{Credentials, SmtpSettings, Tls, is_plaintext_smtp_to_elsewhere},
};

/// One call to a provider.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    pub message: &'a Message,
    /// The same for every attempt at the same claim; passed on where the provider honours one.
    pub idempotency_key: &'a str,
}

/// One credentialed account at one provider.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Makes one call and says what came of it. Never an error; bounded by [`HttpSettings::total_timeout`].
    async fn send(&self, attempt: Attempt<'_>) -> Outcome;

    /// Whether a repeated call with the same key is carried out once only, so that an uncertain one may be repeated. Holds
    /// for [`Provider::send`] alone: a batch is never put together the same way again.
    fn idempotent(&self) -> bool;

    /// Most messages of one [`Provider::send_batch`]; 1 where the API takes them one by one only.
    fn max_batch(&self) -> usize {
        1
    }

    /// Messages with the same key may go in one batch; one without must go by itself.
    fn batch_key(&self, _message: &Message) -> Option<u64> {
        None
    }

    /// Sends messages of the same [`Provider::batch_key`] in one call, at most [`Provider::max_batch`] of them, and says
    /// what came of each, in order. Never an error; bounded by [`HttpSettings::total_timeout`] as a whole.
    ///
    /// Several calls are made where the API refused the one because of one message: none of it has been sent then.
    async fn send_batch(&self, attempts: &[Attempt<'_>]) -> Vec<Outcome> {
        let mut out = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            out.push(self.send(*attempt).await);
        }
        out
    }
}

/// How the client behaves; the same for every HTTP provider. `smtp` goes by the time-outs and `ca_file` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// DNS, TCP and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// From the start of the call to the head of the answer, and between two reads of its body. Default 20 s.
    pub read_timeout: Duration,
    /// The whole call. Default 30 s; a claim's deadline must lie beyond it.
    pub total_timeout: Duration,
    /// Unused connections are closed after this. Default 4 s, under the 5 s after which common servers close them:
    /// a request that crosses the server's close on the wire is uncertain, and this keeps that from happening.
    pub max_idle: Duration,
    /// Most unused connections kept an account. Default 256.
    pub pool_size: usize,
    /// PEM file of certificate authorities trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// What replies mean. Default: the shipped rules.
    pub reply_rules: ReplyRules,
}

impl Default for HttpSettings {
    fn default() -> HttpSettings {
        HttpSettings {
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(20),
            total_timeout: Duration::from_secs(30),
            max_idle: Duration::from_secs(4),
            pool_size: 256,
            ca_file: None,
            reply_rules: ReplyRules::default(),
        }
    }
}

/// Which provider, with its credentials.
#[derive(Debug, Clone, PartialEq)]
pub enum Settings {
    /// Twilio SendGrid, `POST /v3/mail/send`. `base_url` defaults to `https://api.sendgrid.com`.
    SendGrid { api_key: Secret, base_url: Option<Url> },
    /// Amazon SES, `POST /v2/email/outbound-emails`, signed.
    Ses(SesSettings),
    /// Postmark, `POST /email`.
    Postmark(PostmarkSettings),
    /// Mailgun, `POST /v3/<domain>/messages`.
    Mailgun(MailgunSettings),
    /// Resend, `POST /emails`. `base_url` defaults to `https://api.resend.com`.
    Resend { api_key: Secret, base_url: Option<Url> },
    /// SparkPost, `POST /api/v1/transmissions`. `base_url` defaults to `https://api.sparkpost.com`.
    SparkPost { api_key: Secret, base_url: Option<Url> },
    /// The generic JSON POST of `docs/providers/http.md`, to `url` as it is.
    Http { url: Url, bearer_token: Option<Secret> },
    /// Submission to a mail server.
    Smtp(SmtpSettings),
    /// `.eml` files in `dir`, which is made for the first of them.
    Capture { dir: PathBuf },
}

impl Settings {
    /// The name in configuration, such as `sendgrid`.
    pub fn provider(&self) -> &'static str {
        match self {
            Settings::SendGrid { .. } => "sendgrid",
            Settings::Ses(_) => "ses",
            Settings::Postmark(_) => "postmark",
            Settings::Mailgun(_) => "mailgun",
            Settings::Resend { .. } => "resend",
            Settings::SparkPost { .. } => "sparkpost",
            Settings::Http { .. } => "http",
            Settings::Smtp(_) => "smtp",
            Settings::Capture { .. } => "capture",
        }
    }
}

/// Why a provider could not be made from its settings. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{url}: {problem}")]
    Url { url: String, problem: &'static str },
    #[error("{field} cannot be sent in an HTTP header: it is empty or holds control characters or spaces")]
    Header { field: &'static str },
    #[error("{path}: cannot be used as a file of certificate authorities: {problem}")]
    CaFile { path: PathBuf, problem: String },
    #[error("{field} {problem}")]
    Smtp { field: &'static str, problem: String },
    #[error("{0}")]
    Aws(String),
    #[error("{path}: cannot be used as a directory: {problem}")]
    Directory { path: PathBuf, problem: &'static str },
    #[error("TLS cannot be set up: {0}. Install the system's certificate authorities (Debian: ca-certificates) or set ca_file")]
    Tls(String),
}

/// Makes the provider for one account. `user_agent` such as `paceline/0.1.0`.
///
/// Opens no connection. Installs the process's TLS provider (ring) unless one is installed.
///
/// # Errors
/// [`BuildError`] says what to change.
pub fn build(settings: Settings, http: &HttpSettings, user_agent: &str) -> Result<Arc<dyn Provider>, BuildError> {
    Ok(match settings {
        Settings::SendGrid { api_key, base_url } => Arc::new(sendgrid::SendGrid::new(&api_key, base_url, http, user_agent)?),
        Settings::Ses(settings) => Arc::new(ses::Ses::new(settings, http, user_agent)?),
        Settings::Postmark(settings) => Arc::new(postmark::Postmark::new(settings, http, user_agent)?),
        Settings::Mailgun(settings) => Arc::new(mailgun::Mailgun::new(&settings, http, user_agent)?),
        Settings::Resend { api_key, base_url } => Arc::new(resend::Resend::new(&api_key, base_url, http, user_agent)?),
        Settings::SparkPost { api_key, base_url } => Arc::new(sparkpost::SparkPost::new(&api_key, base_url, http, user_agent)?),
        Settings::Http { url, bearer_token } => Arc::new(http::Http::new(url, bearer_token.as_ref(), http, user_agent)?),
        Settings::Smtp(settings) => Arc::new(smtp::Smtp::new(settings, http)?),
        Settings::Capture { dir } => Arc::new(capture::Capture::new(dir)?),
    })
}
