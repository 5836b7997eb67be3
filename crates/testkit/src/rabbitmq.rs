//! A private RabbitMQ.

mod ask;
mod host;

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::error::{must, tail};
use crate::group::{Group, POLL, Running};
use crate::{Error, Port};

pub use ask::QueueState;
use host::Host;

const COOKIE: &str = "PACELINETESTKIT";
/// A RabbitMQ node of its own: node name, ports, port mapper, data, cookie. Its schedulers are capped and never
/// spin, so an idle one costs next to nothing.
#[derive(Debug)]
pub struct RabbitMq {
    running: Running,
    amqp: Port,
    distribution: Port,
    mapper: Port,
    management: Option<Port>,
    dir: TempDir,
    host: Host,
    vhosts: AtomicU32,
}

impl RabbitMq {
    /// Starts one and waits until it is up: some five seconds.
    ///
    /// # Panics
    /// When RabbitMQ is missing or does not come up.
    pub async fn start() -> RabbitMq {
        must(RabbitMq::try_new(&[], false).await)
    }

    /// Starts one with further lines of `rabbitmq.conf`, e.g. `&["consumer_timeout = 60000"]`.
    ///
    /// # Panics
    /// As [`start`](RabbitMq::start).
    pub async fn with_config(lines: &[&str]) -> RabbitMq {
        must(RabbitMq::try_new(lines, false).await)
    }

    /// Starts one with the management plugin, at [`management_url`](RabbitMq::management_url).
    ///
    /// # Panics
    /// As [`start`](RabbitMq::start).
    pub async fn with_management() -> RabbitMq {
        must(RabbitMq::try_new(&[], true).await)
    }

    /// One node for the whole test process, started on first use; it ends with the process. Take a
    /// [`vhost`](RabbitMq::vhost) of it, and do not stop it.
    ///
    /// # Panics
    /// As [`start`](RabbitMq::start).
    pub async fn shared() -> &'static RabbitMq {
        static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
        SHARED.get_or_init(RabbitMq::start).await
    }

    /// The default virtual host: `amqp://guest:guest@127.0.0.1:<port>/%2f`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("%2f")
    }

    /// A new empty virtual host's URL, so that one broker serves many cases.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn vhost(&self) -> String {
        let name = format!("case-{}", self.vhosts.fetch_add(1, Ordering::Relaxed));
        let expression = format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<\"{name}\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>), true"
        );
        self.eval(&expression).await;
        self.url_of(&name)
    }

    /// The AMQP port on 127.0.0.1, e.g. for a [`Proxy`](crate::Proxy).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.amqp.number()
    }

    /// `http://guest:guest@127.0.0.1:<port>`, with [`with_management`](RabbitMq::with_management) only.
    #[must_use]
    pub fn management_url(&self) -> Option<String> {
        self.management.as_ref().map(|port| format!("http://guest:guest@127.0.0.1:{}", port.number()))
    }

    /// Stops it in order; queues and messages stay for [`start_again`](RabbitMq::start_again).
    pub async fn stop(&self) {
        self.running.end(Signal::SIGTERM, Duration::from_secs(60)).await;
    }

    /// Kills it, as a lost machine would.
    pub async fn kill9(&self) {
        self.running.kill9().await;
    }

    /// Starts it on the same port with the queues it had.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&self) {
        must(self.try_start().await);
    }

    /// Stops its clock: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.running.signal_all(Signal::SIGSTOP);
    }

    /// Ends a [`freeze`](RabbitMq::freeze).
    pub fn thaw(&self) {
        self.running.signal_all(Signal::SIGCONT);
    }

    async fn try_new(lines: &[&str], management: bool) -> Result<RabbitMq, Error> {
        let host = Host::from_environment()?;
        let dir = host.tempdir()?;
        let rabbitmq = RabbitMq {
            running: Running::default(),
            amqp: Port::reserve(),
            distribution: Port::reserve(),
            mapper: Port::reserve(),
            management: management.then(Port::reserve),
            dir,
            host,
            vhosts: AtomicU32::new(0),
        };
        rabbitmq.write_files(lines)?;
        rabbitmq.try_start().await?;
        Ok(rabbitmq)
    }

    fn write_files(&self, lines: &[&str]) -> Result<(), Error> {
        let mut configuration = format!(
            "listeners.tcp.local = 127.0.0.1:{}\nlog.console = false\nlog.file.level = info\ndisk_free_limit.absolute = 100MB\n",
            self.amqp.number()
        );
        if let Some(port) = &self.management {
            configuration += &format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n", port.number());
        }
        if self.host.is_bare_root() {
            // The usual strategy reads `/proc`, which a bare root directory does not have.
            configuration += "vm_memory_calculation_strategy = allocated\n";
        }
        for line in lines {
            configuration += line;
            configuration.push('\n');
        }
        let plugins = if self.management.is_some() { "[rabbitmq_management]." } else { "[]." };
        let files = [("rabbitmq.conf", configuration.as_str()), ("enabled_plugins", plugins), (".erlang.cookie", COOKIE)];
        for (name, text) in files {
            let path = self.dir.path().join(name);
            std::fs::write(&path, text).map_err(Error::io("cannot write", &path))?;
        }
        let cookie = self.dir.path().join(".erlang.cookie");
        std::fs::set_permissions(&cookie, PermissionsExt::from_mode(0o400)).map_err(Error::io("cannot protect", &cookie))
    }

    async fn try_start(&self) -> Result<(), Error> {
        let output_path = self.dir.path().join("output");
        let output = std::fs::File::create(&output_path).map_err(Error::io("cannot create", &output_path))?;
        let errors = output.try_clone().map_err(Error::io("cannot share", &output_path))?;
        let inner = self.host.inside(self.dir.path());
        let file = |name: &str| inner.join(name);
        // The port mapper is started here, in the same process group, lest the node start one that outlives it.
        let script = format!("epmd -port {} & exec {}", self.mapper.number(), self.host.server.display());
        let mut command = self.host.command("/bin/sh");
        command
            .args(["-c", &script])
            .env("HOME", &inner)
            .env("ERL_EPMD_PORT", self.mapper.number().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("paceline-{}@localhost", self.amqp.number()))
            .env("RABBITMQ_DIST_PORT", self.distribution.number().to_string())
            .env("RABBITMQ_MNESIA_BASE", file("data"))
            .env("RABBITMQ_LOG_BASE", file("log"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", file("generated"))
            .env("RABBITMQ_SCHEMA_DIR", file("schema"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", file("rabbitmq-env.conf"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none")
            // The start script then becomes the node instead of standing by as its parent.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let mut group = Group::spawn(command, Some(self.dir.path()))?;
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let said = std::fs::read_to_string(&output_path).unwrap_or_default();
            if said.contains("completed with") {
                self.running.put(group);
                return Ok(());
            }
            if group.exited().is_some() || Instant::now() > deadline {
                let log_path = self.dir.path().join(format!("log/paceline-{}@localhost.log", self.amqp.number()));
                let log = format!("{}\n{}", tail(&log_path), tail(&output_path));
                return Err(Error::Service { service: "rabbitmq-server".into(), what: "did not come up".into(), log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn url_of(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.amqp.number())
    }
}
