//! The HTTP side: connections, bodies, answers.

use std::{
    convert::Infallible,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Either, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet, time::Sleep};

use crate::{
    answer::Answer,
    api::Api,
    arrivals::{Arrival, Arrivals},
    batch,
    decide::{self, Act, State, Verdict},
    facts::Facts,
    lock,
    scenario::Scenario,
    step::Step,
};

/// Bodies up to here are read as a whole; of longer ones only so much is kept, the rest is counted.
const KEPT_BYTES: usize = 256 * 1024;

type Answered = Response<Either<Full<Bytes>, Trickle>>;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    scenario: RwLock<Arc<Scenario>>,
    state: Mutex<State>,
    arrivals: Option<Arrivals>,
    started: Instant,
}

impl Shared {
    pub(crate) fn new(scenario: Scenario, arrivals: Option<Arrivals>) -> Shared {
        let mut state = State::default();
        state.restart(&scenario);
        Shared { scenario: RwLock::new(Arc::new(scenario)), state: Mutex::new(state), arrivals, started: Instant::now() }
    }

    /// The counts, brought up to date.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.stats.arrivals_lost = self.arrivals.as_ref().map_or(0, Arrivals::lost);
        state
    }

    pub(crate) fn set_scenario(&self, scenario: Scenario) {
        lock(&self.state).restart(&scenario);
        *self.scenario.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(scenario);
    }

    pub(crate) fn reset(&self) {
        let scenario = self.scenario();
        let mut state = lock(&self.state);
        *state = State::default();
        state.restart(&scenario);
        if let Some(arrivals) = &self.arrivals {
            arrivals.truncate();
        }
    }

    pub(crate) fn close_arrivals(&self) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.close();
        }
    }

    fn scenario(&self) -> Arc<Scenario> {
        Arc::clone(&self.scenario.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves until aborted; all connections end with it.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut server = http1::Builder::new();
    server.header_read_timeout(None);
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: those who are connected must first let go of some.
                tracing::warn!(%error, "the sandbox cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| handle(Arc::clone(&shared), request));
        connections.spawn(server.serve_connection(TokioIo::new(stream), service));
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed as the scenario says")
    }
}

impl std::error::Error for Closed {}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answered, Closed> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if path.starts_with("/sandbox/") {
        return administer(&shared, &parts.method, path, body).await;
    }
    if parts.method != Method::POST {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "POST a message; GET /sandbox/stats shows the counts\n"));
    }
    let api = Api::of_path(path);
    let scenario = shared.scenario();
    for (i, rule) in scenario.rules.iter().enumerate() {
        let unread = rule.then.steps().any(|s| s == Step::DropUnread);
        if unread && rule.is_for_path(api, path) && lock(&shared.state).turn(i, rule.every) {
            lock(&shared.state).stats.dropped += 1;
            return Err(Closed);
        }
    }
    // Of a batch every message counts, however many there are.
    let kept = if api.is_batch(path) { decide::MAX_BODY_BYTES } else { KEPT_BYTES };
    let (body, length) = read(body, kept).await?;
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verdict = {
        let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
        let whole = length == body.len();
        let credential = api.credential(&parts.headers);
        let account = account(credential.as_ref().ok().and_then(Option::as_deref));
        let idempotency_key = header("idempotency-key");
        let request = decide::Request {
            api,
            path,
            key: credential.as_ref().map(Option::as_deref).map_err(|e| *e),
            account: &account,
            idempotency_key,
            body: &body,
            bytes: length,
            facts: None,
            now_us: u64::try_from(shared.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        let write = |facts: Option<&Facts<'_>>, verdict: &Verdict| {
            let Some(arrivals) = &shared.arrivals else { return };
            arrivals.push(&Arrival {
                seq: verdict.seq,
                at_us: u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
                id: facts.and_then(|f| f.id.as_deref()).or(idempotency_key),
                api: api.name(),
                path,
                account: &account,
                domain: facts.map_or("", Facts::domain),
                class: facts.and_then(|f| f.class.as_deref()),
                recipients: facts.map_or(0, |f| f.recipients.len()),
                bytes: length,
                status: verdict.status().map(|s| s.as_u16()),
                accepted: verdict.accepted,
                result: verdict.result(),
            });
        };
        let is_batch = api.is_batch(path);
        // A batch that cannot be read as such is no message either.
        let content_type = header("content-type").unwrap_or_default();
        let facts = if is_batch { None } else { Facts::read(api, content_type, &body, whole).ok() };
        let batch = if is_batch { Facts::read_batch(api, &body, whole).ok() } else { facts.as_ref().and_then(Facts::split) };
        if let Some(batch) = batch {
            let permissive = header("x-batch-validation") == Some("permissive");
            let (verdict, each) = batch::decide(&scenario, &mut lock(&shared.state), &request, &batch, permissive);
            batch.iter().zip(&each).for_each(|(facts, verdict)| write(Some(facts), verdict));
            verdict
        } else {
            let request = decide::Request { facts: facts.as_ref(), ..request };
            let verdict = decide::decide(&scenario, &mut lock(&shared.state), &request);
            write(facts.as_ref(), &verdict);
            verdict
        }
    };
    if !verdict.delay.is_zero() {
        tokio::time::sleep(verdict.delay).await;
    }
    match verdict.act {
        Act::Answer(answer) => Ok(response(answer.status, answer.headers, Either::Left(Full::new(answer.body)))),
        Act::Slow(Answer { status, headers, body }, time) => {
            Ok(response(status, headers, Either::Right(Trickle::new(body, time))))
        }
        Act::Hang(Some(time)) => {
            tokio::time::sleep(time).await;
            Err(Closed)
        }
        // Until the client has had enough: hyper drops this then.
        Act::Hang(None) => std::future::pending().await,
        Act::Drop => Err(Closed),
    }
}

