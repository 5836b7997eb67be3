//! A private RabbitMQ.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::error::{must, tail};
use crate::group::{Group, POLL, Running};
use crate::{Error, Port, find};

const PACKAGE: &str = "rabbitmq-server";
const COOKIE: &str = "PACELINETESTKIT";
/// Names a directory that holds a whole Debian with another RabbitMQ; the broker then runs in it by `chroot`.
const ROOT_VARIABLE: &str = "PACELINE_TEST_RABBITMQ_ROOT";

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

/// A queue as the broker itself counts it, at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    pub name: String,
    /// Waiting to be delivered.
    pub ready: u64,
    /// Delivered, neither acked nor returned.
    pub unacked: u64,
    /// All the queue holds; more than ready + unacked while at-least-once dead-lettering has some in hand.
    pub messages: u64,
    pub consumers: u64,
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

    /// The broker's version, e.g. `3.10.8`.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn version(&self) -> String {
        let version = self.eval("list_to_binary(rabbit_misc:version())").await;
        version.as_str().unwrap_or_default().to_owned()
    }

    /// Every queue of the virtual host that `url` names, by name.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn queues(&self, url: &str) -> BTreeMap<String, QueueState> {
        let vhost = vhost_name(url);
        // A quorum queue's figures in `info` are those of its last tick, seconds ago: its state machine is asked
        // instead.
        let expression = format!(
            "Ask = fun(P, F) -> {{ok, {{_, N}}, _}} = ra:leader_query(P, F), N end, \
             One = fun(Q) -> \
               {{resource, _, queue, Name}} = amqqueue:get_name(Q), \
               P = amqqueue:get_pid(Q), \
               [R, U, M] = case amqqueue:get_type(Q) of \
                 rabbit_quorum_queue -> [Ask(P, fun rabbit_fifo:query_messages_ready/1), \
                   Ask(P, fun rabbit_fifo:query_messages_checked_out/1), Ask(P, fun rabbit_fifo:query_messages_total/1)]; \
                 _ -> [V || {{_, V}} <- rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged, messages])] end, \
               [{{consumers, C}}] = rabbit_amqqueue:info(Q, [consumers]), \
               [Name, R, U, M, C] end, \
             [One(Q) || Q <- rabbit_amqqueue:list(<<\"{vhost}\">>)]"
        );
        let rows = self.eval(&expression).await;
        let states = rows.as_array().into_iter().flatten().map(|row| {
            let count = |column: usize| row[column].as_u64().unwrap_or_default();
            let name = row[0].as_str().unwrap_or_default().to_owned();
            (name.clone(), QueueState { name, ready: count(1), unacked: count(2), messages: count(3), consumers: count(4) })
        });
        states.collect()
    }

    /// Closes every client's connection from the broker's side; how many there were.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn close_all_connections(&self) -> u64 {
        let expression =
            "length([rabbit_networking:close_connection(C, \"by the test\") || C <- rabbit_networking:connections()])";
        self.eval(expression).await.as_u64().unwrap_or_default()
    }

    /// Deletes a queue with all it holds, of the virtual host that `url` names.
    ///
    /// # Panics
    /// When there is no such queue, or the broker does not answer.
    pub async fn delete_queue(&self, url: &str, name: &str) {
        let vhost = vhost_name(url);
        let expression = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup({{resource, <<\"{vhost}\">>, queue, <<\"{name}\">>}}), \
             {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, <<\"test\">>), true"
        );
        self.eval(&expression).await;
    }

    /// Raises the memory alarm: the broker blocks every connection that publishes.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn block_publishers(&self) {
        self.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}), true").await;
    }

    /// Clears the alarm of [`block_publishers`](RabbitMq::block_publishers).
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn unblock_publishers(&self) {
        self.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()}), true").await;
    }

    /// Evaluates Erlang in the broker, in a few milliseconds; the last expression's value as JSON.
    ///
    /// # Panics
    /// When it fails, or the broker does not answer.
    pub async fn eval(&self, expression: &str) -> Value {
        must(self.try_eval(expression).await)
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

    async fn try_eval(&self, expression: &str) -> Result<Value, Error> {
        let program = "erl_call";
        let mut command = self.host.command(program);
        command.args(["-r", "-timeout", "30", "-c", COOKIE, "-e", "-fetch_stdout", "-no_result_term", "-address"]);
        command.arg(format!("localhost:{}", self.distribution.number()));
        let mut command: tokio::process::Command = command.into();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(Error::io("cannot run", program))?;
        if let Some(mut stdin) = child.stdin.take() {
            // What is printed comes back whole; a result would be cut short.
            let script = format!(
                "io:put_chars(try rabbit_json:encode(begin {expression} end) \
                 catch Class_:Reason_ -> io_lib:format(\"~p\", [{{Class_, Reason_}}]) end).\n"
            );
            tokio::io::AsyncWriteExt::write_all(&mut stdin, script.as_bytes())
                .await
                .map_err(Error::io("cannot write to", program))?;
        }
        let output = child.wait_with_output().await.map_err(Error::io("no answer from", program))?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = [output.stdout, output.stderr].concat();
            let output = format!("{} from {expression}", String::from_utf8_lossy(&said));
            Error::Program { program: program.into(), output }
        })
    }

    fn url_of(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.amqp.number())
    }
}

