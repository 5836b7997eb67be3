//! One file a command.

pub mod cancel;
pub mod check_config;
pub mod classify;
pub mod completions;
pub mod control;
pub mod demo;
pub mod dlq;
pub mod healthcheck;
pub mod lanes;
pub mod limits;
mod lines;
pub mod operator;
mod partial;
pub mod pause;
pub mod reply;
pub mod sandbox;
pub mod send;
pub mod simulate;
pub mod suppress;
pub mod topology;
pub mod worker;

use std::time::Duration;

use paceline_broker::Broker;

use crate::{
    config::{BrokerUrl, Config},
    exit::Failure,
};

/// How long the broker may take to be there for a command that ends by itself.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// Waits for the broker; where it does not come, says which address was tried.
async fn broker_is_up(broker: &dyn Broker, config: &Config) -> Result<(), Failure> {
    broker.wait_until_up(UP_WITHIN).await.map_err(|e| {
        let url = &config.broker.url;
        Failure::failed(match url {
            BrokerUrl::RabbitMq(_) => format!("{e} (broker.url = {url}): is RabbitMQ running there?"),
            BrokerUrl::Spool(_) => format!("{e} (broker.url = {url})"),
        })
    })
}
