//! A consumer's channel: its acks, its end, and its watch.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::{future::join_all, task::AtomicWaker};
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{REPLY_LIMIT, acks::Batcher, convert::reason, poll_once};
use crate::message::Settlements;

/// Acks gather this long before they leave.
const GATHER: Duration = Duration::from_millis(1);
/// Acks behind a gap wait this long for it to close.
const GAP_WAIT: Duration = Duration::from_millis(50);
/// The broker has 32 commands of a channel under way to a quorum queue and keeps further ones in the channel, where they
/// are lost when it closes: before that it gets this long for each ack or release.
const SETTLE_TIME: Duration = Duration::from_millis(2);
/// … up to this.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// How often a silent channel is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the holders of a channel tell its task.
#[derive(Default)]
struct Inbox {
    acks: Vec<u64>,
    releases: Vec<u64>,
    flushed: Vec<oneshot::Sender<()>>,
    settled: Vec<oneshot::Sender<()>>,
    closing: bool,
    lost: Option<String>,
}

/// Shared by a channel's holders and its task.
#[derive(Default)]
pub(super) struct Core {
    inbox: Mutex<Inbox>,
    wake: Notify,
    /// So many acks behind a gap are no longer held back: they would starve the consumer.
    gap_max: AtomicUsize,
    /// Wakes the consumer when the channel is lost.
    consumer: AtomicWaker,
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // The inbox is plain data: a panic elsewhere leaves it usable.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to do; the inbox keeps only how it stands.
    fn take(&self) -> Inbox {
        let mut inbox = self.lock();
        let stands = Inbox { closing: inbox.closing, lost: inbox.lost.clone(), ..Inbox::default() };
        std::mem::replace(&mut *inbox, stands)
    }

    /// Why the channel is lost, if it is; otherwise `waker` will hear of it.
    pub(super) fn poll_lost(&self, waker: &std::task::Waker) -> Option<String> {
        self.consumer.register(waker);
        self.lock().lost.clone()
    }

    pub(super) fn lose(&self, why: String) {
        self.lock().lost.get_or_insert(why);
        self.consumer.wake();
        self.wake.notify_one();
    }

    pub(super) fn set_prefetch(&self, prefetch: u16) {
        self.gap_max.store(usize::from(prefetch / 2).max(1), Ordering::Relaxed);
    }

    /// Waits until what is settled so far has been written, or the channel is lost.
    pub(super) async fn flush(&self) {
        self.wait_for(|inbox, sender| inbox.flushed.push(sender)).await;
    }

    /// Waits as long as the broker may need to act on what is settled so far.
    async fn settle_down(&self) {
        self.wait_for(|inbox, sender| inbox.settled.push(sender)).await;
    }

    async fn wait_for(&self, ask: impl FnOnce(&mut Inbox, oneshot::Sender<()>)) {
        let (sender, done) = oneshot::channel();
        {
            let mut inbox = self.lock();
            if inbox.lost.is_some() {
                return;
            }
            ask(&mut inbox, sender);
        }
        self.wake.notify_one();
        // An error means that the channel has ended: nothing is left to write.
        let _ = timeout(REPLY_LIMIT, done).await;
    }
}

/// The right to settle on a channel. The channel closes when the last of these is gone.
pub(super) struct Holder {
    core: Arc<Core>,
}

impl Holder {
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Settlements for Holder {
    fn ack(&self, tag: u64) {
        let mut inbox = self.core.lock();
        inbox.acks.push(tag);
        // The task takes all there is when it wakes: only the first of a batch need wake it.
        if inbox.acks.len() == 1 {
            self.core.wake.notify_one();
        }
    }

    fn release(&self, tag: u64) {
        self.core.lock().releases.push(tag);
        self.core.wake.notify_one();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.core.lock().closing = true;
        self.core.wake.notify_one();
    }
}

/// Every open consumer channel, to be flushed before closing.
#[derive(Default)]
pub(super) struct Channels {
    open: Mutex<Vec<Weak<Core>>>,
}

impl Channels {
    /// Starts the task of a new channel.
    pub(super) fn tend(&self, channel: lapin::Channel, lost: watch::Receiver<Option<String>>, prefetch: u16) -> Arc<Holder> {
        let core = Arc::new(Core::default());
        core.set_prefetch(prefetch);
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|core| core.strong_count() > 0);
            open.push(Arc::downgrade(&core));
        }
        tokio::spawn(tend(core.clone(), channel, lost));
        Arc::new(Holder { core })
    }

    /// Sends all acks, in order that the connection may be closed.
    pub(super) async fn settle_down(&self) {
        let open: Vec<_> = self.open.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
        join_all(open.iter().map(|core| core.settle_down())).await;
    }
}

