//! `[broker]`, `[limits]`, `[store]`, `[http]`: what Paceline talks to and listens on.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use paceline_core::Class;
use paceline_provider::Secret;

use super::{
    address::{self, Address, Read},
    section::Section,
    values,
};

/// `[broker]`
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerConfig {
    pub url: BrokerUrl,
    /// What every name at the broker begins with.
    pub prefix: String,
    pub max_message_bytes: usize,
    /// Depth beyond which producers are refused, by class. Not in force yet.
    pub max_depth: [Option<u64>; 4],
}

/// Where mail waits.
#[derive(Debug, Clone, PartialEq)]
pub enum BrokerUrl {
    /// At least one address; tried in turn.
    RabbitMq(Vec<Address>),
    /// The embedded broker's database.
    Spool(PathBuf),
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BrokerUrl::RabbitMq(addresses) => {
                let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&shown.join(", "))
            }
            BrokerUrl::Spool(path) => write!(f, "spool:{}", path.display()),
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsConfig {
    pub url: LimitsUrl,
    /// Part of every burst kept for critical mail, 0 to 0.9.
    pub reserve: f64,
    /// Part of every quota window kept for critical mail, 0 to 0.9.
    pub quota_reserve: f64,
    /// How long a worker goes on by itself while Redis is away.
    pub away: Duration,
    /// Whose certificates Redis's is checked against over TLS, in PEM; the system's without.
    pub ca_pem: Option<Vec<u8>>,
}

/// Who keeps the limits.
#[derive(Debug, Clone, PartialEq)]
pub enum LimitsUrl {
    /// At least one address; several are nodes of one Cluster.
    Redis(Vec<Address>),
    /// The process itself: for a single worker.
    Local {
        /// The database of claims; without one they are kept in memory and forgotten at the end.
        claims: Option<PathBuf>,
    },
}

/// `[store]`
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    pub url: StoreUrl,
    /// How long dead letters are kept; for ever without.
    pub retention: Option<Duration>,
}

/// Where dead letters are kept.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreUrl {
    Postgres(Address),
    /// The embedded store's database.
    Sqlite(PathBuf),
}

/// `[http]`
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    /// What callers of `/v1` must present.
    pub token: Option<Secret>,
}

pub(super) fn broker(s: &Section<'_>) -> Option<BrokerConfig> {
    let insecure = insecure(s);
    let read = |text: &str| match address::embedded(text, "spool") {
        Some(path) => Ok(One::Spool(s.path(&path?))),
        None => secured(address::amqp(text)?, insecure).map(One::RabbitMq),
    };
    let given = s.has_secret("url");
    let listed = s.filled_list("url", |node| read(&values::text(node)?));
    let filed = s.file("url").map(|text| urls_of_file(s, &text, read));
    let default = || read(BROKER_URL).into_iter().collect();
    let urls: Vec<One> = listed.or(filed).unwrap_or_else(default);
    let url = match urls.as_slice() {
        [One::Spool(path)] => BrokerUrl::Spool(path.clone()),
        several => {
            let addresses = several.iter().filter_map(|one| match one {
                One::RabbitMq(address) => Some(address.clone()),
                One::Spool(_) => {
                    let at = if s.has("url") || !given { "url" } else { "url_file" };
                    s.report(at, "a spool stands alone: give one `spool:` or addresses of RabbitMQ");
                    None
                }
            });
            BrokerUrl::RabbitMq(addresses.collect())
        }
    };
    let depth = s.section("max_depth");
    let max_depth = Class::ALL.map(|class| depth.get(class.as_str(), values::integer(1, i64::MAX as u64)));
    s.not_in_force("max_depth");
    depth.finish();
    Some(BrokerConfig {
        url,
        prefix: s.or("prefix", "paceline".into(), values::name(false)),
        max_message_bytes: usize::try_from(s.or("max_message_bytes", 10 << 20, values::bytes(1024, 128 << 20))).ok()?,
        max_depth,
    })
}

enum One {
    RabbitMq(Address),
    Spool(PathBuf),
}

const BROKER_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";
const LIMITS_URL: &str = "redis://127.0.0.1:6379";
const STORE_URL: &str = "postgres://postgres@127.0.0.1/paceline";
const LISTEN: &str = "127.0.0.1:8025";

