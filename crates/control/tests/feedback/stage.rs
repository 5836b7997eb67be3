//! A control process over the in-process broker and a store in a file, and what its events come to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use paceline_broker::{Broker, Topology, memory::MemoryBroker};
use paceline_classifier::{Classifier, DestinationSpec, Destinations};
use paceline_control::{
    Deps,
    feedback::{Feedback, FeedbackSink, Fetch, Received, Scheme, SuppressionSink},
    lanes::Lanes,
    run,
};
use paceline_core::Domain;
use paceline_limiter::fleet::LocalReports;
use paceline_store::{Options, SqliteStore};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Takes events, unless it is told not to.
#[derive(Default)]
pub(crate) struct Taken {
    events: Mutex<Vec<Received>>,
    pub(crate) away: Mutex<bool>,
}

impl Taken {
    /// Of all events, each once.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.events.lock().unwrap().iter().map(|received| received.event.event_id.clone()).collect()
    }
}

#[async_trait]
impl FeedbackSink for Taken {
    fn name(&self) -> &'static str {
        "test"
    }

    async fn take(&self, events: &[Received]) -> Result<(), String> {
        if *self.away.lock().unwrap() {
            return Err("away".to_owned());
        }
        self.events.lock().unwrap().extend_from_slice(events);
        Ok(())
    }
}

pub(crate) struct Stage {
    pub(crate) addr: SocketAddr,
    pub(crate) broker: MemoryBroker,
    pub(crate) taken: Arc<Taken>,
    pub(crate) store: Arc<SqliteStore>,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
    _dir: TempDir,
}

impl Stage {
    /// With these accounts.
    pub(crate) async fn start<const N: usize>(accounts: [(&str, Scheme); N], fetch: Option<Arc<dyn Fetch>>) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::at(dir.path().join("store.db"), Options::default()));
        let topology = Topology::new("paceline", [("google", ["gmail.com"])]);
        let broker = MemoryBroker::new("paceline");
        broker.apply(&topology).await.unwrap();
        let google = DestinationSpec { name: "google".into(), domains: vec![Domain::parse("gmail.com").unwrap()] };
        let taken = Arc::new(Taken::default());
        let feedback = Feedback {
            accounts: accounts.into_iter().map(|(name, scheme)| (name.to_owned(), scheme)).collect::<BTreeMap<_, _>>(),
            fetch,
            classifier: Arc::new(Classifier::new(vec![], Destinations::new(vec![google]).unwrap())),
            sinks: vec![Arc::new(SuppressionSink::new(store.clone())), taken.clone()],
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let lanes = Lanes {
            broker: Arc::new(broker.clone()),
            reports: Arc::new(LocalReports::new()),
            orders: store.clone(),
            topology: topology.clone(),
            classifier: feedback.classifier.clone(),
            accounts: [].into(),
            ready_holds_all: false,
        };
        let deps = Deps {
            broker: Arc::new(broker.clone()),
            store: store.clone(),
            topology,
            listener,
            registry: Arc::new(RwLock::new(Registry::default())),
            also: None,
            with_worker: false,
            retention: None,
            auto_suppress: None,
            feedback,
            lanes,
            token: None,
        };
        let task = tokio::spawn(run(deps, stop.clone()));
        Stage { addr, broker, taken, store, stop, task, _dir: dir }
    }

    /// Posts to `/v1/feedback/{account}`; the status.
    pub(crate) async fn post(&self, account: &str, headers: &[(&str, &str)], body: &[u8]) -> u16 {
        let mut head =
            format!("POST /v1/feedback/{account} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let answer = self.exchange(&[head.as_bytes(), b"\r\n", body].concat()).await;
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    /// Sends the bytes and reads until the server closes.
    pub(crate) async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        // A server that has refused already need not read the rest.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        read.expect("the server closes").ok();
        String::from_utf8(answer).unwrap()
    }

    pub(crate) async fn metrics(&self) -> String {
        self.exchange(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await
    }

    /// The value of one series.
    pub(crate) async fn metric(&self, series: &str) -> u64 {
        let metrics = self.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series} in {metrics}"))
    }

    /// How often requests for this account were refused for this reason.
    pub(crate) async fn refused(&self, account: &str, why: &str) -> u64 {
        self.metric(&format!("paceline_feedback_refused_total{{account=\"{account}\",why=\"{why}\"}}")).await
    }

    pub(crate) async fn counted(&self, account: &str, kind: &str) -> u64 {
        self.metric(&format!("paceline_feedback_events_total{{account=\"{account}\",kind=\"{kind}\"}}")).await
    }

    /// Waits until exactly this many events have come through the queue, and returns them.
    pub(crate) async fn events(&self, n: usize) -> Vec<Received> {
        for _ in 0..1200 {
            let events = self.taken.events.lock().unwrap().clone();
            assert!(events.len() <= n, "more than {n}: {events:?}");
            if events.len() == n && self.settled() {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never {n} events: {:?}", self.taken.events.lock().unwrap());
    }

    /// Whether nothing of the queue is being worked off.
    fn settled(&self) -> bool {
        self.broker.held("paceline.feedback") == 0
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Seconds of the Unix epoch, so many away from now.
pub(crate) fn seconds(from_now: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (i64::try_from(now).unwrap() + from_now).to_string()
}

/// `bytes` with one in the middle changed.
pub(crate) fn changed(bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    changed
}
