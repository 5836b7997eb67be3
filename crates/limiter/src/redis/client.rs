//! A connection to Redis that comes back by itself, and the scripts that run over it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError,
    RedisResult, ServerErrorKind, TlsCertificates, Value, aio::MultiplexedConnection, cmd, io::tcp::TcpSettings,
};

use tokio::time::error::Elapsed;

use crate::{LimiterError, wire::decode};

/// No call waits longer for its answer.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// No connection, login included, takes longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed attempt to connect, callers fail at once for so long.
const RECONNECT_GAP: Duration = Duration::from_millis(100);

/// A connection to Redis that comes back by itself. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct RedisClient {
    inner: Arc<Inner>,
}

struct Inner {
    /// Where to begin; at least one.
    nodes: Vec<ConnectionInfo>,
    /// Who vouches for them over TLS, in place of the system's roots.
    ca_pem: Option<Vec<u8>>,
    tag: String,
    time: Script,
    live: Mutex<Live>,
    connecting: tokio::sync::Mutex<Option<Failure>>,
}

#[derive(Default)]
struct Live {
    connection: Option<MultiplexedConnection>,
    /// Rises with every connection, so that a late failure does not discard a newer one.
    generation: u64,
    /// The node of a Cluster that has the fleet's keys, as another one said.
    moved: Option<ConnectionAddr>,
    /// Which of the nodes is tried next.
    turn: usize,
}

struct Failure {
    at: Instant,
    error: LimiterError,
}

impl RedisClient {
    /// `url` is `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS checked against the system's roots,
    /// or `unix:///path`. The process must have installed a rustls crypto provider before TLS is used.
    /// `prefix` tells fleets that share a server apart.
    pub fn new(url: &str, prefix: &str) -> Result<Self, LimiterError> {
        Self::of(&[url], None, prefix)
    }

