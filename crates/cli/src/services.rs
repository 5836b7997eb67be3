//! The services that configuration names, connected.

use std::sync::Arc;

use paceline_broker::{
    Broker, Topology,
    rabbitmq::{self, RabbitMq},
    spool::{self, Spool},
};
use paceline_dlq::AutoSuppress;
use paceline_limiter::{
    Limiter,
    fleet::{Fleet, LocalFleet, RedisFleet},
    ledger::{Ledger, LocalLedger, RedisLedger, SqliteLedger},
    local::LocalLimiter,
    redis::{RedisClient, RedisLimiter},
};
use paceline_store::{Options, PostgresStore, SqliteStore, Store};

use crate::config::{BrokerUrl, Config, LimitsUrl, StoreUrl};

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

/// What the fleet shares: limits, claims, who is alive.
pub struct Shared {
    pub limiter: Arc<dyn Limiter>,
    pub ledger: Arc<dyn Ledger>,
    pub fleet: Arc<dyn Fleet>,
}

/// The shared state, connecting on first use. A file of claims belongs to one worker at a time: it is opened by the one
/// that consumes.
pub fn shared(config: &Config) -> Result<Shared, ServiceError> {
    let window = config.dedup.window;
    Ok(match &config.limits.url {
        LimitsUrl::Local { claims } => Shared {
            limiter: Arc::new(LocalLimiter::new()),
            ledger: match claims {
                Some(path) => Arc::new(SqliteLedger::open(path, window)?),
                None => Arc::new(LocalLedger::new(window)),
            },
            fleet: Arc::new(LocalFleet::new()),
        },
        LimitsUrl::Redis(url) => {
            let client = RedisClient::new(url.expose(), &config.broker.prefix)?;
            Shared {
                limiter: Arc::new(RedisLimiter::new(client.clone())),
                ledger: Arc::new(RedisLedger::new(client.clone(), window)),
                fleet: Arc::new(RedisFleet::new(client)),
            }
        }
    })
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