/// The body, or the first `most` bytes of a longer one, and its length.
async fn read(mut body: Incoming, most: usize) -> Result<(Bytes, usize), Closed> {
    let Some(first) = next(&mut body).await? else { return Ok((Bytes::new(), 0)) };
    if body.is_end_stream() && first.len() <= most {
        return Ok((first.clone(), first.len()));
    }
    let mut length = 0;
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut kept = BytesMut::with_capacity(first.len().saturating_add(expected).min(most));
    let mut piece = Some(first);
    while let Some(data) = piece {
        length += data.len();
        kept.extend_from_slice(&data[..data.len().min(most - kept.len())]);
        piece = next(&mut body).await?;
    }
    Ok((kept.freeze(), length))
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Closed> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(Closed),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A name for the credential that does not give it away: the same for the same key, in every run.
fn account(key: Option<&str>) -> String {
    let Some(key) = key else { return "none".to_owned() };
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

async fn administer(shared: &Shared, method: &Method, path: &str, body: Incoming) -> Result<Answered, Closed> {
    match (method, path) {
        (&Method::GET, "/sandbox/stats") => {
            let stats = serde_json::to_string(&shared.state().stats).unwrap_or_default();
            Ok(text(StatusCode::OK, &stats))
        }
        (&Method::DELETE, "/sandbox/arrivals") => {
            shared.reset();
            Ok(text(StatusCode::OK, "{}"))
        }
        (&Method::PUT, "/sandbox/scenario") => {
            let (body, length) = read(body, KEPT_BYTES).await?;
            let scenario = match std::str::from_utf8(&body) {
                Ok(toml) if length == body.len() => Scenario::from_toml(toml),
                _ => return Ok(text(StatusCode::BAD_REQUEST, "a scenario is TOML in UTF-8, at most 256 KiB\n")),
            };
            match scenario {
                Ok(scenario) => {
                    shared.set_scenario(scenario);
                    Ok(text(StatusCode::OK, "{}"))
                }
                Err(errors) => {
                    let lines: String = errors.iter().map(|e| format!("{e}\n")).collect();
                    Ok(text(StatusCode::BAD_REQUEST, &lines))
                }
            }
        }
        _ => Ok(text(
            StatusCode::NOT_FOUND,
            "GET /sandbox/stats, DELETE /sandbox/arrivals, PUT /sandbox/scenario; every other path takes a POST\n",
        )),
    }
}

fn text(status: StatusCode, body: &str) -> Answered {
    response(status, Vec::new(), Either::Left(Full::new(Bytes::copy_from_slice(body.as_bytes()))))
}

fn response(
    status: StatusCode,
    headers: Vec<(hyper::header::HeaderName, hyper::header::HeaderValue)>,
    body: Either<Full<Bytes>, Trickle>,
) -> Answered {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}

/// A body that comes byte by byte.
#[derive(Debug)]
struct Trickle {
    left: Bytes,
    pause: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Trickle {
    fn new(body: Bytes, time: Duration) -> Trickle {
        let pause = time / u32::try_from(body.len().max(1)).unwrap_or(u32::MAX);
        Trickle { left: body, pause, sleep: Box::pin(tokio::time::sleep(pause)) }
    }
}

impl http_body::Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        ready!(self.sleep.as_mut().poll(cx));
        let next = self.sleep.deadline() + self.pause;
        self.sleep.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(1)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
