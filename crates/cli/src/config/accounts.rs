//! `[[account]]`: one credentialed provider account each.

use paceline_core::Rate;
use paceline_provider::{Credentials, HttpSettings, Secret, Settings, SmtpSettings, Tls, Url, is_plaintext_smtp_to_elsewhere};

use super::{
    address,
    problem::did_you_mean,
    section::Section,
    shaping::{Limit, limit},
    values,
};
use std::time::Duration;

/// One `[[account]]`
#[derive(Debug, Clone)]
pub struct Account {
    pub name: String,
    pub provider: Settings,
    pub http: HttpSettings,
    /// `None`: the account has no rate of its own.
    pub limit: Option<Limit>,
    /// Ceiling of the adaptive rate; `limit`'s rate unless given. Not in force yet.
    pub max_rate: Option<Rate>,
    /// Windows never exceeded. Not in force yet.
    pub quota: Vec<Rate>,
    /// Calls at a time from one worker.
    pub concurrency: usize,
    /// Not in force yet.
    pub warmup: Option<Warmup>,
}

/// `[account.warmup]`: a ceiling that rises from day to day.
#[derive(Debug, Clone, PartialEq)]
pub struct Warmup {
    pub start: Rate,
    /// What the rate is multiplied by each day.
    pub factor: f64,
    pub days: u32,
}

/// Providers this version speaks to.
pub(super) const PROVIDERS: [&str; 4] = ["sendgrid", "http", "smtp", "capture"];
/// Providers whose names mean something, but not to this version.
const LATER: [&str; 5] = ["ses", "postmark", "mailgun", "resend", "sparkpost"];
/// Credentials of any provider: a wrong one is told apart from a misspelt key.
const CREDENTIALS: [&str; 24] = [
    "api_key",
    "api_key_file",
    "domain",
    "server_token",
    "server_token_file",
    "region",
    "access_key_id",
    "access_key_id_file",
    "secret_access_key",
    "secret_access_key_file",
    "session_token",
    "session_token_file",
    "host",
    "port",
    "tls",
    "username",
    "username_file",
    "password",
    "password_file",
    "url",
    "bearer_token",
    "bearer_token_file",
    "dir",
    "base_url",
];

pub(super) fn accounts(sections: Vec<Section<'_>>) -> Vec<Account> {
    let mut out: Vec<Account> = vec![];
    for s in sections {
        let account = account(&s);
        if let Some(account) = account {
            if out.iter().any(|a| a.name == account.name) {
                s.report("name", format!("`{}` is named twice", account.name));
            }
            out.push(account);
        }
        s.finish_but(&CREDENTIALS);
    }
    out
}

fn account(s: &Section<'_>) -> Option<Account> {
    let name = s.need("name", values::name(true));
    let provider = provider(s);
    let defaults = HttpSettings::default();
    let time = || values::duration(Duration::from_millis(10), Duration::from_secs(600));
    let most = match &provider {
        // More calls than connections would only wait for each other.
        Some(Settings::Smtp(smtp)) => u32::try_from(smtp.max_connections).unwrap_or(64),
        _ => 64,
    };
    let concurrency = s.or("concurrency", most, values::integer32(1, 10_000));
    let http = HttpSettings {
        connect_timeout: s.or("connect_timeout", defaults.connect_timeout, time()),
        read_timeout: s.or("read_timeout", defaults.read_timeout, time()),
        total_timeout: s.or("total_timeout", defaults.total_timeout, time()),
        ca_file: s.get("ca_file", values::line).map(Into::into),
        pool_size: defaults.pool_size.max(concurrency as usize),
        ..defaults
    };
    if http.connect_timeout > http.total_timeout {
        s.report("connect_timeout", "is longer than total_timeout");
    }
    if http.read_timeout > http.total_timeout && s.has("read_timeout") {
        s.report("read_timeout", "is longer than total_timeout");
    }
    let limit = limit(s, "rate", "burst", None);
    if limit.is_none() && !s.has("rate") {
        s.warn_self("has no rate: nothing but the destinations' limits paces it");
    }
    let max_rate = s.get("max_rate", values::rate);
    if let (Some(limit), Some(max)) = (limit, max_rate) {
        if max.interval_us() > limit.rate.interval_us() {
            s.report("max_rate", format!("is less than rate = \"{}\"", limit.rate));
        } else if max.interval_us() != limit.rate.interval_us() {
            s.not_in_force("max_rate");
        }
    }
    let quota = s.list("quota", values::rate).unwrap_or_default();
    s.not_in_force("quota");
    let warmup = warmup(&s.section("warmup"));
    s.not_in_force("warmup");
    Some(Account {
        name: name?,
        provider: provider?,
        http,
        limit,
        max_rate: max_rate.or(limit.map(|l| l.rate)),
        quota,
        concurrency: concurrency as usize,
        warmup,
    })
}

