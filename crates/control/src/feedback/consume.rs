//! Works off the queue of events: hands them to the sinks, counts them, tells producers.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use paceline_broker::{Broker, Consumer, Delivery, Outgoing, Properties, Purpose, Route, Settle};
use paceline_classifier::Classifier;
use paceline_core::feedback::{Event, Notice};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::metrics::Metrics;

/// Held at most; also the most that a sink is given at once.
const PREFETCH: u16 = 200;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_millis(20);
/// How long a sink may take to end once the process is asked to.
const LAST_WORK: Duration = Duration::from_secs(5);
/// The class in the key of events: a provider does not tell it.
const CLASS: &str = "unknown";

/// An event with what is known of it here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub event: Event,
    /// Of the recipient.
    pub destination: Arc<str>,
}

/// Something that events have an effect on.
#[async_trait]
pub trait FeedbackSink: Send + Sync {
    /// For a log, such as `suppression`.
    fn name(&self) -> &'static str;

    /// Takes events. Each comes once or more often, also from several processes at a time, and in no particular order:
    /// the same event twice must do what it does once.
    ///
    /// # Errors
    /// Why it cannot for now: the same events come again, and none is lost.
    async fn take(&self, events: &[Received]) -> Result<(), String>;
}

/// Works off the queue.
pub(crate) struct Worker {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) queue: String,
    pub(super) classifier: Arc<Classifier>,
    pub(super) sinks: Vec<Arc<dyn FeedbackSink>>,
    pub(super) metrics: Metrics,
}

/// The process is asked to end.
struct Stopping;

impl Worker {
    /// Works until `shutdown`; what was not worked off by then goes back to the queue.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        while let Ok(mut consumer) = self.subscribe(&shutdown).await {
            if let Err(Stopping) = self.work_off(&mut consumer, &shutdown).await {
                consumer.cancel().await;
                while let Some(delivery) = consumer.next().await {
                    delivery.settle.release();
                }
                consumer.flush().await;
                return;
            }
        }
    }

    async fn subscribe(&self, shutdown: &CancellationToken) -> Result<Consumer, Stopping> {
        let mut delays = delays();
        let mut waiting = false;
        loop {
            let consumed = tokio::select! {
                () = shutdown.cancelled() => return Err(Stopping),
                consumed = self.broker.consume(&self.queue, PREFETCH) => consumed,
            };
            match consumed {
                Ok(consumer) => {
                    if waiting {
                        info!("the feedback queue is being consumed again");
                    }
                    return Ok(consumer);
                }
                Err(error) if !waiting => {
                    warn!(%error, "events wait in the broker: the feedback queue cannot be consumed");
                    waiting = true;
                }
                Err(_) => {}
            }
            pause(&mut delays, shutdown).await?;
        }
    }

    /// Until the consumer ends.
    async fn work_off(&self, consumer: &mut Consumer, shutdown: &CancellationToken) -> Result<(), Stopping> {
        loop {
            let (events, settles) = tokio::select! {
                () = shutdown.cancelled() => return Err(Stopping),
                batch = self.gather(consumer) => batch,
            };
            if settles.is_empty() {
                return Ok(());
            }
            for sink in &self.sinks {
                if let Err(Stopping) = hand_over(&**sink, &events, shutdown).await {
                    consumer.cancel().await;
                    settles.into_iter().for_each(Settle::release);
                    return Err(Stopping);
                }
            }
            for Received { event, destination } in &events {
                self.metrics.worked_off(event, destination);
                self.tell(event, destination);
            }
            settles.into_iter().for_each(Settle::ack);
        }
    }

    /// The next batch; nothing to settle when the consumer has ended.
    async fn gather(&self, consumer: &mut Consumer) -> (Vec<Received>, Vec<Settle>) {
        let (mut events, mut settles) = (Vec::new(), Vec::new());
        let mut take = |delivery: Delivery| {
            match Event::parse(&delivery.body) {
                Ok(event) => {
                    let destination = self.classifier.destination(event.recipient.domain());
                    events.push(Received { event, destination });
                }
                Err(error) => {
                    self.metrics.unreadable();
                    warn!(%error, "a message of the feedback queue is dropped");
                }
            }
            settles.push(delivery.settle);
            settles.len() < usize::from(PREFETCH)
        };
        if consumer.next().await.is_some_and(&mut take) {
            let more = async { while consumer.next().await.is_some_and(&mut take) {} };
            // Running out of time is the usual end of a batch.
            tokio::time::timeout(LINGER, more).await.ok();
        }
        (events, settles)
    }

    /// For producers, at most once.
    fn tell(&self, event: &Event, destination: &str) {
        let notice = Notice::of(event, destination);
        let key = format!("{}.{CLASS}.{destination}", notice.event);
        if !self.broker.heard(&key) {
            return;
        }
        // Strings and numbers alone: writing them cannot fail.
        let body = serde_json::to_vec(&notice).unwrap_or_default().into();
        self.broker.emit(Outgoing { to: Route::Events, key, body, properties: Properties::default(), purpose: Purpose::Event });
    }
}

/// Until the sink has taken them.
async fn hand_over(sink: &dyn FeedbackSink, events: &[Received], shutdown: &CancellationToken) -> Result<(), Stopping> {
    if events.is_empty() {
        return Ok(());
    }
    let mut delays = delays();
    let mut waiting = false;
    loop {
        let asked_to_end = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_WORK).await;
        };
        let taken = tokio::select! {
            () = asked_to_end => return Err(Stopping),
            taken = sink.take(events) => taken,
        };
        match taken {
            Ok(()) => {
                if waiting {
                    info!(sink = sink.name(), "events are being taken again");
                }
                return Ok(());
            }
            Err(why) if !waiting => {
                warn!(sink = sink.name(), %why, "events wait in the broker");
                waiting = true;
            }
            Err(_) => {}
        }
        pause(&mut delays, shutdown).await?;
    }
}

fn delays() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .with_jitter()
        .build()
}

/// Waits for the next try.
async fn pause(delays: &mut (impl Iterator<Item = Duration> + Send), shutdown: &CancellationToken) -> Result<(), Stopping> {
    // The iterator has no end; a second would do.
    let delay = delays.next().unwrap_or(Duration::from_secs(1));
    tokio::select! {
        () = shutdown.cancelled() => Err(Stopping),
        () = tokio::time::sleep(delay) => Ok(()),
    }
}
