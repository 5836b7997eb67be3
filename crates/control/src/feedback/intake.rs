//! `POST /v1/feedback/{account}`: told from forged requests, read, published, and only then answered.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequest, Path, Request, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::WWW_AUTHENTICATE},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use paceline_broker::{Broker, Outgoing, Properties, PublishError, Purpose, Route};
use paceline_core::{Timestamp, feedback::Event};
use tokio::{sync::Semaphore, time::timeout};
use tracing::{info, warn};

use super::{
    Batch, Fetch, MAX_BODY_BYTES, Refusal, Scheme, certificates::Certificates, mailgun, metrics::Metrics, postmark, resend,
    scheme::Proof, seen::Seen, sendgrid, ses, sns, sns::Envelope, sparkpost,
};

/// Bodies read at a time. What they may hold together bounds the memory that strangers can take.
const MAX_BODIES: usize = 64;
/// How long a request waits for its turn, and then its body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Publishes under way for one request.
const CONCURRENT_PUBLISHES: usize = 64;
/// Events and tokens remembered.
const MAX_SEEN: usize = 200_000;
/// How often refusals of one account are logged.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Takes requests with events.
pub(super) struct Intake {
    accounts: BTreeMap<String, Scheme>,
    broker: Arc<dyn Broker>,
    certificates: Certificates,
    metrics: Metrics,
    bodies: Semaphore,
    /// Events that the broker has.
    events: Seen,
    /// Mailgun's, each good for one request.
    tokens: Seen,
    logged: Mutex<HashMap<String, Instant>>,
}

/// The route, for all of `intake`'s accounts.
pub(super) fn router(intake: Arc<Intake>) -> Router {
    let limit = DefaultBodyLimit::max(MAX_BODY_BYTES);
    Router::new().route("/v1/feedback/{account}", post(handle)).layer(limit).with_state(intake)
}

async fn handle(State(intake): State<Arc<Intake>>, Path(account): Path<String>, request: Request) -> Response {
    match intake.take(&account, request).await {
        Ok(()) => "taken\n".into_response(),
        Err(why) => {
            intake.note(&account, why);
            let mut response = (why.status(), format!("{}\n", why.as_str())).into_response();
            let challenged = intake.accounts.get(&account).is_some_and(Scheme::is_basic);
            if challenged && why.status() == StatusCode::UNAUTHORIZED {
                // Some clients keep the credentials of their URL back until they are asked for.
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"events\""));
            }
            response
        }
    }
}

impl Intake {
    pub(super) fn new(
        accounts: BTreeMap<String, Scheme>,
        broker: Arc<dyn Broker>,
        fetch: Option<Arc<dyn Fetch>>,
        metrics: Metrics,
    ) -> Intake {
        Intake {
            accounts,
            broker,
            certificates: Certificates::new(fetch),
            metrics,
            bodies: Semaphore::new(MAX_BODIES),
            events: Seen::new(MAX_SEEN),
            tokens: Seen::new(MAX_SEEN),
            logged: Mutex::default(),
        }
    }

    async fn take(&self, account: &str, request: Request) -> Result<(), Refusal> {
        let scheme = self.accounts.get(account).ok_or(Refusal::UnknownAccount)?;
        scheme.glance(request.headers())?;
        let (parts, body) = request.into_parts();
        let waiting = timeout(BODY_TIMEOUT, self.bodies.acquire());
        // The semaphore is never closed.
        let _turn = waiting.await.map_err(|_| Refusal::Busy)?.map_err(|_| Refusal::Busy)?;
        let body = timeout(BODY_TIMEOUT, read(Request::from_parts(parts.clone(), body))).await.map_err(|_| Refusal::Slow)??;
        self.taken(account, scheme, &parts.headers, &body, SystemTime::now().into()).await
    }

