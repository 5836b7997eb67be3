//! What both sides run on: a private broker, Redis, PostgreSQL, and one sandbox.

use std::{path::PathBuf, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    options::{QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use paceline_broker::{
    Broker, Names, Topology,
    rabbitmq::{Options, RabbitMq as RabbitMqBroker},
    spool::{self, Spool},
};
use paceline_testkit::{Launch, Port, Postgres, Process, RabbitMq, Redis, find};
use reqwest::Client;
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    Failure,
    cpu::{Cpu, Who},
    mail::{Api, DESTINATIONS},
    run::{Client as Side, Plan},
};

/// Exchanges and queues begin with it.
const PREFIX: &str = "paceline";
/// Far above what any machine reaches: limits are asked, and never bind.
const RATE: &str = "100000/s";
/// How long a program may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The services, the sandbox, and the worker's configuration.
pub(crate) struct Stage {
    pub(crate) rabbitmq: RabbitMq,
    // Held until the end, as they end with it.
    _redis: Redis,
    _postgres: Postgres,
    /// URL of the virtual host used.
    pub(crate) vhost: String,
    pub(crate) names: Names,
    rabbitmq_broker: RabbitMqBroker,
    spool: Spool,
    sandbox: Process,
    sandbox_url: String,
    pub(crate) api: Api,
    http: Client,
    rabbitmq_process: u32,
    redis_process: u32,
    dir: TempDir,
    /// Keeps the queue that listens to events alive.
    _listening: Option<Connection>,
}

/// What the sandbox has counted.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) accepted: u64,
}

/// One request that reached the sandbox.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Arrival {
    pub(crate) at_us: u64,
    pub(crate) id: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) accepted: bool,
}

