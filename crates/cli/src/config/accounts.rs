//! `[[account]]`: one credentialed provider account each.

use std::time::Duration;

use paceline_control::feedback::Scheme;
use paceline_core::{Domain, Rate};
use paceline_provider::{HttpSettings, Settings};

use super::{
    feedback::feedback,
    providers::{CREDENTIALS, provider},
    section::Section,
    shaping::{Limit, limit, max_rate, quota},
    values,
};

/// One `[[account]]`
#[derive(Debug, Clone)]
pub struct Account {
    pub name: String,
    pub provider: Settings,
    pub http: HttpSettings,
    /// `None`: the account has no rate of its own.
    pub limit: Option<Limit>,
    /// Ceiling of the adaptive rate; `limit`'s rate unless given.
    pub max_rate: Option<Rate>,
    /// Windows never exceeded.
    pub quota: Vec<Rate>,
    /// Calls at a time from one worker.
    pub concurrency: usize,
    /// Calls at a time from all workers together.
    pub fleet_concurrency: Option<u32>,
    /// Domains it may send from; empty: any.
    pub senders: Vec<Domain>,
    /// Most messages of one call.
    pub batch: usize,
    /// How long a granted message may wait for others to travel with.
    pub batch_wait: Duration,
    /// Whether rates follow what is refused, here and at its destinations.
    pub adaptive: bool,
    pub warmup: Option<Warmup>,
    /// How the events of its provider are known; none are taken without.
    pub feedback: Option<Scheme>,
}

/// `[account.warmup]`: a ceiling that rises from day to day.
#[derive(Debug, Clone, PartialEq)]
pub struct Warmup {
    pub start: Rate,
    /// What the rate is multiplied by each day.
    pub factor: f64,
    pub days: u32,
}

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

/// Servers count connections, used or not, and the fleet counts calls: where it shares a number of them, none is kept for
/// longer than the next call of the same worker takes to come when there is one (a grant is dated up to 0.1 s ahead).
const SHARED_IDLE: Duration = Duration::from_millis(250);

fn account(s: &Section<'_>) -> Option<Account> {
    let name = s.need("name", values::name(true));
    let mut provider = provider(s);
    let defaults = HttpSettings::default();
    let time = || values::duration(Duration::from_millis(10), Duration::from_secs(600));
    let most = match &provider {
        // More calls than connections would only wait for each other.
        Some(Settings::Smtp(smtp)) => u32::try_from(smtp.max_connections).unwrap_or(64),
        _ => 64,
    };
    let fleet_concurrency = s.get("concurrency", values::integer32(1, 10_000));
    let concurrency = match &mut provider {
        Some(Settings::Smtp(smtp)) => {
            if fleet_concurrency.is_some() {
                smtp.max_idle = SHARED_IDLE;
            }
            fleet_concurrency.map_or(most, |n| n.min(most))
        }
        _ => fleet_concurrency.unwrap_or(most),
    };
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
    let max_rate = max_rate(s, limit);
    let adaptive = s.or("adaptive", true, values::boolean);
    let quota = quota(s);
    let senders = s.filled_list("senders", values::domain).unwrap_or_default();
    let batch = s.or("batch", 1, values::integer32(1, 1000)) as usize;
    // A grant is of use for a tenth of a second.
    let wait = values::duration(Duration::ZERO, Duration::from_millis(50));
    let batch_wait = s.or("batch_wait", Duration::from_millis(20), wait);
    if batch == 1 && s.has("batch_wait") {
        s.report("batch_wait", "has no effect without `batch`");
    }
    let warmup = warmup(&s.section("warmup"));
    let feedback = feedback(s);
    Some(Account {
        name: name?,
        provider: provider?,
        http,
        limit,
        max_rate,
        adaptive,
        quota,
        concurrency: concurrency as usize,
        fleet_concurrency,
        senders,
        batch,
        batch_wait,
        warmup,
        feedback,
    })
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