/// One a line.
fn urls_of_file<T>(s: &Section<'_>, text: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    let one = |line: &str| read(line.trim()).map_err(|problem| s.report("url_file", problem)).ok();
    text.lines().filter_map(one).collect()
}

/// `broker` says where claims go that have no place of their own: beside the spool.
pub(super) fn limits(s: &Section<'_>, broker: Option<&BrokerUrl>) -> Option<LimitsConfig> {
    let insecure = insecure(s);
    let beside = match broker {
        Some(BrokerUrl::Spool(spool)) => Some(claims_beside(spool)),
        _ => None,
    };
    let read = |text: &str| match address::embedded(text, "local") {
        Some(_) if text == "local:" => Ok(LimitsUrl::Local { claims: beside.clone() }),
        Some(path) => Ok(LimitsUrl::Local { claims: Some(s.path(&path?)) }),
        None => secured(address::redis(text)?, insecure).map(|a| LimitsUrl::Redis(vec![a])),
    };
    let given = s.has_secret("url");
    let listed = s.filled_list("url", |node| read(&values::text(node)?));
    let filed = s.file("url").map(|text| urls_of_file(s, &text, read));
    let default = || if given { Vec::new() } else { read(LIMITS_URL).into_iter().collect() };
    let several: Vec<LimitsUrl> = listed.or(filed).unwrap_or_else(default);
    let url = several.into_iter().reduce(|all, one| match (all, one) {
        (LimitsUrl::Redis(mut all), LimitsUrl::Redis(one)) => {
            all.extend(one);
            LimitsUrl::Redis(all)
        }
        (all, _) => {
            s.report(
                if s.has("url") { "url" } else { "url_file" },
                "local: stands alone: give one, or addresses of one Redis Cluster",
            );
            all
        }
    });
    if let Some(LimitsUrl::Local { claims: None }) = url {
        s.warn_self(
            "local: without a path keeps claims in memory: what was under way when the process ends may be sent twice; \
             write local:./claims.db to keep them",
        );
    }
    let reserve = s.or("reserve", 0.2, values::number(0.0, 0.9));
    let quota_reserve = s.or("quota_reserve", 0.05, values::number(0.0, 0.9));
    let away = s.or("away", Duration::from_secs(120), values::duration(Duration::ZERO, Duration::from_secs(86_400)));
    let ca_pem = s.file("ca").map(String::into_bytes);
    Some(LimitsConfig { url: url?, reserve, quota_reserve, away, ca_pem })
}

/// `paceline.db` → `paceline.claims.db`.
fn claims_beside(spool: &Path) -> PathBuf {
    spool.with_extension("claims.db")
}

pub(super) fn store(s: &Section<'_>) -> Option<StoreConfig> {
    let insecure = insecure(s);
    let retention = s.get("retention", values::duration(Duration::from_secs(3600), Duration::from_secs(3650 * 86_400)));
    let url = one_url(s, STORE_URL, |text| match address::embedded(text, "sqlite") {
        Some(path) => Ok(StoreUrl::Sqlite(s.path(&path?))),
        None => secured(address::postgres(text)?, insecure).map(StoreUrl::Postgres),
    })?;
    Some(StoreConfig { url, retention })
}

pub(super) fn http(s: &Section<'_>) -> Option<HttpConfig> {
    let listen = s.or("listen", LISTEN.to_owned(), |node| {
        let text = values::text(node)?;
        text.parse::<SocketAddr>()
            .map(|_| text)
            .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8025 or 0.0.0.0:8025".to_owned())
    });
    let token = s.secret("token");
    Some(HttpConfig { listen: listen.parse().ok()?, token })
}

fn insecure(s: &Section<'_>) -> bool {
    s.or("insecure", false, values::boolean)
}

fn one_url<T>(s: &Section<'_>, default: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    let given = s.has_secret("url");
    let text = match s.text_or_file("url") {
        Some(text) => text,
        None if given => return None,
        None => default.to_owned(),
    };
    match read(&text) {
        Ok(value) => Some(value),
        Err(problem) => {
            s.report(if s.has("url") { "url" } else { "url_file" }, problem);
            None
        }
    }
}

/// Refuses what would cross a network in the clear, unless the section says so itself.
fn secured(read: Read, insecure: bool) -> Result<Address, String> {
    match read.exposed {
        Some(why) if !insecure => Err(format!("{why}, or say `insecure = true` beside it")),
        _ => Ok(read.address),
    }
}
