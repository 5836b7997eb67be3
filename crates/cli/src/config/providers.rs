//! The provider of an account and its credentials.

use paceline_provider::{
    AwsCredentials, Credentials, MailgunSettings, PostmarkSettings, Secret, SesSettings, Settings, SmtpSettings, Tls, Url,
    is_plaintext_smtp_to_elsewhere,
};

use super::{address, problem::did_you_mean, section::Section, values};

/// Providers this version speaks to.
const PROVIDERS: [&str; 9] = ["ses", "sendgrid", "postmark", "mailgun", "resend", "sparkpost", "smtp", "http", "capture"];
/// Credentials of any provider: a wrong one is told apart from a misspelt key.
pub(super) const CREDENTIALS: [&str; 24] = [
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

/// Which provider an account is at, with its credentials.
pub(super) fn provider(s: &Section<'_>) -> Option<Settings> {
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
        "ses" => {
            only(s, &["region", "access_key_id", "secret_access_key", "session_token", "base_url"], &kind);
            Settings::Ses(ses(s, url("base_url", false))?)
        }
        "postmark" => {
            only(s, &["server_token", "base_url"], &kind);
            let (server_token, base_url) = (needed_secret(s, "server_token"), url("base_url", false));
            let message_stream = s.get("message_stream", values::line);
            Settings::Postmark(PostmarkSettings { server_token: server_token?, message_stream, base_url })
        }
        "mailgun" => {
            only(s, &["api_key", "domain", "base_url"], &kind);
            let (api_key, base_url) = (needed_secret(s, "api_key"), url("base_url", false));
            let domain = s.need("domain", values::domain);
            Settings::Mailgun(MailgunSettings { api_key: api_key?, domain: domain?, base_url })
        }
        "resend" => {
            only(s, &["api_key", "base_url"], &kind);
            let (api_key, base_url) = (needed_secret(s, "api_key"), url("base_url", false));
            Settings::Resend { api_key: api_key?, base_url }
        }
        "sparkpost" => {
            only(s, &["api_key", "base_url"], &kind);
            let (api_key, base_url) = (needed_secret(s, "api_key"), url("base_url", false));
            Settings::SparkPost { api_key: api_key?, base_url }
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
        other => {
            let hint = match did_you_mean(other, PROVIDERS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("supported are {}", PROVIDERS.join(", ")),
            };
            s.report("provider", format!("no such provider; {hint}"));
            return None;
        }
    };
    Some(settings)
}

/// Keys that are not given come from the environment or the AWS tools' files, which are read when the account is made.
fn ses(s: &Section<'_>, base_url: Option<Url>) -> Option<SesSettings> {
    let region = s.get("region", values::line);
    let configuration_set = s.get("configuration_set", values::line);
    let (id, secret) = (s.secret("access_key_id"), s.secret("secret_access_key"));
    let session_token = s.secret("session_token");
    let mut whole = true;
    for (key, others) in
        [("access_key_id", ["secret_access_key", "session_token"]), ("secret_access_key", ["access_key_id", "session_token"])]
    {
        if let Some(other) = others.iter().find(|other| s.has_secret(other))
            && !s.has_secret(key)
        {
            s.report(key, format!("is missing; {other} has no effect without it"));
            whole = false;
        }
    }
    let given = s.has_secret("access_key_id");
    let credentials = match (id, secret) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(AwsCredentials { access_key_id, secret_access_key, session_token })
        }
        _ => None,
    };
    // Keys that are given and unusable have been reported; those of the environment must not stand in for them.
    (whole && given == credentials.is_some()).then_some(SesSettings { region, credentials, configuration_set, base_url })
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
