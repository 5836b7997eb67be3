//! One file a command.

pub mod check_config;
pub mod classify;
pub mod control;
pub mod dlq;
mod lines;
pub mod sandbox;
pub mod send;
pub mod topology;
pub mod worker;

use std::time::Duration;

use paceline_broker::Broker;

use crate::{config::Config, exit::Failure};

/// How long the broker may take to be there for a command that ends by itself.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// Waits for the broker; where it does not come, says which address was tried.
async fn broker_is_up(broker: &dyn Broker, config: &Config) -> Result<(), Failure> {
    broker.wait_until_up(UP_WITHIN).await.map_err(|e| {
        let addresses: Vec<_> = config.broker.urls.iter().map(ToString::to_string).collect();
        Failure::failed(format!("{e} (broker.url = {}): is RabbitMQ running there?", addresses.join(", ")))
    })
}
