//! `[broker]`, `[limits]`, `[store]`, `[http]`: what Paceline talks to and listens on.

use std::net::SocketAddr;

use paceline_core::Class;
use paceline_provider::Secret;

use super::{
    address::{self, Address, Read},
    section::Section,
    values,
};

/// `[broker]`
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// At least one; tried in turn.
    pub urls: Vec<Address>,
    /// What every name at the broker begins with.
    pub prefix: String,
    pub max_message_bytes: usize,
    /// Depth beyond which producers are refused, by class. Not in force yet.
    pub max_depth: [Option<u64>; 4],
}

/// `[limits]`
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    pub url: LimitsUrl,
    /// Part of every burst kept for critical mail, 0 to 0.9.
    pub reserve: f64,
    /// Part of every quota window kept for critical mail. Not in force yet.
    pub quota_reserve: f64,
}

/// Who keeps the limits.
#[derive(Debug, Clone)]
pub enum LimitsUrl {
    Redis(Address),
    /// The process itself: for a single worker.
    Local,
}

/// `[store]`
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub url: Address,
}

/// `[http]`
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    /// What callers of `/v1` must present.
    pub token: Option<Secret>,
}

pub(super) fn broker(s: &Section<'_>) -> Option<BrokerConfig> {
    let insecure = insecure(s);
    let read = |text: &str| secured(address::amqp(text)?, insecure);
    let listed = s.filled_list("url", |node| read(&values::text(node)?));
    let filed = s.file("url").map(|text| urls_of_file(s, &text, read));
    let default = || read(BROKER_URL).into_iter().collect();
    let urls = listed.or(filed).unwrap_or_else(default);
    let depth = s.section("max_depth");
    let max_depth = Class::ALL.map(|class| depth.get(class.as_str(), values::integer(1, i64::MAX as u64)));
    s.not_in_force("max_depth");
    depth.finish();
    Some(BrokerConfig {
        urls,
        prefix: s.or("prefix", "paceline".into(), values::name(false)),
        max_message_bytes: usize::try_from(s.or("max_message_bytes", 10 << 20, values::bytes(1024, 128 << 20))).ok()?,
        max_depth,
    })
}

const BROKER_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";
const LIMITS_URL: &str = "redis://127.0.0.1:6379";
const STORE_URL: &str = "postgres://postgres@127.0.0.1/paceline";
const LISTEN: &str = "127.0.0.1:8025";

/// One a line.
fn urls_of_file(s: &Section<'_>, text: &str, read: impl Fn(&str) -> Result<Address, String>) -> Vec<Address> {
    let one = |line: &str| read(line.trim()).map_err(|problem| s.report("url_file", problem)).ok();
    text.lines().filter_map(one).collect()
}

pub(super) fn limits(s: &Section<'_>) -> Option<LimitsConfig> {
    let insecure = insecure(s);
    let read = |text: &str| match address::redis(text)? {
        None => Ok(LimitsUrl::Local),
        Some(read) => secured(read, insecure).map(LimitsUrl::Redis),
    };
    let url = one_url(s, LIMITS_URL, read);
    let reserve = s.or("reserve", 0.2, values::number(0.0, 0.9));
    let quota_reserve = s.or("quota_reserve", 0.05, values::number(0.0, 0.9));
    s.not_in_force("quota_reserve");
    Some(LimitsConfig { url: url?, reserve, quota_reserve })
}

pub(super) fn store(s: &Section<'_>) -> Option<StoreConfig> {
    let insecure = insecure(s);
    let url = one_url(s, STORE_URL, |text| secured(address::postgres(text)?, insecure))?;
    Some(StoreConfig { url })
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
