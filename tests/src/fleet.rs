//! A whole fleet on services of its own.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use paceline_broker::{
    Broker,
    rabbitmq::{Options, RabbitMq as RabbitMqBroker},
};
use paceline_sandbox::{Handle, Options as SandboxOptions, Sandbox, Scenario};
use paceline_testkit::{Finished, Launch, Postgres, Process, RabbitMq, Redis};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Pod,
    arrivals::{self, Arrival},
    events::Events,
    until,
};

/// What differs from one scenario to the next; all of it TOML.
#[derive(Debug, Default, Clone, Copy)]
pub struct Plan<'a> {
    /// Provider and credentials of the one account, `main`; the sandbox unless given.
    pub provider: Option<&'a str>,
    /// Further keys of the one account.
    pub account: &'a str,
    /// Further keys of `[broker]`.
    pub broker: &'a str,
    /// Further sections; `@SANDBOX@` becomes the sandbox's address.
    pub more: &'a str,
    /// The sandbox's scenario.
    pub sandbox: &'a str,
}

/// Private RabbitMQ, Redis and PostgreSQL, a sandbox as SendGrid, and the means to start pods over them.
#[derive(Debug)]
pub struct Fleet {
    pub rabbitmq: RabbitMq,
    pub redis: Redis,
    pub postgres: Postgres,
    pub sandbox: Handle,
    pub broker_url: String,
    configuration: String,
    dir: TempDir,
    // Last: it is used by nothing above.
    broker: Connection,
}

struct Connection(Arc<dyn Broker>);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Fleet {
    /// Starts the services and declares the topology. No pod runs yet.
    pub async fn start(plan: Plan<'_>) -> Fleet {
        let (rabbitmq, redis, postgres) = tokio::join!(RabbitMq::start(), Redis::start(), Postgres::start());
        let dir = tempfile::Builder::new().prefix("paceline-fleet-").tempdir().unwrap();
        let broker_url = rabbitmq.vhost().await;
        let scenario = Scenario::from_toml(plan.sandbox).unwrap_or_else(|e| panic!("the sandbox's scenario: {e:?}"));
        let arrivals = Some(dir.path().join("arrivals.ndjson"));
        let options = SandboxOptions { scenario, arrivals, listen: None };
        let sandbox = Sandbox::start(options).await.unwrap();
        let mut configuration = String::new();
        let sandboxed =
            format!("provider = \"sendgrid\"\napi_key = \"SG.scenario\"\nbase_url = \"http://{}/@POD@\"", sandbox.addr());
        let _ = write!(
            configuration,
            "[broker]\nurl = \"{broker_url}\"\n{}\n\
             [limits]\nurl = \"{}\"\n\
             [store]\nurl = \"{}\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n\
             [[account]]\nname = \"main\"\n{}\n{}\n{}\n",
            plan.broker,
            redis.url(),
            postgres.url(),
            plan.provider.unwrap_or(&sandboxed),
            plan.account,
            plan.more,
        );
        let configuration = configuration.replace("@SANDBOX@", &sandbox.addr().to_string());
        let options = Options { urls: vec![broker_url.clone()], prefix: "paceline".to_owned(), name: "scenario".to_owned() };
        let broker = RabbitMqBroker::start(options).unwrap_or_else(|e| panic!("{e}"));
        let fleet =
            Fleet { rabbitmq, redis, postgres, sandbox, broker_url, configuration, dir, broker: Connection(Arc::new(broker)) };
        fleet.command(&["topology", "apply"]).await;
        fleet.broker().wait_until_up(Duration::from_secs(30)).await.unwrap_or_else(|e| panic!("{e}"));
        fleet
    }

    /// The scenario's own connection.
    pub fn broker(&self) -> Arc<dyn Broker> {
        self.broker.0.clone()
    }

    /// Gathers events from now on.
    pub async fn events(&self) -> Events {
        Events::listen(self.broker()).await
    }

    /// Starts a worker and waits until it is ready. Its calls arrive at the sandbox under its name.
    pub async fn worker(&self, name: &str) -> Pod {
        let pod = self.pod("worker", name).await;
        pod.ready().await;
        pod
    }

    /// The same with further environment, which wins over its configuration.
    pub async fn worker_with(&self, name: &str, environment: &[(&str, &str)]) -> Pod {
        let config = self.config_of(name);
        let launch = Launch::paceline().args(["worker".as_ref(), "--config".as_ref(), config.as_os_str()]);
        let launch = environment.iter().fold(launch, |launch, (key, value)| launch.env(key, value));
        let pod = Pod::started(name, launch.spawn()).await;
        pod.ready().await;
        pod
    }