fn provider(s: &Section<'_>) -> Option<Settings> {
    let insecure = s.or("insecure", false, values::boolean);
    let kind = s.need("provider", values::text)?;
    let url = |key: &str, needed: bool| -> Option<Url> {
        let read = |node: &_| {
            let (url, exposed) = address::http(&values::text(node)?)?;
            match exposed {
                Some(why) if !insecure => Err(format!("{why}, or say `insecure = true` beside it")),
                _ => Ok(url),
            }
        };
        if needed { s.need(key, read) } else { s.get(key, read) }
    };
    let settings = match kind.as_str() {
        "sendgrid" => {
            only(s, &["api_key", "base_url"], &kind);
            let (api_key, base_url) = (needed_secret(s, "api_key"), url("base_url", false));
            Settings::SendGrid { api_key: api_key?, base_url }
        }
        "http" => {
            only(s, &["url", "bearer_token"], &kind);
            let (url, bearer_token) = (url("url", true), s.secret("bearer_token"));
            Settings::Http { url: url?, bearer_token }
        }
        "smtp" => {
            only(s, &["host", "port", "tls", "username", "password"], &kind);
            Settings::Smtp(smtp(s, insecure)?)
        }
        "capture" => {
            only(s, &["dir"], &kind);
            Settings::Capture { dir: s.need("dir", values::line)?.into() }
        }
        other if LATER.contains(&other) => {
            s.report("provider", format!("`{other}` is not in this version; supported are {}", PROVIDERS.join(", ")));
            return None;
        }
        other => {
            let hint = match did_you_mean(other, PROVIDERS.into_iter().chain(LATER)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("supported are {}", PROVIDERS.join(", ")),
            };
            s.report("provider", format!("no such provider; {hint}"));
            return None;
        }
    };
    Some(settings)
}

fn smtp(s: &Section<'_>, insecure: bool) -> Option<SmtpSettings> {
    let host = s.need("host", values::line);
    let tls = s.or("tls", Tls::default(), |node| match values::text(node)?.as_str() {
        "starttls" => Ok(Tls::StartTls),
        "implicit" => Ok(Tls::Implicit),
        "none" => Ok(Tls::None),
        _ => Err("must be \"starttls\", \"implicit\" or \"none\"".into()),
    });
    let port = s.or("port", tls.default_port().into(), values::integer(1, 65_535));
    let (username, password) = (s.text_or_file("username"), s.secret("password"));
    for (key, other) in [("username", "password"), ("password", "username")] {
        if s.has_secret(other) && !s.has_secret(key) {
            s.report(key, format!("is missing; {other} has no effect without it"));
        }
    }
    let hello_name = s.get("hello_name", values::line);
    let max_connections = s.or("max_connections", 5, values::integer32(1, 1000));
    let messages_per_connection = s.or("messages_per_connection", 50, values::integer32(1, 1_000_000));
    let host = host?;
    if is_plaintext_smtp_to_elsewhere(&host, tls) && !insecure {
        s.report(
            "tls",
            format!(
                "mail to {host} would not be encrypted; use \"starttls\" or \"implicit\", or say `insecure = true` beside it"
            ),
        );
    }
    let credentials = match (username, password) {
        (Some(username), Some(password)) => Some(Credentials { username, password }),
        _ => None,
    };
    Some(SmtpSettings {
        // Within 65535, so it fits.
        port: u16::try_from(port).unwrap_or(tls.default_port()),
        credentials,
        hello_name,
        max_connections: max_connections as usize,
        messages_per_connection,
        ..SmtpSettings::new(host, tls)
    })
}

fn needed_secret(s: &Section<'_>, key: &str) -> Option<Secret> {
    let secret = s.secret(key);
    if !s.has_secret(key) {
        s.report(key, format!("is missing; give {key} or {key}_file"));
    }
    secret
}

/// Refuses credentials of another provider.
fn only(s: &Section<'_>, own: &[&str], provider: &str) {
    for key in CREDENTIALS {
        if s.has(key) && !own.contains(&key.strip_suffix("_file").unwrap_or(key)) {
            s.report(key, format!("means nothing to {provider}, which takes {}", own.join(", ")));
        }
    }
}

fn warmup(s: &Section<'_>) -> Option<Warmup> {
    if !s.given() {
        return None;
    }
    let start = s.need("start", values::rate);
    let factor = s.or("factor", 2.0, values::number(1.01, 100.0));
    let days = s.or("days", 14, values::integer32(1, 365));
    Some(Warmup { start: start?, factor, days })
}
