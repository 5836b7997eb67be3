//! Submission to a mail server: a relay, a smarthost, a provider's SMTP endpoint.
//!
//! - At most `max_connections` connections, each kept for `messages_per_connection` mails.
//! - Each recipient's own reply counts: those that are taken have the mail at once, those refused for good are left out, and
//!   those deferred get it later.
//! - **The end of the mail is the line.** Lost before it was written: `Temporary`. Lost after it and before the reply:
//!   `Uncertain`. A kept connection that turns out closed is replaced once, before anything of the mail was written.
//!
//! What replies mean is in [`crate::reply`], whom they concern in [`crate::smtp_reply`]; all of it in
//! `docs/providers/smtp.md` and `docs/replies.md`.

mod pool;
mod transaction;
mod wire;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use paceline_core::{EmailAddress, Outcome, ProviderAnswer, Rejected, Scope};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::time::{Instant, timeout, timeout_at};

use self::{
    pool::Pool,
    transaction::{Asked, Mail, Served, transact},
    wire::{Connection, Failure, Route},
};
use crate::{
    Attempt, BuildError, HttpSettings, Provider, Secret,
    client::is_this_machine,
    reply::ReplyRules,
    smtp_reply::{self, Stage},
};

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// Not at all: for this machine, or a network that is trusted by `insecure`.
    None,
    /// By STARTTLS, which the server must offer.
    #[default]
    StartTls,
    /// From the first byte.
    Implicit,
}

impl Tls {
    /// The port where none is given: 25, 587, 465.
    pub fn default_port(self) -> u16 {
        match self {
            Tls::None => 25,
            Tls::StartTls => 587,
            Tls::Implicit => 465,
        }
    }
}

/// A name and its password, for AUTH PLAIN or LOGIN.
#[derive(Debug, Clone, PartialEq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// The settings of provider `smtp`. Time-outs and `ca_file` are those of [`HttpSettings`].
#[derive(Debug, Clone, PartialEq)]
pub struct SmtpSettings {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    pub tls: Tls,
    pub credentials: Option<Credentials>,
    /// What this end calls itself in EHLO. Default: its address, as `[192.0.2.1]`.
    pub hello_name: Option<String>,
    /// Default 5.
    pub max_connections: usize,
    /// Default 50.
    pub messages_per_connection: u32,
    /// Unused connections are closed after this. Default 30 s.
    pub max_idle: Duration,
}

impl SmtpSettings {
    /// The defaults for a server.
    pub fn new(host: impl Into<String>, tls: Tls) -> SmtpSettings {
        SmtpSettings {
            host: host.into(),
            port: tls.default_port(),
            tls,
            credentials: None,
            hello_name: None,
            max_connections: 5,
            messages_per_connection: 50,
            max_idle: Duration::from_secs(30),
        }
    }
}

/// The provider `smtp`.
pub(crate) struct Smtp {
    route: Route,
    pool: Arc<Pool>,
    rules: ReplyRules,
    total_timeout: Duration,
}