    /// The same with several addresses, of the nodes of one Cluster: one that answers is enough, it says which of them has
    /// the fleet's keys. With `ca_pem`, TLS is checked against those certificates alone.
    pub fn of(urls: &[&str], ca_pem: Option<Vec<u8>>, prefix: &str) -> Result<Self, LimiterError> {
        // The cause may quote the URL, and with it a password: it is not passed on.
        let bad_url = |_| LimiterError::Refused {
            reason: "`limits.url` is not a Redis URL such as redis://127.0.0.1:6379 or rediss://user:password@host".into(),
        };
        let read = |url: &&str| {
            let info: ConnectionInfo = url.into_connection_info()?;
            // The fewer commands, the fewer a user has to be allowed.
            let login = info.redis_settings().clone().set_skip_set_lib_name();
            Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(login))
        };
        let nodes = urls.iter().map(read).collect::<RedisResult<Vec<_>>>().map_err(bad_url)?;
        for node in &nodes {
            open(node.clone(), None).map_err(bad_url)?;
        }
        if nodes.is_empty() {
            return Err(LimiterError::Refused { reason: "`limits.url` names no address".into() });
        }
        if let Some(pem) = &ca_pem {
            // The client takes a file without any for one that trusts nobody.
            let none = !String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----");
            if none || open(nodes[0].clone(), Some(pem.clone())).is_err() {
                return Err(LimiterError::Refused { reason: "`limits.ca_file` holds no certificate in PEM".into() });
            }
        }
        let tag = format!("{{{}}}", prefix.replace(['{', '}'], "_"));
        let time = Script::new("local t = redis.call('TIME') return cmsgpack.pack({tonumber(t[1]), tonumber(t[2])})");
        let inner = Inner { nodes, ca_pem, tag, time, live: Mutex::default(), connecting: tokio::sync::Mutex::default() };
        Ok(RedisClient { inner: Arc::new(inner) })
    }

    /// A key of this fleet.
    pub(crate) fn key(&self, kind: &str, name: &str) -> String {
        let mut key = String::with_capacity(self.inner.tag.len() + kind.len() + name.len() + 2);
        key.push_str(&self.inner.tag);
        key.push(':');
        key.push_str(kind);
        if !name.is_empty() {
            key.push(':');
            key.push_str(name);
        }
        key
    }

    /// Runs one script; loads it first where the server does not know it.
    pub(crate) async fn run(&self, script: &Script, keys: &[String], args: &[&[u8]]) -> Result<Vec<u8>, LimiterError> {
        let mut call = Cmd::with_capacity(3 + keys.len() + args.len(), 256);
        call.arg("EVALSHA").arg(script.hash()).arg(keys.len()).arg(keys);
        for arg in args {
            call.arg(*arg);
        }
        match self.send(&call).await {
            Err(Failed::NoScript) => {
                self.send(cmd("SCRIPT").arg("LOAD").arg(script.code)).await.map_err(LimiterError::from)?;
                match self.send(&call).await? {
                    Value::BulkString(bytes) => Ok(bytes),
                    _ => Err(unexpected()),
                }
            }
            Ok(Value::BulkString(bytes)) => Ok(bytes),
            Ok(_) => Err(unexpected()),
            Err(other) => Err(other.into()),
        }
    }

    /// The clock of the server that has the fleet's keys; another one of a Cluster sends on to it.
    pub async fn now_us(&self) -> Result<u64, LimiterError> {
        let (secs, micros): (u64, u64) = decode(&self.run(&self.inner.time, &[self.key("epoch", "")], &[]).await?)?;
        Ok(secs.saturating_mul(1_000_000).saturating_add(micros))
    }

    /// Sends one command, and follows the fleet's keys where they have moved.
    pub(crate) async fn send(&self, call: &Cmd) -> Result<Value, Failed> {
        match self.send_once(call).await {
            // Nothing ran; the node that was named will take it.
            Err(Failed::Moved) => match self.send_once(call).await {
                Err(Failed::Moved) => Err(LimiterError::Unreachable { reason: "the Cluster moves its keys".into() }.into()),
                other => other,
            },
            other => other,
        }
    }

    async fn send_once(&self, call: &Cmd) -> Result<Value, Failed> {
        let (mut connection, generation) = self.connection().await?;
        let answer = tokio::time::timeout(CALL_TIMEOUT, call.query_async(&mut connection)).await;
        self.judge(answer, generation)
    }

    /// Sends commands in one go; an answer each, in order. A command that the server refuses has that for its answer.
    pub(crate) async fn send_all(&self, calls: &Pipeline) -> Result<Vec<Value>, LimiterError> {
        let (mut connection, generation) = self.connection().await?;
        let sent = connection.send_packed_commands(calls, 0, calls.len());
        Ok(self.judge(tokio::time::timeout(CALL_TIMEOUT, sent).await, generation)?)
    }

    /// What came of a call over the connection of that generation, which is dropped where it is not worth keeping.
    fn judge<T>(&self, answer: Result<RedisResult<T>, Elapsed>, generation: u64) -> Result<T, Failed> {
        let failed = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => {
                if error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
                    && let Some((node, _)) = error.redirect_node()
                    && let Some(addr) = self.node(node)
                {
                    let mut live = self.lock();
                    if live.generation == generation {
                        (live.connection, live.moved) = (None, Some(addr));
                    }
                    return Err(Failed::Moved);
                }
                Failed::from(&error)
            }
            Err(_) => LimiterError::TimedOut { reason: format!("no answer within {CALL_TIMEOUT:?}") }.into(),
        };
        if !matches!(failed, Failed::NoScript | Failed::Error(LimiterError::Refused { .. })) {
            // Not worth keeping: dropped, demoted, or stuck behind whatever the server is doing.
            let mut live = self.lock();
            if live.generation == generation {
                live.connection = None;
            }
        }
        Err(failed)
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), LimiterError> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let mut last = self.inner.connecting.lock().await;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        if let Some(failure) = last.as_ref().filter(|f| f.at.elapsed() < RECONNECT_GAP) {
            return Err(failure.error.clone());
        }
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut error = LimiterError::Unreachable { reason: "no address".into() };
        // Another node may answer, and knows where the keys are now.
        for _ in 0..=self.inner.nodes.len() {
            match tokio::time::timeout_at(deadline.into(), self.connect()).await {
                Ok(Ok(connection)) => {
                    *last = None;
                    let mut live = self.lock();
                    live.generation += 1;
                    live.connection = Some(connection.clone());
                    return Ok((connection, live.generation));
                }
                Ok(Err(failed)) => error = LimiterError::Unreachable { reason: describe(&failed) },
                Err(_) => error = LimiterError::Unreachable { reason: format!("no connection within {CONNECT_TIMEOUT:?}") },
            }
            let mut live = self.lock();
            if live.moved.take().is_none() {
                live.turn += 1;
            }
            if self.inner.nodes.len() == 1 || Instant::now() >= deadline {
                break;
            }
        }
        *last = Some(Failure { at: Instant::now(), error: error.clone() });
        Err(error)
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(CONNECT_TIMEOUT));
        self.next_node()?.get_multiplexed_async_connection_with_config(&config).await
    }

    fn next_node(&self) -> RedisResult<Client> {
        let (moved, turn) = {
            let live = self.lock();
            (live.moved.clone(), live.turn)
        };
        let node = self.inner.nodes[turn % self.inner.nodes.len()].clone();
        let node = match moved {
            Some(addr) => node.set_addr(addr),
            None => node,
        };
        open(node, self.inner.ca_pem.clone())
    }

    /// The address that a node of the Cluster gave of another, reached in the same way.
    fn node(&self, named: &str) -> Option<ConnectionAddr> {
        let (host, port) = named.rsplit_once(':')?;
        let (host, port) = (host.trim_matches(['[', ']']), port.parse().ok()?);
        let turn = self.lock().turn;
        match self.inner.nodes[turn % self.inner.nodes.len()].addr() {
            ConnectionAddr::Tcp(same, _) => {
                Some(ConnectionAddr::Tcp(if host.is_empty() { same.clone() } else { host.to_owned() }, port))
            }
            ConnectionAddr::TcpTls { host: same, insecure, tls_params, .. } => Some(ConnectionAddr::TcpTls {
                host: if host.is_empty() { same.clone() } else { host.to_owned() },
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            }),
            _ => None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Live> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> Option<(MultiplexedConnection, u64)> {
        let live = self.lock();
        live.connection.clone().map(|c| (c, live.generation))
    }
}

/// Nothing is sent yet.
fn open(node: ConnectionInfo, ca_pem: Option<Vec<u8>>) -> RedisResult<Client> {
    match ca_pem {
        Some(pem) if matches!(node.addr(), ConnectionAddr::TcpTls { .. }) => {
            Client::build_with_tls(node, TlsCertificates { client_tls: None, root_cert: Some(pem) })
        }
        _ => Client::open(node),
    }
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client knows the password.
        f.debug_struct("RedisClient").field("tag", &self.inner.tag).finish_non_exhaustive()
    }
}

