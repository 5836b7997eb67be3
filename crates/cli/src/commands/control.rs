//! `paceline control`: dead-letter writer, health and metrics.

use std::sync::{Arc, RwLock};

use paceline_control::Deps;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{BrokerUrl, Config},
    exit::Failure,
    feedback, services, signals,
};

/// Runs until told to end.
pub async fn run(config: &Config) -> Result<(), Failure> {
    if let BrokerUrl::Spool(path) = &config.broker.url {
        return Err(Failure::usage(format!(
            "a spool's worker is its control process too: run `paceline worker` on {} and nothing beside it",
            path.display()
        )));
    }
    let broker = services::broker(config, "control")?;
    let store = services::store(config)?;
    let topology = services::topology(config);
    let listener = TcpListener::bind(config.http.listen)
        .await
        .map_err(|e| Failure::failed(format!("http.listen: cannot listen on {}: {e}", config.http.listen)))?;
    let registry = Arc::new(RwLock::new(Registry::default()));
    let shutdown = CancellationToken::new();
    let retention = config.store.retention;
    let auto_suppress = services::auto_suppress(config, &store);
    let feedback = feedback::feedback(config, &store)?;
    let lanes = services::lanes(config, &broker, &store, &services::reports(config)?, false);
    let deps = Deps {
        broker: broker.clone(),
        store,
        topology,
        listener,
        registry,
        also: None,
        with_worker: false,
        retention,
        auto_suppress,
        feedback,
        lanes,
        token: services::token(config),
    };
    let mut signals = signals::Signals::new()?;
    let control = paceline_control::run(deps, shutdown.clone());
    tokio::pin!(control);
    tracing::info!("control started");
    let ended = tokio::select! {
        ended = &mut control => ended,
        () = signals.end() => {
            tracing::info!("ending");
            shutdown.cancel();
            control.await
        }
    };
    broker.close().await;
    ended.map_err(|e| Failure::failed(format!("HTTP: {e}")))
}
