//! The database's address: encrypted unless it is this machine or the address says otherwise.

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::Error;

/// Reads `postgres://user:password@host:port/database?sslmode=…`.
///
/// Without `sslmode`, a remote host must show a certificate for its name (`verify-full`; `sslrootcert` names a
/// private authority's), and a loopback address or a socket may be plain. The environment's `PGSSLMODE` is not asked.
pub(super) fn parse(url: &str) -> Result<PgConnectOptions, Error> {
    // The parser's words can quote the address, which may hold a password.
    let bad = |why: &str| Error::Misconfigured(format!("the address of the database {why}").into());
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("is not of the form postgres://user@host/database"))?;
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err(bad("does not begin with postgres://"));
    }
    let mut options: PgConnectOptions = url.parse().map_err(|_| bad("is not of the form postgres://user@host/database"))?;
    let query = rest.split_once('?').map_or("", |(_, q)| q);
    let says = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    if !says("sslmode") && !says("ssl-mode") {
        let local = options.get_socket().is_some() || is_loopback(options.get_host());
        options = options.ssl_mode(if local { PgSslMode::Prefer } else { PgSslMode::VerifyFull });
    }
    if options.get_application_name().is_none() {
        options = options.application_name("paceline");
    }
    Ok(options)
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_is_verified_unless_the_address_says_otherwise() {
        for (url, want) in [
            ("postgres://u@127.0.0.1/paceline", "Prefer"),
            ("postgres://u@[::1]:5433/paceline", "Prefer"),
            ("postgres://u@localhost/paceline", "Prefer"),
            ("postgres://u@%2Frun%2Fpostgresql/paceline", "Prefer"),
            ("postgres:///paceline?host=/run/postgresql", "Prefer"),
            ("postgres://u@db.internal/paceline", "VerifyFull"),
            ("postgresql://u:p@10.0.0.7/paceline?application_name=x", "VerifyFull"),
            ("postgres://u@127.0.0.1/paceline?host=db.internal", "VerifyFull"),
            ("postgres://u@db.internal/paceline?sslmode=disable", "Disable"),
            ("postgres://u@127.0.0.1/paceline?sslmode=require", "Require"),
        ] {
            assert_eq!(format!("{:?}", parse(url).unwrap().get_ssl_mode()), want, "{url}");
        }
    }

    #[test]
    fn a_refused_address_is_not_repeated() {
        for url in
            ["", "secret", "mysql://u:secret@h/d", "postgres://u:secret@h:port/d", "postgres://u:secret@h/d?sslmode=secret"]
        {
            let e = parse(url).unwrap_err();
            assert!(matches!(e, Error::Misconfigured(_)) && !e.in_full().contains("secret"), "{}", e.in_full());
        }
    }
}
