//! Addresses of services: secret, because they carry passwords, and checked for TLS.

use std::{fmt, net::IpAddr, path::PathBuf};

use paceline_provider::{Secret, Url};

/// Where a service is reached. `Debug` and `Display` show it without credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    url: Secret,
    shown: String,
}

impl Address {
    /// The whole URL with its credentials, for connecting.
    pub fn expose(&self) -> &str {
        self.url.expose()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// What may be said of an address that has been read.
pub(super) struct Read {
    pub(super) address: Address,
    /// Why what crosses the network could be read by others, where it could.
    pub(super) exposed: Option<String>,
}

/// The file of an embedded part, `scheme:path` or `scheme:///path`; `None` where `text` has another scheme.
pub(super) fn embedded(text: &str, scheme: &str) -> Option<Result<PathBuf, String>> {
    let rest = text.strip_prefix(scheme)?.strip_prefix(':')?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    Some(match path {
        "" => Err(format!("names no file; write {scheme}:./paceline.db or {scheme}:///var/lib/paceline/paceline.db")),
        _ if path.contains(['?', '#']) || path.chars().any(char::is_control) => {
            Err(format!("takes nothing but a path after `{scheme}:`"))
        }
        path => Ok(PathBuf::from(path)),
    })
}

pub(super) fn amqp(text: &str) -> Result<Read, String> {
    let (url, address) = parse(text, &["amqp", "amqps"], "amqp://user:password@host:5672/%2f")?;
    let exposed = plain(&url, "amqp").map(|host| format!("amqp:// to {host} is not encrypted; use amqps://"));
    Ok(Read { address, exposed })
}

pub(super) fn redis(text: &str) -> Result<Read, String> {
    let (url, address) = parse(text, &["redis", "rediss", "unix"], "redis://user:password@host:6379, or local:")?;
    let exposed = plain(&url, "redis").map(|host| format!("redis:// to {host} is not encrypted; use rediss://"));
    Ok(Read { address, exposed })
}

pub(super) fn postgres(text: &str) -> Result<Read, String> {
    let (url, address) = parse(text, &["postgres", "postgresql"], "postgres://user:password@host:5432/database")?;
    let query = |name: &str| url.query_pairs().find(|(k, _)| k == name).map(|(_, v)| v.into_owned());
    // Without a mode the store asks another machine for a certificate that holds: only saying so turns that off.
    let mode = query("sslmode").or_else(|| query("ssl-mode")).filter(|m| matches!(m.as_str(), "disable" | "allow" | "prefer"));
    let host = query("host").or_else(|| url.host_str().map(str::to_owned)).unwrap_or_default();
    // A host that begins with a slash is a socket's directory.
    let here = is_here(&host) || host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
    let exposed = mode
        .filter(|_| !here)
        .map(|mode| format!("sslmode={mode} to {host} may go unencrypted; use verify-full, or leave it out for the same"));
    Ok(Read { address, exposed })
}

/// An http or https URL, and whether it is plain text to another machine.
pub(super) fn http(text: &str) -> Result<(Url, Option<String>), String> {
    let url = Url::parse(text).map_err(|e| format!("is not a URL: {e}"))?;
    paceline_provider::check_base_url(&url).map_err(|e| e.to_string())?;
    let exposed = paceline_provider::is_plaintext_to_elsewhere(&url)
        .then(|| format!("http:// to {} is not encrypted; use https://", url.host_str().unwrap_or_default()));
    Ok((url, exposed))
}

/// The text is never repeated in an error: it may hold a password.
fn parse(text: &str, schemes: &[&str], form: &str) -> Result<(Url, Address), String> {
    let url = Url::parse(text).map_err(|e| format!("is not a URL ({e}); write {form}"))?;
    if !schemes.contains(&url.scheme()) {
        return Err(format!("begins with `{}:`; write {form}", url.scheme()));
    }
    let mut shown = url.clone();
    // Fails only for URLs without a host, which hold no credentials.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.set_query(None);
    shown.set_fragment(None);
    Ok((url, Address { url: Secret::new(text), shown: shown.to_string() }))
}

/// The host, where `scheme` is the plain one and the host is another machine.
fn plain<'u>(url: &'u Url, scheme: &str) -> Option<&'u str> {
    let host = url.host_str()?;
    (url.scheme() == scheme && !is_here(host)).then_some(host)
}

fn is_here(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.is_empty() || host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exposed() {
        for (url, exposed) in [
            ("amqp://guest:guest@127.0.0.1:5672/%2f", false),
            ("amqp://localhost", false),
            ("amqp://[::1]:5672", false),
            ("amqp://mq.example:5672/%2f", true),
            ("amqps://mq.example:5671/%2f", false),
        ] {
            assert_eq!(amqp(url).unwrap().exposed.is_some(), exposed, "{url}");
        }
        for (url, exposed) in [
            ("redis://127.0.0.1", false),
            ("redis://:pw@cache:6379/1", true),
            ("rediss://cache", false),
            ("unix:///run/redis.sock", false),
        ] {
            assert_eq!(redis(url).unwrap().exposed.is_some(), exposed, "{url}");
        }
        for (url, exposed) in [
            ("postgres://postgres@127.0.0.1/paceline", false),
            ("postgres:///paceline?host=/run/postgresql", false),
            ("postgres://db.example/paceline", false),
            ("postgres://db.example/paceline?ssl-mode=prefer", true),
            ("postgres://x@%2Frun%2Fpostgresql/paceline?sslmode=disable", false),
            ("postgres://db.example/paceline?sslmode=disable", true),
            ("postgres://db.example/paceline?sslmode=verify-full", false),
            ("postgresql://x@localhost/paceline?host=db.example&sslmode=disable", true),
        ] {
            assert_eq!(postgres(url).unwrap().exposed.is_some(), exposed, "{url}");
        }
    }

    #[test]
    fn files_of_embedded_parts() {
        for (text, path) in [("spool:./a.db", "./a.db"), ("spool:a b.db", "a b.db"), ("spool:///var/a.db", "/var/a.db")] {
            assert_eq!(embedded(text, "spool"), Some(Ok(PathBuf::from(path))), "{text}");
        }
        assert_eq!(embedded("amqp://127.0.0.1", "spool"), None);
        assert_eq!(embedded("spools:x", "spool"), None);
        for bad in ["sqlite:", "sqlite://", "sqlite:a.db?mode=ro", "sqlite:a\nb"] {
            assert!(embedded(bad, "sqlite").unwrap().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let read = amqp("amqp://joe:hunter2@127.0.0.1:5673/%2f?key=hunter2").unwrap().address;
        assert_eq!(format!("{read} {read:?}"), "amqp://127.0.0.1:5673/%2f amqp://127.0.0.1:5673/%2f");
        assert!(read.expose().contains("hunter2"));
        for bad in ["amqp://joe:hunter2@:x/", "hunter2", "http://joe:hunter2@h"] {
            assert!(!amqp(bad).err().unwrap().contains("hunter2"), "{bad}");
        }
    }
}