    /// Starts a control process and waits until it is ready.
    pub async fn control(&self) -> Pod {
        let pod = self.pod("control", "control").await;
        pod.ready().await;
        pod
    }

    /// Starts a pod and waits until it listens.
    pub async fn pod(&self, role: &str, name: &str) -> Pod {
        let config = self.config_of(name);
        let launch = Launch::paceline().args([role.as_ref(), "--config".as_ref(), config.as_os_str()]);
        Pod::started(name, launch.spawn()).await
    }

    /// Pods that start from now on are configured otherwise, as after a deploy: `now` in place of `before`.
    ///
    /// # Panics
    /// When that would change nothing.
    pub fn reconfigure(&mut self, before: &str, now: &str) {
        assert!(self.configuration.contains(before), "no {before} in the configuration");
        self.configuration = self.configuration.replace(before, now);
    }

    /// Writes the configuration as it is now where the pod reads it.
    pub fn configure(&self, pod: &Pod) {
        self.config_of(&pod.name);
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it fails.
    pub async fn command(&self, words: &[&str]) -> Finished {
        let config = self.config_of("command");
        let launch = Launch::paceline().args(words).args(["--config".as_ref(), config.as_os_str()]);
        let finished = launch.run(Duration::from_secs(120)).await;
        assert!(finished.status.success(), "paceline {}: {}{}", words.join(" "), finished.stdout, finished.stderr);
        finished
    }

    /// Starts a command.
    pub fn begin(&self, words: &[&str]) -> Process {
        let config = self.config_of("command");
        Launch::paceline().args(words).args(["--config".as_ref(), config.as_os_str()]).spawn()
    }

    /// Runs a command with `--output json` and reads what it prints.
    pub async fn ask(&self, words: &[&str]) -> Value {
        let finished = self.command(&[words, &["--output", "json"]].concat()).await;
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{}: {e}: {}", words.join(" "), finished.stdout))
    }

    /// Everything that arrived at the sandbox so far.
    pub async fn arrivals(&self) -> Vec<Arrival> {
        arrivals::all(&self.sandbox, &self.dir.path().join("arrivals.ndjson")).await
    }

    /// Messages in Paceline's queues, held ones included.
    pub async fn waiting(&self) -> u64 {
        let queues = self.rabbitmq.queues(&self.broker_url).await;
        queues.iter().filter(|(name, _)| carries_mail(name)).map(|(_, state)| state.messages).sum()
    }

    /// Waits until no queue holds mail, dead letters included.
    ///
    /// # Panics
    /// When one still does after `at_most`: with each queue's figures.
    pub async fn settled(&self, at_most: Duration) {
        let end = Instant::now() + at_most;
        let mut empty = 0;
        // A message on its way from a queue asked later to one asked before is in neither: once is not enough.
        while empty < 2 {
            let queues = self.rabbitmq.queues(&self.broker_url).await;
            let left: Vec<_> = queues.values().filter(|q| carries_mail(&q.name) && q.messages > 0).collect();
            empty = if left.is_empty() { empty + 1 } else { 0 };
            assert!(Instant::now() < end, "mail is left after {at_most:?}: {left:#?}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Waits until the sandbox has accepted so many.
    pub async fn accepted(&self, count: u64, at_most: Duration) {
        let what = format!("{count} accepted");
        until(&what, at_most, async || self.sandbox.stats().accepted >= count).await;
    }

    /// The dead letters in the store: `[{"id", "message_id", "reason", …}]`, without bodies.
    pub async fn dead_letters(&self) -> Vec<Value> {
        let columns = "id, message_id, recipient, class, destination, domain, account, reason, field, attempts, error_code";
        let sql = format!("select coalesce(json_agg(d), '[]') from (select {columns} from dead_letters order by id) d");
        let rows = self.postgres.sql(&self.postgres.url(), &sql).await;
        serde_json::from_str(&rows).unwrap_or_else(|e| panic!("{e}: {rows}"))
    }

    fn config_of(&self, pod: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{pod}.toml"));
        std::fs::write(&path, self.configuration.replace("@POD@", pod)).unwrap();
        path
    }
}

fn carries_mail(queue: &str) -> bool {
    // Not the record of the topology, nor the listeners' own queues.
    queue.starts_with("paceline.") && !queue.starts_with("paceline.topology")
}
