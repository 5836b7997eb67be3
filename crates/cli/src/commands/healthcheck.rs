//! `paceline healthcheck`: asks a running process whether it is well, for containers that have nothing else to ask with.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    config::{Config, ConfigError, parse_duration},
    exit::Failure,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// What to ask, by plain HTTP [default: /readyz at [http] listen]
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Ask whether the process is alive (/livez) instead of whether it is ready
    #[arg(long, conflicts_with = "url")]
    pub live: bool,
    /// How long the answer may take
    #[arg(long, value_name = "DURATION", default_value = "4s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// More than any answer about health.
const MAX_BYTES: u64 = 1 << 20;

/// What is printed with `--output json`.
#[derive(Debug, Serialize)]
struct Report {
    url: String,
    ok: bool,
    /// Of the answer; `None` where there was none.
    status: Option<u16>,
    /// What is wrong, as far as the answer says.
    problems: Vec<String>,
}

/// Asks once. Exit 0 for an answer of 200 to 299, else 1.
pub async fn run(
    load: impl FnOnce() -> Result<Config, ConfigError>,
    args: &HealthcheckArgs,
    format: Format,
) -> Result<(), Failure> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => local(load()?.http.listen, if args.live { "/livez" } else { "/readyz" })?,
    };
    let (authority, path) = parts(&url)?;
    let report = match tokio::time::timeout(args.timeout, get(&authority, path)).await {
        Ok(Ok((status, body))) => {
            Report { url, ok: (200..300).contains(&status), status: Some(status), problems: problems(&body) }
        }
        Ok(Err(e)) => Report { url, ok: false, status: None, problems: vec![e.to_string()] },
        Err(_) => Report { url, ok: false, status: None, problems: vec!["no answer in time".into()] },
    };
    if format == Format::Json {
        output::json(&report)?;
        return if report.ok { Ok(()) } else { Err(Failure::Reported) };
    }
    if report.ok {
        return Ok(output::write("ok\n")?);
    }
    let status = report.status.map_or_else(String::new, |status| format!(" {status}"));
    Err(Failure::failed(format!("{}:{status} {}", report.url, report.problems.join("; "))))
}

/// The address a process with this `[http] listen` is reached at from where it runs.
fn local(listen: SocketAddr, path: &str) -> Result<String, Failure> {
    if listen.port() == 0 {
        return Err(Failure::usage("[http] listen takes any free port (0): give the URL with the port that was logged"));
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(format!("http://{}{path}", SocketAddr::new(ip, listen.port())))
}

/// Host with port, and path.
fn parts(url: &str) -> Result<(String, &str), Failure> {
    let bad = || Failure::usage(format!("{}: write an address such as http://127.0.0.1:8025/readyz", url.escape_debug()));
    let rest = url.strip_prefix("http://").filter(|rest| rest.bytes().all(|b| b.is_ascii_graphic())).ok_or_else(bad)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.is_empty() || authority.contains(['@', '?', '#']) {
        return Err(bad());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    Ok((authority, if path.is_empty() { "/" } else { path }))
}

/// Status and body.
async fn get(authority: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(authority).await?;
    // HTTP/1.0: the answer ends with the connection and comes in one piece.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.filter(|_| head.starts_with("HTTP/1."));
    status.map(|status| (status, body.to_owned())).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

/// The checks of a `/readyz` that fail; none of any other answer.
fn problems(body: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let checks = answer["checks"].as_object().into_iter().flatten();
    let failing = checks.filter(|(_, check)| check["ok"] == false);
    failing.map(|(name, check)| format!("{name}: {}", check["detail"].as_str().unwrap_or("not ok"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_ask() {
        let local = |listen: &str| local(listen.parse().unwrap(), "/livez").map_err(|e| e.to_string());
        assert_eq!(local("0.0.0.0:8025").unwrap(), "http://127.0.0.1:8025/livez");
        assert_eq!(local("[::]:8025").unwrap(), "http://[::1]:8025/livez");
        assert_eq!(local("10.0.0.1:80").unwrap(), "http://10.0.0.1:80/livez");
        assert!(local("127.0.0.1:0").unwrap_err().contains("give the URL"));

        for (url, want) in [
            ("http://127.0.0.1:8026/sandbox/stats", ("127.0.0.1:8026", "/sandbox/stats")),
            ("http://control", ("control:80", "/")),
            ("http://[::1]:8025/readyz?x=1", ("[::1]:8025", "/readyz?x=1")),
            ("http://[::1]/", ("[::1]:80", "/")),
        ] {
            assert_eq!(parts(url).unwrap(), (want.0.to_owned(), want.1), "{url}");
        }
        for url in ["127.0.0.1:8025", "https://a/", "http://", "http:///x", "http://a/x\r\ny: z", "http://u:p@a/"] {
            assert!(parts(url).is_err(), "{url}");
        }
    }

    #[test]
    fn what_is_wrong() {
        let body = r#"{"ready":false,"checks":{"broker":{"ok":false,"detail":"away"},"limits":{"ok":true,"detail":null}}}"#;
        assert_eq!(problems(body), ["broker: away"]);
        assert!(problems("ok\n").is_empty());
    }
}
