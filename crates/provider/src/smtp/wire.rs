//! One SMTP connection, command by command.
//!
//! lettre's own connection is not used: it takes a reply without text (`250` alone) and one that is not UTF-8 for
//! broken, keeps what was read before STARTTLS, and does not pipeline.

use std::{net::IpAddr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{Credentials, Tls};
use crate::smtp_reply::{Reply, Stage};

/// Longest reply read, all its lines together.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// Where to, and how; made once.
pub(super) struct Route {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Tls,
    /// `Some` unless `tls` is `None`.
    pub(super) verify: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) credentials: Option<Credentials>,
    pub(super) hello_name: Option<String>,
    pub(super) connect_timeout: Duration,
    /// For each reply.
    pub(super) reply_timeout: Duration,
}

/// Why something did not work.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no.
    Refused { stage: Stage, reply: Reply },
    /// No answer, or none that can be read; the connection is of no more use.
    Broken { stage: Stage, code: &'static str, problem: String },
    /// The server does not offer what the account's settings ask for.
    Unfit { code: &'static str, problem: &'static str },
}

trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// What the server said it can do.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) pipelining: bool,
    pub(super) smtputf8: bool,
    pub(super) eight_bit: bool,
    pub(super) size: bool,
    starttls: bool,
    auth_plain: bool,
    auth_login: bool,
}

/// An open connection, past EHLO, STARTTLS and AUTH.
pub(super) struct Connection {
    stream: Box<dyn Duplex>,
    /// Read and not yet taken.
    buffer: Vec<u8>,
    reply_timeout: Duration,
    pub(super) extensions: Extensions,
    /// Mails handed over.
    pub(super) served: u32,
    pub(super) idle_since: Instant,
    /// The end of a mail was written, and its reply not read: from here on its fate is the server's.
    pub(super) committed: bool,
}

impl Connection {
    pub(super) async fn open(route: &Route) -> Result<Connection, Failure> {
        let broken = |code, problem: String| Failure::Broken { stage: Stage::Connect, code, problem };
        let connected = timeout(route.connect_timeout, async {
            let tcp = TcpStream::connect((route.host.as_str(), route.port)).await;
            let tcp = tcp.map_err(|e| broken("connection_failed", e.to_string()))?;
            // Only latency is at stake.
            let _ = tcp.set_nodelay(true);
            let local = tcp.local_addr().map(|a| a.ip()).ok();
            let stream: Box<dyn Duplex> = match (route.tls, &route.verify) {
                (Tls::Implicit, Some(verify)) => encrypted(Box::new(tcp), verify).await?,
                _ => Box::new(tcp),
            };
            Ok((stream, local))
        });
        let (stream, local) = match connected.await {
            Ok(connected) => connected?,
            Err(_) => return Err(broken("connect_timeout", "no connection in time".to_owned())),
        };
        let mut connection = Connection {
            stream,
            buffer: Vec::new(),
            reply_timeout: route.reply_timeout,
            extensions: Extensions::default(),
            served: 0,
            idle_since: Instant::now(),
            committed: false,
        };
        connection.expect(Stage::Connect).await?;
        let name = route.hello_name.clone().unwrap_or_else(|| literal(local));
        connection.hello(&name).await?;
        if let (Tls::StartTls, Some(verify)) = (route.tls, &route.verify) {
            connection = connection.start_tls(verify, route.connect_timeout).await?;
            connection.hello(&name).await?;
        }
        if let Some(credentials) = &route.credentials {
            connection.authenticate(credentials).await?;
        }
        Ok(connection)
    }

    async fn hello(&mut self, name: &str) -> Result<(), Failure> {
        let reply = self.command(Stage::Hello, &format!("EHLO {name}\r\n")).await?;
        let mut found = Extensions::default();
        for line in reply.lines.iter().skip(1) {
            let line = line.trim().to_ascii_uppercase();
            let mut words = line.split([' ', '=']);
            match words.next().unwrap_or_default() {
                "PIPELINING" => found.pipelining = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "8BITMIME" => found.eight_bit = true,
                "SIZE" => found.size = true,
                "STARTTLS" => found.starttls = true,
                "AUTH" => {
                    for mechanism in words {
                        found.auth_plain |= mechanism == "PLAIN";
                        found.auth_login |= mechanism == "LOGIN";
                    }
                }
                _ => {}
            }
        }
        self.extensions = found;
        Ok(())
    }

