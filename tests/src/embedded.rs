//! The embedded system: one process on files of its own, and the means to start, kill and question it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use paceline_broker::{Broker, Names, spool};
use paceline_core::{Class, Lane, lane::RUNGS_S};
use paceline_sandbox::{Handle, Options as SandboxOptions, Sandbox, Scenario};
use paceline_testkit::{Finished, Launch};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Plan, Pod,
    arrivals::{self, Arrival},
    until,
};

/// A directory for `--embedded`, a sandbox as SendGrid, and a configuration file.
#[derive(Debug)]
pub struct Embedded {
    pub sandbox: Handle,
    dir: TempDir,
    destinations: Vec<String>,
}

impl Embedded {
    /// Nothing runs yet but the sandbox. `destinations` are those that `plan` names.
    pub async fn start(plan: Plan<'_>, destinations: &[&str]) -> Embedded {
        let dir = tempfile::Builder::new().prefix("paceline-embedded-").tempdir().unwrap();
        let scenario = Scenario::from_toml(plan.sandbox).unwrap_or_else(|e| panic!("the sandbox's scenario: {e:?}"));
        let arrivals = Some(dir.path().join("arrivals.ndjson"));
        let sandbox = Sandbox::start(SandboxOptions { scenario, arrivals, listen: None }).await.unwrap();
        let configuration = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n\
             [classify]\npresets = false\n\
             [broker]\n{}\n\
             [[account]]\nname = \"main\"\nprovider = \"sendgrid\"\napi_key = \"SG.scenario\"\n\
             base_url = \"http://{}\"\n{}\n{}\n",
            plan.broker,
            sandbox.addr(),
            plan.account,
            plan.more,
        );
        std::fs::write(dir.path().join("paceline.toml"), configuration).unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        Embedded { sandbox, dir, destinations: destinations.iter().map(|&d| d.to_owned()).collect() }
    }

    /// Where the embedded parts keep their files.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn launch(&self, words: &[&str]) -> Launch {
        Launch::paceline()
            .args(words)
            .args(["--embedded".as_ref(), self.data().as_os_str()])
            .args(["--config".as_ref(), self.dir.path().join("paceline.toml").as_os_str()])
    }

    /// Starts the worker and waits until it listens.
    pub async fn spawned(&self) -> Pod {
        Pod::started("embedded", self.launch(&["worker"]).spawn()).await
    }

    /// Starts the worker and waits until it is ready.
    pub async fn worker(&self) -> Pod {
        let pod = self.spawned().await;
        pod.ready().await;
        pod
    }

    /// Runs a command to its end, whatever that is.
    pub async fn run(&self, words: &[&str]) -> Finished {
        self.launch(words).run(Duration::from_secs(120)).await
    }

    /// Starts a command.
    pub fn begin(&self, words: &[&str]) -> paceline_testkit::Process {
        self.launch(words).spawn()
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it fails.
    pub async fn command(&self, words: &[&str]) -> Finished {
        let finished = self.run(words).await;
        assert!(finished.status.success(), "paceline {}: {}{}", words.join(" "), finished.stdout, finished.stderr);
        finished
    }

    /// Runs a command with `--output json` and reads what it prints.
    pub async fn ask(&self, words: &[&str]) -> Value {
        let finished = self.command(&[words, &["--output", "json"]].concat()).await;
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{}: {e}: {}", words.join(" "), finished.stdout))
    }

    /// Publishes NDJSON from a process of its own, as a small sender would.
    pub async fn send(&self, bodies: impl IntoIterator<Item = String>) {
        let lines: String = bodies.into_iter().map(|body| body + "\n").collect();
        let path = self.dir.path().join("messages.ndjson");
        std::fs::write(&path, lines).unwrap();
        self.command(&["send", path.to_str().unwrap()]).await;
    }

    /// Everything that arrived at the sandbox so far.
    pub async fn arrivals(&self) -> Vec<Arrival> {
        arrivals::all(&self.sandbox, &self.dir.path().join("arrivals.ndjson")).await
    }

    /// The dead letters in the store.
    pub async fn dead_letters(&self) -> Vec<Value> {
        let listed = self.ask(&["dlq", "list", "--limit", "1000000"]).await;
        listed.as_array().unwrap().clone()
    }

    /// Messages in the spool, held ones included, dead letters too.
    pub async fn waiting(&self) -> u64 {
        let options = spool::Options { path: self.data().join("spool.db"), prefix: "paceline".to_owned() };
        let spool = spool::Spool::open(options).unwrap_or_else(|e| panic!("{e}"));
        let names = Names::new("paceline");
        let destinations = self.destinations.iter().map(String::as_str).chain(["tail"]);
        let lanes = destinations.flat_map(|d| Class::ALL.map(|class| names.lane(&Lane::new(class, d))));
        let rungs = RUNGS_S.into_iter().map(|rung| names.delay(rung));
        let mut waiting = 0;
        for queue in lanes.chain(rungs).chain([names.intake(), names.dead()]) {
            waiting += spool.depth(&queue).await.unwrap_or_else(|e| panic!("{queue}: {e}"));
        }
        spool.close().await;
        waiting
    }

    /// Waits until no queue holds mail.
    ///
    /// # Panics
    /// When one still does after `at_most`.
    pub async fn settled(&self, at_most: Duration) {
        let end = Instant::now() + at_most;
        let mut empty = 0;
        // A message on its way from a queue asked later to one asked before is in neither: once is not enough.
        while empty < 2 {
            let left = self.waiting().await;
            empty = if left == 0 { empty + 1 } else { 0 };
            assert!(Instant::now() < end, "{left} messages are left after {at_most:?}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Waits until the sandbox has accepted so many.
    pub async fn accepted(&self, count: u64, at_most: Duration) {
        let what = format!("{count} accepted");
        until(&what, at_most, async || self.sandbox.stats().accepted >= count).await;
    }

    /// SQLite's own verdict on each database of the directory, by file name; `ok` where nothing is wrong.
    pub fn integrity(&self) -> Vec<(String, String)> {
        let databases = std::fs::read_dir(self.data()).unwrap().map(|entry| entry.unwrap().path());
        let databases = databases.filter(|path| path.extension().is_some_and(|e| e == "db"));
        databases.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), integrity(&path))).collect()
    }
}

fn integrity(path: &Path) -> String {
    let database = rusqlite::Connection::open(path).unwrap();
    database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}
