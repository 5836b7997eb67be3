//! What each worker last said of itself, for whoever wants to see the fleet.
//!
//! A report is text that this module does not look into. It runs out by itself, so that a worker that died is not shown
//! as if it lived.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    LimiterError,
    redis::{RedisClient, Script},
    wire::decode,
};

/// Longest report taken: some thousand lanes.
pub const MAX_REPORT_BYTES: usize = 4 << 20;

/// The last report of each live worker.
#[async_trait]
pub trait Reports: Send + Sync {
    /// Puts `text` in place of what the worker said before; it is forgotten after `ttl`.
    async fn report(&self, worker_id: &str, text: &str, ttl: Duration) -> Result<(), LimiterError>;

    /// Takes the worker's report back, as at its orderly end.
    async fn withdraw(&self, worker_id: &str) -> Result<(), LimiterError>;

    /// The reports that have not run out, in the order of the workers' names.
    async fn reports(&self) -> Result<Vec<String>, LimiterError>;
}

fn check(text: &str) -> Result<(), LimiterError> {
    match text.len() > MAX_REPORT_BYTES {
        true => Err(LimiterError::Refused { reason: format!("a report of more than {MAX_REPORT_BYTES} bytes") }),
        false => Ok(()),
    }
}

/// Reports within one process.
#[derive(Debug, Default)]
pub struct LocalReports {
    said: Mutex<BTreeMap<String, (Instant, String)>>,
}

impl LocalReports {
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<String, (Instant, String)>) -> T) -> T {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        said.retain(|_, (until, _)| *until > now);
        f(&mut said)
    }
}

#[async_trait]
impl Reports for LocalReports {
    async fn report(&self, worker_id: &str, text: &str, ttl: Duration) -> Result<(), LimiterError> {
        check(text)?;
        self.with(|said| said.insert(worker_id.to_owned(), (Instant::now() + ttl, text.to_owned())));
        Ok(())
    }

    async fn withdraw(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.with(|said| said.remove(worker_id));
        Ok(())
    }

    async fn reports(&self) -> Result<Vec<String>, LimiterError> {
        Ok(self.with(|said| said.values().map(|(_, text)| text.clone()).collect()))
    }
}

/// The report of the one worker of an embedded system, in a file that other processes of this machine read.
#[derive(Debug)]
pub struct FileReports {
    path: PathBuf,
}

impl FileReports {
    /// Nothing is written yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        FileReports { path: path.into() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, LimiterError> {
        let path = self.path.clone();
        let done = tokio::task::spawn_blocking(move || f(&path)).await;
        // A task that ended otherwise was cut off with its runtime.
        let done = done.unwrap_or_else(|e| Err(io::Error::other(e)));
        done.map_err(|e| LimiterError::Refused { reason: format!("the file of the worker's report: {e}") })
    }
}

fn clock_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

#[async_trait]
impl Reports for FileReports {
    async fn report(&self, _worker_id: &str, text: &str, ttl: Duration) -> Result<(), LimiterError> {
        check(text)?;
        let text = format!("{}\n{text}", clock_ms() + ttl.as_millis());
        self.blocking(move |path| {
            let mut beside = path.as_os_str().to_owned();
            beside.push(".new");
            // Whoever reads sees the old one or the new one, whole.
            std::fs::write(&beside, text)?;
            std::fs::rename(&beside, path)
        })
        .await
    }

    async fn withdraw(&self, _worker_id: &str) -> Result<(), LimiterError> {
        self.blocking(|path| match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        })
        .await
    }

    async fn reports(&self) -> Result<Vec<String>, LimiterError> {
        let read = self.blocking(|path| match std::fs::metadata(path) {
            Ok(found) if found.len() > MAX_REPORT_BYTES as u64 + 64 => Ok(String::new()),
            Ok(_) => std::fs::read_to_string(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(e),
        });
        let text = read.await?;
        let alive = |until: &str| until.parse::<u128>().is_ok_and(|until| until > clock_ms());
        Ok(text.split_once('\n').filter(|(until, _)| alive(until)).map(|(_, text)| text.to_owned()).into_iter().collect())
    }
}

/// The fleet's reports in its Redis.
pub struct RedisReports {
    client: RedisClient,
    script: Script,
}

impl RedisReports {
    /// A view over `client`; nothing is sent yet.
    pub fn new(client: RedisClient) -> Self {
        RedisReports { client, script: Script::new(include_str!("reports.lua")) }
    }

    async fn run(&self, args: &[&[u8]]) -> Result<Vec<u8>, LimiterError> {
        let keys = [self.client.key("reports", ""), self.client.key("reports", "until")];
        self.client.run(&self.script, &keys, args).await
    }
}

#[async_trait]
impl Reports for RedisReports {
    async fn report(&self, worker_id: &str, text: &str, ttl: Duration) -> Result<(), LimiterError> {
        check(text)?;
        let ttl_ms = ttl.as_millis().clamp(1, 86_400_000).to_string();
        self.run(&[b"put", worker_id.as_bytes(), text.as_bytes(), ttl_ms.as_bytes()]).await.map(drop)
    }

    async fn withdraw(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.run(&[b"drop", worker_id.as_bytes()]).await.map(drop)
    }

    async fn reports(&self) -> Result<Vec<String>, LimiterError> {
        decode(&self.run(&[b"get"]).await?)
    }
}