    async fn start_tls(
        mut self,
        verify: &(Arc<ClientConfig>, ServerName<'static>),
        within: Duration,
    ) -> Result<Connection, Failure> {
        if !self.extensions.starttls {
            return Err(Failure::Unfit { code: "starttls_not_offered", problem: "the server does not offer STARTTLS" });
        }
        self.command(Stage::StartTls, "STARTTLS\r\n").await?;
        let broken = |problem: &str| Failure::Broken { stage: Stage::StartTls, code: "tls_failed", problem: problem.to_owned() };
        if !self.buffer.is_empty() {
            // Somebody in between would have it taken for the server's own, encrypted word.
            return Err(broken("the server spoke on before encryption began"));
        }
        match timeout(within, encrypted(self.stream, verify)).await {
            Ok(stream) => self.stream = stream?,
            Err(_) => return Err(broken("no TLS handshake in time")),
        }
        Ok(self)
    }

    async fn authenticate(&mut self, credentials: &Credentials) -> Result<(), Failure> {
        let (user, password) = (&credentials.username, credentials.password.expose());
        if self.extensions.auth_plain {
            let both = STANDARD.encode(format!("\0{user}\0{password}"));
            self.command(Stage::Auth, &format!("AUTH PLAIN {both}\r\n")).await?;
        } else if self.extensions.auth_login {
            self.command(Stage::Auth, "AUTH LOGIN\r\n").await?;
            self.command(Stage::Auth, &format!("{}\r\n", STANDARD.encode(user))).await?;
            self.command(Stage::Auth, &format!("{}\r\n", STANDARD.encode(password))).await?;
        } else {
            return Err(Failure::Unfit {
                code: "auth_not_offered",
                problem: "the server offers neither AUTH PLAIN nor AUTH LOGIN",
            });
        }
        Ok(())
    }

    /// Writes one command and reads its reply, which must be positive.
    pub(super) async fn command(&mut self, stage: Stage, line: &str) -> Result<Reply, Failure> {
        self.write(stage, line.as_bytes()).await?;
        self.expect(stage).await
    }

    /// Ends what was begun, so that the connection can serve again.
    pub(super) async fn reset(&mut self) -> bool {
        self.command(Stage::Mail, "RSET\r\n").await.is_ok()
    }

    /// Takes leave; errors change nothing any more.
    pub(super) async fn quit(mut self) {
        let leave = async {
            let _ = self.command(Stage::Mail, "QUIT\r\n").await;
            let _ = self.stream.shutdown().await;
        };
        let _ = timeout(Duration::from_secs(5), leave).await;
    }

    /// The mail itself, dots doubled, and its end. The reply may be anything.
    pub(super) async fn content(&mut self, mail: &[u8]) -> Result<Reply, Failure> {
        if let Err(failure) = self.write(Stage::Content, &stuffed(mail)).await {
            // A server that has had enough says why before it closes.
            return match self.reply(Stage::Content).await {
                Ok(reply) if !reply.is_positive() => Ok(reply),
                _ => Err(failure),
            };
        }
        self.committed = true;
        self.write(Stage::Content, b".\r\n").await?;
        let reply = self.reply(Stage::Content).await?;
        self.committed = false;
        Ok(reply)
    }

    pub(super) async fn write(&mut self, stage: Stage, bytes: &[u8]) -> Result<(), Failure> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let (code, problem) = match timeout(self.reply_timeout, write).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => ("connection_lost", error.to_string()),
            Err(_) => ("timeout", "the server reads nothing".to_owned()),
        };
        Err(Failure::Broken { stage, code, problem })
    }

    /// The next reply, where it is positive.
    pub(super) async fn expect(&mut self, stage: Stage) -> Result<Reply, Failure> {
        let reply = self.reply(stage).await?;
        if reply.is_positive() { Ok(reply) } else { Err(Failure::Refused { stage, reply }) }
    }

    /// The next reply, whatever it says.
    pub(super) async fn reply(&mut self, stage: Stage) -> Result<Reply, Failure> {
        let broken = |code, problem: &str| Failure::Broken { stage, code, problem: problem.to_owned() };
        let within = self.reply_timeout;
        let mut lines = Vec::new();
        let mut total = 0;
        let read = async {
            loop {
                let line = self.line().await?;
                total += line.len();
                let Some((code, last, text)) = parse(&line) else { return Ok(None) };
                lines.push(text);
                if last || total > MAX_REPLY_BYTES {
                    return Ok(last.then_some(code));
                }
            }
        };
        match timeout(within, read).await {
            Ok(Ok(Some(code))) => Ok(Reply { code, lines }),
            Ok(Ok(None)) => Err(broken("unreadable_reply", "what the server said is no SMTP reply")),
            Ok(Err(Lost(problem))) => Err(broken("connection_lost", &problem)),
            Err(_) => Err(broken("timeout", "no reply in time")),
        }
    }

    /// A line without its end. One longer than a whole reply may be is cut and will not parse as the last.
    async fn line(&mut self) -> Result<Vec<u8>, Lost> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.buffer[seen..].iter().position(|&b| b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=seen + at).collect();
                while line.last().is_some_and(|b| matches!(b, b'\r' | b'\n')) {
                    line.pop();
                }
                return Ok(line);
            }
            seen = self.buffer.len();
            if seen > MAX_REPLY_BYTES {
                return Err(Lost("a reply without end".to_owned()));
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Lost("the server closed the connection".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(Lost(error.to_string())),
            }
        }
    }
}

