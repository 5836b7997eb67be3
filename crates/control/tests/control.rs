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
use paceline_control::{BearerToken, Deps, feedback::Feedback, lanes::Lanes, run};
use paceline_core::{
    Class, DeadLetter, Journey, PauseScope, Reason, Timestamp,
    dead_letter::HEADER,
    diagnosis::{Place, Tally},
    lanes::{LaneReport, LaneState, WorkerReport},
};
use paceline_limiter::fleet::{LocalReports, Reports};
use paceline_store::{DeadLetters, Directives, Filter, Options, PostgresStore};
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

/// What `/v1` answers whoever shows the token.
async fn v1(addr: SocketAddr, path: &str, token: &str) -> (String, serde_json::Value) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), serde_json::from_str(body).unwrap_or_default())
}

/// Two messages wait in low.google, one more is held and one under way; an operator holds all critical mail.
async fn lanes_are_told(addr: SocketAddr, reports: &dyn Reports, store: &dyn Directives) {
    let said = WorkerReport {
        worker: "w".into(),
        lanes: vec![LaneReport {
            queue: "paceline.lane.low.google".into(),
            class: Class::Low,
            destination: "google".into(),
            held: 1,
            in_flight: 1,
            allowed_per_s: Some(0.5),
            binding: Some("account main".into()),
            actual_per_s: 0.25,
            state: LaneState::Paced,
            oldest_at: Some(Timestamp::from_secs(1_700_000_000)),
        }],
        places: vec![Place {
            account: "main".into(),
            destination: "google".into(),
            now: Tally { accepted: 10, reputation: 5, ..Tally::default() },
            ..Place::default()
        }],
    };
    reports.report("w", &serde_json::to_string(&said).unwrap(), Duration::from_secs(600)).await.unwrap();
    reports.report("x", "of another kind", Duration::from_secs(600)).await.unwrap();
    store.pause(&PauseScope::Class(Class::Critical), None, "ann", None).await.unwrap();
    for wrong in ["", "t0keN", "t0ken2"] {
        assert_eq!(v1(addr, "/v1/lanes", wrong).await.0, "401");
    }
    let (status, lanes) = v1(addr, "/v1/lanes", "t0ken").await;
    assert_eq!((&*status, lanes.as_array().unwrap().len()), ("200", 12));
    let google = &lanes[1];
    let want = serde_json::json!({
        "lane": "low.google", "class": "low", "destination": "google", "depth": 4, "held": 1, "in_flight": 1,
        "allowed_per_s": 0.5, "binding": "account main", "actual_per_s": 0.25, "state": "paced", "drain_eta_s": 16,
        "oldest_s": google["oldest_s"],
    });
    assert_eq!(*google, want);
    assert_eq!((&lanes[0]["lane"], &lanes[0]["state"]), (&"critical.tail".into(), &"paused".into()));
    for name in ["google", "low.google"] {
        let (_, explained) = v1(addr, &format!("/v1/lanes/{name}/explain"), "t0ken").await;
        assert_eq!((&explained["verdict"], explained["lanes"].as_array().unwrap().len()), (&"reputation_trouble".into(), 4));
    }
    assert_eq!(v1(addr, "/v1/lanes/nowhere/explain", "t0ken").await.0, "404");
    for line in [
        "paceline_lane_depth{class=\"low\",destination=\"google\"} 4\n",
        "paceline_lane_allowed_per_second{class=\"low\",destination=\"google\"} 0.5\n",
        "paceline_lane_state{class=\"critical\",destination=\"tail\"} 8\n",
        "paceline_oldest_seconds{class=\"low\",destination=\"google\"} ",
    ] {
        until(addr, "/metrics", |a| a.contains(line)).await;
    }
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
    let classifier = Arc::new(Classifier::new(vec![], Destinations::new(vec![]).unwrap()));
    let reports = Arc::new(LocalReports::new());
    let lanes = Lanes {
        broker: Arc::new(broker.clone()),
        reports: reports.clone(),
        orders: store.clone(),
        topology: topology.clone(),
        classifier: classifier.clone(),
        accounts: ["main".to_owned()].into(),
        ready_holds_all: false,
    };
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
        feedback: Feedback { accounts: BTreeMap::new(), fetch: None, classifier, sinks: vec![] },
        lanes,
        token: BearerToken::new("t0ken"),
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
    lanes_are_told(addr, &*reports, &*store).await;

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