/// A script and its name on the server.
pub(crate) struct Script {
    code: &'static str,
    hashed: ::redis::Script,
}

impl Script {
    pub(crate) fn new(code: &'static str) -> Self {
        Script { code, hashed: ::redis::Script::new(code) }
    }

    fn hash(&self) -> &str {
        self.hashed.get_hash()
    }
}

pub(crate) enum Failed {
    NoScript,
    /// Another node of the Cluster has the keys, and is known now.
    Moved,
    Error(LimiterError),
}

impl From<LimiterError> for Failed {
    fn from(error: LimiterError) -> Self {
        Failed::Error(error)
    }
}

impl From<Failed> for LimiterError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Error(error) => error,
            Failed::NoScript => LimiterError::Refused { reason: "the server forgets its scripts".into() },
            Failed::Moved => LimiterError::Unreachable { reason: "the Cluster moves its keys".into() },
        }
    }
}

impl From<&RedisError> for Failed {
    fn from(error: &RedisError) -> Self {
        let reason = describe(error);
        let error = match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => return Failed::NoScript,
            // Refused before anything ran; another moment, or the next master, will take it.
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask,
            ) => LimiterError::Unreachable { reason },
            _ if matches!(error.code(), Some("OOM" | "BUSY" | "NOREPLICAS" | "MISCONF" | "NOAUTH" | "WRONGPASS")) => {
                LimiterError::Unreachable { reason }
            }
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Client | ErrorKind::UnexpectedReturnType => {
                LimiterError::Refused { reason }
            }
            _ => LimiterError::TimedOut { reason },
        };
        Failed::Error(error)
    }
}

/// What happened, without addresses or anything a user sent.
fn describe(error: &RedisError) -> String {
    if let ErrorKind::Server(_) | ErrorKind::Extension = error.kind() {
        // The server's own words; a script's error names a line of it.
        let detail = printable(error.detail().unwrap_or_default());
        let mut text = format!("{}: {detail}", error.code().unwrap_or("no code"));
        // What a script lacks has no code of its own: 7.0's words, and those since.
        let in_script = ["executing the script can't", "ACL failure"].iter().any(|words| detail.contains(words));
        if error.code() == Some("NOPERM") || in_script {
            text.push_str("; docs/redis.md has the line that gives a user what it needs");
        }
        return text;
    }
    let text = error.category();
    if error.is_connection_refusal() {
        format!("{text} (connection refused)")
    } else if error.is_timeout() {
        format!("{text} (timed out)")
    } else if error.is_connection_dropped() {
        format!("{text} (connection lost)")
    } else if let Some(source) = std::error::Error::source(error) {
        // The system's or the TLS library's words, e.g. about a certificate; they name no address.
        format!("{text}: {}", printable(&source.to_string()))
    } else {
        text.to_owned()
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(160).collect()
}

fn unexpected() -> LimiterError {
    LimiterError::Refused { reason: "the server's reply has an unexpected type".into() }
}
