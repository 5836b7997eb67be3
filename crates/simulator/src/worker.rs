//! A real worker on simulated services.

use std::{sync::Arc, time::Duration};

use paceline_classifier::{Classifier, DestinationSpec, Destinations, Routes};
use paceline_consumer::{Account, Deps, Destination, FlowSettings, Limit, Metrics, Named, Settings, Worker, World};
use paceline_core::{Class, Domain, Policy, Rate, RetryPolicy, SuppressionSet, Timestamp, circuit::CircuitPolicy};
use tokio::sync::watch;

use crate::{
    chance::Chance,
    ports::{Ports, Through},
    scenario::{self, Scenario},
};

/// Where names at the broker begin.
pub(crate) const PREFIX: &str = "paceline";

/// What every worker of a run is told.
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) classifier: Arc<Classifier>,
    tail: Limit,
}

impl Plan {
    /// # Errors
    /// Says what is wrong with the destinations.
    pub(crate) fn new(scenario: Scenario) -> Result<Plan, String> {
        let spec = |d: &scenario::Destination| DestinationSpec {
            name: d.name.clone(),
            domains: d.domains.iter().filter_map(|text| Domain::parse(text).ok()).collect(),
        };
        let destinations = Destinations::new(scenario.destinations.iter().map(spec).collect())
            .map_err(|e| e.0.into_iter().map(|p| p.problem).collect::<Vec<_>>().join("; "))?;
        let tail = match scenario.tail {
            Some(tail) => limit(tail.rate, tail.burst),
            None => Limit { rate: "300/h".parse().map_err(|e| format!("{e}"))?, burst: 20 },
        };
        Ok(Plan { scenario, classifier: Arc::new(Classifier::new(vec![], destinations)), tail })
    }

    /// Starts the worker so named, `now` on the simulation's clock.
    pub(crate) fn start(&self, name: &str, ports: Ports, now: Timestamp, chance: &mut Chance) -> Worker {
        let ports = Arc::new(ports);
        let s = &self.scenario;
        let timeout = s.fleet.total_timeout.0;
        let account = |a: &scenario::Account| Account {
            name: a.name.as_str().into(),
            provider: Arc::new(Through { ports: ports.clone(), account: a.name.clone(), classifier: self.classifier.clone() }),
            limit: a.rate.map(|r| limit(r, a.burst)),
            max_rate: a.max_rate,
            adaptive: s.fleet.adaptive,
            warmup: None,
            quota: a.quota.clone(),
            concurrency: s.fleet.concurrency,
            fleet_concurrency: a.concurrency,
            total_timeout: timeout,
            batch: 1,
            batch_wait: Duration::ZERO,
        };
        let destination = |d: &scenario::Destination| Destination {
            name: d.name.as_str().into(),
            limit: d.rate.map(|r| limit(r, d.burst)),
            max_rate: d.max_rate,
            warmup_start: None,
            fleet: d.fleet_rate.map(|r| limit(r, d.fleet_burst)),
            quota: d.quota.clone(),
            concurrency: d.concurrency,
        };
        let named = |n: &scenario::Named| Named {
            name: n.name.as_str().into(),
            limit: n.rate.map(|r| limit(r, n.burst)),
            quota: n.quota.clone(),
        };
        let recipient = s.recipient.as_ref().map(|r| Named {
            name: "".into(),
            limit: r.rate.map(|rate| limit(rate, r.burst)),
            quota: r.quota.clone(),
        });
        Worker::start(Deps {
            broker: ports.clone(),
            limiter: ports.clone(),
            ledger: ports.clone(),
            fleet: ports.clone(),
            signals: ports.clone(),
            keep: None,
            classifier: self.classifier.clone(),
            cancels: watch::Sender::default().subscribe(),
            directives: watch::Sender::default().subscribe(),
            suppressions: watch::Sender::new(Arc::new(SuppressionSet::new(1, true))).subscribe(),
            metrics: Metrics::default(),
            world: World::simulated(now, chance.next()),
            settings: Settings {
                worker_id: name.into(),
                prefix: PREFIX.into(),
                accounts: s.accounts.iter().map(account).collect(),
                destinations: s.destinations.iter().map(destination).collect(),
                routes: Routes::all(s.accounts.iter().map(|a| a.name.as_str())),
                tail: self.tail,
                tenants: s.tenants.iter().map(named).collect(),
                senders: s.senders.iter().map(named).collect(),
                recipient,
                reserve: s.limits.reserve,
                quota_reserve: s.limits.quota_reserve,
                policy: policy(&s.retry),
                circuit: CircuitPolicy::default(),
                concurrency: s.fleet.concurrency,
                held_bytes: s.fleet.held_bytes,
                max_message_bytes: 10 << 20,
                flows: FlowSettings::default(),
                drain_grace: timeout + Duration::from_secs(1),
            },
        })
    }
}

fn limit(rate: Rate, burst: Option<u32>) -> Limit {
    Limit { rate, burst: burst.unwrap_or(rate.one_second()) }
}

pub(crate) fn policy(given: &scenario::Retry) -> Policy {
    let usual = Policy::default();
    Policy::new(Class::ALL.map(|class| {
        let d = usual.of(class);
        RetryPolicy {
            attempts: given.attempts.unwrap_or(d.attempts),
            base: given.base.map_or(d.base, |s| s.0),
            max: given.max.map_or(d.max, |s| s.0),
            max_age: given.max_age.map_or(d.max_age, |s| s.0),
        }
    }))
}
