//! The services that configuration names, connected.

use std::{path::PathBuf, sync::Arc, time::Duration};

use paceline_broker::{
    Broker, Topology,
    rabbitmq::{self, RabbitMq},
    spool::{self, Spool},
};
use paceline_control::{BearerToken, lanes::Lanes};
use paceline_dlq::AutoSuppress;
use paceline_limiter::{
    Limiter,
    degraded::{Guarded, GuardedLedger, Mode},
    fleet::{FileReports, Fleet, LocalFleet, LocalReports, RedisReports, Reports},
    ledger::{Ledger, LocalLedger, RedisLedger, SqliteLedger},
    local::LocalLimiter,
    redis::RedisClient,
    signals::{LocalSignals, RedisSignals, Signals},
};
use paceline_store::{Options, PostgresStore, SqliteStore, Store};
use tokio::sync::watch;

use crate::{
    config::{Address, BrokerUrl, Config, LimitsUrl, StoreUrl},
    quotas,
};

/// Why a service cannot be set up from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("broker.url: {0}")]
    Broker(#[from] rabbitmq::BadAddress),
    #[error("broker.url: {0}")]
    Spool(#[from] spool::OpenError),
    #[error("limits.url: {0}")]
    Limits(#[from] paceline_limiter::LimiterError),
    #[error("store.url: {0}")]
    Store(#[from] paceline_store::Error),
}

/// The broker, connecting in the background. `role` is shown in RabbitMQ's list of connections.
pub fn broker(config: &Config, role: &str) -> Result<Arc<dyn Broker>, ServiceError> {
    let prefix = config.broker.prefix.clone();
    match &config.broker.url {
        BrokerUrl::RabbitMq(addresses) => {
            let urls = addresses.iter().map(|u| u.expose().to_owned()).collect();
            Ok(Arc::new(RabbitMq::start(rabbitmq::Options { urls, prefix, name: format!("paceline {role}") })?))
        }
        BrokerUrl::Spool(path) => Ok(Arc::new(Spool::open(spool::Options { path: path.clone(), prefix })?)),
    }
}

/// What must exist on the broker.
pub fn topology(config: &Config) -> Topology {
    let destinations = config.destinations.iter().map(|d| (d.name.as_str(), d.domains.iter().map(|d| d.as_str())));
    Topology::new(&config.broker.prefix, destinations)
}

/// What the fleet shares: limits, claims, who is alive, what was learnt.
pub struct Shared {
    pub limiter: Arc<dyn Limiter>,
    pub ledger: Arc<dyn Ledger>,
    pub fleet: Arc<dyn Fleet>,
    pub signals: Arc<dyn Signals>,
    /// Whether the worker sees what the fleet shares; `None` where nothing is shared.
    pub mode: Option<watch::Receiver<Mode>>,
}

/// Claims made without Redis are remembered for so long beyond the longest time without it.
const OWN_CLAIMS: Duration = Duration::from_secs(300);

/// The shared state, connecting on first use. A file of claims belongs to one worker at a time: it is opened by the one
/// that consumes.
pub fn shared(config: &Config, worker_id: &str, store: &Arc<dyn Store>) -> Result<Shared, ServiceError> {
    let window = config.dedup.window;
    Ok(match &config.limits.url {
        LimitsUrl::Local { claims } => Shared {
            limiter: Arc::new(LocalLimiter::new()),
            ledger: match claims {
                Some(path) => Arc::new(SqliteLedger::open(path, window)?),
                None => Arc::new(LocalLedger::new(window)),
            },
            fleet: Arc::new(LocalFleet::new()),
            signals: Arc::new(LocalSignals::new()),
            mode: None,
        },
        LimitsUrl::Redis(urls) => {
            let client = redis(config, urls)?;
            let memory = quotas::memory(store.clone());
            let guarded = Arc::new(Guarded::start(client.clone(), worker_id, config.limits.away, Some(memory)));
            let ledger = RedisLedger::new(client.clone(), window);
            Shared {
                signals: Arc::new(RedisSignals::new(client)),
                ledger: Arc::new(GuardedLedger::new(ledger, guarded.mode(), config.limits.away + OWN_CLAIMS)),
                mode: Some(guarded.mode()),
                limiter: guarded.clone(),
                fleet: guarded,
            }
        }
    })
}

fn redis(config: &Config, urls: &[Address]) -> Result<RedisClient, ServiceError> {
    let urls: Vec<&str> = urls.iter().map(|u| u.expose()).collect();
    Ok(RedisClient::of(&urls, config.limits.ca_pem.clone(), &config.broker.prefix)?)
}

/// Where workers report. Beside a spool it is a file, since other processes cannot look into the one that consumes it.
pub fn reports(config: &Config) -> Result<Arc<dyn Reports>, ServiceError> {
    if let BrokerUrl::Spool(path) = &config.broker.url {
        let mut beside = path.clone().into_os_string();
        beside.push(".lanes");
        return Ok(Arc::new(FileReports::at(PathBuf::from(beside))));
    }
    Ok(match &config.limits.url {
        LimitsUrl::Local { .. } => Arc::new(LocalReports::new()),
        LimitsUrl::Redis(urls) => Arc::new(RedisReports::new(redis(config, urls)?)),
    })
}

/// What of the lanes can be seen by this process. `consumes`: it is the one that consumes a spool, if there is a spool.
pub fn lanes(
    config: &Config,
    broker: &Arc<dyn Broker>,
    store: &Arc<dyn Store>,
    reports: &Arc<dyn Reports>,
    consumes: bool,
) -> Lanes {
    Lanes {
        broker: broker.clone(),
        reports: reports.clone(),
        orders: store.clone(),
        topology: topology(config),
        classifier: config.classifier.clone(),
        accounts: config.accounts.iter().map(|a| a.name.clone()).collect(),
        ready_holds_all: matches!(config.broker.url, BrokerUrl::Spool(_)) && !consumes,
    }
}

/// What callers of `/v1` show, where that is configured.
pub fn token(config: &Config) -> Option<BearerToken> {
    config.http.token.as_ref().and_then(|token| BearerToken::new(token.expose()))
}

/// What puts refused recipients on the suppression list, where that is to happen by itself.
pub fn auto_suppress(config: &Config, store: &Arc<dyn Store>) -> Option<AutoSuppress> {
    let list = || AutoSuppress { list: store.clone(), repeats: config.suppression.repeats };
    config.suppression.auto.then(list)
}

/// The store, connecting on first use.
pub fn store(config: &Config) -> Result<Arc<dyn Store>, ServiceError> {
    match &config.store.url {
        StoreUrl::Postgres(url) => Ok(Arc::new(PostgresStore::new(url.expose(), Options::default())?)),
        StoreUrl::Sqlite(path) => Ok(Arc::new(SqliteStore::at(path, Options::default()))),
    }
}
