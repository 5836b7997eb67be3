//! `paceline send`: producers' mail, published with confirms.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use clap::Args;
use paceline_broker::{Broker, BrokerError, HeaderValue, Outgoing, Properties, PublishError, Purpose, Route};
use paceline_classifier::Classifier;
use paceline_core::{Message, Rate, Timestamp, journey::header};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use super::lines::{self, Line};
use crate::{
    config::{BrokerUrl, Config},
    exit::Failure,
    output::{self, Format},
    services,
};

#[derive(Debug, Args)]
pub struct SendArgs {
    /// Messages, one JSON document a line; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Publish no faster than this, such as 200/s [default: as fast as the broker confirms]
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
}

/// How long one message is tried again while the broker is away or takes none.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
const MAX_GAP: Duration = Duration::from_secs(5);
/// Messages under way.
const WINDOW: usize = 512;
/// Bodies under way, in KiB.
const WINDOW_KIB: u32 = 64 * 1024;
/// Refused lines that are listed; beyond them they are only counted.
const MAX_LISTED: usize = 100_000;

/// A line that was not published.
#[derive(Debug, Serialize)]
struct Refused {
    line: u64,
    /// The message's id, where it could be read.
    id: Option<String>,
    /// The field at fault, where the line is no valid message.
    field: Option<String>,
    problem: String,
}

/// The result.
#[derive(Debug, Default, Serialize)]
struct Summary {
    published: u64,
    refused: Vec<Refused>,
    /// All of them, also those beyond what `refused` lists.
    refused_count: u64,
    seconds: f64,
}

impl Summary {
    fn count(&mut self, result: Result<(), Refused>) {
        match result {
            Ok(()) => self.published += 1,
            Err(refused) => {
                self.refused_count += 1;
                if self.refused.len() < MAX_LISTED {
                    self.refused.push(refused);
                }
            }
        }
    }
}

/// Publishes every line that is a message.
pub async fn run(config: &Config, args: &SendArgs, format: Format) -> Result<(), Failure> {
    let max_bytes = config.broker.max_message_bytes;
    let input = lines::open(&args.file, max_bytes)?;
    let broker = services::broker(config, "send")?;
    super::broker_is_up(&*broker, config).await?;
    let topology = services::topology(config);
    if let Err(e @ BrokerError::Missing(_)) = broker.depth(&topology.names.intake()).await {
        match &config.broker.url {
            // A broker that was never set up would only say so message by message.
            BrokerUrl::RabbitMq(_) => return Err(e.into()),
            // Nobody else looks after a new spool.
            BrokerUrl::Spool(_) => drop(broker.apply(&topology).await?),
        }
    }
    let sender = Arc::new(Sender { broker: broker.clone(), classifier: config.classifier.clone(), max_bytes });
    let started = Instant::now();
    let result = publish_all(sender, input, args.rate).await;
    broker.close().await;
    let (mut summary, unread) = result;
    summary.seconds = started.elapsed().as_secs_f64();
    summary.refused.sort_by_key(|r| r.line);
    output::object(format, &summary, people)?;
    match unread {
        Some(e) => Err(Failure::failed(format!("{}: reading stopped: {e}", args.file.display()))),
        None if summary.refused_count > 0 => Err(Failure::Reported),
        None => Ok(()),
    }
}

/// All lines, and why reading them stopped early if it did.
async fn publish_all(sender: Arc<Sender>, input: lines::Lines, rate: Option<Rate>) -> (Summary, Option<io::Error>) {
    let (lines_in, mut lines) = mpsc::channel::<io::Result<Line>>(64);
    // Standard input blocks: it is read on a thread of its own, which ends with the channel.
    std::thread::spawn(move || {
        for line in input {
            let stop = line.is_err();
            if lines_in.blocking_send(line).is_err() || stop {
                return;
            }
        }
    });
    let bytes = Arc::new(Semaphore::new(WINDOW_KIB as usize));
    let mut pace = rate.map(Pace::new);
    let (mut summary, mut unread) = (Summary::default(), None);
    let mut progress = Progress::new();
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(done) = under_way.join_next(), if !under_way.is_empty() => {
                // A task that panicked has published nothing that is known of: there is no such path.
                summary.count(done.unwrap_or_else(|e| Err(Refused { line: 0, id: None, field: None, problem: e.to_string() })));
            }
            line = lines.recv(), if under_way.len() < WINDOW => {
                let (number, body) = match line {
                    Some(Ok(line)) => line,
                    Some(Err(e)) => { unread = Some(e); break }
                    None => break,
                };
                let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(WINDOW_KIB).min(WINDOW_KIB);
                // The semaphore is never closed.
                let room = bytes.clone().acquire_many_owned(kib).await;
                if let Some(pace) = &mut pace {
                    pace.turn().await;
                }
                let sender = sender.clone();
                under_way.spawn(async move {
                    let _room = room;
                    sender.publish(number, body).await
                });
            }
            () = progress.tick() => progress.show(&summary),
        }
    }
    while let Some(done) = under_way.join_next().await {
        summary.count(done.unwrap_or_else(|e| Err(Refused { line: 0, id: None, field: None, problem: e.to_string() })));
        progress.show_if_due(&summary);
    }
    progress.end();
    (summary, unread)
}

