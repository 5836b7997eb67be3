//! The services that configuration names, connected.

use std::sync::Arc;

use paceline_broker::{
    Broker, Topology,
    rabbitmq::{self, RabbitMq},
};
use paceline_limiter::{
    Limiter,
    fleet::{Fleet, LocalFleet, RedisFleet},
    ledger::{Ledger, LocalLedger, RedisLedger},
    local::LocalLimiter,
    redis::{RedisClient, RedisLimiter},
};
use paceline_store::{Options, PostgresStore, Store};

use crate::config::{Config, LimitsUrl};

/// Why a service cannot be set up from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("broker.url: {0}")]
    Broker(#[from] rabbitmq::BadAddress),
    #[error("limits.url: {0}")]
    Limits(#[from] paceline_limiter::LimiterError),
    #[error("store.url: {0}")]
    Store(#[from] paceline_store::Error),
}

/// The broker, connecting in the background. `role` is shown in RabbitMQ's list of connections.
pub fn broker(config: &Config, role: &str) -> Result<Arc<dyn Broker>, ServiceError> {
    let options = rabbitmq::Options {
        urls: config.broker.urls.iter().map(|u| u.expose().to_owned()).collect(),
        prefix: config.broker.prefix.clone(),
        name: format!("paceline {role}"),
    };
    Ok(Arc::new(RabbitMq::start(options)?))
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

/// The shared state, connecting on first use.
pub fn shared(config: &Config) -> Result<Shared, ServiceError> {
    let window = config.dedup.window;
    Ok(match &config.limits.url {
        LimitsUrl::Local => Shared {
            limiter: Arc::new(LocalLimiter::new()),
            ledger: Arc::new(LocalLedger::new(window)),
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

/// The store, connecting on first use.
pub fn store(config: &Config) -> Result<Arc<dyn Store>, ServiceError> {
    Ok(Arc::new(PostgresStore::new(config.store.url.expose(), Options::default())?))
}
