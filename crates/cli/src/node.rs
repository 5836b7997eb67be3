//! A worker put together: with the broker on RabbitMQ one pod of the fleet, with a spool the whole system in one process.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, RwLock},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use paceline_broker::{Broker, State};
use paceline_consumer::{Account, Deps, Destination, Drained, FlowSettings, Limit, Metrics, Named, Settings, Worker, World};
use paceline_control::{Check, Readiness, SharedRegistry, health_router, serve};
use paceline_core::warmup::Warmup;
use paceline_limiter::{degraded::Mode, fleet::Reports};
use paceline_provider::Provider;
use paceline_store::Store;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Registry,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, BrokerUrl, Config},
    exit::Failure,
    feedback, follow, lanes, learnt, orders, services, suppressions,
};

/// How long a worker waits at its start for what operators have ordered: pauses, limits, and the suppression list once
/// nothing more of it comes.
const ORDERS_PATIENCE: Duration = Duration::from_secs(5);

/// A running worker and what stands around it.
///
/// A spool has one consuming process, so its worker is its control plane too: it writes dead letters, watches depths and
/// carries replays on.
pub struct Node {
    id: String,
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    registry: SharedRegistry,
    http_addr: SocketAddr,
    worker: Worker,
    reports: Arc<dyn Reports>,
    /// What is in force, and its accounts.
    config: Config,
    accounts: Vec<Account>,
    helpers: Vec<JoinHandle<()>>,
    http: JoinHandle<std::io::Result<()>>,
    shutdown: CancellationToken,
}