struct Sender {
    broker: Arc<dyn Broker>,
    classifier: Arc<Classifier>,
    max_bytes: usize,
}

impl Sender {
    async fn publish(&self, line: u64, body: Vec<u8>) -> Result<(), Refused> {
        let message = Message::parse(&body, None, self.max_bytes).map_err(|e| Refused {
            line,
            id: None,
            field: Some(e.field),
            problem: e.problem,
        })?;
        let class = self.classifier.classify(&message, "").class;
        let now = Timestamp::from(SystemTime::now());
        let enqueued_at = (header::ENQUEUED_AT.to_owned(), HeaderValue::Text(now.to_string()));
        let outgoing = Outgoing {
            to: Route::Producers,
            key: Classifier::producer_key(class, message.domain()),
            body: Bytes::from(body),
            properties: Properties {
                message_id: Some(message.id.clone()),
                content_type: Some("application/json".into()),
                timestamp: Some(now),
                headers: [enqueued_at].into(),
            },
            purpose: Purpose::Submit,
        };
        let id = message.id;
        let refused = |problem: String| Refused { line, id: Some(id.clone()), field: None, problem };
        let (started, mut gap) = (Instant::now(), Duration::from_millis(100));
        loop {
            let error = match self.broker.publish(outgoing.clone()).await {
                Ok(()) => return Ok(()),
                Err(PublishError::Refused) => {
                    return Err(refused(
                        "the broker refused it: its queue takes no more of this class for now; send it again later".into(),
                    ));
                }
                Err(e @ PublishError::Invalid(_)) => return Err(refused(e.to_string())),
                // Publishing an unconfirmed one again may make two: its id keeps it from being sent twice.
                Err(e) => e,
            };
            if started.elapsed() > GIVE_UP_AFTER {
                return Err(refused(format!("{error}; send it again, its id keeps it from being sent twice")));
            }
            tokio::time::sleep(gap).await;
            gap = (gap * 2).min(MAX_GAP);
        }
    }
}

/// So many turns in so long, without a burst.
struct Pace {
    gap: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: Rate) -> Pace {
        Pace { gap: Duration::from_micros(rate.interval_us()), next: Instant::now() }
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        // Time lost to the broker is not made up for, but a timer's few milliseconds are.
        self.next = self.next.max(now.checked_sub(Duration::from_millis(10)).unwrap_or(now));
        tokio::time::sleep_until(self.next).await;
        self.next += self.gap;
    }
}

/// A line on the terminal that is written over, where there is a terminal.
struct Progress {
    every: tokio::time::Interval,
    shown: bool,
    terminal: bool,
    last: Instant,
}

impl Progress {
    fn new() -> Progress {
        let mut every = tokio::time::interval(Duration::from_millis(250));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Progress { every, shown: false, terminal: io::stderr().is_terminal(), last: Instant::now() }
    }

    async fn tick(&mut self) {
        self.every.tick().await;
    }

    fn show_if_due(&mut self, summary: &Summary) {
        if self.last.elapsed() > Duration::from_millis(250) {
            self.show(summary);
        }
    }

    fn show(&mut self, summary: &Summary) {
        self.last = Instant::now();
        if self.terminal {
            self.shown = true;
            let _ = write!(io::stderr(), "\r{} published, {} refused ", summary.published, summary.refused_count);
        }
    }

    fn end(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn people(s: &Summary) -> String {
    let mut text = format!("{} published in {:.1} s, {} refused\n", s.published, s.seconds, s.refused_count);
    if !s.refused.is_empty() {
        let dash = |t: &Option<String>| t.clone().unwrap_or_else(|| "-".into());
        let rows: Vec<_> =
            s.refused.iter().map(|r| vec![r.line.to_string(), dash(&r.id), dash(&r.field), r.problem.clone()]).collect();
        text.push_str(&format!("\n{}", output::table(&["LINE", "ID", "FIELD", "PROBLEM"], &rows)));
    }
    let listed = s.refused.len() as u64;
    if listed < s.refused_count {
        text.push_str(&format!("… and {} more\n", s.refused_count - listed));
    }
    text
}
