//! A private Redis.

mod cluster;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::error::{must, tail};
use crate::group::{Group, POLL, Running};
use crate::{Error, Port, find};

pub use self::cluster::RedisCluster;

/// A Redis server as the fleet should have it: append-only file, no eviction. Its data outlives
/// [`stop`](Redis::stop) and [`kill9`](Redis::kill9).
#[derive(Debug)]
pub struct Redis {
    running: Running,
    port: Port,
    dir: TempDir,
    extra: Vec<String>,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When `redis-server` is missing or does not come up.
    pub async fn start() -> Redis {
        Redis::with_config(&[]).await
    }

    /// Starts one with further command-line arguments, e.g. `&["--maxmemory", "1mb"]`; they win over the defaults.
    ///
    /// # Panics
    /// As [`start`](Redis::start).
    pub async fn with_config(arguments: &[&str]) -> Redis {
        let dir =
            must(tempfile::Builder::new().prefix("paceline-redis-").tempdir().map_err(Error::io("no directory in", "TMPDIR")));
        let extra = arguments.iter().map(ToString::to_string).collect();
        let redis = Redis { running: Running::default(), port: Port::reserve(), dir, extra };
        redis.start_again().await;
        redis
    }

    /// `redis://127.0.0.1:<port>`
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number())
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Shuts down in order; the data stays for [`start_again`](Redis::start_again).
    pub async fn stop(&self) {
        self.running.end(Signal::SIGTERM, Duration::from_secs(10)).await;
    }

    /// Kills it, as a lost machine would.
    pub async fn kill9(&self) {
        self.running.kill9().await;
    }

    /// Starts it on the same port with what it had saved.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&self) {
        must(self.try_start().await);
    }

    /// Starts it on the same port with nothing in it, as after the loss of its disk.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again_empty(&self) {
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            must(removed.map_err(Error::io("cannot remove", &path)));
        }
        self.start_again().await;
    }

    /// Stops its clock: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.running.signal_all(Signal::SIGSTOP);
    }

    /// Ends a [`freeze`](Redis::freeze).
    pub fn thaw(&self) {
        self.running.signal_all(Signal::SIGCONT);
    }

    /// One command, words separated by spaces, and its reply as text (a bulk reply's bytes; an error with its `-`; the
    /// parts of an array line by line).
    /// For looking at things: a test of an adapter uses the adapter.
    ///
    /// # Panics
    /// When the server does not answer within five seconds.
    #[must_use]
    pub fn command(&self, words: &str) -> String {
        must(self.ask(words).map_err(Error::io("no answer from Redis to", words)))
    }

    async fn try_start(&self) -> Result<(), Error> {
        let server = find::program("redis-server", "redis-server", &[])?;
        let log_path = self.dir.path().join("redis.log");
        let mut command = Command::new(server);
        command
            .args(["--port", &self.port.number().to_string(), "--bind", "127.0.0.1", "--daemonize", "no"])
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"])
            .arg("--dir")
            .arg(self.dir.path())
            .arg("--logfile")
            .arg(&log_path)
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut group = Group::spawn(command, Some(self.dir.path()))?;
        let pid = format!("process_id:{}", group.pid());
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            // The process id tells this server from another that took the port.
            if self.ask("INFO server").is_ok_and(|info| info.lines().any(|line| line == pid)) {
                self.running.put(group);
                return Ok(());
            }
            if group.exited().is_some() || Instant::now() > deadline {
                let what = "did not come up".to_owned();
                return Err(Error::Service { service: "redis-server".into(), what, log: tail(&log_path) });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn ask(&self, words: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{words}\r\n").as_bytes())?;
        read_reply(&mut BufReader::new(stream))
    }
}

fn read_reply(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end();
    let number = |text: &str| text.parse::<usize>().map_err(std::io::Error::other);
    match line.split_at_checked(1) {
        Some(("$" | "*", "-1")) => Ok(String::new()),
        Some(("$", length)) => {
            // Its end of line is part of the reply.
            let mut body = vec![0; number(length)? + 2];
            reader.read_exact(&mut body)?;
            body.truncate(body.len() - 2);
            Ok(String::from_utf8_lossy(&body).into_owned())
        }
        Some(("*", parts)) => {
            let parts = (0..number(parts)?).map(|_| read_reply(reader)).collect::<std::io::Result<Vec<_>>>()?;
            Ok(parts.join("\n"))
        }
        Some(("+" | ":", rest)) => Ok(rest.to_owned()),
        _ => Ok(line.to_owned()),
    }
}