impl Smtp {
    pub(crate) fn new(settings: SmtpSettings, http: &HttpSettings) -> Result<Smtp, BuildError> {
        let bad = |field, problem: &str| Err(BuildError::Smtp { field, problem: problem.to_owned() });
        let host = settings.host.trim_matches(['[', ']']).to_owned();
        let Ok(name) = ServerName::try_from(host.clone()) else {
            return bad("host", "is neither a host name nor an address");
        };
        let hello = settings.hello_name.as_deref().unwrap_or("x");
        if hello.is_empty() || hello.len() > 255 || !hello.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("hello_name", "must be a host name such as mail.example.com");
        }
        if settings.max_connections == 0 || settings.messages_per_connection == 0 {
            return bad(
                if settings.max_connections == 0 { "max_connections" } else { "messages_per_connection" },
                "must be at least 1",
            );
        }
        if let Some(Credentials { username, password }) = &settings.credentials {
            for (field, text) in [("username", username.as_str()), ("password", password.expose())] {
                if text.is_empty() || text.contains('\0') {
                    return bad(field, "is empty or contains NUL");
                }
            }
        }
        let verify = match settings.tls {
            Tls::None => None,
            Tls::StartTls | Tls::Implicit => Some((tls_config(http)?, name)),
        };
        let pool = Pool::new(settings.max_connections, settings.messages_per_connection, settings.max_idle);
        http.reply_rules.prepare();
        let route = Route {
            host,
            port: settings.port,
            tls: settings.tls,
            verify,
            credentials: settings.credentials,
            hello_name: settings.hello_name,
            connect_timeout: http.connect_timeout,
            reply_timeout: http.read_timeout,
        };
        Ok(Smtp { route, pool, rules: http.reply_rules.clone(), total_timeout: http.total_timeout })
    }

    /// One mail over a kept connection, or a new one.
    async fn deliver(&self, mail: &Mail<'_>, deadline: Instant) -> Outcome {
        let kept = self.pool.take();
        let reused = kept.is_some();
        let mut asked = Asked::default();
        let mut result = self.over(kept, mail, &mut asked, deadline).await;
        if reused && matches!(&result, Err(failure) if is_stale(failure)) {
            result = self.over(None, mail, &mut asked, deadline).await;
        }
        result.unwrap_or_else(|failure| {
            let failed = self.failed(failure, &asked.taken(&mail.recipients));
            asked.with(failed)
        })
    }

    async fn over(
        &self,
        kept: Option<Connection>,
        mail: &Mail<'_>,
        asked: &mut Asked,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        let late = |problem: &str| Failure::Broken { stage: Stage::Data, code: "timeout", problem: problem.to_owned() };
        let mut connection = match kept {
            Some(connection) => connection,
            None => match timeout_at(deadline, Connection::open(&self.route)).await {
                Ok(opened) => opened?,
                Err(_) => return Err(late("no connection ready within total_timeout")),
            },
        };
        let result = match timeout_at(deadline, transact(&mut connection, mail, &self.rules, asked)).await {
            Ok(result) => result,
            Err(_) => Err(late("not done within total_timeout")),
        };
        if connection.committed {
            // Whatever went wrong, it went wrong after the end of the mail was written.
            let (code, problem) = match result {
                Err(Failure::Broken { code, problem, .. }) => (code, problem),
                _ => ("connection_lost", String::new()),
            };
            let uncertain = Outcome::Uncertain { answer: ProviderAnswer::new(code, None, &problem) };
            return Ok(std::mem::take(asked).with(uncertain));
        }
        match &result {
            Ok(Served { in_order: true, .. }) => self.pool.give_back(connection),
            Err(Failure::Refused { reply, .. }) if reply.code != 421 => {
                if timeout_at(deadline, connection.reset()).await == Ok(true) {
                    self.pool.give_back(connection);
                }
            }
            _ => drop(connection),
        }
        result.map(|served| served.outcome)
    }

    /// For the recipients that were taken, or all where none was asked about.
    fn failed(&self, failure: Failure, recipients: &[EmailAddress]) -> Outcome {
        match failure {
            Failure::Refused { stage, reply } => smtp_reply::outcome(&self.rules, stage, &reply, recipients),
            Failure::Broken { code, problem, .. } => {
                Outcome::Temporary { retry_after: None, answer: ProviderAnswer::new(code, None, &problem) }
            }
            Failure::Unfit { code, problem } => {
                Outcome::Rejected { what: Rejected::Account, answer: ProviderAnswer::new(code, None, problem) }
            }
        }
    }
}

#[async_trait]
impl Provider for Smtp {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let deadline = Instant::now() + self.total_timeout;
        let mail = match Mail::new(attempt.message) {
            Ok(mail) => mail,
            Err(refused) => return *refused,
        };
        // The other half is left for the call itself.
        let Ok(Some(_permit)) = timeout(self.total_timeout / 2, self.pool.permit()).await else {
            let answer = ProviderAnswer::new("no_free_connection", None, "all connections are busy (max_connections)");
            return Outcome::Throttled { scope: Scope::Connection, retry_after: None, answer };
        };
        Box::pin(self.deliver(&mail, deadline)).await
    }

    /// SMTP has no keys. The `Message-ID` is the same for every attempt, for whoever looks.
    fn idempotent(&self) -> bool {
        false
    }
}

/// Whether a kept connection had been closed by the server meanwhile: nothing of the mail was written.
fn is_stale(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { stage: Stage::Mail, reply } => reply.code == 421,
        Failure::Broken { stage: Stage::Mail, code, .. } => *code == "connection_lost",
        _ => false,
    }
}

fn tls_config(http: &HttpSettings) -> Result<Arc<ClientConfig>, BuildError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &http.ca_file {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let problem = |problem: String| BuildError::CaFile { path: path.clone(), problem };
        let pem = std::fs::read(path).map_err(|e| problem(e.to_string()))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| problem(e.to_string()))?;
            roots.add(certificate).map_err(|e| problem(e.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(problem("it holds no certificate".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(BuildError::Tls("no certificate authority is known".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| BuildError::Tls(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Whether mail and password would cross a network unencrypted.
pub fn is_plaintext_smtp_to_elsewhere(host: &str, tls: Tls) -> bool {
    tls == Tls::None && !is_this_machine(host)
}
