//! The HTTP side by raw sockets: what it answers, and that no client can hold it up.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use axum::{Router, routing::get};
use paceline_control::{BearerToken, Check, Limits, Readiness, guarded, health_router, serve_with};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Switch(Mutex<Vec<Check>>);

impl Readiness for Switch {
    fn checks(&self) -> Vec<Check> {
        self.0.lock().unwrap().clone()
    }
}

struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

async fn start(router: Router, limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve_with(listener, router, stop.clone(), limits));
    Server { addr, stop, task }
}

impl Server {
    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends the bytes and reads until the server closes.
    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.open().await;
        stream.write_all(request).await.unwrap();
        read_to_end(&mut stream).await
    }

    async fn get(&self, path: &str) -> String {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    read.expect("the server closes").ok();
    String::from_utf8(answer).unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

fn health(checks: Vec<Check>) -> (Arc<Switch>, Router) {
    let switch = Arc::new(Switch(Mutex::new(checks)));
    let mut registry = Registry::default();
    let counter: Counter = Counter::default();
    registry.register("paceline_things", "Things", counter.clone());
    counter.inc_by(3);
    (switch.clone(), health_router(switch, Arc::new(RwLock::new(registry))))
}

#[tokio::test]
async fn the_three_endpoints() {
    let (switch, router) = health(vec![Check::ok("broker"), Check::ok("store")]);
    let server = start(router, Limits::default()).await;
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200 "));

    let ready = server.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.contains("application/json"), "{ready}");
    let json: serde_json::Value = serde_json::from_str(body(&ready)).unwrap();
    let ok = serde_json::json!({"ok": true, "detail": null});
    assert_eq!(json, serde_json::json!({"ready": true, "checks": {"broker": ok, "store": ok}}));

    switch.0.lock().unwrap()[1] = Check::failing("store", "connection refused");
    let ready = server.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    let json: serde_json::Value = serde_json::from_str(body(&ready)).unwrap();
    assert_eq!(json["ready"], false);
    assert_eq!(json["checks"]["broker"], ok);
    assert_eq!(json["checks"]["store"], serde_json::json!({"ok": false, "detail": "connection refused"}));
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200 "), "alive all the same");

    let metrics = server.get("/metrics").await;
    assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
    assert!(body(&metrics).contains("paceline_things_total 3\n") && metrics.ends_with("# EOF\n"), "{metrics}");

    assert!(server.get("/nothing").await.starts_with("HTTP/1.1 404 "));
    let post = b"POST /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(server.exchange(post).await.starts_with("HTTP/1.1 405 "));
    server.end().await;
}

#[tokio::test]
async fn hostile_clients_are_bounded() {
    let limits = Limits {
        connections: 4,
        head_timeout: Duration::from_millis(200),
        connection_lifetime: Duration::from_secs(2),
        request_timeout: Duration::from_millis(300),
        body_bytes: 1000,
        drain: Duration::from_millis(200),
        ..Limits::default()
    };
    let (_, router) = health(vec![]);
    let router = router
        .route("/slow", get(async || std::future::pending::<()>().await))
        .route("/body", axum::routing::post(async |body: String| body));
    let server = start(router, limits).await;

    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"]
    {
        let answer = server.exchange(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let long_head = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(100_000));
    assert!(server.exchange(long_head.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(500));
    assert!(server.exchange(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let large =
        format!("POST /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1001\r\n\r\n{}", "x".repeat(1001));
    assert!(server.exchange(large.as_bytes()).await.starts_with("HTTP/1.1 413 "));
    let slow_body = b"POST /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\nx";
    assert!(server.exchange(slow_body).await.starts_with("HTTP/1.1 408 "));
    assert!(server.get("/slow").await.starts_with("HTTP/1.1 408 "));

    // Four that say nothing, or begin and never end, take every place; a fifth is served once they are shown out.
    let mut idle = Vec::new();
    for begun in [&b""[..], b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-"] {
        let mut stream = server.open().await;
        stream.write_all(begun).await.unwrap();
        idle.push(stream);
    }
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200 "));
    for stream in &mut idle {
        let last = read_to_end(stream).await;
        assert!(last.is_empty() || last.starts_with("HTTP/1.1 408 "), "{last}");
    }

    // A connection that keeps asking is closed at the end of its life.
    let mut busy = server.open().await;
    let asking = async {
        loop {
            let mut answer = [0; 4096];
            if busy.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.is_err()
                || busy.read(&mut answer).await.unwrap_or(0) == 0
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("closed at the end of its life");
    server.end().await;
}

#[tokio::test]
async fn an_answer_under_way_is_finished_when_the_process_ends() {
    let begun = Arc::new(tokio::sync::Notify::new());
    let go_on = Arc::new(tokio::sync::Notify::new());
    let (at_begin, at_go) = (begun.clone(), go_on.clone());
    let router = Router::new().route(
        "/work",
        get(async move || {
            at_begin.notify_one();
            at_go.notified().await;
            "done"
        }),
    );
    let server = start(router, Limits::default()).await;
    let addr = server.addr;
    let mut stream = server.open().await;
    stream.write_all(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    begun.notified().await;
    let ending = tokio::spawn(server.end());
    go_on.notify_one();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.ends_with("done"), "{answer}");
    ending.await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn guarded_routes_want_the_token() {
    let guarded_routes = guarded(Router::new().route("/v1/x", get(async || "in")), BearerToken::new("t0ken").unwrap());
    let server = start(health(vec![]).1.merge(guarded_routes), Limits::default()).await;
    let ask = async |authorization: &str| {
        let request = format!("GET /v1/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
        server.exchange(request.as_bytes()).await
    };
    let refused = ask("").await;
    assert!(refused.starts_with("HTTP/1.1 401 ") && refused.contains("www-authenticate: Bearer"), "{refused}");
    assert!(ask("Authorization: Bearer nope\r\n").await.starts_with("HTTP/1.1 401 "));
    assert!(ask("Authorization: Bearer t0ken\r\n").await.ends_with("in"));
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200 "), "health is open");
    server.end().await;
}