struct Lost(String);

async fn encrypted(
    stream: Box<dyn Duplex>,
    (config, name): &(Arc<ClientConfig>, ServerName<'static>),
) -> Result<Box<dyn Duplex>, Failure> {
    match TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(Failure::Broken { stage: Stage::Connect, code: "tls_failed", problem: error.to_string() }),
    }
}

/// `(code, last, text)` of a line such as `250-SIZE` or `250`.
fn parse(line: &[u8]) -> Option<(u16, bool, String)> {
    let digits = line.get(..3).filter(|d| d.iter().all(u8::is_ascii_digit))?;
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let last = match line.get(3) {
        None | Some(b' ') => true,
        Some(b'-') => false,
        Some(_) => return None,
    };
    (200..600).contains(&code).then(|| (code, last, String::from_utf8_lossy(line.get(4..).unwrap_or_default()).into_owned()))
}

/// A dot at the start of a line is doubled (RFC 5321, 4.5.2). All lines end in CRLF.
fn stuffed(mail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(mail.len() + 64);
    for line in mail.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out
}

/// This end's address as EHLO takes it where there is no name.
fn literal(address: Option<IpAddr>) -> String {
    match address.map(|a| a.to_canonical()) {
        Some(IpAddr::V4(ip)) => format!("[{ip}]"),
        Some(IpAddr::V6(ip)) => format!("[IPv6:{ip}]"),
        None => "[127.0.0.1]".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_lines() {
        for (line, want) in [
            ("250 OK", Some((250, true, "OK"))),
            ("250", Some((250, true, ""))),
            ("250-SIZE 10", Some((250, false, "SIZE 10"))),
            ("250-", Some((250, false, ""))),
            ("25", None),
            ("2x0 OK", None),
            ("250_OK", None),
            ("199 OK", None),
            ("999 OK", None),
            ("HTTP/1.1 200 OK", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), want.map(|(c, l, t)| (c, l, t.to_owned())), "{line}");
        }
        assert_eq!(parse(b"550 Bo\xeete pleine").unwrap().2, "Bo\u{fffd}te pleine");
    }

    #[test]
    fn dots_are_doubled_at_line_starts_only() {
        assert_eq!(stuffed(b".a\r\nb.\r\n.\r\n..c\r\n"), b"..a\r\nb.\r\n..\r\n...c\r\n");
    }
}