impl Stage {
    /// Starts everything but the client, and declares the topology. With `events`, a queue listens to all events.
    pub(crate) async fn set(events: bool, api: Api) -> Result<Stage, Failure> {
        let dir = tempfile::Builder::new().prefix("paceline-bench-").tempdir()?;
        let (rabbitmq, redis, postgres) = tokio::join!(RabbitMq::start(), Redis::start(), Postgres::start());
        let vhost = rabbitmq.vhost().await;
        let rabbitmq_process = rabbitmq.eval("list_to_integer(os:getpid())").await.as_u64().unwrap_or_default();
        let info = redis.command("INFO server");
        let redis_process = info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok());
        let port = Port::reserve();
        let listen = format!("127.0.0.1:{}", port.number());
        let arrivals = dir.path().join("arrivals.ndjson");
        let sandbox = Launch::paceline().args(["sandbox", "--listen", &listen, "--arrivals"]).args([&arrivals]).spawn();
        let sandbox_url = format!("http://{listen}");
        let config = configuration(&vhost, &redis.url(), &postgres.url(), &sandbox_url, api);
        std::fs::write(dir.path().join("paceline.toml"), config)?;
        let options = Options { urls: vec![vhost.clone()], prefix: PREFIX.to_owned(), name: "paceline bench".to_owned() };
        let rabbitmq_broker = RabbitMqBroker::start(options).map_err(|error| error.to_string())?;
        let embedded = dir.path().join("embedded");
        std::fs::create_dir(&embedded)?;
        let spool = Spool::open(spool::Options { path: embedded.join("spool.db"), prefix: PREFIX.to_owned() })
            .map_err(|error| error.to_string())?;
        // Even plain HTTP needs one to be named.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().no_proxy().tls_certs_only([]).build()?;
        let mut stage = Stage {
            rabbitmq,
            _redis: redis,
            _postgres: postgres,
            vhost,
            names: Names::new(PREFIX),
            rabbitmq_broker,
            spool,
            sandbox,
            sandbox_url,
            api,
            http,
            rabbitmq_process: u32::try_from(rabbitmq_process)?,
            redis_process: redis_process.ok_or("Redis does not say its process id")?,
            dir,
            _listening: None,
        };
        stage.until("the sandbox answers", async |stage| stage.counts().await.is_ok()).await?;
        stage.declare().await?;
        if events {
            stage._listening = Some(stage.listen_to_events().await?);
        }
        Ok(stage)
    }

    /// The bare loop over the lanes that get mail.
    pub(crate) fn bare(&self, mix: crate::mail::Mix, messages: u32) -> Process {
        let url = format!("{}{}", self.sandbox_url, self.api.path());
        let queues = mix.lanes().into_iter().map(|lane| self.names.lane(&lane));
        let arguments = ["--broker", &self.vhost, "--url", &url, "--messages", &messages.to_string()].map(str::to_owned);
        Launch::built("bare").args(arguments.into_iter().chain(queues)).spawn()
    }

    /// Where `client` takes its mail from.
    pub(crate) fn broker(&self, client: Side) -> &dyn Broker {
        match client {
            Side::Bare | Side::Worker => &self.rabbitmq_broker,
            Side::Embedded => &self.spool,
        }
    }

    /// One of `paceline`'s daemons (`worker`, `control`, or `embedded` for the worker on embedded parts), with its log in a file as a pod's would be, not in this program's hands.
    pub(crate) fn daemon(&self, command: &str) -> Process {
        let launch = Launch::program("/bin/sh".as_ref())
            .args(["-c", "exec \"$0\" \"$@\" >\"$LOG\" 2>&1"])
            .args([self.program("paceline")])
            .args([if command == "embedded" { "worker" } else { command }, "--config"])
            .args([self.dir.path().join("paceline.toml")])
            .env("LOG", self.log(command));
        match command {
            "embedded" => launch.args(["--embedded".into(), self.dir.path().join("embedded")]).spawn(),
            _ => launch.spawn(),
        }
    }

    /// A program built along with this one.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        find::target_profile_dir().unwrap_or_default().join(name)
    }

    /// Where a daemon's log is.
    pub(crate) fn log(&self, command: &str) -> PathBuf {
        self.dir.path().join(format!("{command}.log"))
    }

    /// Processes whose time is told apart, `client` among them.
    pub(crate) fn processes(&self, client: &Process) -> [(Who, u32); 4] {
        [
            (Who::Client, client.pid()),
            (Who::RabbitMq, self.rabbitmq_process),
            (Who::Redis, self.redis_process),
            (Who::Sandbox, self.sandbox.pid()),
        ]
    }

    /// The sandbox forgets everything so far.
    pub(crate) async fn reset_sandbox(&self) -> Result<(), Failure> {
        self.http.delete(format!("{}/sandbox/arrivals", self.sandbox_url)).send().await?.error_for_status()?;
        Ok(())
    }

    /// What has reached the sandbox.
    pub(crate) async fn counts(&self) -> Result<Counts, Failure> {
        let answer = self.http.get(format!("{}/sandbox/stats", self.sandbox_url)).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// Every request since the reset, once all lines are written.
    pub(crate) async fn arrivals(&self) -> Result<Vec<Arrival>, Failure> {
        let expected = usize::try_from(self.counts().await?.requests)?;
        let path = self.dir.path().join("arrivals.ndjson");
        let whole = async |_: &Stage| std::fs::read(&path).is_ok_and(|text| lines(&text) == expected);
        self.until("all arrivals are written", whole).await?;
        let text = std::fs::read(&path)?;
        let rows = text.split(|&b| b == b'\n').filter(|line| !line.is_empty()).map(serde_json::from_slice);
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Messages in the lanes that get mail, held ones included.
    pub(crate) async fn depth(&self, Plan { client, mix, .. }: Plan) -> u64 {
        if client == Side::Embedded {
            let mut depth = 0;
            for lane in mix.lanes() {
                depth += self.spool.depth(&self.names.lane(&lane)).await.unwrap_or(u64::MAX / 100);
            }
            return depth;
        }
        let queues = self.rabbitmq.queues(&self.vhost).await;
        mix.lanes().iter().filter_map(|lane| queues.get(&self.names.lane(lane))).map(|queue| queue.messages).sum()
    }

    /// Waits for a condition.
    pub(crate) async fn until(&self, what: &str, mut condition: impl AsyncFnMut(&Stage) -> bool) -> Result<(), Failure> {
        let waiting = async {
            while !condition(self).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| format!("waited {PATIENCE:?} in vain until {what}").into())
    }

    /// Waits until broker and Redis have nothing left to do, so that no run starts with the work of filling its lanes.
    pub(crate) async fn quiet(&self) -> Result<(), Failure> {
        let processes = [(Who::RabbitMq, self.rabbitmq_process), (Who::Redis, self.redis_process)];
        let span = Duration::from_millis(500);
        let quiet = async |_: &Stage| {
            let before = Cpu::used(&processes);
            tokio::time::sleep(span).await;
            let used = Cpu::used(&processes).since(&before);
            used[Who::RabbitMq] + used[Who::Redis] < 25_000
        };
        self.until("broker and Redis are quiet", quiet).await
    }

    /// The topology that the worker uses, by `paceline topology apply`.
    async fn declare(&self) -> Result<(), Failure> {
        let config = self.dir.path().join("paceline.toml");
        let applied = Launch::paceline().args(["topology", "apply", "--config"]).args([config]).run(PATIENCE).await;
        if !applied.status.success() {
            return Err(format!("topology apply: {}", applied.stderr).into());
        }
        let destinations = DESTINATIONS.map(|(name, domain)| (name, [domain]));
        self.spool.apply(&Topology::new(PREFIX, destinations)).await?;
        Ok(())
    }

    /// The end of a daemon's log.
    pub(crate) fn last_words(&self, command: &str) -> String {
        let log = std::fs::read_to_string(self.log(command)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    async fn listen_to_events(&self) -> Result<Connection, Failure> {
        let connection = Connection::connect(&self.vhost, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        // The newest are kept: nobody reads them here.
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(10_000));
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        channel.queue_declare("bench.events".into(), options, arguments).await?;
        let bind = QueueBindOptions::default();
        channel
            .queue_bind("bench.events".into(), self.names.events().as_str().into(), "#".into(), bind, FieldTable::default())
            .await?;
        Ok(connection)
    }
}

fn lines(text: &[u8]) -> usize {
    text.iter().filter(|&&b| b == b'\n').count()
}

fn configuration(broker: &str, redis: &str, postgres: &str, sandbox: &str, api: Api) -> String {
    let account = match api {
        Api::SendGrid => "provider = \"sendgrid\"\napi_key = \"SG.bench\"",
        Api::Postmark => "provider = \"postmark\"\nserver_token = \"bench\"\nbatch = 100",
    };
    let mut text = format!(
        "[broker]\nurl = \"{broker}\"\nprefix = \"{PREFIX}\"\n\n[limits]\nurl = \"{redis}\"\n\n[store]\nurl = \"{postgres}\"\n\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\n[log]\nlevel = \"info\"\n\n\
         [[account]]\nname = \"bench\"\n{account}\nbase_url = \"{sandbox}\"\nrate = \"{RATE}\"\n"
    );
    for (name, domain) in DESTINATIONS {
        text += &format!("\n[[destination]]\nname = \"{name}\"\ndomains = [\"{domain}\"]\nrate = \"{RATE}\"\n");
    }
    text
}
