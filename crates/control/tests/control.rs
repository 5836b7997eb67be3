//! The whole control process over the in-process broker and a private PostgreSQL.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, RwLock},
    time::Duration,
};

use paceline_broker::{Broker, Outgoing, Properties, Purpose, Route, Topology, memory::MemoryBroker};
use paceline_classifier::{Classifier, Destinations};
use paceline_control::{Deps, feedback::Feedback, run};
use paceline_core::{DeadLetter, Journey, Reason, Timestamp, dead_letter::HEADER};
use paceline_store::{DeadLetters, Filter, Options, PostgresStore};
use paceline_testkit::Postgres;
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Asks until the answer is as wanted, and returns it.
async fn until(addr: SocketAddr, path: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut answer = String::new();
    for _ in 0..1200 {
        answer = get(addr, path).await;
        if wanted(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never as wanted: {answer}");
}

fn checks(answer: &str) -> serde_json::Value {
    serde_json::from_str::<serde_json::Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()["checks"].clone()
}

fn failing(answer: &str) -> Vec<String> {
    let checks = checks(answer);
    let failing = checks.as_object().unwrap().iter().filter(|(_, check)| check["ok"] == false);
    failing.map(|(name, _)| name.clone()).collect()
}

async fn publish(broker: &MemoryBroker, to: Route, key: &str, properties: Properties) {
    let message = Outgoing { to, key: key.to_owned(), body: b"{}"[..].into(), properties, purpose: Purpose::Submit };
    broker.publish(message).await.unwrap();
}

fn dead(id: &str, reason: Reason) -> Properties {
    let now = Timestamp::from_secs(1_800_000_000);
    let entry = DeadLetter::new(id.to_owned(), reason, &Journey::starting(now), now);
    Properties { headers: [(HEADER.to_owned(), serde_json::to_string(&entry).unwrap().into())].into(), ..Properties::default() }
}

#[tokio::test]
async fn control_starts_with_everything_away_and_tells_the_truth_throughout() {
    let server = Postgres::start().await;
    server.stop().await;
    let options = Options { acquire_timeout: Duration::from_secs(1), ..Options::default() };
    let store = Arc::new(PostgresStore::new(&server.url(), options).unwrap());
    let topology = Topology::new("paceline", [("google", ["gmail.com"]), ("big.corp", ["corp.example"])]);
    let broker = MemoryBroker::new("paceline");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let deps = Deps {
        broker: Arc::new(broker.clone()),
        store: store.clone(),
        topology: topology.clone(),
        listener,
        registry: Arc::new(RwLock::new(Registry::default())),
        also: None,
        with_worker: false,
        retention: None,
        auto_suppress: None,
        feedback: Feedback {
            accounts: BTreeMap::new(),
            fetch: None,
            classifier: Arc::new(Classifier::new(vec![], Destinations::new(vec![]).unwrap())),
            sinks: vec![],
        },
    };
    let control = tokio::spawn(run(deps, stop.clone()));

    // The queue is not declared and PostgreSQL is away.
    let answer =
        until(addr, "/readyz", |a| checks(a)["dead_letters"]["detail"].as_str().is_some_and(|d| d.contains("topology apply")))
            .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(failing(&answer), ["dead_letters", "store"]);
    assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200 "));

    broker.apply(&topology).await.unwrap();
    until(addr, "/readyz", |a| failing(a) == ["store"]).await;
    server.start_again().await;
    until(addr, "/readyz", |a| a.starts_with("HTTP/1.1 200 ")).await;

    publish(&broker, Route::Dead, "", dead("a", Reason::Expired)).await;
    publish(&broker, Route::Dead, "", dead("a", Reason::Expired)).await;
    publish(&broker, Route::Dead, "", dead("b", Reason::Uncertain)).await;
    for key in ["low.gmail.com", "low.gmail.com", "high.corp.example", "critical.elsewhere.example"] {
        publish(&broker, Route::Producers, key, Properties::default()).await;
    }
    for line in [
        "paceline_dead_letters_total{reason=\"expired\"} 1\n",
        "paceline_dead_letters_total{reason=\"uncertain\"} 1\n",
        "paceline_dead_letters_total{reason=\"poison\"} 0\n",
        "paceline_lane_depth{class=\"low\",destination=\"google\"} 2\n",
        "paceline_lane_depth{class=\"high\",destination=\"big.corp\"} 1\n",
        "paceline_lane_depth{class=\"critical\",destination=\"tail\"} 1\n",
        "paceline_queue_depth{queue=\"dead\"} 0\n",
    ] {
        until(addr, "/metrics", |a| a.contains(line)).await;
    }
    assert_eq!(store.list(&Filter::default()).await.unwrap().len(), 2);

    server.stop().await;
    let answer = until(addr, "/readyz", |a| failing(a).contains(&"store".to_owned())).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    server.start_again().await;
    until(addr, "/readyz", |a| a.starts_with("HTTP/1.1 200 ")).await;
    broker.lose("unplugged");
    let answer = until(addr, "/readyz", |a| failing(a).contains(&"dead_letters".to_owned())).await;
    assert_eq!(failing(&answer), ["broker", "dead_letters"]);
    assert_eq!(checks(&answer)["broker"]["detail"], "unplugged");
    until(addr, "/metrics", |a| !a.contains("paceline_lane_depth{")).await;
    broker.restore();
    until(addr, "/readyz", |a| a.starts_with("HTTP/1.1 200 ")).await;

    stop.cancel();
    control.await.unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}