impl Node {
    /// Declares the topology, waiting for a broker that is away, and starts consuming. HTTP answers before that.
    pub async fn start(config: &Config) -> Result<Node, Failure> {
        if config.accounts.is_empty() {
            return Err(Failure::usage("no [[account]] is configured: a worker needs at least one to send through"));
        }
        let id = config.worker.id.clone().unwrap_or_else(worker_id);
        let broker = services::broker(config, &format!("worker {id}"))?;
        let store = services::store(config)?;
        let topology = services::topology(config);
        let accounts = config.accounts.iter().map(account).collect::<Result<Vec<_>, _>>()?;
        let alone = matches!(config.broker.url, BrokerUrl::Spool(_));
        if alone {
            broker.apply(&topology).await?;
            // From the first consumer on this process is the one that consumes; where another does, this is the time to say so.
            drop(broker.consume(&topology.names.intake(), 1).await?);
        }
        let shared = services::shared(config, &id, &store)?;
        let reports = services::reports(config)?;
        let suppressed = suppressions::follow(store.clone(), config.suppression.critical_through_soft);

        let mut registry = Registry::default();
        let prefixed = registry.sub_registry_with_prefix("paceline");
        let metrics = Metrics::register(prefixed);
        Metrics::register_broker(prefixed, broker.clone());
        suppressions::register(prefixed, suppressed.list.clone());
        if let Some(mode) = &shared.mode {
            prefixed.register_collector(Box::new(Degraded(mode.clone())));
        }
        let registry: SharedRegistry = Arc::new(RwLock::new(registry));
        let (limits_sender, limits) = watch::channel(Some("not asked yet".to_owned()));
        let (topology_sender, topology_state) = watch::channel(Some("not declared yet".to_owned()));
        let suppressions_state = suppressed.state.clone();
        let readiness = Arc::new(WorkerReadiness {
            broker: broker.state(),
            topology: topology_state,
            limits,
            mode: shared.mode.clone(),
            suppressions: suppressions_state,
        });

        let listener = TcpListener::bind(config.http.listen)
            .await
            .map_err(|e| Failure::failed(format!("http.listen: cannot listen on {}: {e}", config.http.listen)))?;
        let http_addr = listener.local_addr()?;
        let shutdown = CancellationToken::new();
        let http = if alone {
            tokio::spawn(paceline_control::run(
                paceline_control::Deps {
                    broker: broker.clone(),
                    store: store.clone(),
                    topology: topology.clone(),
                    listener,
                    registry: registry.clone(),
                    also: Some(readiness),
                    with_worker: true,
                    retention: config.store.retention,
                    auto_suppress: services::auto_suppress(config, &store),
                    feedback: feedback::feedback(config, &store)?,
                    lanes: services::lanes(config, &broker, &store, &reports, true),
                    token: services::token(config),
                },
                shutdown.clone(),
            ))
        } else {
            tokio::spawn(serve(listener, health_router(readiness, registry.clone()), shutdown.clone()))
        };

        tracing::info!(worker = id, accounts = accounts.len(), "worker starting");
        let declare = || async { broker.apply(&topology).await };
        let backoff =
            ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_delay(Duration::from_secs(1));
        let applied = declare
            .retry(backoff.without_max_times().with_jitter())
            .notify(|error, _| {
                tracing::warn!(%error, "the topology cannot be declared; trying again");
                topology_sender.send_replace(Some(error.to_string()));
            })
            .await?;
        tracing::info!(changed = !applied.nothing_changed(), "topology in place");
        topology_sender.send_replace(None);

        let cancels = orders::cancels(store.clone());
        let directives = orders::directives(store.clone());
        if !follow::known(directives.known.clone(), ORDERS_PATIENCE).await {
            tracing::warn!("pauses and operators' limits are not known yet; mail goes out as configured until they are");
        }
        if !suppressions::known(suppressed.state, ORDERS_PATIENCE).await {
            tracing::warn!("the suppression list is not known yet; mail goes out unchecked until it is");
        }
        let worker = Worker::start(Deps {
            broker: broker.clone(),
            limiter: shared.limiter,
            ledger: shared.ledger,
            fleet: shared.fleet,
            signals: shared.signals,
            keep: Some(learnt::keep(store.clone())),
            classifier: config.classifier.clone(),
            cancels: cancels.orders,
            suppressions: suppressed.list,
            directives: directives.orders,
            metrics,
            world: World::default(),
            settings: settings(config, &id, accounts.clone()),
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
        let reporting = tokio::spawn(lanes::report(worker.lanes(), reports.clone(), id.clone()));
        tracing::info!(worker = id, "worker started");
        Ok(Node {
            id,
            broker,
            store,
            registry,
            http_addr,
            worker,
            reports,
            config: config.clone(),
            accounts,
            helpers: vec![relay, cancels.task, directives.task, suppressed.task, reporting],
            http,
            shutdown,
        })
    }

    /// This worker's name in the fleet.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn registry(&self) -> &SharedRegistry {
        &self.registry
    }

    /// Where health and metrics are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Brings the limits and policies of a configuration that was read anew into force, and names what else has changed.
    pub fn reread(&mut self, config: &Config) {
        let (merged, left) = config::reread(&self.config, config);
        for what in &left {
            tracing::warn!("SIGHUP: changed in the configuration, but only a restart brings it into force: {what}");
        }
        // Their providers stay: connections, and what was learnt of them.
        let accounts =
            merged.accounts.iter().zip(&self.accounts).map(|(account, before)| limited(account, before.provider.clone()));
        self.accounts = accounts.collect();
        self.worker.reread(settings(&merged, &self.id, self.accounts.clone()));
        self.config = merged;
        tracing::info!(left = left.len(), "SIGHUP: the configuration's limits are in force");
    }

    /// Gives back what was not begun, lets calls under way finish within `worker.drain_grace`, writes the last acks and
    /// dead letters, and ends.
    pub async fn drain(self) -> Drained {
        let drained = self.worker.drain().await;
        self.helpers.iter().for_each(JoinHandle::abort);
        lanes::withdraw(&*self.reports, &self.id).await;
        // The dead-letter writer acks at the broker: it ends before the broker does.
        self.shutdown.cancel();
        let _ = self.http.await;
        self.broker.close().await;
        drained
    }
}

fn account(account: &config::Account) -> Result<Account, Failure> {
    let agent = concat!("paceline/", env!("CARGO_PKG_VERSION"));
    let provider = paceline_provider::build(account.provider.clone(), &account.http, agent)
        .map_err(|e| Failure::usage(format!("account {}: {e}", account.name)))?;
    Ok(limited(account, provider))
}

fn limited(account: &config::Account, provider: Arc<dyn Provider>) -> Account {
    Account {
        name: account.name.as_str().into(),
        provider,
        limit: account.limit.map(limit),
        max_rate: account.max_rate,
        adaptive: account.adaptive,
        warmup: account.warmup.as_ref().map(|w| Warmup { start_per_s: w.start.as_per_second(), factor: w.factor, days: w.days }),
        quota: account.quota.clone(),
        concurrency: account.concurrency,
        fleet_concurrency: account.fleet_concurrency,
        total_timeout: account.http.total_timeout,
        batch: account.batch,
        batch_wait: account.batch_wait,
    }
}

fn limit(limit: config::Limit) -> Limit {
    Limit { rate: limit.rate, burst: limit.burst }
}

fn weights(tenants: &[config::NamedLimit]) -> HashMap<String, u32> {
    tenants.iter().filter(|t| t.weight > 1).map(|t| (t.name.to_lowercase(), t.weight)).collect()
}

fn named(named: &config::NamedLimit) -> Named {
    Named { name: named.name.as_str().into(), limit: named.limit.map(limit), quota: named.quota.clone() }
}

fn settings(config: &Config, id: &str, accounts: Vec<Account>) -> Settings {
    let destination = |d: &config::Destination| Destination {
        name: d.name.as_str().into(),
        limit: d.limit.map(limit),
        max_rate: d.max_rate,
        warmup_start: d.warmup_start,
        fleet: d.fleet.map(limit),
        quota: d.quota.clone(),
        concurrency: d.concurrency,
    };
    Settings {
        worker_id: id.into(),
        prefix: config.broker.prefix.as_str().into(),
        accounts,
        destinations: config.destinations.iter().map(destination).collect(),
        tail: limit(config.tail),
        routes: config.routes.clone(),
        tenants: config.tenants.iter().map(named).collect(),
        senders: config.senders.iter().map(named).collect(),
        recipient: config.recipient.as_ref().map(named),
        reserve: config.limits.reserve,
        quota_reserve: config.limits.quota_reserve,
        policy: config.retry.clone(),
        circuit: config.circuit,
        concurrency: config.worker.concurrency,
        held_bytes: config.worker.max_held_bytes,
        max_message_bytes: config.broker.max_message_bytes,
        flows: FlowSettings { weights: weights(&config.tenants), ..FlowSettings::default() },
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
    mode: Option<watch::Receiver<Mode>>,
    suppressions: watch::Receiver<suppressions::State>,
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
        let suppressions = self.suppressions.borrow().check();
        let mut limits = told("limits", &self.limits);
        // It still sends, or will again by itself: taking it out of service would help nobody.
        limits.detail = limits.detail.or_else(|| degraded(&self.mode).map(str::to_owned));
        vec![broker, told("topology", &self.topology), limits, suppressions]
    }
}

/// What is amiss with a worker that cannot see its Redis.
fn degraded(mode: &Option<watch::Receiver<Mode>>) -> Option<&'static str> {
    match *mode.as_ref()?.borrow() {
        Mode::Unknown | Mode::Shared => None,
        Mode::Quiet | Mode::Alone | Mode::Returning => Some("degraded: Redis is away; this worker goes on by its own share"),
        Mode::Over => Some("degraded: Redis has been away for too long; nothing is sent"),
    }
}

/// `paceline_limits_degraded`
#[derive(Debug)]
struct Degraded(watch::Receiver<Mode>);

impl Collector for Degraded {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let value = i64::from(!matches!(*self.0.borrow(), Mode::Unknown | Mode::Shared));
        let gauge = ConstGauge::new(value);
        let help = "Whether this worker goes on without the limits that the fleet shares";
        gauge.encode(encoder.encode_descriptor("limits_degraded", help, None, gauge.metric_type())?)
    }
}
