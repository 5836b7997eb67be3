//! `paceline worker`: one pod of the fleet.

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use paceline_broker::State;
use paceline_consumer::{Account, Deps, Destination, Limit, Metrics, Settings, Worker};
use paceline_control::{Check, Readiness, health_router, serve};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Config},
    exit::Failure,
    services, signals,
};

/// Runs until told to end, then drains.
pub async fn run(config: &Config) -> Result<(), Failure> {
    if config.accounts.is_empty() {
        return Err(Failure::usage("no [[account]] is configured: a worker needs at least one to send through"));
    }
    let id = config.worker.id.clone().unwrap_or_else(worker_id);
    let broker = services::broker(config, &format!("worker {id}"))?;
    let shared = services::shared(config)?;
    let topology = services::topology(config);
    let accounts = config.accounts.iter().map(account).collect::<Result<Vec<_>, _>>()?;

    let mut registry = Registry::default();
    let prefixed = registry.sub_registry_with_prefix("paceline");
    let metrics = Metrics::register(prefixed);
    Metrics::register_broker(prefixed, broker.clone());
    let (limits_sender, limits) = watch::channel(Some("not asked yet".to_owned()));
    let (topology_sender, topology_state) = watch::channel(Some("not declared yet".to_owned()));
    let readiness = WorkerReadiness { broker: broker.state(), topology: topology_state, limits };

    let listener = TcpListener::bind(config.http.listen)
        .await
        .map_err(|e| Failure::failed(format!("http.listen: cannot listen on {}: {e}", config.http.listen)))?;
    let shutdown = CancellationToken::new();
    let router = health_router(Arc::new(readiness), Arc::new(RwLock::new(registry)));
    let http = tokio::spawn(serve(listener, router, shutdown.clone()));

    tracing::info!(worker = id, accounts = accounts.len(), "worker starting");
    let mut signals = signals::Signals::new()?;
    let declare = || async { broker.apply(&topology).await };
    let backoff = ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_delay(Duration::from_secs(1));
    let declared = declare.retry(backoff.without_max_times().with_jitter()).notify(|error, _| {
        tracing::warn!(%error, "the topology cannot be declared; trying again");
        topology_sender.send_replace(Some(error.to_string()));
    });
    tokio::select! {
        declared = declared => {
            let applied = declared.map_err(|e| Failure::failed(e.to_string()))?;
            tracing::info!(changed = !applied.nothing_changed(), "topology in place");
            topology_sender.send_replace(None);
        }
        () = signals.end() => {
            shutdown.cancel();
            return Ok(());
        }
    }

    let worker = Worker::start(Deps {
        broker: broker.clone(),
        limiter: shared.limiter,
        ledger: shared.ledger,
        fleet: shared.fleet,
        classifier: config.classifier.clone(),
        metrics,
        settings: settings(config, &id, accounts),
    });
    let mut faults = worker.limits_fault();
    let relay = tokio::spawn(async move {
        loop {
            limits_sender.send_replace(faults.borrow_and_update().clone());
            if faults.changed().await.is_err() {
                return;
            }
        }
    });
    tracing::info!(worker = id, "worker started");
    signals.end().await;
    tracing::info!(grace_s = config.worker.drain_grace.as_secs(), "draining: no new mail is taken");
    let drained = tokio::select! {
        drained = worker.drain() => drained,
        () = signals.end() => return Err(Failure::failed("told twice to end: calls under way are abandoned")),
    };
    relay.abort();
    // Writes the last acks.
    broker.close().await;
    shutdown.cancel();
    let _ = http.await;
    if drained.unfinished > 0 {
        return Err(Failure::failed(format!("{} calls were still under way at the end of the grace period", drained.unfinished)));
    }
    tracing::info!("drained");
    Ok(())
}

fn account(account: &config::Account) -> Result<Account, Failure> {
    let agent = concat!("paceline/", env!("CARGO_PKG_VERSION"));
    let provider = paceline_provider::build(account.provider.clone(), &account.http, agent)
        .map_err(|e| Failure::usage(format!("account {}: {e}", account.name)))?;
    Ok(Account {
        name: account.name.as_str().into(),
        provider,
        limit: account.limit.map(limit),
        concurrency: account.concurrency,
        total_timeout: account.http.total_timeout,
    })
}

fn limit(limit: config::Limit) -> Limit {
    Limit { rate: limit.rate, burst: limit.burst }
}

fn settings(config: &Config, id: &str, accounts: Vec<Account>) -> Settings {
    let destination = |d: &config::Destination| Destination {
        name: d.name.as_str().into(),
        limit: d.limit.map(limit),
        fleet: d.fleet.map(limit),
    };
    Settings {
        worker_id: id.into(),
        prefix: config.broker.prefix.as_str().into(),
        accounts,
        destinations: config.destinations.iter().map(destination).collect(),
        tail: limit(config.tail),
        reserve: config.limits.reserve,
        policy: config.retry.clone(),
        concurrency: config.worker.concurrency,
        held_bytes: config.worker.max_held_bytes,
        max_message_bytes: config.broker.max_message_bytes,
        drain_grace: config.worker.drain_grace,
    }
}

/// Unlike that of any other live worker: host, process, and a part by chance.
fn worker_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(60).collect();
    let host = if host.is_empty() { "worker".to_owned() } else { host };
    format!("{host}-{}-{:06x}", std::process::id(), rand::random::<u32>() & 0xff_ffff)
}

struct WorkerReadiness {
    broker: watch::Receiver<State>,
    topology: watch::Receiver<Option<String>>,
    limits: watch::Receiver<Option<String>>,
}

impl Readiness for WorkerReadiness {
    fn checks(&self) -> Vec<Check> {
        let broker = match &*self.broker.borrow() {
            State::Up => Check::ok("broker"),
            State::Blocked { why, .. } => Check::failing("broker", format!("takes no messages: {why}")),
            State::Down { why, .. } => Check::failing("broker", why.clone()),
        };
        let told = |name, fault: &watch::Receiver<Option<String>>| match &*fault.borrow() {
            None => Check::ok(name),
            Some(why) => Check::failing(name, why.clone()),
        };
        vec![broker, told("topology", &self.topology), told("limits", &self.limits)]
    }
}