/// Sends acks and releases until the channel has no holder any more, then closes it; ends early when it is lost.
async fn tend(core: Arc<Core>, channel: lapin::Channel, mut lost: watch::Receiver<Option<String>>) {
    let mut batcher = Batcher::default();
    let mut gap_since: Option<Instant> = None;
    // When the broker may be taken to have acted on everything sent.
    let mut settling = Instant::now();
    loop {
        let look_in = gap_since.map_or(LOOK_EVERY, |since| (since + GAP_WAIT).saturating_duration_since(Instant::now()));
        tokio::select! {
            () = core.wake.notified() => {}
            () = sleep(look_in) => {}
            changed = lost.changed() => {
                if changed.is_err() {
                    core.lose("the connection was dropped".to_owned());
                }
            }
        }
        let gone = lost.borrow().clone();
        if let Some(why) = gone.or_else(|| (!channel.status().connected()).then(|| "the channel was closed".to_owned())) {
            core.lose(why);
        }
        let urgent = {
            let inbox = core.lock();
            if inbox.lost.is_some() {
                break;
            }
            inbox.closing || !inbox.flushed.is_empty() || !inbox.settled.is_empty() || inbox.acks.is_empty()
        };
        if !urgent {
            sleep(GATHER).await;
        }
        let Inbox { acks, releases, flushed, settled, closing, lost: _ } = core.take();
        acks.into_iter().for_each(|tag| batcher.settle(tag));
        let releases = releases.into_iter().filter(|tag| batcher.release(*tag)).collect();
        let overdue = gap_since.is_some_and(|since| since.elapsed() >= GAP_WAIT);
        let ending = closing || !settled.is_empty();
        let all = ending || overdue || !flushed.is_empty() || batcher.waiting() > core.gap_max.load(Ordering::Relaxed);
        let sent = match send(&channel, &mut batcher, all, releases).await {
            Ok(sent) => sent,
            Err(error) => {
                core.lose(reason(&error));
                break;
            }
        };
        settling = settling.max(Instant::now()) + SETTLE_TIME * sent;
        gap_since = (batcher.waiting() > 0).then(|| gap_since.unwrap_or_else(Instant::now));
        for sender in flushed {
            // Whoever asked may have stopped waiting.
            let _ = sender.send(());
        }
        if ending {
            sleep_until(settling.min(Instant::now() + SETTLE_LIMIT)).await;
        }
        for sender in settled {
            let _ = sender.send(());
        }
        if closing {
            // Closing gives back what was never settled.
            let _ = timeout(REPLY_LIMIT, channel.close(200, "done".into())).await;
            core.lose("the channel was closed".to_owned());
            break;
        }
    }
    // Those who still wait hear that there is nothing to wait for.
    drop(core.take());
}

/// Puts the frames on the connection's queue in order, then waits until the last of them is written. Says how many.
async fn send(channel: &lapin::Channel, batcher: &mut Batcher, all: bool, releases: Vec<u64>) -> lapin::Result<u32> {
    type Written<'a> = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send + 'a>>;
    let mut last: Option<Written<'_>> = None;
    let mut sent = 0;
    // The batcher counts these as settled already: they must leave before an ack that reaches past them.
    for tag in releases {
        let options = BasicNackOptions { multiple: false, requeue: true };
        let mut written: Written<'_> = Box::pin(channel.basic_nack(tag, options));
        sent += 1;
        match poll_once(&mut written).await {
            Poll::Ready(result) => result?,
            Poll::Pending => last = Some(written),
        }
    }
    for ack in batcher.take(all) {
        let mut written: Written<'_> = Box::pin(channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }));
        sent += 1;
        match poll_once(&mut written).await {
            Poll::Ready(result) => result?,
            Poll::Pending => last = Some(written),
        }
    }
    if let Some(written) = last {
        written.await?;
    }
    Ok(sent)
}