fn vhost_name(url: &str) -> &str {
    let name = url.rsplit('/').next().unwrap_or_default();
    if name == "%2f" { "/" } else { name }
}

/// Where the broker runs: on this machine as it is, or in a root directory of its own.
#[derive(Debug)]
struct Host {
    root: Option<PathBuf>,
    server: PathBuf,
}

impl Host {
    fn from_environment() -> Result<Host, Error> {
        // The server in Debian's `/usr/sbin` changes to the user `rabbitmq`; the one it wraps does not.
        let unwrapped = PathBuf::from("/usr/lib/rabbitmq/bin");
        match std::env::var_os(ROOT_VARIABLE).filter(|root| !root.is_empty()).map(PathBuf::from) {
            Some(root) => {
                let server = unwrapped.join("rabbitmq-server");
                if !root.join("usr/lib/rabbitmq/bin/rabbitmq-server").is_file() {
                    let program = root.join("usr/lib/rabbitmq/bin/rabbitmq-server").display().to_string();
                    return Err(Error::Missing { program, package: PACKAGE.into() });
                }
                Ok(Host { root: Some(root), server })
            }
            None => {
                let server = find::program("rabbitmq-server", PACKAGE, &[unwrapped])?;
                find::program("erl_call", "erlang-base", &[])?;
                Ok(Host { root: None, server })
            }
        }
    }

    /// A directory the broker can reach; the path is as seen from outside.
    fn tempdir(&self) -> Result<TempDir, Error> {
        let parent = self.root.as_ref().map_or_else(std::env::temp_dir, |root| root.join("tmp"));
        tempfile::Builder::new().prefix("paceline-rabbitmq-").tempdir_in(&parent).map_err(Error::io("no directory in", &parent))
    }

    /// A path as the broker sees it.
    fn inside(&self, path: &Path) -> PathBuf {
        match self.root.as_ref().and_then(|root| path.strip_prefix(root).ok()) {
            Some(relative) => Path::new("/").join(relative),
            None => path.to_owned(),
        }
    }

    /// A command that runs where the broker does, with nothing of this process's environment but what is needed to
    /// find programs.
    fn command(&self, program: &str) -> Command {
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(program);
                command
            }
            None => Command::new(program),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin")).env("LANG", "C.UTF-8");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_hosts_are_read_from_urls() {
        assert_eq!(vhost_name("amqp://guest:guest@127.0.0.1:1/%2f"), "/");
        assert_eq!(vhost_name("amqp://guest:guest@127.0.0.1:1/case-3"), "case-3");
    }
}
