//! Both providers against a raw TCP server that behaves as badly as servers do.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use paceline_core::{Message, Outcome, Rejected};
use paceline_provider::{Attempt, BuildError, HttpSettings, Provider, Secret, Settings, Url, build};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// What the server does with one request.
#[derive(Clone, Copy)]
enum Act {
    /// Reads it, answers with these bytes, stays open.
    Answer(&'static str),
    /// Reads it, answers with these bytes, then these again and again until the client goes.
    Endless(&'static str, &'static str),
    /// Reads it, answers, closes without having said so.
    AnswerAndClose(&'static str),
    /// Reads it and never answers.
    Hang,
    /// Reads nothing and never answers.
    Deaf,
    /// Reads it and closes.
    Drop,
    /// Closes without reading.
    Slam,
}

struct Server {
    url: Url,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    closed: mpsc::UnboundedReceiver<()>,
}

const OK: &str = "HTTP/1.1 202 Accepted\r\nX-Message-Id: abc\r\nContent-Length: 0\r\n\r\n";

/// The nth request gets the nth act, the last one from then on.
async fn server(acts: &'static [Act]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/prefix/", listener.local_addr().unwrap())).unwrap();
    let (connections, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (closing, closed) = mpsc::unbounded_channel();
    let out = Server { url, connections: Arc::clone(&connections), requests: Arc::clone(&requests), closed };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, acts, Arc::clone(&served), Arc::clone(&requests), closing.clone()));
        }
    });
    out
}