    async fn taken(
        &self,
        account: &str,
        scheme: &Scheme,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let tolerance = scheme.tolerance;
        let batch = match &scheme.proof {
            Proof::Sns { topics } => self.notification(account, topics, body, now, tolerance).await?,
            Proof::SendGrid { keys } => {
                sendgrid::verify(headers, body, keys, now, tolerance)?;
                sendgrid::read(account, body, now)?
            }
            Proof::Resend { key } => {
                let id = resend::verify(headers, body, key, now, tolerance)?;
                resend::read(account, id, body, now)?
            }
            Proof::Postmark(_) => postmark::read(account, body, now)?,
            Proof::SparkPost(_) => sparkpost::read(account, body, now)?,
            Proof::Mailgun { key } => {
                let signed = mailgun::verify(body, key, now, tolerance)?;
                if !self.tokens.insert(account, &signed.token) {
                    return Err(Refusal::Replayed);
                }
                let published = match mailgun::read(account, &signed, now) {
                    Ok(batch) => self.publish(account, batch).await,
                    Err(why) => Err(why),
                };
                if published.is_err() {
                    // It will come again, with the same token.
                    self.tokens.remove(account, &signed.token);
                }
                return published;
            }
        };
        self.publish(account, batch).await
    }

    async fn notification(
        &self,
        account: &str,
        topics: &[String],
        body: &[u8],
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<Batch, Refusal> {
        let envelope = Envelope::parse(body)?;
        let claim = envelope.claim(topics, now, tolerance)?;
        let key = self.certificates.key(claim.certificate_url, now).await?;
        claim.verify(&key)?;
        match envelope.kind() {
            sns::Kind::Notification => ses::read(account, &envelope.message_id, &envelope.message, now),
            sns::Kind::SubscriptionConfirmation => {
                self.certificates.visit(envelope.confirmation()?).await?;
                info!(account, "the subscription to the topic of events is confirmed");
                Ok(Batch::default())
            }
            sns::Kind::UnsubscribeConfirmation => {
                warn!(account, "the topic of events has been unsubscribed from: no more events come");
                Ok(Batch::default())
            }
        }
    }

    /// Publishes what is new. Where not all is confirmed, what is will be told as a duplicate when it comes again.
    async fn publish(&self, account: &str, batch: Batch) -> Result<(), Refusal> {
        let Batch { events, ignored, unreadable } = batch;
        let all = events.len();
        let mut in_batch = HashSet::new();
        let mut is_new =
            |event: &Event| !self.events.contains(account, &event.event_id) && in_batch.insert(event.event_id.clone());
        let new: Vec<Event> = events.into_iter().filter(|event| is_new(event)).collect();
        let duplicates = all - new.len();
        let publishes = new.into_iter().map(|event| self.publish_one(account, event));
        let published: Result<(), PublishError> =
            stream::iter(publishes).buffer_unordered(CONCURRENT_PUBLISHES).try_collect().await;
        if let Err(error) = published {
            warn!(account, %error, "events were not published; the provider is asked to repeat them");
            return Err(Refusal::Broker);
        }
        self.metrics.passed_over(account, duplicates, ignored, unreadable);
        Ok(())
    }

    async fn publish_one(&self, account: &str, event: Event) -> Result<(), PublishError> {
        let outgoing = Outgoing {
            to: Route::Feedback,
            key: String::new(),
            body: event.to_json().into(),
            properties: Properties { message_id: Some(event.event_id.clone()), ..Properties::default() },
            purpose: Purpose::Feedback,
        };
        self.broker.publish(outgoing).await?;
        self.events.insert(account, &event.event_id);
        self.metrics.taken(account, event.kind);
        Ok(())
    }

    /// Counts a refusal, and logs it now and then.
    fn note(&self, account: &str, why: Refusal) {
        if why == Refusal::UnknownAccount {
            // The name is a stranger's: it goes into no label and no log.
            self.metrics.refused("", why, 1);
            return;
        }
        self.metrics.refused(account, why, 1);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if logged.get(account).is_none_or(|last| now.duration_since(*last) >= LOG_EVERY) {
            logged.insert(account.to_owned(), now);
            warn!(account, why = why.as_str(), "events were refused; more within a minute are only counted");
        }
    }
}

async fn read(request: Request<Body>) -> Result<Bytes, Refusal> {
    Bytes::from_request(request, &()).await.map_err(|rejection: BytesRejection| match rejection.status().as_u16() {
        413 => Refusal::TooLarge,
        _ => Refusal::Malformed,
    })
}
