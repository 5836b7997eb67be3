//! The dead-letter writer: from the queue into the store, in batches.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use paceline_broker::{Broker, Consumer, Delivery, End, Settle};
use paceline_core::{Reason, Timestamp};
use paceline_store::{DeadLetters, Error, StoredDeadLetter, Written};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{decode, suppress, suppress::AutoSuppress};

/// How the writer takes and batches.
#[derive(Debug, Clone)]
pub struct Options {
    /// The queue, `<prefix>.dead`.
    pub queue: String,
    /// Held at most, unless bodies are large; also the size of a batch.
    pub prefetch: u16,
    /// How many bytes of bodies are to be held: the prefetch follows the sizes that are seen.
    pub held_bytes: usize,
    /// A batch is written when its bodies reach this.
    pub batch_bytes: usize,
    /// How long a batch waits for more.
    pub linger: Duration,
    /// Between tries while broker or store are away: exponential with jitter, from `retry_min` to `retry_max`.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl Options {
    pub fn new(queue: String) -> Options {
        Options {
            queue,
            prefetch: 100,
            held_bytes: 64 << 20,
            batch_bytes: 8 << 20,
            linger: Duration::from_millis(50),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// How the writer fares, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriterState {
    Starting,
    Writing,
    /// It waits, and why.
    Waiting(String),
}

/// Prefetch to begin with, and the least: nothing is known of the sizes yet.
const PREFETCH_MIN: u16 = 8;

/// How long a write that is under way may take to end once the process is asked to.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Brings dead letters from the broker to the store. See the crate's promises.
pub struct Writer {
    broker: Arc<dyn Broker>,
    store: Arc<dyn DeadLetters>,
    options: Options,
    on_stored: Box<dyn Fn(Reason) + Send + Sync>,
    suppressing: Option<AutoSuppress>,
    state: watch::Sender<WriterState>,
}

/// The process is asked to end.
struct Stopping;

impl Writer {
    /// `on_stored` is called once for every entry that this writer was the first to store.
    pub fn new(
        broker: Arc<dyn Broker>,
        store: Arc<dyn DeadLetters>,
        options: Options,
        on_stored: impl Fn(Reason) + Send + Sync + 'static,
    ) -> Writer {
        let state = watch::Sender::new(WriterState::Starting);
        Writer { broker, store, options, on_stored: Box::new(on_stored), suppressing: None, state }
    }

    /// Puts recipients that were refused for good on the suppression list, before their dead letters are acknowledged.
    #[must_use]
    pub fn suppressing(self, refused: Option<AutoSuppress>) -> Writer {
        Writer { suppressing: refused, ..self }
    }

    pub fn state(&self) -> watch::Receiver<WriterState> {
        self.state.subscribe()
    }

    /// Writes until `shutdown`; then what is held and not written goes back to the queue.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut prefetch = Prefetch::new(&self.options);
        while let Ok(mut consumer) = self.subscribe(prefetch.now, &shutdown).await {
            let end = self.write_all(&mut consumer, &mut prefetch, &shutdown).await;
            if let Err(Stopping) = end {
                give_back(&mut consumer).await;
                return;
            }
            if let Some(End::Lost(why)) = consumer.ended() {
                self.waits(format!("the consumer of the dead-letter queue was lost: {why}"));
            }
        }
    }

    async fn subscribe(&self, prefetch: u16, shutdown: &CancellationToken) -> Result<Consumer, Stopping> {
        let mut delays = self.delays();
        loop {
            let consumed = tokio::select! {
                () = shutdown.cancelled() => return Err(Stopping),
                consumed = self.broker.consume(&self.options.queue, prefetch) => consumed,
            };
            match consumed {
                Ok(consumer) => {
                    self.writes();
                    return Ok(consumer);
                }
                Err(e) => self.waits(format!("the dead-letter queue cannot be consumed: {e}")),
            }
            pause(&mut delays, shutdown).await?;
        }
    }

    /// Until the consumer ends.
    async fn write_all(
        &self,
        consumer: &mut Consumer,
        prefetch: &mut Prefetch,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        loop {
            let (letters, settles) = tokio::select! {
                () = shutdown.cancelled() => return Err(Stopping),
                batch = self.gather(consumer, prefetch.now) => batch,
            };
            let Some(largest) = letters.iter().map(|l| l.body.len()).max() else { return Ok(()) };
            let stored = match self.store_all(&letters, shutdown).await {
                Ok(stored) => self.suppress(&letters, shutdown).await.map(|()| stored),
                stopping => stopping,
            };
            match stored {
                Ok(stored) => {
                    for (settle, stored) in settles.into_iter().zip(stored) {
                        // What is not stored stays unsettled: the broker keeps it and the next consumer gets it.
                        if stored {
                            settle.ack();
                        }
                    }
                }
                Err(Stopping) => {
                    consumer.cancel().await;
                    settles.into_iter().for_each(Settle::release);
                    return Err(Stopping);
                }
            }
            if let Some(now) = prefetch.observe(largest)
                && let Err(e) = consumer.resize(now).await
            {
                warn!(error = %e, "the prefetch of the dead-letter queue could not be changed");
            }
        }
    }

    /// The next batch; empty when the consumer has ended.
    async fn gather(&self, consumer: &mut Consumer, most: u16) -> (Vec<StoredDeadLetter>, Vec<Settle>) {
        let (mut letters, mut settles, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut take = |delivery: Delivery| {
            bytes += delivery.body.len();
            letters.push(decode::decode(&delivery, now()));
            settles.push(delivery.settle);
            // More than the prefetch does not come before these are settled.
            letters.len() < usize::from(most) && bytes < self.options.batch_bytes
        };
        let first = consumer.next().await;
        if first.is_some_and(&mut take) {
            let more = async { while consumer.next().await.is_some_and(&mut take) {} };
            // Running out of time is the usual end of a batch.
            tokio::time::timeout(self.options.linger, more).await.ok();
        }
        (letters, settles)
    }

    /// Stores a batch, trying again while the store is away; which of them the store now holds.
    async fn store_all(&self, letters: &[StoredDeadLetter], shutdown: &CancellationToken) -> Result<Vec<bool>, Stopping> {
        let written = self.insert(letters, shutdown).await?;
        let mut stored = Vec::with_capacity(letters.len());
        for (i, letter) in letters.iter().enumerate() {
            stored.push(match &written {
                Ok(written) if written[i] == Written::IdTaken => self.store_one(decode::renamed(letter), shutdown).await?,
                Ok(_) => true,
                // One of the batch is at fault: it must not hold up the others.
                Err(_) => self.store_one(letter.clone(), shutdown).await?,
            });
        }
        Ok(stored)
    }

    /// Stores one entry as it is; or under another id; or, where the store refuses it, its bytes alone.
    async fn store_one(&self, letter: StoredDeadLetter, shutdown: &CancellationToken) -> Result<bool, Stopping> {
        let mut letter = letter;
        for _ in 0..3 {
            letter = match self.insert(std::slice::from_ref(&letter), shutdown).await? {
                Ok(written) if written.contains(&Written::IdTaken) => decode::renamed(&letter),
                Ok(_) => return Ok(true),
                Err(why) => {
                    warn!(%why, bytes = letter.body.len(), "the store refuses a dead letter; its bytes are kept alone");
                    decode::bytes_only(&letter, &why, now())
                }
            };
        }
        error!(bytes = letter.body.len(), "the store refuses the bytes of a dead letter; the broker keeps it");
        Ok(false)
    }

    /// One transaction, tried until the store answers: what was written, or why the data is refused.
    async fn insert(
        &self,
        letters: &[StoredDeadLetter],
        shutdown: &CancellationToken,
    ) -> Result<Result<Vec<Written>, String>, Stopping> {
        let mut delays = self.delays();
        loop {
            let asked_to_end = async {
                shutdown.cancelled().await;
                tokio::time::sleep(LAST_WRITE).await;
            };
            let inserted = tokio::select! {
                () = asked_to_end => return Err(Stopping),
                inserted = self.store.insert(letters) => inserted,
            };
            match inserted {
                Ok(written) => {
                    self.writes();
                    for (letter, _) in letters.iter().zip(&written).filter(|(_, w)| **w == Written::New) {
                        (self.on_stored)(letter.entry.reason);
                    }
                    return Ok(Ok(written));
                }
                Err(Error::Refused(why)) => return Ok(Err(why)),
                Err(e @ (Error::Unavailable(_) | Error::Misconfigured(_))) => self.waits(e.in_full()),
            }
            pause(&mut delays, shutdown).await?;
        }
    }

    /// Lists who was refused, trying again while the store is away.
    async fn suppress(&self, letters: &[StoredDeadLetter], shutdown: &CancellationToken) -> Result<(), Stopping> {
        let Some(suppressing) = &self.suppressing else { return Ok(()) };
        let refused: Vec<_> = letters.iter().filter_map(suppress::refused).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let mut delays = self.delays();
        loop {
            match suppressing.list(&refused, now()).await {
                Ok(()) => {
                    self.writes();
                    return Ok(());
                }
                Err(Error::Refused(why)) => {
                    warn!(%why, recipients = refused.len(), "the store refuses entries of the suppression list; they are left out");
                    return Ok(());
                }
                Err(e @ (Error::Unavailable(_) | Error::Misconfigured(_))) => self.waits(e.in_full()),
            }
            pause(&mut delays, shutdown).await?;
        }
    }

    fn delays(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        ExponentialBuilder::new()
            .with_min_delay(self.options.retry_min)
            .with_max_delay(self.options.retry_max)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Notes, and logs when it is news, that dead letters wait in the broker.
    fn waits(&self, why: String) {
        let news = self.state.send_replace(WriterState::Waiting(why.clone())) != WriterState::Waiting(why.clone());
        if news {
            warn!(%why, "dead letters wait in the broker");
        }
    }

    fn writes(&self) {
        if let WriterState::Waiting(_) = self.state.send_replace(WriterState::Writing) {
            info!("dead letters are being written again");
        }
    }
}

/// Returns what has arrived and is not written.
async fn give_back(consumer: &mut Consumer) {
    consumer.cancel().await;
    while let Some(delivery) = consumer.next().await {
        delivery.settle.release();
    }
    consumer.flush().await;
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

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The prefetch that follows the sizes of bodies, so that what is held fits in memory.
struct Prefetch {
    now: u16,
    most: u16,
    budget_bytes: usize,
    /// The largest seen, fading.
    typical_bytes: usize,
}

impl Prefetch {
    fn new(options: &Options) -> Prefetch {
        let most = options.prefetch.max(1);
        Prefetch { now: PREFETCH_MIN.min(most), most, budget_bytes: options.held_bytes, typical_bytes: 0 }
    }

    /// Notes a batch's largest body; the new prefetch, where it should change.
    fn observe(&mut self, largest_bytes: usize) -> Option<u16> {
        self.typical_bytes = largest_bytes.max(self.typical_bytes / 8 * 7).max(1);
        let fits = u16::try_from(self.budget_bytes / self.typical_bytes).unwrap_or(u16::MAX);
        // Growth is gradual: what is large may come next.
        let want = fits.clamp(PREFETCH_MIN.min(self.most), self.most).min(self.now.saturating_mul(4));
        // Small steps up are not worth a call to the broker.
        let worth = want < self.now || want / 2 >= self.now || (want == self.most && want > self.now);
        worth.then(|| {
            self.now = want;
            want
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefetch_follows_the_sizes() {
        let mut prefetch = Prefetch::new(&Options::new(String::new()));
        assert_eq!(prefetch.now, 8);
        let grown: Vec<_> = (0..3).map(|_| prefetch.observe(2_000)).collect();
        assert_eq!(grown, [Some(32), Some(100), None]);
        assert_eq!(prefetch.observe(10 << 20), Some(8));
        let steps = (0..200).filter_map(|_| prefetch.observe(2_000)).collect::<Vec<_>>();
        assert_eq!(prefetch.now, 100, "large ones fade: {steps:?}");
        let mut one = Prefetch::new(&Options { prefetch: 1, ..Options::new(String::new()) });
        assert_eq!((one.now, one.observe(1)), (1, None));
    }
}