async fn serve(
    mut stream: TcpStream,
    acts: &'static [Act],
    served: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    closing: mpsc::UnboundedSender<()>,
) {
    loop {
        let act = |n: usize| *acts.get(n).or(acts.last()).unwrap();
        match act(served.load(Ordering::SeqCst)) {
            Act::Slam => {
                served.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Act::Deaf => return std::future::pending().await,
            _ => {}
        }
        let Some(request) = read_request(&mut stream).await else { return };
        requests.lock().unwrap().push(request);
        match act(served.fetch_add(1, Ordering::SeqCst)) {
            Act::Answer(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
            Act::Endless(head, again) => {
                stream.write_all(head.as_bytes()).await.unwrap();
                while stream.write_all(again.as_bytes()).await.is_ok() {}
                return;
            }
            Act::AnswerAndClose(bytes) => {
                stream.write_all(bytes.as_bytes()).await.unwrap();
                drop(stream);
                return closing.send(()).unwrap();
            }
            Act::Hang | Act::Deaf => std::future::pending().await,
            Act::Drop | Act::Slam => return,
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
            let length: usize = head.split("content-length: ").nth(1)?.lines().next()?.parse().ok()?;
            if bytes.len() >= end + 4 + length {
                return Some(String::from_utf8(bytes).unwrap());
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Short enough for tests that wait one out, long enough for the others on a busy machine where it does not matter.
fn impatient() -> HttpSettings {
    HttpSettings { read_timeout: Duration::from_millis(300), ..HttpSettings::default() }
}

fn sendgrid(url: &Url, http: &HttpSettings) -> Arc<dyn Provider> {
    let settings = Settings::SendGrid { api_key: Secret::new("SG.key"), base_url: Some(url.clone()) };
    build(settings, http, "paceline/test").unwrap()
}

fn generic(url: &Url) -> Arc<dyn Provider> {
    let settings = Settings::Http { url: url.clone(), bearer_token: Some(Secret::new("t0ken")) };
    build(settings, &HttpSettings::default(), "paceline/test").unwrap()
}

fn message(text: &str) -> Message {
    let body = format!(r#"{{"id":"m-1","from":"s@b.org","to":["u@gmail.com"],"subject":"Hi","text":"{text}"}}"#);
    Message::parse(body.as_bytes(), None, 20 << 20).unwrap()
}

async fn send(provider: &Arc<dyn Provider>) -> Outcome {
    provider.send(Attempt { message: &message("t"), idempotency_key: "m-1" }).await
}

fn code(outcome: &Outcome) -> (&'static str, &str) {
    (outcome.label(), outcome.answer().map_or("", |a| a.code.as_str()))
}

#[tokio::test]
async fn a_sendgrid_call_as_it_stands_on_the_wire() {
    let server = server(&[Act::Answer(OK)]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    assert_eq!(send(&provider).await, Outcome::accepted(Some("abc".into())));
    let request = server.requests.lock().unwrap()[0].clone();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /prefix/v3/mail/send HTTP/1.1\r\n"), "{head}");
    let head = head.to_ascii_lowercase();
    let length = format!("content-length: {}", body.len());
    let wanted = [
        "authorization: bearer sg.key",
        "content-type: application/json",
        "user-agent: paceline/test",
        &length,
        "host: 127.0.0.1",
    ];
    for line in wanted {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert!(!provider.idempotent());
}

#[tokio::test]
async fn an_http_call_carries_the_idempotency_key() {
    const SEEN: &str = "HTTP/1.1 409 Conflict\r\nContent-Length: 14\r\n\r\n{\"id\": \"p-17\"}";
    let server = server(&[Act::Answer(SEEN)]).await;
    let provider = generic(&server.url);
    assert_eq!(send(&provider).await, Outcome::accepted(Some("p-17".into())));
    let request = server.requests.lock().unwrap()[0].clone();
    assert!(request.starts_with("POST /prefix/ HTTP/1.1\r\n"), "{request}");
    let request = request.to_ascii_lowercase();
    assert!(request.contains("idempotency-key: m-1\r\n") && request.contains("authorization: bearer t0ken\r\n"), "{request}");
    assert!(provider.idempotent());
    let key = provider.send(Attempt { message: &message("t"), idempotency_key: "a\r\nX: y" }).await;
    assert_eq!(code(&key), ("rejected_message", "unsupported"));
}

#[tokio::test]
async fn connections_are_kept() {
    let server = server(&[Act::Answer(OK)]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    for _ in 0..20 {
        assert_eq!(send(&provider).await.label(), "accepted");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_at_once() {
    let server = server(&[Act::Answer(OK)]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    let calls: Vec<_> = (0..64)
        .map(|_| {
            tokio::spawn({
                let p = Arc::clone(&provider);
                async move { send(&p).await }
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().label(), "accepted");
    }
    assert_eq!(server.requests.lock().unwrap().len(), 64);
}

#[tokio::test]
async fn connections_closed_by_the_server_while_idle_cost_nothing() {
    let mut server = server(&[Act::AnswerAndClose(OK)]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    for _ in 0..50 {
        assert_eq!(send(&provider).await.label(), "accepted");
        server.closed.recv().await.unwrap();
        // Parks once, so that the runtime hears of the close that has happened already.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 50);
}

#[tokio::test]
async fn nobody_there_is_temporary() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let outcome = send(&sendgrid(&url, &HttpSettings::default())).await;
    assert_eq!(code(&outcome), ("temporary", "connection_failed"));
    assert!(outcome.answer().unwrap().message.contains("refused"), "{outcome:?}");
    let unknown = Url::parse("http://no-such-host.invalid").unwrap();
    assert_eq!(send(&sendgrid(&unknown, &HttpSettings::default())).await.label(), "temporary");
}

#[tokio::test]
async fn no_tls_on_the_other_side_is_temporary() {
    let server = server(&[Act::Answer(OK)]).await;
    let url = Url::parse(&server.url.as_str().replace("http:", "https:")).unwrap();
    let settings = Settings::SendGrid { api_key: Secret::new("SG.key"), base_url: Some(url) };
    // The plain server reads the handshake as a request that never ends: only the connect time-out ends it.
    let http = HttpSettings { connect_timeout: Duration::from_millis(300), ..HttpSettings::default() };
    match build(settings, &http, "paceline/test") {
        Ok(provider) => assert_eq!(code(&send(&provider).await), ("temporary", "connect_timeout")),
        // A machine without certificate authorities: https says so when it is set up.
        Err(error) => assert!(matches!(error, BuildError::Tls(_)) && error.to_string().contains("ca-certificates"), "{error}"),
    }
}

#[tokio::test]
async fn silence_after_the_request_is_uncertain() {
    for acts in [&[Act::Hang], &[Act::Deaf]] {
        let server = server(acts).await;
        assert_eq!(code(&send(&sendgrid(&server.url, &impatient())).await), ("uncertain", "timeout"));
    }
}

#[tokio::test]
async fn the_total_time_holds_too() {
    let server = server(&[Act::Hang]).await;
    let http = HttpSettings { total_timeout: Duration::from_millis(300), ..HttpSettings::default() };
    assert_eq!(code(&send(&sendgrid(&server.url, &http)).await), ("uncertain", "timeout"));
}

#[tokio::test]
async fn a_large_request_cut_short_is_uncertain() {
    let server = server(&[Act::Deaf]).await;
    let provider = sendgrid(&server.url, &impatient());
    let message = message(&"x".repeat(9 << 20));
    let outcome = provider.send(Attempt { message: &message, idempotency_key: "m-1" }).await;
    assert_eq!(code(&outcome), ("uncertain", "timeout"));
}

#[tokio::test]
async fn a_connection_dropped_after_the_request_is_uncertain_and_not_repeated() {
    // The first call makes the connection a kept one: those are the ones an HTTP client is tempted to repeat on.
    let server = server(&[Act::Answer(OK), Act::Drop]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    assert_eq!(send(&provider).await.label(), "accepted");
    assert_eq!(code(&send(&provider).await), ("uncertain", "connection_lost"));
    assert_eq!(server.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_door_slammed_is_never_taken_for_sent() {
    let server = server(&[Act::Slam]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    for _ in 0..20 {
        // Which of the two depends on whether the request was under way when the close was seen.
        let outcome = send(&provider).await;
        assert!(matches!(outcome.label(), "temporary" | "uncertain"), "{outcome:?}");
    }
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn answers_that_are_not_http_are_uncertain() {
    for acts in [&[Act::Answer("220 mail.example ESMTP\r\n\r\n")], &[Act::AnswerAndClose("HTTP/1.1 20")]] {
        let server = server(acts).await;
        assert_eq!(code(&send(&sendgrid(&server.url, &HttpSettings::default())).await), ("uncertain", "connection_lost"));
    }
}

#[tokio::test]
async fn the_status_counts_though_the_body_never_ends() {
    const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nX-Message-Id: abc\r\nContent-Length: 10\r\n\r\n{";
    const FAILED: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 10\r\n\r\n{";
    for (acts, want) in [
        (&[Act::Answer(ACCEPTED)], ("accepted", "")),
        (&[Act::Answer(FAILED)], ("temporary", "unavailable")),
        (&[Act::AnswerAndClose(ACCEPTED)], ("accepted", "")),
    ] {
        let server = server(acts).await;
        assert_eq!(code(&send(&sendgrid(&server.url, &impatient())).await), want);
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    const HEAD: &str = "HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n";
    const CHUNK: &str = "10\r\n0123456789abcdef\r\n";
    let server = server(&[Act::Endless(HEAD, CHUNK)]).await;
    assert_eq!(code(&send(&sendgrid(&server.url, &HttpSettings::default())).await), ("temporary", "server_error"));
}

#[tokio::test]
async fn early_hints_are_passed_over_and_redirects_not_followed() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
    const MOVED: &str = "HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n";
    let server = server(&[Act::Answer(HINTS), Act::Answer(MOVED)]).await;
    let provider = sendgrid(&server.url, &HttpSettings::default());
    assert_eq!(send(&provider).await, Outcome::accepted(None));
    let moved = send(&provider).await;
    assert!(matches!(moved, Outcome::Rejected { what: Rejected::Account, .. }), "{moved:?}");
    assert_eq!(server.requests.lock().unwrap().len(), 2);
}

#[test]
fn settings_that_cannot_work_say_so() {
    let https = || Settings::Http { url: Url::parse("https://mail.example/send").unwrap(), bearer_token: None };
    let missing = HttpSettings { ca_file: Some("/nonexistent/ca.pem".into()), ..HttpSettings::default() };
    let no_pem =
        HttpSettings { ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()), ..HttpSettings::default() };
    for http in [missing, no_pem] {
        let error = build(https(), &http, "paceline/test").err().unwrap();
        assert!(matches!(error, BuildError::CaFile { .. }), "{error}");
    }
    let settings = Settings::SendGrid { api_key: Secret::new("SG.\nkey"), base_url: None };
    assert!(!format!("{settings:?}").contains("SG."), "{settings:?}");
    let base = Some(Url::parse("http://127.0.0.1").unwrap());
    let settings = Settings::SendGrid { api_key: Secret::new("SG.\nkey"), base_url: base };
    let error = build(settings, &HttpSettings::default(), "paceline/test").err().unwrap().to_string();
    assert!(error.contains("api_key") && !error.contains("SG."), "{error}");
}
